"""Compare detectors on the same traces, labels, folds and resamples.

The unit of work is one detector with one seed. It runs here, or in workers that open the store
themselves and give back scores; the result is the same for any number of them. Equal figures need
an equal number of threads in each worker, since sums in parallel round differently.

A checkpoint is a finished detector of a comparison that is still running: a Parquet file of its
per-sample scores with its row in the metadata. When the result is written the checkpoints go.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, fields
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import threadpoolctl  # type: ignore[import-untyped]
import torch
from pydantic import TypeAdapter

from graphhalu.core.config import differing_fields
from graphhalu.core.documents import parquet_bytes
from graphhalu.core.errors import GraphhaluError, NotEnoughDataError, UsageError
from graphhalu.core.files import MALFORMED, read_parquet, replace_file
from graphhalu.core.numerics import json_ready
from graphhalu.core.provenance import provenance
from graphhalu.core.registry import fault_text
from graphhalu.detectors.base import Detector, DetectorCard
from graphhalu.engine.executors import Executor, ProcessExecutor, Progress, no_progress
from graphhalu.evaluation.crossfit import (
    ComparisonData,
    OnFold,
    OutOfFold,
    SplitKey,
    comparison_data,
    cross_fit,
)
from graphhalu.evaluation.detector_metrics import (
    category_notes,
    detector_metrics,
    median_filled_scores,
    sample_table,
    subgroups,
    token_counts,
    token_notes,
)
from graphhalu.evaluation.metrics import auroc
from graphhalu.evaluation.result import (
    RESULT_FILE,
    SAMPLE_SCHEMA,
    CategoryCount,
    DetectorRow,
    Result,
    read_result,
    upgraded_samples,
)
from graphhalu.evaluation.settings import CompareConfig, DetectorSpec, GivenDetectors, detector_specs
from graphhalu.evaluation.significance import METRIC_OF, choose_baseline, compare_to_baseline, method_tests
from graphhalu.features.table import opener
from graphhalu.labels.labels import Labels, as_labels
from graphhalu.traces.schema import array_spec, stored_shape
from graphhalu.traces.trace import Trace

CHECKPOINT_FOLDER: Final = "parts"
_ROW: Final = b"graphhalu-row"
_CARD_FIELDS: Final = ("inputs", "is_supervised", "is_control", "is_graph", "source", "reads")

Outcome = OutOfFold | str
"""Scores of one detector with one seed, or why there are none."""
Finished = tuple[DetectorRow, pa.Table]
"""A detector's row and its per-sample scores."""


@dataclass(frozen=True)
class RunOptions:
    """How a comparison is run; nothing here changes a figure.

    Attributes:
        jobs: Processes that detectors and seeds are spread over; 1 = this one.
        folder: Where each detector is kept as soon as it is finished.
        is_resumed: Whether detectors that are finished in the folder are not run again.
        engine: Where the work runs; by default as many processes as there are jobs.
    """

    jobs: int = 1
    folder: Path | None = None
    is_resumed: bool = False
    engine: Executor | None = None


def compare(
    traces: Sequence[Trace] | Path | str,
    labels: Labels,
    detectors: GivenDetectors | None = None,
    *,
    config: CompareConfig | None = None,
    store: Mapping[str, Any] | None = None,
    options: RunOptions | None = None,
    on_progress: Progress = no_progress,
) -> Result:
    """Cross-fit every detector on the same grouped folds and evaluate the pooled scores.

    Traces without a valid label are left out first, and beams that are not the best of their
    question unless the configuration says otherwise. A detector sees labels of its training
    and validation side only. One that fails is recorded with its reason; the others go on.
    Traces without a valid score are left out of the metrics; the coverage says how many.

    With labels of tokens (:func:`graphhalu.labels.stated.label_tokens`) detectors of tokens are
    compared, and the position control is what they are tested against.

    Args:
        traces: Traces in the order of the labels, or the path of their store; other beams of a
            question stay among them.
        labels: Of the traces, or of their tokens.
        detectors: A list of registered names, ``module:Class``, classes and detectors that are
            not fitted, or names with a class, function or detector each; by default those of the
            configuration. A detector is copied afresh for each fold and keeps its own seed.
        config: Folds, seeds and resamples.
        store: Identity of the traces, for the record.
        options: Processes, and the folder of a comparison that can be resumed.
        on_progress: Called after each fit.

    Raises:
        UsageError: If no detector is given or one is of another level than the labels, labels
            belong to other traces, or a resumed folder holds another comparison.
        UnknownNameError: If no detector has such a name.
        NotEnoughDataError: If there are too few questions, or one class only.
    """
    config, options = config or CompareConfig(), options or RunOptions()
    specs = detector_specs(detectors, config, as_labels(labels).level)
    data = comparison_data(traces, labels, config)
    if detectors is None and not config.detectors:
        own = [trace.record for trace in data.traces if trace.record.is_on_policy]
        has = {"samples": any(r.is_sample for r in own), "answers": any(r.beam_index > 0 for r in own)}
        has["asked"] = any(r.asked for r in own)
        has["context"] = any("contrast_logprob" in trace.arrays for trace in data.traces)
        specs = [spec for spec in specs if spec.compares is None or has[spec.compares]]
    done: dict[str, Finished] = {}
    if options.folder is not None and options.is_resumed:
        done = finished_detectors(options.folder, data)
    elif options.folder is not None:
        clear_checkpoints(options.folder)
    todo = [s for s in specs if s.name not in done or done[s.name][0].key != data.key(s.name, s.settings)]
    for row, samples in run_detectors(data, todo, options, on_progress):
        done[row.detector] = row, samples
        if options.folder is not None:
            save_checkpoint(options.folder, row, samples)
    order = dict.fromkeys([*(spec.name for spec in specs), *done])
    return make_result(data, labels, [done[name] for name in order], store or {})


