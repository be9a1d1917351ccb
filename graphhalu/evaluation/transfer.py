"""Train on one store, test on another: does a detector find more than its own data set?

Every fold of a store is fitted once. It scores its own test side (the diagonal, by cross-fit)
and the traces of every other store. A question that both stores ask is only tested by a fold
that neither trained nor validated on it; where no fold is free of it, the trace is dropped and
counted. So two models can be compared on the same questions, too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from graphhalu.core.errors import GraphhaluError, UsageError
from graphhalu.core.provenance import provenance
from graphhalu.evaluation.bootstrap import group_codes
from graphhalu.evaluation.compare import Progress, fold_reporter, make_compared
from graphhalu.evaluation.crossfit import FoldModel, OutOfFold, fit_fold
from graphhalu.evaluation.detector_specs import DetectorSpec, GivenDetectors, detector_specs
from graphhalu.evaluation.records import MetricValue
from graphhalu.evaluation.result import parquet_bytes, without_samples, write_files
from graphhalu.evaluation.rows import Compared, coverage, fit_metrics, sample_table
from graphhalu.evaluation.running import FoldHook, failure_text
from graphhalu.evaluation.settings import CompareConfig
from graphhalu.evaluation.table import csv_text
from graphhalu.labels.groups import question_groups
from graphhalu.labels.labels import Labels
from graphhalu.traces.trace import Trace

FORMAT: Final = "graphhalu-transfer"
FORMAT_VERSION: Final = 1
_NO_FOLD: Final = -1


@dataclass(frozen=True)
class Source:
    """One store with its labels, under a name of its own."""

    name: str
    traces: Sequence[Trace]
    labels: Labels
    identity: Mapping[str, Any]


@dataclass(frozen=True)
class TransferCell:
    """One detector, trained on one store and tested on another.

    Attributes:
        n_traces: Traces that were tested in one seed, mean.
        n_dropped: Traces with a valid label that no fold could test, since each of them had
            seen the question; mean over seeds.
        coverage: Share of tested traces with a valid score.
        metrics: As in a comparison; empty after a failure.
        failure: Why there are none, or ``None``.
    """

    detector: str
    train: str
    test: str
    n_traces: float
    n_dropped: float
    coverage: float | None
    metrics: Mapping[str, MetricValue]
    failure: str | None


@dataclass(frozen=True)
class TransferResult:
    """Every detector on every pair of stores; ``samples`` also names ``train`` and ``test``."""

    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    stores: Mapping[str, Any]
    cells: tuple[TransferCell, ...]
    samples: pa.Table

    def detectors(self) -> list[str]:
        """Names in the order they were run."""
        return list(dict.fromkeys(cell.detector for cell in self.cells))

    def cell(self, detector: str, train: str, test: str) -> TransferCell:
        """One cell of the matrix.

        Raises:
            UsageError: If there is none.
        """
        for cell in self.cells:
            if (cell.detector, cell.train, cell.test) == (detector, train, test):
                return cell
        message = f"no transfer of {detector!r} from {train!r} to {test!r}"
        raise UsageError(message)

    def cell_text(self, detector: str, train: str, test: str) -> str:
        """AUROC with its interval, or that it failed."""
        cell = self.cell(detector, train, test)
        if cell.failure is not None:
            return "failed"
        metric = cell.metrics["auroc"]
        return f"{metric.value:.3f} [{metric.low:.3f}, {metric.high:.3f}]"

    def write(self, folder: Path) -> None:
        """Write ``transfer.parquet``, ``transfer.csv`` and, last, ``transfer.json``."""
        contents = {
            "transfer.parquet": parquet_bytes(self.samples),
            "transfer.csv": _csv(self.cells).encode(),
        }
        values = {"format": FORMAT, "format_version": FORMAT_VERSION, **without_samples(self)}
        write_files(folder / "transfer.json", values, contents)


def transfer(
    sources: Sequence[Source],
    detectors: GivenDetectors | None = None,
    *,
    config: CompareConfig | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> TransferResult:
    """Train every detector on each store and test it on all of them.

    A detector that cannot be trained on a store, or cannot read the traces of another, as those
    of a model with other layers, fails with its reason in that cell; the others go on.

    Args:
        sources: Two stores or more, with different names.
        detectors: As in :func:`graphhalu.evaluation.compare.compare`.
        config: Folds, seeds and resamples.
        on_progress: Called after each fit.

    Raises:
        UsageError: If there are fewer than two stores, or two of one name.
        NotEnoughDataError: If a store has too few questions, or one class only.
    """
    names = [source.name for source in sources]
    if len(set(names)) < max(2, len(names)):
        message = f"transfer needs two stores or more with different names, got {names}"
        raise UsageError(message)
    config = config or CompareConfig()
    specs = detector_specs(detectors, config)
    compared = {s.name: make_compared(s.traces, s.labels, config) for s in sources}
    folds = {seed: [fold for each in compared.values() for fold in each.folds[seed]] for seed in config.seeds}
    report = fold_reporter(on_progress, [spec.name for spec in specs], folds, is_in_order=False)
    done = [cell for spec in specs for train in names for cell in _row(spec, train, compared, report)]
    return TransferResult(
        config=config.model_dump(mode="json"),
        provenance=provenance(),
        stores={source.name: dict(source.identity) for source in sources},
        cells=tuple(cell for cell, _ in done),
        samples=pa.concat_tables([table for _, table in done]),
    )


def source_names(paths: Sequence[Path]) -> list[str]:
    """A short name for each store: that of its folder, with a number where two are alike."""
    stems = [path.stem for path in paths]
    return [stem if stems.count(stem) == 1 else f"{stem}-{number}" for number, stem in enumerate(stems)]


def folds_that_test(train: Compared, seed: int, test: Compared) -> Int[np.ndarray, "trace"]:
    """The fold of ``train`` that tests each trace of ``test``; -1 where each has seen it.

    Questions are the same if they share a group, or their text, as near-duplicates do; a group
    of both stores together is never parted. Of several folds that have not seen a question the
    choice goes round. Of a store itself it is the fold that tests the trace.
    """
    groups = question_groups([*train.traces, *test.traces])
    of_train, of_test = groups[: len(train.traces)], groups[len(train.traces) :]
    seen = [of_train[np.concatenate([fold.train, fold.validation])] for fold in train.folds[seed]]
    is_free = np.array([~np.isin(of_test, each) for each in seen])
    n_free = is_free.sum(axis=0)
    # traces of one group get the same of their free folds
    wanted = group_codes(of_test)[0] % np.maximum(n_free, 1)
    chosen = np.argmax(is_free & (np.cumsum(is_free, axis=0) - 1 == wanted), axis=0)
    return np.where(n_free > 0, chosen, _NO_FOLD)


@dataclass
class _Tested:
    """The traces of one store, as the folds of another have scored them so far."""

    compared: Compared
    chosen: Int[np.ndarray, "trace"] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    fits: dict[int, OutOfFold] = field(default_factory=dict)
    n_dropped: list[int] = field(default_factory=list)
    failure: str | None = None

    def begin(self, seed: int, chosen: Int[np.ndarray, "trace"]) -> None:
        """Begin a seed, with the fold that tests each trace."""
        is_valid, self.chosen = self.compared.labels.is_valid, chosen
        self.fits[seed] = OutOfFold.empty(len(is_valid))
        self.n_dropped.append(int((is_valid & (chosen == _NO_FOLD)).sum()))

    def score(self, model: FoldModel, seed: int, fold: int) -> None:
        """Fill in the scores of one fold, or the reason of a failure, after which none count."""
        places = np.flatnonzero(self.compared.labels.is_valid & (self.chosen == fold))
        if self.failure is not None or not len(places):
            return
        try:
            self.fits[seed].fill(fold, places, model.score(self.compared.traces, places))
        except Exception as error:  # noqa: BLE001 - of another's code
            self.failure = failure_text(error)

    def cell(self, detector: str, train: str, test: str) -> tuple[TransferCell, pa.Table]:
        """The metrics, and the scores with the names of both stores."""
        fits, metrics, share = list(self.fits.values()), {}, None
        if self.failure is None:
            try:
                metrics, share = fit_metrics(self.compared, fits), coverage(fits)
            except GraphhaluError as error:
                self.failure = failure_text(error)
        n_traces = float(np.mean([fit.is_tested.sum() for fit in fits]))
        sizes = n_traces, float(np.mean(self.n_dropped))
        cell = TransferCell(detector, train, test, *sizes, share, metrics, self.failure)
        table = sample_table(self.compared, detector, {} if self.failure else self.fits)
        for name in ("train", "test"):
            values = pa.array([getattr(cell, name)] * len(table), pa.string())
            table = table.append_column(name, values)
        return cell, table


def _row(
    spec: DetectorSpec, train: str, compared: Mapping[str, Compared], on_fold: FoldHook
) -> list[tuple[TransferCell, pa.Table]]:
    """One detector trained on one store: a cell for every store it is tested on."""
    home = compared[train]
    tested = {name: _Tested(other) for name, other in compared.items()}
    for seed, folds in home.folds.items():
        if all(each.failure for each in tested.values()):
            break
        for each in tested.values():
            each.begin(seed, folds_that_test(home, seed, each.compared))
        for number, fold in enumerate(folds):
            try:
                model = fit_fold(partial(spec.make, seed), home.traces, home.labels, fold)
            except Exception as error:  # noqa: BLE001 - of another's code
                error.add_note(f"in fold {number} of seed {seed}")
                text = f"training failed, {failure_text(error)}"
                for each in tested.values():
                    each.failure = each.failure or text
                break
            for each in tested.values():
                each.score(model, seed, number)
            on_fold(spec.name, seed, number)
    return [each.cell(spec.name, train, name) for name, each in tested.items()]


def _csv(cells: Sequence[TransferCell]) -> str:
    head = ("detector", "train", "test", "n_traces", "n_dropped", "coverage")
    parts = {"": "value", "_low": "low", "_high": "high"}
    metrics = dict.fromkeys(name for cell in cells for name in cell.metrics)
    rows = []
    for cell in cells:
        row = {name: getattr(cell, name) for name in head}
        for name, metric in cell.metrics.items():
            row |= {name + end: getattr(metric, part) for end, part in parts.items()}
        rows.append({**row, "failure": cell.failure})
    return csv_text([*head, *(name + end for name in metrics for end in parts), "failure"], rows)
