"""Measurement of the sink mass of one model on one data set, with ablations, as record files.

Windows and query modes come from one pass over each sequence. The chat template doubles the work,
and each quantisation loads the model again. A killed run resumes.
"""

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from graphhalu.core.axes import SPAN_NAMES
from graphhalu.core.errors import GraphhaluError, UsageError
from graphhalu.core.provenance import file_sha256, installed_version, provenance
from graphhalu.datasets.question import LETTERS, Question
from graphhalu.datasets.registry import load_questions, own_path
from graphhalu.engine.executors import Progress, no_progress
from graphhalu.extract.prompts import prompt_template_name, uses_chat
from graphhalu.models.check import check_model
from graphhalu.models.load import LoadedModel, load_model
from graphhalu.studies.sinks.passes import (
    KIND_DESCRIPTIONS,
    Journal,
    Kind,
    Measured,
    SinkPrompt,
    kind_of,
    measure_batches,
    record_of,
    require_same,
    sink_prompts,
)
from graphhalu.studies.sinks.records import (
    FORMAT,
    FORMAT_VERSION,
    SUFFIX,
    MeasuredRun,
    SinkRecord,
    SinkRun,
    read_run,
    run_name,
    run_stem,
    write_run,
)
from graphhalu.studies.sinks.settings import Ablation, SinkMeasureConfig
from graphhalu.studies.sinks.stored import measure_generated

WAVE: Final = 96
"""Sequences that are measured between two writes to the journal."""
_META_FIELDS: Final = ("category", "subject", "subset")
_LOG: Final = logging.getLogger(__name__)


def measure(
    config: SinkMeasureConfig,
    out: Path,
    *,
    ablate: Sequence[Ablation] = (),
    on_progress: Progress = no_progress,
) -> list[MeasuredRun]:
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
    questions = load_questions(
        dataset.name,
        dataset.path,
        num_samples=config.num_samples,
        seed=dataset.seed,
        fields=dataset.fields or None,
    )
    kind = kind_of(questions, dataset.name)
    found: list[MeasuredRun] = []
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
        for chat in ["off", "on"] if "chat" in ablate else [config.prompt.chat]:
            prompt = config.prompt.model_copy(update={"chat": chat})
            variant = config.model_copy(update={"model": model, "prompt": prompt})
            parts = [f"chat-{chat}"] if "chat" in ablate else []
            parts += [quantization] if "quantization" in ablate else []
            folder = out / ("_".join(parts) or ".")
            if loaded is None:
                found += measure_generated(variant, folder)
                continue
            try:
                uses_chat(prompt, loaded)
            except UsageError as error:
                if "chat" not in ablate:
                    raise
                _log_skipped("chat on", error)
                continue
            found += _run(variant, loaded, questions, kind, folder, on_progress=on_progress)
    return found


def _quantizations(config: SinkMeasureConfig, ablate: Sequence[Ablation]) -> list[str]:
    if "quantization" not in ablate:
        return [config.model.quantization]
    missing = None if torch.cuda.is_available() else "there is no GPU"
    if installed_version("bitsandbytes") is None:
        missing = "bitsandbytes is not installed"
    if missing is not None:
        _LOG.info("quantisation int8 and nf4 skipped: %s", missing)
        return ["none"]
    return ["none", "int8", "nf4"]


def _log_skipped(name: str, error: GraphhaluError) -> None:
    _LOG.info("%s skipped: %s", name, str(error).splitlines()[0])


