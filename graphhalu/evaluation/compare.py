"""Compare detectors on the same traces, labels, folds and resamples."""

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Shaped

from graphhalu.detectors.base import Detector, DetectorCard
from graphhalu.errors import GraphhaluError, UsageError
from graphhalu.evaluation.crossfit import OutOfFold, cross_fit
from graphhalu.evaluation.result import SAMPLE_SCHEMA, DetectorRow, Result
from graphhalu.evaluation.rows import (
    CompareConfig,
    Compared,
    detector_row,
    failed_row,
    sample_table,
)
from graphhalu.evaluation.splits import (
    check_questions,
    cross_fit_folds,
    single_split,
)
from graphhalu.labels.groups import question_groups
from graphhalu.labels.labels import Labels
from graphhalu.provenance import provenance
from graphhalu.registry import unknown_name
from graphhalu.splits import Split
from graphhalu.traces.trace import Trace

__all__ = ["CompareConfig", "DetectorFactory", "Progress", "compare"]

DetectorFactory = Callable[..., Detector]
"""A detector class, or a function without required arguments; one with a parameter ``seed``
is given the seed of the comparison."""


@dataclass(frozen=True)
class Progress:
    """One fold is done; ``n_done`` of ``n_total`` fits over all detectors and seeds."""

    detector: str
    seed: int
    fold: int
    n_done: int
    n_total: int


def compare(
    traces: Sequence[Trace],
    labels: Labels,
    detectors: Sequence[str] | Mapping[str, DetectorFactory],
    *,
    config: CompareConfig | None = None,
    store: Mapping[str, Any] | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Result:
    """Cross-fit every detector on the same grouped folds and evaluate the pooled scores.

    Traces without a valid label are left out first. A detector sees labels of its training
    and validation side only. One that fails is recorded with its reason; the others go on.
    Traces without a valid score are left out of the metrics; the coverage says how many.

    Args:
        traces: Traces in the order of the labels.
        labels: One label a trace.
        detectors: Registered names, or names with a factory each.
        config: Folds, seeds and resamples.
        store: Identity of the traces, for the record.
        on_progress: Called after each fold.

    Raises:
        UsageError: If no detector is given, or labels belong to other traces.
        UnknownNameError: If no detector has such a name.
        NotEnoughDataError: If there are too few questions, or one class only.
    """
    finders = _finders(detectors)
    compared = _compared(traces, labels, config or CompareConfig())
    report = _reporter(on_progress, list(finders), compared.folds)
    done = [_run(compared, name, find, partial(report, name)) for name, find in finders.items()]
    kept = labels.is_valid
    return Result(
        config=compared.config.model_dump(mode="json"),
        provenance=provenance(),
        store={**(store or {}), "trace_ids_sha256": _digest(labels.trace_ids)},
        labeller={
            "name": labels.labeller,
            "meaning": labels.meaning,
            "settings": dict(labels.settings),
        },
        n_traces=int(kept.sum()),
        n_left_out=int((~kept).sum()),
        n_groups=len(np.unique(compared.groups[kept])),
        prevalence=labels.prevalence,
        coverage=labels.coverage,
        rows=tuple(row for row, _ in done),
        samples=pa.concat_tables([samples for _, samples in done]),
    )


def _reporter(
    on_progress: Callable[[Progress], None], names: Sequence[str], folds: Mapping[int, list[Split]]
) -> Callable[[str, int, int], None]:
    """Tells the place in the whole comparison, also after a detector failed half-way."""
    steps = [
        (name, seed, fold) for name in names for seed in folds for fold in range(len(folds[seed]))
    ]

    def report(detector: str, seed: int, fold: int) -> None:
        n_done = steps.index((detector, seed, fold)) + 1
        on_progress(Progress(detector, seed, fold, n_done, len(steps)))

    return report


def _compared(traces: Sequence[Trace], labels: Labels, config: CompareConfig) -> Compared:
    ids = [trace.trace_id for trace in traces]
    if tuple(ids) != labels.trace_ids:
        pairs = zip(ids, labels.trace_ids, strict=False)
        first = next((pair for pair in pairs if pair[0] != pair[1]), None)
        where = f"trace {first[0]!r} meets the label of {first[1]!r}" if first else "one is longer"
        message = (
            f"{len(ids)} traces and {len(labels.trace_ids)} labels do not belong together: "
            f"{where}\n  Label these traces again:  graphhalu label"
        )
        raise UsageError(message)
    groups = question_groups(traces)
    folds = {seed: _folds(labels, groups, config, seed) for seed in config.seeds}
    for checked in folds.values():
        check_questions(checked, traces)
    return Compared(traces, labels, groups, folds, config)


def _folds(
    labels: Labels, groups: Shaped[np.ndarray, "trace"], config: CompareConfig, seed: int
) -> list[Split]:
    if config.quick:
        return single_split(labels.values, groups, labels.is_valid, seed=seed)
    return cross_fit_folds(
        labels.values, groups, labels.is_valid, n_folds=config.n_folds, seed=seed
    )


def _finders(
    detectors: Sequence[str] | Mapping[str, DetectorFactory],
) -> Mapping[str, Callable[[], DetectorFactory]]:
    """Name to a function that imports the factory; a bad name is refused before any work."""
    finders: Mapping[str, Callable[[], DetectorFactory]] = (
        {name: partial(_given, make) for name, make in detectors.items()}
        if isinstance(detectors, Mapping)
        else _registered(detectors)
    )
    if not finders or len(finders) != len(detectors):
        message = f"expected the names of different detectors, got {list(detectors)}"
        raise UsageError(message)
    return finders


def _registered(names: Sequence[str]) -> Mapping[str, Callable[[], DetectorFactory]]:
    from graphhalu.detectors.registry import DETECTORS

    for name in names:
        if name not in DETECTORS:
            raise unknown_name("detector", name, DETECTORS.names())
    return {name: partial(DETECTORS.get, name) for name in names}


def _given(make: DetectorFactory) -> DetectorFactory:
    return make


def _run(
    compared: Compared,
    name: str,
    find: Callable[[], DetectorFactory],
    on_fold: Callable[[int, int], None],
) -> tuple[DetectorRow, pa.Table]:
    """The row and the per-sample scores of one detector; a failure is a row too."""
    card: DetectorCard | None = None
    try:
        make = find()
        card = getattr(make, "card", None) or _make(make, 0).card
        fits = {
            seed: _fit_seed(compared, make, seed, partial(on_fold, seed)) for seed in compared.folds
        }
        return detector_row(compared, name, card, fits), sample_table(compared, name, fits)
    except GraphhaluError as error:
        notes = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
        failure = f"{type(error).__name__}{notes}: {error}"
        return failed_row(name, card, failure), SAMPLE_SCHEMA.empty_table()


def _fit_seed(
    compared: Compared, make: DetectorFactory, seed: int, on_fold: Callable[[int], None]
) -> OutOfFold:
    try:
        return cross_fit(
            partial(_make, make, seed),
            compared.traces,
            compared.labels,
            compared.folds[seed],
            on_fold=on_fold,
        )
    except GraphhaluError as error:
        error.add_note(f"of seed {seed}")
        raise


def _make(make: DetectorFactory, seed: int) -> Detector:
    takes_seed = "seed" in inspect.signature(make).parameters
    return make(seed=seed) if takes_seed else make()


def _digest(trace_ids: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(trace_ids).encode()).hexdigest()
