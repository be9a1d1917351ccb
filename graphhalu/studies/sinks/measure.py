"""Measurement of the sink mass of one model on one data set, with ablations, as record files.

Windows and query modes come from one pass over each sequence. The chat template doubles the work,
and each quantisation loads the model anew. A killed run goes on where it stopped.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import torch

from graphhalu.core.axes import SPAN_NAMES
from graphhalu.core.errors import GraphhaluError, UsageError
from graphhalu.core.provenance import file_sha256, installed_version, provenance
from graphhalu.datasets.question import LETTERS, Question
from graphhalu.datasets.registry import load_questions, own_path
from graphhalu.extract.prompts import prompt_template_name, uses_chat
from graphhalu.models.check import check_model
from graphhalu.models.load import LoadedModel, ModelSpec, load_model
from graphhalu.studies.sinks.files import SUFFIX, read_run, write_run
from graphhalu.studies.sinks.passes import Journal, Measured, measure_batches, require_same
from graphhalu.studies.sinks.prompt_formatting import (
    KIND_DESCRIPTIONS,
    Kind,
    SinkPrompt,
    kind_of,
    sink_prompts,
)
from graphhalu.studies.sinks.records import (
    FORMAT,
    FORMAT_VERSION,
    MeasuredRun,
    QueryMode,
    SinkRecord,
    SinkRun,
    run_name,
    run_stem,
)
from graphhalu.studies.sinks.settings import Ablation, SinkMeasureConfig
from graphhalu.studies.sinks.stored import measure_generated

WAVE: Final = 96
"""Sequences that are measured between two writes to the journal."""

T = TypeVar("T")
Progress = Callable[[int, int], None]
Note = Callable[[str], None]


def measure(
    config: SinkMeasureConfig,
    out: Path,
    *,
    ablate: Sequence[Ablation] = (),
    on_progress: Progress = lambda _done, _total: None,
    on_note: Note = lambda _: None,
) -> list[MeasuredRun]:
    """Measure, and write one file of records for each window, query mode and variant.

    Args:
        config: What to measure.
        out: Folder of the files; variants of an ablation get folders inside of it.
        ablate: ``chat`` runs without and with the chat template, ``quantization`` at full
            precision, in int8 and in NF4. (``k`` is a choice of windows: see ``ks``.)
        on_progress: Called with sequences done and to do, of one variant.
        on_note: Told in one line what a user should know, such as what was skipped.

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
    for quantization in _quantizations(config, ablate, on_note):
        model = config.model.model_copy(update={"quantization": quantization})
        skipped = GraphhaluError if ablate and quantization != "none" else None
        loaded = None
        if kind != "generated":
            name = f"quantisation {quantization}"
            loaded = _or_note(partial(_load, model), name, skipped, on_note)
            if loaded is None:
                continue
        for chat in ["off", "on"] if "chat" in ablate else [config.prompt.chat]:
            prompt = config.prompt.model_copy(update={"chat": chat})
            variant = config.model_copy(update={"model": model, "prompt": prompt})
            parts = [f"chat-{chat}"] if "chat" in ablate else []
            parts += [quantization] if "quantization" in ablate else []
            folder = out / ("_".join(parts) or ".")
            if loaded is None:
                found += measure_generated(variant, folder, on_note)
                continue
            has_chat = partial(uses_chat, prompt, loaded)
            skipped = UsageError if "chat" in ablate else None
            if _or_note(has_chat, "chat on", skipped, on_note) is None:
                continue
            run = partial(_run, variant, loaded, questions, kind, folder)
            found += run(on_progress=on_progress, on_note=on_note)
    return found


def _quantizations(config: SinkMeasureConfig, ablate: Sequence[Ablation], on_note: Note) -> list[str]:
    """Quantisations to run, each of which loads the model anew."""
    if "quantization" not in ablate:
        return [config.model.quantization]
    missing = None if torch.cuda.is_available() else "there is no GPU"
    if installed_version("bitsandbytes") is None:
        missing = "bitsandbytes is not installed"
    if missing is not None:
        on_note(f"quantisation int8 and nf4 skipped: {missing}")
        return ["none"]
    return ["none", "int8", "nf4"]


