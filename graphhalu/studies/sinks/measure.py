"""Measurement of the sink mass of one model on one data set, with ablations, as record files.

Windows and query modes come from one pass over each sequence. The chat template doubles the work,
and each quantisation loads the model again. A killed run resumes.

From a trace store no model is run again. There an answer of the model's own is measured at the row
that begins it (mode ``last``), the last row that the model saw before it answered, or over all stored
rows after the sink (mode ``range``). A given answer, whose label speaks of it, is measured after its
last token.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool

from graphhalu.core.axes import SPAN_NAMES
from graphhalu.core.errors import GraphhaluError, UsageError
from graphhalu.core.provenance import installed_version
from graphhalu.datasets.question import Question
from graphhalu.datasets.registry import DATASETS, load_questions
from graphhalu.engine.executors import Progress, no_progress
from graphhalu.extract.prompts import prompt_template_name, uses_chat
from graphhalu.extract.run import extract
from graphhalu.extract.settings import PromptSettings
from graphhalu.features.block import TraceBlock, blocks
from graphhalu.features.sinks import row_sink_share
from graphhalu.labels.labels import Labels
from graphhalu.labels.registry import make_labeller
from graphhalu.labels.run import label_records, read_labels, stored_labellers
from graphhalu.models.check import check_model
from graphhalu.models.load import LoadedModel, load_model
from graphhalu.studies.rows import require_same
from graphhalu.studies.sinks.passes import (
    Journal,
    Kind,
    SinkPrompt,
    kind_of,
    measure_prompts,
    sink_fields,
    sink_prompts,
)
from graphhalu.studies.sinks.records import (
    SUFFIX,
    QueryMode,
    SinkCell,
    SinkRecord,
    SinkRun,
    read_run,
    run_name,
    run_stem,
    write_run,
)
from graphhalu.studies.sinks.settings import DESCRIBED, KINDS, Ablations, SinkMeasureConfig
from graphhalu.traces.schema import N_SINK_KEYS
from graphhalu.traces.store import TraceStore, open_traces

WAVE: Final = 96
"""Sequences that are measured between two writes to the journal."""
DEFAULT_RULE: Final = "match"
_RULES: Final = ("match", "choice", "given", "premise", "rouge")
_LOG: Final = logging.getLogger(__name__)
Asked = tuple[Sequence[Question], Kind]
"""Questions, and their kind."""


def measure(
    config: SinkMeasureConfig, out: Path, *, ablate: Ablations = (), on_progress: Progress = no_progress
) -> list[SinkRun]:
    """Measure, and write one file of records for each window, query mode and variant.

    Args:
        config: Model, data set, windows and query modes.
        out: Folder of the files; variants of an ablation get folders inside of it.
        ablate: ``chat`` runs without and with the chat template, ``quantization`` at full
            precision, in int8 and in NF4. (``k`` is a choice of windows: see ``ks``.)
        on_progress: Called with sequences done and to do, of one variant.

    Raises:
        UsageError: If a setting cannot be used.
        StoreMismatchError: If files there were measured with other settings.
        GraphhaluError: If the data set or the model cannot be used.
    """
    dataset = config.dataset
    chosen: dict[str, Any] = {"num_samples": config.num_samples, "seed": dataset.seed}
    questions = load_questions(dataset.name, dataset.path, fields=dataset.fields or None, **chosen)
    kind = kind_of(questions, dataset.name)
    found: list[SinkRun] = []
    for quantization in _quantizations(config, ablate):
        model = config.model.model_copy(update={"quantization": quantization})
        loaded = None
        if kind != "generated":
            try:
                loaded = load_model(model)
                check_model(loaded)
            except GraphhaluError as error:
                if not ablate or quantization == "none":
                    raise
                _log_skipped(f"quantisation {quantization}", error)
                continue
        for chat in _chats(config, ablate, loaded):
            prompt = config.prompt.model_copy(update={"chat": chat})
            variant = config.model_copy(update={"model": model, "prompt": prompt})
            parts = [f"chat-{chat}"] * ("chat" in ablate) + [quantization] * ("quantization" in ablate)
            folder = out / ("_".join(parts) or ".")
            if loaded is None:
                found += measure_generated(variant, folder)
            else:
                found += _run(variant, loaded, (questions, kind), folder, on_progress)
    return found


def _quantizations(config: SinkMeasureConfig, ablate: Ablations) -> list[str]:
    if "quantization" not in ablate:
        return [config.model.quantization]
    has_library, has_gpu = installed_version("bitsandbytes") is not None, torch.cuda.is_available()
    if has_library and has_gpu:
        return ["none", "int8", "nf4"]
    missing = "there is no GPU" if has_library else "bitsandbytes is not installed"
    _LOG.info("quantisation int8 and nf4 skipped: %s", missing)
    return ["none"]


def _chats(config: SinkMeasureConfig, ablate: Ablations, loaded: LoadedModel | None) -> list[str]:
    if "chat" not in ablate:
        return [config.prompt.chat]
    try:
        if loaded is not None:
            uses_chat(PromptSettings(chat="on"), loaded)
    except UsageError as error:
        _log_skipped("chat on", error)
        return ["off"]
    return ["off", "on"]


def _log_skipped(name: str, error: GraphhaluError) -> None:
    _LOG.info("%s skipped: %s", name, str(error).splitlines()[0])


def _run(
    config: SinkMeasureConfig, loaded: LoadedModel, asked: Asked, folder: Path, on_progress: Progress
) -> list[SinkRun]:
    """Measure a variant, or take its files of an earlier call."""
    questions, kind = asked
    name, identity, cells = str(loaded.identity["name"]), run_identity(config, loaded), config.cells
    paths = [folder / f"{run_name(config.task, name, *cell)}{SUFFIX}" for cell in cells]
    there = [read_run(path) for path in paths if path.exists()]
    for run in there:
        require_same(run.meta.get("configuration", {}), identity, run.path or folder)
    if len(there) == len(paths):
        _LOG.info("%d files are in %s already", len(there), folder)
        return there
    started = time.process_time()
    prompts, failures = sink_prompts(questions, kind, config, loaded)
    if not prompts:
        reason = failures[0] if failures else "there is none"
        raise UsageError(f"no question of {config.dataset.name} can be measured: {reason}")
    meta = {**_description(config, loaded, kind), "configuration": identity}
    shape = {"ks": list(config.ks), "modes": list(config.modes), "n_sequences": len(prompts)}
    journal = Journal(folder / f".{run_stem(config.task, name)}.journal", {**identity, **shape})
    left = [prompt for prompt in prompts if prompt.idx not in journal.done]
    for start in range(0, len(left), WAVE):
        on_progress(len(journal.done), len(prompts))
        journal.add(measure_prompts(left[start : start + WAVE], loaded, config, meta))
    on_progress(len(journal.done), len(prompts))
    meta |= {"n_failed": dict(Counter(failures)), "n_records": len(prompts)}
    meta["cpu_s"] = round(time.process_time() - started, 1)
    runs = _runs(meta, cells, [journal.done[prompt.idx] for prompt in prompts])
    found = [_written(run, folder, sink_spans=_spans(prompts, run.meta["sink_tokens"])) for run in runs]
    journal.path.unlink(missing_ok=True)
    return found


def _runs(meta: dict[str, Any], cells: list[SinkCell], rows: list[list[SinkRecord]]) -> Iterator[SinkRun]:
    """A run of each sink and query mode; rows are sequences with a record of each."""
    for (k, mode), records in zip(cells, zip(*rows, strict=True), strict=True):
        name = run_name(meta["task"], meta["model"], k, mode)
        yield SinkRun(records, {**meta, "sink_tokens": k, "query_mode": mode}, name)


def _written(run: SinkRun, folder: Path, **meta: Any) -> SinkRun:
    """Write a run that was just measured; gives it with its path."""
    run = replace(run, meta={**run.meta, **meta})
    return replace(run, path=write_run(folder, run), is_new=True)


def run_identity(config: SinkMeasureConfig, loaded: LoadedModel) -> dict[str, Any]:
    """Everything that decides the numbers of a run, except window and query mode."""
    asked = {"name": config.task, "num_samples": config.num_samples, "fields": dict(config.dataset.fields)}
    return {
        "model": dict(loaded.identity),
        "dataset": {**config.dataset.identity(), **asked},
        "prompt": {
            "chat": uses_chat(config.prompt, loaded),
            "system": config.prompt.system,
            "template": prompt_template_name(config.extraction()),
            "n_examples": config.n_examples,
        },
        "query_start": config.query_start,
    }


def _description(config: SinkMeasureConfig, loaded: LoadedModel, kind: Kind) -> dict[str, Any]:
    """The published fields of a description, and some more."""
    sources = SimpleNamespace(config=config, loaded=loaded)
    found: dict[str, Any] = {name: attrgetter(path)(sources) for name, path in DESCRIBED.items()}
    found |= dict.fromkeys(("subset", "split"))
    found |= {f"{name}_version": installed_version(name) for name in ("transformers", "torch")}
    found |= {"model": str(loaded.identity["name"]), "chat": _on_off(uses_chat(config.prompt, loaded))}
    found |= {"device": str(loaded.model.device), "timestamp": time.time()}
    found |= {"pose": kind, "pose_means": KINDS[kind]}
    return found | {"n_parameters": int(loaded.model.num_parameters())}


def _on_off(is_chat: object) -> str:
    return "on" if is_chat else "off"


def _spans(prompts: Sequence[SinkPrompt], k: int) -> list[dict[str, float]]:
    """For each token of the sink how often it belongs to which span.

    With a chat template the window covers other tokens than without.
    """
    codes = np.stack([each.sequence.span_code[:k] for each in prompts if each.sequence.prompt_length > k])
    return [
        {SPAN_NAMES[int(code)]: round(float((column == code).mean()), 4) for code in np.unique(column)}
        for column in codes.T
    ]


def measure_generated(config: SinkMeasureConfig, folder: Path) -> list[SinkRun]:
    """Let the model answer in words into a trace store of row statistics, and read the store.

    Raises:
        UsageError: If a window is larger than a store keeps.
        GraphhaluError: From the extraction.
    """
    _check_ks(config.ks)
    path = folder / f"{run_stem(config.task, Path(config.model.name).name)}.zarr"
    _LOG.info("the model answers in words: traces go to %s", path)
    extract(config.extraction(), path)
    return measure_store(path, folder, config)


def measure_store(
    path: Path, folder: Path, config: SinkMeasureConfig, *, labeller: str | None = None
) -> list[SinkRun]:
    """Write the records of a trace store, one file for each window and query mode.

    Args:
        path: The store; it keeps ``sink_keys`` and ``token_entropy``.
        folder: Folder of the files.
        config: Windows and query modes; settings of the model play no part.
        labeller: Rule of the label of the model's own output; by default that of the data set.

    Raises:
        UsageError: If a window is larger than a store keeps.
        StoreError: If there is no such store.
        TraceNotFoundError: If it keeps no sinks.
    """
    _check_ks(config.ks)
    store = open_traces(path)
    name = str(store.configuration.get("dataset", {}).get("name", ""))
    rule = DATASETS.get(name).card.label_rule if name in DATASETS else DEFAULT_RULE
    labeller = labeller or (rule if rule in _RULES else DEFAULT_RULE)
    if labeller in stored_labellers(store):
        labels = read_labels(store, labeller)
    else:
        labels = label_records(store.records, make_labeller(labeller))
    return [_written(run, folder) for run in store_runs(store, labels, config)]


def store_runs(store: TraceStore, labels: Labels, config: SinkMeasureConfig) -> Iterator[SinkRun]:
    """The runs of a store in memory."""
    configuration = store.configuration
    model, prompt, dataset = (configuration.get(name, {}) for name in ("model", "prompt", "dataset"))
    task = str(dataset.get("name") or store.path.stem).split(".", maxsplit=1)[0]
    source: dict[str, Any] = {"task": task, "model": str(model.get("name") or "unknown")}
    source |= {"chat": _on_off(prompt.get("chat")), "quantization": str(model.get("quantization") or "none")}
    source |= {"query_start": config.query_start, "dataset": task, "pose": "generated"}
    source |= {"configuration": dict(configuration), "labeller": labels.labeller, "n_records": len(store)}
    source["n_failed"] = dict(Counter(item["reason"] for item in store.failures))
    is_output, found = labels.meaning == "hallucinated", dict[int, list[SinkRecord]]()
    for placed in blocks(store):
        block = placed.block
        # of the distribution that gave the first token of an own answer, or the last of a given one
        rows = np.array([r.prompt_length if r.is_on_policy else r.length - 1 for r in block.records])
        entropy = block.stream("token_entropy")[block.tokens.offsets[:-1] + rows]
        masses = [block_mass(block, *cell, config.query_start) for cell in config.cells]
        for index, within in zip(placed.indices.tolist(), placed.within.tolist(), strict=True):
            record = block.records[within]
            stated = record.input_label if record.given_label is None else record.given_label
            wrong = labels.values[index] if is_output and labels.is_valid[index] else None
            names = {name: getattr(record, name) for name in ("question_id", "group_id", "trace_id")}
            fields: dict[str, Any] = {"idx": index, "pred": record.answer, "entropy": float(entropy[within])}
            fields |= {"target": next(iter(record.answers), None), "meta": {**names, "source": task}}
            fields["labels"] = {"hallucinated": wrong, "input": stated}
            found[index] = [SinkRecord.of(source, **each[within], **fields) for each in masses]
    yield from _runs(source, config.cells, [found[index] for index in sorted(found)])


def block_mass(block: TraceBlock, k: int, mode: QueryMode, query_start: int = 0) -> list[dict[str, Any]]:
    """Sink mass of every trace of a block, and the tokens up to its last counted row."""
    rows, share = block.all_rows, row_sink_share(block.all_rows, k)
    ends = [r.prompt_length if r.is_on_policy else r.length for r in block.records]
    last = np.array(ends, dtype=np.int64) - 1
    chosen = rows.token == last[rows.ragged.trace] if mode == "last" else rows.token >= query_start
    counts: Bool[np.ndarray, "layer row"] = share.is_defined & chosen
    mass = rows.ragged.mean(share.values, counts[:, None])
    is_seen = rows.ragged.sum(counts) > 0
    sizes = ends if mode == "last" else [record.length for record in block.records]
    found = zip(mass, is_seen, sizes, strict=True)
    return [sink_fields(k, mode, values, seen) | {"seq_len": size} for values, seen, size in found]


def _check_ks(ks: Sequence[int]) -> None:
    if max(ks) > N_SINK_KEYS:
        fault = f"a trace store keeps the first {N_SINK_KEYS} tokens, a sink of {max(ks)} was asked for"
        raise UsageError(
            f"{fault}\n  Use --k up to {N_SINK_KEYS}, or a data set whose questions have options"
        )