def run_detectors(
    data: ComparisonData,
    specs: Sequence[DetectorSpec],
    options: RunOptions | None = None,
    on_progress: Progress = no_progress,
) -> Iterator[Finished]:
    """Each detector as soon as all its seeds are done; a failure is a row too.

    Raises:
        UsageError: If other workers are asked for and a detector is not registered.
        WorkerError: If the workers cannot go on.
    """
    options, items = options or RunOptions(), list(product(specs, data.splits))
    engine = options.engine or (ProcessExecutor(options.jobs) if options.jobs > 1 else None)
    done: dict[str, dict[SplitKey, Outcome]] = {spec.name: {} for spec in specs}
    run = _outcomes_here if engine is None or not items else partial(_outcomes_of_workers, engine)
    for (spec, key), outcome in run(data, items, on_progress):
        found = done[spec.name]
        found[key] = outcome
        if len(found) == len(data.splits):
            ordered = {key: found[key] for key in data.splits}
            failure = next((each for each in ordered.values() if isinstance(each, str)), None)
            yield finished_detector(data, spec, failure or ordered)


def finished_detector(
    data: ComparisonData, spec: DetectorSpec, fits: Mapping[SplitKey, Any] | str, *, raises: bool = False
) -> Finished:
    """The row and the per-sample scores of one detector; a failure is a row too.

    Args:
        data: The data that it was run on.
        spec: The detector.
        fits: Its scores of every split, or why there are none.
        raises: Whether scores without metrics are an error and no row.

    Raises:
        NotEnoughDataError: If the traces with a valid score lack a class, and that is an error.
    """
    failure, samples = fits if isinstance(fits, str) else None, SAMPLE_SCHEMA.empty_table()
    about: dict[str, Any] = {}
    try:
        card = spec.card()
        about = {name: getattr(card, name) for name in _CARD_FIELDS}
        if not isinstance(fits, str):
            figures, samples = _figures(data, spec.name, card, fits)
            about |= figures
    except Exception as error:  # of another's code, which must not stop the rest
        if raises:
            raise
        failure = failure or failure_text(error)
    key = data.key(spec.name, spec.settings)
    return DetectorRow(spec.name, settings=dict(spec.settings), key=key, failure=failure, **about), samples


def _figures(
    data: ComparisonData, name: str, card: DetectorCard, fits: Mapping[SplitKey, OutOfFold]
) -> tuple[dict[str, Any], pa.Table]:
    """What the row of a detector says of its scores, and the scores.

    Raises:
        NotEnoughDataError: If the traces with a valid score lack a class, or nearly so.
        UnknownNameError: If the card names an array that does not exist.
    """
    by_question = {seed: fit for (held_out, seed), fit in fits.items() if held_out == "question"}
    by_category = [fit for (held_out, _), fit in fits.items() if held_out == "category"]
    found, owner = list(by_question.values()), data.labels.owner
    metrics = detector_metrics(data, found)  # first: it refuses scores without both classes
    if by_category:
        metrics["category_auroc"] = detector_metrics(data, by_category)["auroc"]
    samples = sample_table(data, name, fits)
    filled = median_filled_scores(data, samples)[name]
    aurocs = [auroc(s[np.isfinite(s)], data.kept_items.labels[np.isfinite(s)]) for s in filled]
    n_tested = sum(len(np.unique(owner[fit.is_tested])) for fit in found)
    choices = tuple({"seed": seed, **each} for seed, fit in by_question.items() for each in fit.choices)
    figures = {
        "metrics": metrics,
        "coverage": float(np.mean([fit.is_valid.sum() / fit.is_tested.sum() for fit in found])),
        "auroc_invalid_at_median": float(np.mean(aurocs)),
        "fit_s": float(np.mean([seconds for fit in found for seconds in fit.fit_s])),
        "score_ms": 1000 * sum(fit.score_s for fit in found) / n_tested,
        "n_parameters": found[-1].n_parameters,
        "choices": choices if card.level == "token" else (),
        "trace_bytes": _trace_bytes(card, data),
    }
    return figures, samples


