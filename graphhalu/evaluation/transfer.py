"""Train on one store, test on another: does a detector find more than its own data set?

Every fold of a store is fitted once. It scores its own test side (the diagonal, by cross-fit)
and the traces of every other store. A question that both stores ask is only tested by a fold
that neither trained nor validated on it; where no fold is free of it, the trace is dropped and
counted. So two models can be compared on the same questions, too.
"""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Int, Shaped

from graphhalu.atomic import replace_file
from graphhalu.errors import GraphhaluError, UsageError
from graphhalu.evaluation.compare import Progress, make_compared
from graphhalu.evaluation.crossfit import FoldModel, OutOfFold, fit_fold
from graphhalu.evaluation.entries import Entry, GivenDetectors, make_entries
from graphhalu.evaluation.records import MetricValue
from graphhalu.evaluation.rows import Compared, fit_metrics, sample_table
from graphhalu.evaluation.running import failure_text
from graphhalu.evaluation.settings import CompareConfig
from graphhalu.evaluation.table import spreadsheet_cell
from graphhalu.labels.groups import question_groups
from graphhalu.labels.labels import Labels
from graphhalu.numerics import json_ready
from graphhalu.parquet import write_parquet
from graphhalu.provenance import file_sha256, provenance
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
        folder.mkdir(parents=True, exist_ok=True)
        stream = io.BytesIO()
        write_parquet(self.samples, stream)
        replace_file(folder / "transfer.parquet", stream.getvalue())
        replace_file(folder / "transfer.csv", _csv(self.cells).encode())
        files = {name: file_sha256(folder / name) for name in ("transfer.parquet", "transfer.csv")}
        values = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **{name: value for name, value in vars(self).items() if name != "samples"},
            "cells": [asdict(cell) for cell in self.cells],
            "files": files,
        }
        text = json.dumps(json_ready(values), indent=1, allow_nan=False, ensure_ascii=False)
        replace_file(folder / "transfer.json", text.encode())


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
    entries = make_entries(detectors, config)
    compared = {s.name: make_compared(s.traces, s.labels, config) for s in sources}
    cells, samples = [], []
    n_total = len(entries) * sum(
        len(of_seed) for of_store in compared.values() for of_seed in of_store.folds.values()
    )
    counter = _Counter(on_progress, n_total)
    for entry in entries:
        for train in names:
            for cell, table in _row(entry, train, compared, counter):
                cells.append(cell)
                samples.append(table)
    stores = {source.name: dict(source.identity) for source in sources}
    whole = pa.concat_tables(samples)
    return TransferResult(config.model_dump(mode="json"), provenance(), stores, tuple(cells), whole)


def source_names(paths: Sequence[Path]) -> list[str]:
    """A short name for each store: that of its folder, with a number where two are alike."""
    stems = [path.stem for path in paths]
    return [
        stem if stems.count(stem) == 1 else f"{stem}-{number}" for number, stem in enumerate(stems)
    ]


class _Counter:
    def __init__(self, on_progress: Callable[[Progress], None], n_total: int) -> None:
        self.on_progress, self.n_total, self.n_done = on_progress, n_total, 0

    def __call__(self, detector: str, seed: int, fold: int) -> None:
        self.n_done += 1
        self.on_progress(Progress(detector, seed, fold, self.n_done, self.n_total))


def folds_that_test(train: Compared, seed: int, test: Compared) -> Int[np.ndarray, "trace"]:
    """The fold of ``train`` that tests each trace of ``test``; -1 where each has seen it.

    Questions are the same if they share a group, or their text, as near-duplicates do; a group
    of both stores together is never parted. Of several folds that have not seen a question the
    choice goes round.
    """
    groups = question_groups([*train.traces, *test.traces])
    of_train, of_test = groups[: len(train.traces)], groups[len(train.traces) :]
    folds = train.folds[seed]
    is_free = np.ones((len(folds), len(test.traces)), dtype=bool)
    for number, fold in enumerate(folds):
        seen = of_train[np.concatenate([fold.train, fold.validation])]
        is_free[number] = ~np.isin(of_test, seen)
    return np.where(is_free.any(axis=0), _going_round(is_free, of_test), _NO_FOLD)


def _going_round(
    is_free: Shaped[np.ndarray, "fold trace"], groups: Shaped[np.ndarray, "trace"]
) -> Int[np.ndarray, "trace"]:
    """For each trace one of its free folds; traces of one group get the same."""
    group_index = np.unique(groups, return_inverse=True)[1]
    n_free = np.maximum(is_free.sum(axis=0), 1)
    wanted = group_index % n_free
    return np.argmax(is_free & (np.cumsum(is_free, axis=0) - 1 == wanted), axis=0)