def _run(
    config: SinkMeasureConfig,
    loaded: LoadedModel,
    questions: Sequence[Question],
    kind: Kind,
    folder: Path,
    *,
    on_progress: Progress,
) -> list[MeasuredRun]:
    """Measure a variant, or take its files of an earlier call."""
    name = loaded.identity["name"]
    cells = [(k, mode) for k in config.ks for mode in config.modes]
    paths = [folder / f"{run_name(config.task, name, *cell)}{SUFFIX}" for cell in cells]
    identity = run_identity(config, loaded)
    there = [_earlier(path, identity) for path in paths if path.exists()]
    if len(there) == len(paths):
        _LOG.info("%d files are in %s already", len(there), folder)
        return there
    started = time.process_time()
    prompts, failures = sink_prompts(questions, kind, config, loaded)
    if not prompts:
        reason = failures[0] if failures else "there is none"
        raise UsageError(f"no question of {config.dataset.name} can be measured: {reason}")
    asked = {"ks": list(config.ks), "modes": list(config.modes), "n_sequences": len(prompts)}
    journal = Journal(folder / f".{run_stem(config.task, name)}.journal", {**identity, **asked})
    left = [prompt for prompt in prompts if prompt.idx not in journal.done]
    on_progress(len(journal.done), len(prompts))
    for start in range(0, len(left), WAVE):
        measured = measure_batches(loaded, left[start : start + WAVE], config)
        journal.add((prompt.idx, each) for prompt, each in measured)
        on_progress(len(journal.done), len(prompts))
    cpu_s = time.process_time() - started
    common = {
        **_description(config, loaded, kind),
        "configuration": identity,
        "n_failed": dict(Counter(failures)),
        "cpu_s": round(cpu_s, 1),
        "n_records": len(prompts),
    }
    runs = []
    for place, (path, (k, mode)) in enumerate(zip(paths, cells, strict=True)):
        records = tuple(_record(prompt, journal.done[prompt.idx], place, common) for prompt in prompts)
        meta = {**common, "sink_tokens": k, "query_mode": mode, "sink_spans": _spans(prompts, k)}
        run = SinkRun(records, meta, path.name.removesuffix(SUFFIX))
        write_run(folder, run)
        runs.append(MeasuredRun.of(path, run, is_new=True, cpu_s=cpu_s))
    journal.path.unlink(missing_ok=True)
    return runs


def _earlier(path: Path, identity: dict[str, Any]) -> MeasuredRun:
    """A file of an earlier call with the same settings."""
    run = read_run(path)
    require_same(run.meta.get("configuration", {}), identity, path)
    return MeasuredRun.of(path, run, is_new=False, cpu_s=float(run.meta.get("cpu_s", 0.0)))


def run_identity(config: SinkMeasureConfig, loaded: LoadedModel) -> dict[str, Any]:
    """Everything that decides the numbers of a run, except window and query mode."""
    path = own_path(config.dataset.name) or config.dataset.path
    return {
        "model": dict(loaded.identity),
        "dataset": {
            "name": config.task,
            "seed": config.dataset.seed,
            "num_samples": config.num_samples,
            "fields": dict(config.dataset.fields),
            "file_sha256": None if path is None else file_sha256(path),
        },
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
    return {
        "task": config.task,
        "dataset": config.dataset.name,
        "subset": None,
        "split": None,
        "model": str(loaded.identity["name"]),
        "revision": config.model.revision,
        "samples": config.num_samples,
        "seed": config.dataset.seed,
        "query_start": config.query_start,
        "chat": "on" if uses_chat(config.prompt, loaded) else "off",
        "quantization": config.model.quantization,
        "device": str(loaded.model.device),
        "transformers_version": installed_version("transformers"),
        "torch_version": installed_version("torch"),
        "timestamp": time.time(),
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "pose": kind,
        "pose_means": KIND_DESCRIPTIONS[kind],
        "n_parameters": int(loaded.model.num_parameters()),
        "n_layers": loaded.n_layers,
        "n_heads": loaded.n_heads,
        "provenance": provenance(),
    }


def _spans(prompts: Sequence[SinkPrompt], k: int) -> list[dict[str, float]]:
    """For each token of the sink how often it belongs to which span.

    With a chat template the window covers other tokens than without.
    """
    codes = np.stack([each.sequence.span_code[:k] for each in prompts if each.n_tokens > k])
    return [
        {SPAN_NAMES[int(code)]: round(float((column == code).mean()), 4) for code in np.unique(column)}
        for column in codes.T
    ]


def _record(prompt: SinkPrompt, measured: Measured, place: int, run: Mapping[str, Any]) -> SinkRecord:
    """One record.

    Args:
        prompt: The measured sequence.
        measured: Its measurement.
        place: Which window and query mode.
        run: Description of the run.
    """
    question, pred = prompt.question, measured.pred
    return record_of(
        measured.cells[place],
        run,
        idx=prompt.idx,
        target=prompt.target,
        pred=None if pred is None else LETTERS[pred],
        labels=prompt.labels(pred),
        entropy=measured.entropy,
        seq_len=prompt.n_tokens,
        meta={
            "question_id": question.question_id,
            "group_id": question.group_id,
            "source": run["dataset"],
            "pose": prompt.kind,
            "place": prompt.place,
            **{key: question.metadata[key] for key in _META_FIELDS if key in question.metadata},
        },
    )