def _trace_bytes(card: DetectorCard, data: ComparisonData) -> float | None:
    """Bytes that a detector needs of one trace, mean: arrays as stored, before compression.

    0 for a detector of text or length alone; ``None`` for one that does not say what it reads.

    Raises:
        UnknownNameError: If the card names an array that does not exist.
    """
    if not card.reads:
        return 0.0 if set(card.inputs) <= {"text", "length"} else None
    kept, specs = np.flatnonzero(data.labels.is_valid).tolist(), [array_spec(name) for name in card.reads]
    traces = (data.traces[index] for index in kept)
    shapes = ((spec, stored_shape(spec, t.shape, t.record)) for t in traces for spec in specs)
    return float(np.sum([np.dtype(s.dtype).itemsize * np.prod(shape) for s, shape in shapes]) / len(kept))


def failure_text(error: Exception) -> str:
    """An error in one text: its class, where it happened, its message.

    For an error that graphhalu did not raise on purpose also the line of the detector's file.

    Raises:
        MemoryError: If it is that: no failure of one detector.
    """
    if isinstance(error, MemoryError):
        raise error
    notes = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
    name = type(error).__name__
    if isinstance(error, GraphhaluError):
        return f"{name}{notes}: {error}"
    return name + notes + fault_text(error, Detector).removeprefix(name)


Item = tuple[DetectorSpec, SplitKey]
Outcomes = Iterator[tuple[Item, Outcome]]


def _outcomes_here(data: ComparisonData, items: Sequence[Item], on_progress: Progress) -> Outcomes:
    """Each detector and seed in this process; after a failure its other seeds are not run."""
    steps = [len(data.splits[key]) for _, key in items]
    failures, n_before = dict[str, str](), 0
    for (spec, key), n_folds in zip(items, steps, strict=True):

        def on_fold(fold: int, n_before: int = n_before, detail: str = f"{spec.name}, {_named(key)}") -> None:
            on_progress(n_before + fold + 1, sum(steps), f"{detail}, fold {fold}")

        outcome = failures.get(spec.name) or _run_seed(data, (spec, key), on_fold)
        if isinstance(outcome, str):
            failures[spec.name] = outcome
        n_before += n_folds
        yield (spec, key), outcome


def _outcomes_of_workers(
    engine: Executor, data: ComparisonData, items: Sequence[Item], on_progress: Progress
) -> Outcomes:
    """Each detector and seed as soon as a worker has run it."""
    if given := [spec.name for spec, _ in items if spec.factory is not None]:
        raise UsageError(f"{given[0]} is not registered: use 1 job, or name its class as module:Class")
    sent = {each.name: getattr(data, each.name) for each in fields(data) if each.name != "traces"}
    start = partial(_start, opener(data.traces, engine), sent, torch.get_num_threads())
    steps, n_done = [len(data.splits[key]) for _, key in items], 0
    with engine.workers(start, len(items)) as workers, closing(workers(_run_seed, items)) as found:
        for each in found:
            spec, key = items[each.place]
            n_done += steps[each.place]
            on_progress(n_done, sum(steps), f"{spec.name}, {_named(key)}")
            # workers that died of a detector are its failure
            yield (spec, key), each.value if each.failure is None else f"of {_named(key)}: {each.failure}"


def _named(key: SplitKey) -> str:
    return f"seed {key[1]}" if key[0] == "question" else f"seed {key[1]} with categories held out"


def _start(opened: Callable[[], Sequence[Trace]], sent: Mapping[str, Any], n_threads: int) -> ComparisonData:
    """Open the traces in a new worker, with as many threads as the caller has."""
    torch.set_num_threads(n_threads)
    threadpoolctl.threadpool_limits(n_threads)
    return ComparisonData(traces=opened(), **sent)


def _run_seed(data: ComparisonData, item: Item, on_fold: OnFold | None = None) -> Outcome:
    """Cross-fit one detector with one seed; an error that it raises is its outcome.

    Raises:
        MemoryError: If the machine has no memory left, which concerns all detectors.
    """
    spec, key = item
    make, folds = partial(spec.make, key[1]), data.splits[key]
    return attempted(f"of {_named(key)}", cross_fit, make, data.traces, data.labels, folds, on_fold=on_fold)