def _row(
    entry: Entry, train: str, compared: Mapping[str, Compared], counter: _Counter
) -> list[tuple[TransferCell, pa.Table]]:
    """One detector trained on one store: a cell for every store it is tested on."""
    home = compared[train]
    fits: dict[str, dict[int, OutOfFold]] = {name: {} for name in compared}
    failures: dict[str, str] = {}
    dropped: dict[str, list[int]] = {name: [] for name in compared}
    for seed, folds in home.folds.items():
        if len(failures) == len(compared):
            break
        chosen = {
            name: _own_folds(home, seed) if name == train else folds_that_test(home, seed, other)
            for name, other in compared.items()
        }
        for name, other in compared.items():
            fits[name][seed] = OutOfFold.empty(len(other.traces))
            dropped[name].append(int((other.labels.is_valid & (chosen[name] == _NO_FOLD)).sum()))
        for number, fold in enumerate(folds):
            make = partial(entry.make, seed)
            try:
                model = fit_fold(make, home.traces, home.labels, fold)
            except Exception as error:  # noqa: BLE001 - of another's code
                error.add_note(f"in fold {number} of seed {seed}")
                text = f"training failed, {failure_text(error)}"
                failures = {name: failures.get(name, text) for name in compared}
                break
            # a cell that failed stays failed, and the others go on
            for name, other in compared.items():
                if name not in failures:
                    places = np.flatnonzero(other.labels.is_valid & (chosen[name] == number))
                    failure = _score(model, other, places, fits[name][seed], number)
                    failures |= {name: failure} if failure else {}
            counter(entry.name, seed, number)
    return [
        _cell(
            _Place(entry.name, train, name),
            compared[name],
            fits[name],
            dropped[name],
            failures.get(name),
        )
        for name in compared
    ]


def _own_folds(home: Compared, seed: int) -> Int[np.ndarray, "trace"]:
    """The fold that tests each trace of the store itself."""
    chosen = np.full(len(home.traces), _NO_FOLD)
    for number, fold in enumerate(home.folds[seed]):
        chosen[fold.test] = number
    return chosen


def _score(
    model: FoldModel, other: Compared, places: Int[np.ndarray, "tested"], fit: OutOfFold, fold: int
) -> str | None:
    """Fill in the scores of one fold; the reason where the traces cannot be read."""
    if not len(places):
        return None
    try:
        fit.fill(fold, places, model.score(other.traces, places))
    except Exception as error:  # noqa: BLE001 - of another's code
        return failure_text(error)
    return None


class _Place(NamedTuple):
    """Which cell."""

    detector: str
    train: str
    test: str


def _cell(
    place: _Place,
    compared: Compared,
    fits: Mapping[int, OutOfFold],
    dropped: Sequence[int],
    failure: str | None,
) -> tuple[TransferCell, pa.Table]:
    n_traces = float(np.mean([fit.is_tested.sum() for fit in fits.values()]))
    n_dropped = float(np.mean(dropped))
    cell = TransferCell(*place, n_traces, n_dropped, coverage=None, metrics={}, failure=failure)
    done = list(fits.values())
    if cell.failure is None:
        try:
            metrics = fit_metrics(compared, done)
        except GraphhaluError as error:
            cell = replace(cell, failure=failure_text(error))
        else:
            shares = [fit.is_valid.sum() / fit.is_tested.sum() for fit in done]
            cell = replace(cell, metrics=metrics, coverage=float(np.mean(shares)))
    kept = fits if cell.failure is None else {}
    table = sample_table(compared, place.detector, kept)
    for name, value in (("train", place.train), ("test", place.test)):
        table = table.append_column(name, pa.array([value] * len(table), pa.string()))
    return cell, table


def _csv(cells: Sequence[TransferCell]) -> str:
    stream = io.StringIO(newline="")
    metrics = list(dict.fromkeys(name for cell in cells for name in cell.metrics))
    head = ["detector", "train", "test", "n_traces", "n_dropped", "coverage"]
    parts = [f"{name}{end}" for name in metrics for end in ("", "_low", "_high")]
    writer = csv.writer(stream)
    writer.writerow([*head, *parts, "failure"])
    for cell in cells:
        values: list[object] = [getattr(cell, name) for name in head]
        for name in metrics:
            metric = cell.metrics.get(name)
            values += [metric.value, metric.low, metric.high] if metric else ["", "", ""]
        writer.writerow([spreadsheet_cell(value) for value in [*values, cell.failure or ""]])
    return stream.getvalue()
