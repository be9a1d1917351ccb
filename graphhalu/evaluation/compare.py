"""Compare detectors on the same traces, labels, folds and resamples.

The unit of work is one detector with one seed. It runs here, or in workers that open the store
themselves and give back scores; the result is the same for any number of them. Equal figures need
an equal number of threads in each worker, since sums in parallel round differently.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import threadpoolctl  # type: ignore[import-untyped]
import torch

from graphhalu.core.errors import GraphhaluError, NotEnoughDataError, UsageError
from graphhalu.core.provenance import provenance
from graphhalu.core.registry import fault_text
from graphhalu.detectors.base import Detector, DetectorCard
from graphhalu.engine.executors import Executor, ProcessExecutor, Progress, no_progress
from graphhalu.evaluation.crossfit import OutOfFold, cross_fit
from graphhalu.evaluation.detector_metrics import (
    detector_row,
    failed_row,
    median_filled_scores,
    sample_table,
    subgroups,
)
from graphhalu.evaluation.detector_specs import DetectorSpec, GivenDetectors, detector_specs
from graphhalu.evaluation.protocol import ComparisonData, comparison_data
from graphhalu.evaluation.result import SAMPLE_SCHEMA, Comparison, Result
from graphhalu.evaluation.result_files import (
    FinishedDetector,
    clear_checkpoints,
    finished_detectors,
    save_checkpoint,
)
from graphhalu.evaluation.settings import CompareConfig
from graphhalu.evaluation.significance import choose_baseline, compare_to_baseline
from graphhalu.evaluation.token_metrics import token_counts, token_notes
from graphhalu.features.table import opener
from graphhalu.labels.labels import Labels, as_labels
from graphhalu.traces.trace import Trace

SeedOutcome = OutOfFold | str
"""Scores of one detector with one seed, or why there are none."""


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
    done: dict[str, FinishedDetector] = {}
    if options.folder is not None and options.is_resumed:
        for each in finished_detectors(options.folder, data.identity):
            if each.row.key == data.key(each.row.detector, each.row.settings):
                done.setdefault(each.row.detector, each)
    elif options.folder is not None:
        clear_checkpoints(options.folder)
    todo = [s for s in specs if s.name not in done or done[s.name].row.key != data.key(s.name, s.settings)]
    for each in run_detectors(data, todo, options, on_progress):
        done[each.row.detector] = each
        if options.folder is not None:
            save_checkpoint(options.folder, each)
    order = dict.fromkeys([*(spec.name for spec in specs), *done])
    return make_result(data, labels, [done[name] for name in order], store or {})


def run_detectors(
    data: ComparisonData,
    specs: Sequence[DetectorSpec],
    options: RunOptions | None = None,
    on_progress: Progress = no_progress,
) -> Iterator[FinishedDetector]:
    """Each detector as soon as all its seeds are done; a failure is a row too.

    Raises:
        UsageError: If other workers are asked for and a detector is not registered.
        WorkerError: If the workers cannot go on.
    """
    options = options or RunOptions()
    engine = options.engine or (ProcessExecutor(options.jobs) if options.jobs > 1 else None)
    if engine is None or not specs:
        outcomes = _run_here(data, specs, on_progress)
    else:
        outcomes = _run_spread(data, specs, engine, on_progress)
    for spec, seeds in outcomes:
        yield _finish(data, spec, seeds)


def finish_detector(
    data: ComparisonData, spec: DetectorSpec, fits: Mapping[int, OutOfFold]
) -> FinishedDetector:
    """The row and the per-sample scores of one detector from its scores of every seed.

    Raises:
        NotEnoughDataError: If the traces with a valid score lack a class, or nearly so.
        UnknownNameError: If the card names an array that does not exist.
    """
    row = detector_row(data, spec.name, spec.card(), fits, spec.settings)
    return FinishedDetector(row, sample_table(data, spec.name, fits))


def _finish(data: ComparisonData, spec: DetectorSpec, seeds: Mapping[int, SeedOutcome]) -> FinishedDetector:
    """The row and the per-sample scores of one detector; a failure is a row too."""
    card: DetectorCard | None = None
    failure = next((each for each in seeds.values() if isinstance(each, str)), None)
    try:
        card = spec.card()
        if failure is None:
            fits = {seed: fit for seed, fit in seeds.items() if not isinstance(fit, str)}
            return finish_detector(data, spec, fits)
    except Exception as error:  # noqa: BLE001 - of another's code that must not stop the rest
        failure = failure or failure_text(error)
    row = failed_row(data, spec.name, card, failure, spec.settings)
    return FinishedDetector(row, SAMPLE_SCHEMA.empty_table())


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


def _run_here(
    data: ComparisonData, specs: Sequence[DetectorSpec], on_progress: Progress
) -> Iterator[tuple[DetectorSpec, dict[int, SeedOutcome]]]:
    """Each detector with its seeds, in this process; after a failure its other seeds are not run."""
    n_fits = sum(len(folds) for folds in data.folds.values())
    for number, spec in enumerate(specs):
        outcomes: dict[int, SeedOutcome] = {}
        done = number * n_fits  # also after a detector failed half-way
        for seed, folds in data.folds.items():
            report = partial(
                _report_fold, on_progress, f"{spec.name}, seed {seed}", done, n_fits * len(specs)
            )
            outcomes[seed] = _run_seed(data, (spec, seed), report)
            done += len(folds)
            if isinstance(outcomes[seed], str):
                break
        yield spec, outcomes


def _report_fold(on_progress: Progress, what: str, n_before: int, n_total: int, fold: int) -> None:
    on_progress(n_before + fold + 1, n_total, f"{what}, fold {fold}")


def _run_spread(
    data: ComparisonData, specs: Sequence[DetectorSpec], engine: Executor, on_progress: Progress
) -> Iterator[tuple[DetectorSpec, dict[int, SeedOutcome]]]:
    """Each detector with its seeds as soon as the workers have done all of them."""
    for spec in specs:
        if spec.factory is not None:
            message = (
                f"{spec.name} is not registered and cannot run in another process; use 1 job, "
                f"or name its class as module:Class"
            )
            raise UsageError(message)
    items = [(spec, seed) for spec in specs for seed in data.folds]
    n_total, n_done = len(specs) * sum(len(folds) for folds in data.folds.values()), 0
    sent = {name: getattr(data, name) for name in ("labels", "groups", "folds", "config")}
    start = partial(_start, opener(data.traces, engine), sent, torch.get_num_threads())
    done: dict[str, dict[int, SeedOutcome]] = {spec.name: {} for spec in specs}
    with engine.workers(start, len(items)) as workers, closing(workers(_run_seed, items)) as found:
        for each in found:
            spec, seed = items[each.place]
            n_done += len(data.folds[seed])
            on_progress(n_done, n_total, f"{spec.name}, seed {seed}")
            # workers that died of a detector are its failure
            failure = f"of seed {seed}: {each.failure}"
            outcomes = done[spec.name]
            outcomes[seed] = each.value if each.failure is None else failure
            if len(outcomes) == len(data.folds):
                yield spec, {seed: outcomes[seed] for seed in data.folds}


def _start(opened: Callable[[], Sequence[Trace]], sent: Mapping[str, Any], n_threads: int) -> ComparisonData:
    """Open the traces in a new worker, with as many threads as the caller has."""
    torch.set_num_threads(n_threads)
    threadpoolctl.threadpool_limits(n_threads)
    return ComparisonData(traces=opened(), **sent)


def _run_seed(
    data: ComparisonData, item: tuple[DetectorSpec, int], on_fold: Callable[[int], None] = lambda _: None
) -> SeedOutcome:
    """Cross-fit one detector with one seed; an error that it raises is its outcome.

    Raises:
        MemoryError: If the machine has no memory left, which concerns all detectors.
    """
    spec, seed = item
    try:
        return cross_fit(
            partial(spec.make, seed), data.traces, data.labels, data.folds[seed], on_fold=on_fold
        )
    except Exception as error:  # noqa: BLE001 - of another's code that must not stop the rest
        error.add_note(f"of seed {seed}")
        return failure_text(error)


def make_result(
    data: ComparisonData, given: Labels, done: Sequence[FinishedDetector], store: Mapping[str, Any]
) -> Result:
    """The whole result: the tests against the baseline and the subgroups come last.

    Without a baseline that has scores, or with fewer than two items of a class, there are no tests.

    Args:
        data: The data that the detectors were run on.
        given: The labels before any beam was left out.
        done: The detectors in the order of the result.
        store: Identity of the traces, for the record.
    """
    rows = tuple(each.row for each in done)
    samples = pa.concat_tables([each.samples for each in done])
    scores = median_filled_scores(data, samples)
    labels, config, kept = data.labels, data.config, data.labels.is_valid
    baseline = choose_baseline(rows, config.against, level=labels.level)
    tests: Sequence[Comparison] = ()
    if baseline is not None and baseline.detector in scores:
        with suppress(NotEnoughDataError):
            tests = compare_to_baseline(scores, baseline.detector, data.kept_items, margin=config.margin)
    digest = hashlib.sha256("\n".join(labels.trace_ids).encode()).hexdigest()
    labeller = {"name": labels.labeller, "meaning": labels.meaning}
    result = Result(
        config={**config.model_dump(mode="json"), "detectors": [row.detector for row in rows]},
        provenance=provenance(),
        store={**store, "trace_ids_sha256": digest},
        labeller={**labeller, "settings": dict(labels.settings)},
        n_traces=int(kept.sum()),
        n_left_out=int((~given.is_valid).sum()),
        n_groups=len(np.unique(data.groups[kept])),
        prevalence=float(data.kept_items.labels.mean()),
        coverage=given.coverage,
        rows=rows,
        samples=samples,
        n_siblings=int((given.is_valid & ~kept).sum()),
        baseline=baseline,
        comparisons=tuple(tests),
        subgroups=subgroups(data, scores),
        identity=data.identity,
        level=labels.level,
    )
    if labels.level == "token":
        records = [trace.record for trace in data.traces]
        counts = token_counts(records, labels, data.marked, result.n_groups)
        return replace(result, counts=counts, notes=token_notes(counts))
    return result