def attempted(where: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What a function gives, or the text of the error that the detector in it raises."""
    try:
        return function(*arguments, **options)
    except Exception as error:  # noqa: BLE001 - of another's code that must not stop the rest
        error.add_note(where)
        return failure_text(error)


def make_result(
    data: ComparisonData, given: Labels, done: Sequence[Finished], store: Mapping[str, Any]
) -> Result:
    """The whole result: the tests against the baseline and the subgroups come last.

    Without a baseline that has scores, or with fewer than two items of a class, there are no tests.

    Args:
        data: The data that the detectors were run on.
        given: The labels before any beam was left out.
        done: The detectors in the order of the result.
        store: Identity of the traces, for the record.
    """
    rows, tables = tuple(row for row, _ in done), pa.concat_tables(table for _, table in done)
    samples, apart = (tables.filter(pc.field("held_out") == each) for each in ("question", "category"))
    scores = median_filled_scores(data, tables)
    labels, config, kept = data.labels, data.config, data.labels.is_valid
    baseline, tests = choose_baseline(rows, config.against, level=labels.level), dict[str, Any]()
    if baseline is not None and baseline.detector in scores:
        name = baseline.detector
        with suppress(NotEnoughDataError):
            compared = compare_to_baseline(scores, name, data.kept_items, margin=config.margin)
            metric = METRIC_OF[labels.level]
            methods, by_category = (
                method_tests(each, name, vars(config), metric) for each in (samples, apart)
            )
            tests = {"comparisons": tuple(compared), "methods": methods, "category_methods": by_category}
    n_groups = len(np.unique(data.groups[kept]))
    counts = token_counts(data, n_groups) if labels.level == "token" else None
    digest = hashlib.sha256("\n".join(labels.trace_ids).encode()).hexdigest()
    return Result(
        config={**config.model_dump(mode="json"), "detectors": [row.detector for row in rows]},
        provenance=provenance(),
        store={**store, "trace_ids_sha256": digest},
        labeller={"name": labels.labeller, "meaning": labels.meaning, "settings": dict(labels.settings)},
        n_traces=int(kept.sum()),
        n_left_out=int((~given.is_valid).sum()),
        n_groups=n_groups,
        prevalence=float(data.kept_items.labels.mean()),
        coverage=given.coverage,
        rows=rows,
        samples=samples,
        n_siblings=int((given.is_valid & ~kept).sum()),
        baseline=baseline,
        category_samples=apart,
        categories=data.categories and CategoryCount(data.categories.rule, data.categories.n_among(labels)),
        subgroups=subgroups(data, scores),
        identity=data.identity,
        level=labels.level,
        counts=counts,
        notes=category_notes(rows) if counts is None else token_notes(counts),
        **tests,
    )


def save_checkpoint(folder: Path, row: DetectorRow, samples: pa.Table) -> None:
    """Keep one finished detector in the folder of a running comparison, whole or not at all."""
    table = samples.replace_schema_metadata({_ROW: json.dumps(json_ready(row), allow_nan=False).encode()})
    path = folder / CHECKPOINT_FOLDER / f"{quote(row.detector, safe='')}.parquet"
    replace_file(path, parquet_bytes(table))


def clear_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a comparison whose result is written, or that starts anew."""
    shutil.rmtree(folder / CHECKPOINT_FOLDER, ignore_errors=True)


def finished_detectors(folder: Path, data: ComparisonData) -> dict[str, Finished]:
    """Detectors of the same data that did not fail: of a written result first, then of checkpoints.

    Raises:
        UsageError: If the folder holds the result of other traces, labels or settings.
        DataFileError: If the result there cannot be read.
    """
    found = list[Finished | None]()
    if (folder / RESULT_FILE).exists():
        result = read_result(folder)
        if differing := differing_fields(result.identity, json_ready(data.identity)):
            listed = "\n  ".join(differing[:5])
            raise UsageError(
                f"{folder} holds a comparison of other traces, labels or settings:\n  {listed}\n"
                f"  Give another --out, or leave --resume away to replace it"
            )
        tables = pa.concat_tables([result.samples, result.category_samples])
        found += [(row, tables.filter(pc.field("detector") == row.detector)) for row in result.rows]
    found += [_read_checkpoint(path) for path in sorted((folder / CHECKPOINT_FOLDER).glob("*.parquet"))]
    done = dict[str, Finished]()
    for row, samples in filter(None, found):
        if row.failure is None and row.key == data.key(row.detector, row.settings):
            done.setdefault(row.detector, (row, samples))
    return done


def _read_checkpoint(path: Path) -> Finished | None:
    """The checkpoint, or ``None`` if it is of another version and the detector must run again."""
    try:
        table = read_parquet(path)
        metadata: Mapping[bytes, bytes] = table.schema.metadata or {}
        row = TypeAdapter(DetectorRow).validate_json(metadata[_ROW])
        return row, upgraded_samples(table.replace_schema_metadata(None))
    except MALFORMED:
        return None
