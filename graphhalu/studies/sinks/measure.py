"""Measure the sink mass of one model on one data set, with ablations, into files of records.

Windows and query modes come from one pass over each sequence. The chat template doubles the work,
and each quantisation loads the model anew. A killed run goes on where it stopped.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from graphhalu.axes import SPAN_NAMES
from graphhalu.datasets.letters import LETTERS
from graphhalu.datasets.question import Question
from graphhalu.datasets.registry import load_questions, own_path
from graphhalu.errors import GraphhaluError, UsageError
from graphhalu.extract.prompts import prompt_template_name, uses_chat
from graphhalu.models.check import check_model
from graphhalu.models.load import LoadedModel, load_model
from graphhalu.provenance import file_sha256, installed_version, provenance
from graphhalu.studies.sinks.files import SUFFIX, read_run, write_run
from graphhalu.studies.sinks.journal import Journal, require_same
from graphhalu.studies.sinks.observer import SinkMass
from graphhalu.studies.sinks.posing import MEANING_OF_POSE, Pose, Posed, pose_of, posed
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
from graphhalu.studies.sinks.running import Measured, measure_batches, span_shares
from graphhalu.studies.sinks.settings import Ablation, SinkMeasureConfig
from graphhalu.studies.sinks.stored import measure_generated

WAVE: Final = 96
"""Sequences that are measured between two writes to the journal."""

Progress = Callable[[int, int], None]
Note = Callable[[str], None]


class Variant(NamedTuple):
    """One way to run the model.

    Attributes:
        config: Its settings.
        folder: Where its files go, relative to the place asked for.
    """

    config: SinkMeasureConfig
    folder: Path


class Wanted(NamedTuple):
    """What a variant is run on.

    Attributes:
        questions: The questions.
        pose: How they are posed.
        folder: Where the files go.
    """

    questions: Sequence[Question]
    pose: Pose
    folder: Path


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
    questions = load_questions(
        config.dataset.name, config.dataset.path, num_samples=config.num_samples,
        seed=config.dataset.seed, fields=config.dataset.fields or None,
    )  # fmt: skip
    pose = pose_of(questions, config.dataset.name)
    found: list[MeasuredRun] = []
    for group in _by_quantization(config, ablate, on_note):
        if pose == "generated":
            for variant in group:
                found += measure_generated(variant.config, out / variant.folder, on_note)
            continue
        loaded = _loaded(group[0].config, on_note, is_optional=bool(ablate))
        for variant in group if loaded is not None else ():
            assert loaded is not None
            if not _has_chat(variant.config, loaded, on_note, is_optional="chat" in ablate):
                continue
            wanted = Wanted(questions, pose, out / variant.folder)
            found += _run(variant.config, wanted, loaded, on_progress, on_note)
    return found


def _by_quantization(
    config: SinkMeasureConfig, ablate: Sequence[Ablation], on_note: Note
) -> Iterator[list[Variant]]:
    """Variants that one loaded model serves."""
    methods: list[Any] = [config.model.quantization]
    if "quantization" in ablate:
        methods = ["none", "int8", "nf4"]
        missing = _why_no_quantization()
        if missing is not None:
            on_note(f"quantisation int8 and nf4 skipped: {missing}")
            methods = ["none"]
    chats: list[Any] = ["off", "on"] if "chat" in ablate else [config.prompt.chat]
    for method in methods:
        model = config.model.model_copy(update={"quantization": method})
        group = []
        for chat in chats:
            prompt = config.prompt.model_copy(update={"chat": chat})
            parts = [f"chat-{chat}"] if "chat" in ablate else []
            parts += [method] if "quantization" in ablate else []
            changed = config.model_copy(update={"model": model, "prompt": prompt})
            group.append(Variant(changed, Path("_".join(parts) or ".")))
        yield group


def _why_no_quantization() -> str | None:
    if installed_version("bitsandbytes") is None:
        return "bitsandbytes is not installed"
    return None if torch.cuda.is_available() else "there is no GPU"


def _loaded(config: SinkMeasureConfig, on_note: Note, *, is_optional: bool) -> LoadedModel | None:
    try:
        loaded = load_model(config.model)
        check_model(loaded)
    except GraphhaluError as error:
        if not is_optional or config.model.quantization == "none":
            raise
        first_line = str(error).splitlines()[0]
        on_note(f"quantisation {config.model.quantization} skipped: {first_line}")
        return None
    return loaded


def _has_chat(
    config: SinkMeasureConfig, loaded: LoadedModel, on_note: Note, *, is_optional: bool
) -> bool:
    try:
        uses_chat(config.prompt, loaded)
    except UsageError as error:
        if not is_optional:
            raise
        on_note(f"chat on skipped: {str(error).splitlines()[0]}")
        return False
    return True


def _run(
    config: SinkMeasureConfig,
    wanted: Wanted,
    loaded: LoadedModel,
    on_progress: Progress,
    on_note: Note,
) -> list[MeasuredRun]:
    cells: list[tuple[int, QueryMode]] = [(k, mode) for k in config.ks for mode in config.modes]
    name = loaded.identity["name"]
    paths = [wanted.folder / f"{run_name(config.task, name, *cell)}{SUFFIX}" for cell in cells]
    identity = run_identity(config, loaded)
    there = _there(paths, identity)
    if len(there) == len(paths):
        on_note(f"{len(there)} files are in {wanted.folder} already")
        return there
    started = time.process_time()
    items, failures = posed(wanted.questions, wanted.pose, config, loaded)
    if not items:
        reason = failures[0] if failures else "there is none"
        message = f"no question of {config.dataset.name} can be measured: {reason}"
        raise UsageError(message)
    measured = _measured(items, config, loaded, (paths[0].parent, identity), on_progress)
    cpu_s = time.process_time() - started
    common = {
        **_description(config, loaded, wanted.pose), "configuration": identity,
        "n_failed": dict(Counter(failures)), "cpu_s": round(cpu_s, 1),
    }  # fmt: skip
    runs = []
    for cell, path in zip(cells, paths, strict=True):
        records = tuple(_record(item, measured[item.idx], cell, config, loaded) for item in items)
        meta = {
            **common, "sink_tokens": cell[0], "query_mode": cell[1], "n_records": len(records),
            "sink_spans": _spans(items, cell[0]),
        }  # fmt: skip
        run = SinkRun(records, meta, path.name.removesuffix(SUFFIX))
        write_run(path.parent, run)
        runs.append(MeasuredRun(path, len(records), len(run.usable), True, cpu_s))
    _journal_path(paths[0].parent, identity).unlink(missing_ok=True)
    return runs


def _measured(
    items: Sequence[Posed],
    config: SinkMeasureConfig,
    loaded: LoadedModel,
    place: tuple[Path, dict[str, Any]],
    on_progress: Progress,
) -> dict[int, Measured]:
    folder, identity = place
    cells = {"ks": list(config.ks), "modes": list(config.modes), "n_sequences": len(items)}
    journal = Journal(_journal_path(folder, identity), {**identity, **cells})
    left = [item for item in items if item.idx not in journal.done]
    on_progress(len(items) - len(left), len(items))
    for start in range(0, len(left), WAVE):
        wave = left[start : start + WAVE]
        found = [(item.idx, each) for item, each in measure_batches(loaded, wave, config)]
        journal.add(found)
        on_progress(len(journal.done), len(items))
    return journal.done


def _journal_path(folder: Path, identity: dict[str, Any]) -> Path:
    stem = run_stem(identity["dataset"]["name"], identity["model"]["name"])
    return folder / f".{stem}.journal"


def _there(paths: Sequence[Path], identity: dict[str, Any]) -> list[MeasuredRun]:
    """Files of an earlier call with the same settings."""
    found = []
    for path in paths:
        if path.exists():
            run = read_run(path)
            require_same(run.meta.get("configuration", {}), identity, path)
            spent = float(run.meta.get("cpu_s", 0.0))
            usable = len(run.usable)
            found.append(MeasuredRun(path, len(run.records), usable, False, spent))
    return found


def run_identity(config: SinkMeasureConfig, loaded: LoadedModel) -> dict[str, Any]:
    """What decides the numbers of a run, but for window and query mode."""
    path = own_path(config.dataset.name) or config.dataset.path
    return {
        "model": dict(loaded.identity),
        "dataset": {
            "name": config.task, "seed": config.dataset.seed,
            "num_samples": config.num_samples, "fields": dict(config.dataset.fields),
            "file_sha256": None if path is None else file_sha256(path),
        },
        "prompt": {
            "chat": uses_chat(config.prompt, loaded), "system": config.prompt.system,
            "template": prompt_template_name(config.extraction()),
            "n_examples": config.n_examples,
        },
        "query_start": config.query_start,
    }  # fmt: skip


def _description(config: SinkMeasureConfig, loaded: LoadedModel, pose: Pose) -> dict[str, Any]:
    """The published fields of a description, and what else should be known."""
    return {
        "task": config.task, "dataset": config.dataset.name, "subset": None, "split": None,
        "model": loaded.identity["name"], "revision": config.model.revision,
        "samples": config.num_samples, "seed": config.dataset.seed,
        "query_start": config.query_start, "chat": chat_word(config, loaded),
        "quantization": config.model.quantization, "device": str(loaded.model.device),
        "transformers_version": installed_version("transformers"),
        "torch_version": installed_version("torch"), "timestamp": time.time(),
        "format": FORMAT, "format_version": FORMAT_VERSION, "pose": pose,
        "pose_means": MEANING_OF_POSE[pose],
        "n_parameters": int(loaded.model.num_parameters()),
        "n_layers": loaded.n_layers, "n_heads": loaded.n_heads, "provenance": provenance(),
    }  # fmt: skip


def chat_word(config: SinkMeasureConfig, loaded: LoadedModel) -> str:
    """``on`` or ``off``: what ``auto`` came to."""
    return "on" if uses_chat(config.prompt, loaded) else "off"


def _spans(items: Sequence[Posed], k: int) -> list[dict[str, float]]:
    """For each token of the sink how often it belongs to which span.

    With a chat template the window covers other tokens than without.
    """
    shares = span_shares(items, k)
    return [
        {SPAN_NAMES[code]: round(float(of[place]), 4) for code, of in shares.items() if of[place]}
        for place in range(k)
    ]


def _record(
    item: Posed,
    measured: Measured,
    cell: tuple[int, QueryMode],
    config: SinkMeasureConfig,
    loaded: LoadedModel,
) -> SinkRecord:
    mass: SinkMass = measured.mass[cell]
    question, pred = item.question, measured.pred
    more = {key: question.metadata[key] for key in ("category", "subject", "subset")
            if key in question.metadata}  # fmt: skip
    return SinkRecord(
        idx=item.idx, task=config.task, model=str(loaded.identity["name"]),
        target=item.target, pred=None if pred is None else LETTERS[pred],
        labels=item.labels(pred), entropy=measured.entropy, sink_mass=mass.scalar,
        by_head=mass.values, is_seen=mass.is_seen, seq_len=item.n_tokens,
        sink_tokens=cell[0], query_mode=cell[1], query_start=config.query_start,
        chat_mode=chat_word(config, loaded), quantization=config.model.quantization,
        meta={
            "question_id": question.question_id, "group_id": question.group_id,
            "source": config.dataset.name, "pose": item.pose, "place": item.place, **more,
        },
    )  # fmt: skip