def _load(model: ModelSpec) -> LoadedModel:
    loaded = load_model(model)
    check_model(loaded)
    return loaded


def _or_note(
    call: Callable[[], T], what: str, skipped: type[GraphhaluError] | None, on_note: Note
) -> T | None:
    """What a call gives; where it raises an error that may be skipped, ``None`` and a note."""
    try:
        return call()
    except GraphhaluError as error:
        if skipped is None or not isinstance(error, skipped):
            raise
        on_note(f"{what} skipped: {str(error).splitlines()[0]}")
        return None


def _run(
    config: SinkMeasureConfig,
    loaded: LoadedModel,
    questions: Sequence[Question],
    kind: Kind,
    folder: Path,
    *,
    on_progress: Progress,
    on_note: Note,
) -> list[MeasuredRun]:
    """Measure a variant, or take its files of an earlier call."""
    name = loaded.identity["name"]
    cells: list[tuple[int, QueryMode]] = [(k, mode) for k in config.ks for mode in config.modes]
    paths = [folder / f"{run_name(config.task, name, *cell)}{SUFFIX}" for cell in cells]
    identity = run_identity(config, loaded)
    there = [_earlier(path, identity) for path in paths if path.exists()]
    if len(there) == len(paths):
        on_note(f"{len(there)} files are in {folder} already")
        return there
    started = time.process_time()
    prompts, failures = sink_prompts(questions, kind, config, loaded)
    if not prompts:
        reason = failures[0] if failures else "there is none"
        message = f"no question of {config.dataset.name} can be measured: {reason}"
        raise UsageError(message)
    journal_path = folder / f".{run_stem(config.task, name)}.journal"
    cells_asked = {"ks": list(config.ks), "modes": list(config.modes)}
    journal = Journal(journal_path, {**identity, **cells_asked, "n_sequences": len(prompts)})
    _measure_rest(journal, prompts, config, loaded, on_progress)
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
    journal_path.unlink(missing_ok=True)
    return runs


def _measure_rest(
    journal: Journal,
    prompts: Sequence[SinkPrompt],
    config: SinkMeasureConfig,
    loaded: LoadedModel,
    on_progress: Progress,
) -> None:
    """Measure the sequences that the journal lacks."""
    left = [prompt for prompt in prompts if prompt.idx not in journal.done]
    on_progress(len(journal.done), len(prompts))
    for start in range(0, len(left), WAVE):
        found = measure_batches(loaded, left[start : start + WAVE], config)
        journal.add([(prompt.idx, measured) for prompt, measured in found])
        on_progress(len(journal.done), len(prompts))


def _earlier(path: Path, identity: dict[str, Any]) -> MeasuredRun:
    """A file of an earlier call with the same settings."""
    run = read_run(path)
    require_same(run.meta.get("configuration", {}), identity, path)
    return MeasuredRun.of(path, run, is_new=False, cpu_s=float(run.meta.get("cpu_s", 0.0)))


def run_identity(config: SinkMeasureConfig, loaded: LoadedModel) -> dict[str, Any]:
    """What decides the numbers of a run, but for window and query mode."""
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
    """The published fields of a description, and what else should be known."""
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
        prompt: What was measured.
        measured: What came of it.
        place: Which window and query mode.
        run: Description of the run.
    """
    question, pred, mass = prompt.question, measured.pred, measured.cells[place]
    more = {
        key: question.metadata[key] for key in ("category", "subject", "subset") if key in question.metadata
    }
    return SinkRecord(
        idx=prompt.idx,
        target=prompt.target,
        pred=None if pred is None else LETTERS[pred],
        labels=prompt.labels(pred),
        entropy=measured.entropy,
        sink_mass=mass.scalar,
        by_head=mass.values,
        is_seen=mass.is_seen,
        seq_len=prompt.n_tokens,
        sink_tokens=mass.k,
        query_mode=mass.mode,
        chat_mode=run["chat"],
        **{name: run[name] for name in ("task", "model", "query_start", "quantization")},
        meta={
            "question_id": question.question_id,
            "group_id": question.group_id,
            "source": run["dataset"],
            "pose": prompt.kind,
            "place": prompt.place,
            **more,
        },
    )
