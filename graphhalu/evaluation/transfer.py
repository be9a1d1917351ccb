"""Train on one store, test on another: does a detector find more than its own data set?

Every fold of a store is fitted once. It scores its own test side (the diagonal, by cross-fit)
and the traces of every other store. A question that both stores ask is only tested by a fold
that neither trained nor validated on it; where no fold is free of it, the trace is dropped and
counted. So two models can be compared on the same questions, too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, product
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import pyarrow as pa
from pydantic import ConfigDict

from graphhalu.core.documents import FileFormat, csv_text, parquet_bytes, write_document
from graphhalu.core.errors import UsageError
from graphhalu.core.provenance import provenance
from graphhalu.engine.executors import Progress, no_progress
from graphhalu.evaluation.bootstrap import group_codes
from graphhalu.evaluation.compare import attempted, finished_detector
from graphhalu.evaluation.crossfit import ComparisonData, OutOfFold, SplitKey, comparison_data, fit_fold
from graphhalu.evaluation.metrics import Ints
from graphhalu.evaluation.result import MetricValue, column_names, metric_columns
from graphhalu.evaluation.settings import CompareConfig, DetectorSpec, GivenDetectors, detector_specs
from graphhalu.labels.labels import Labels, question_groups
from graphhalu.traces.trace import Trace

TRANSFER_FILE: Final = "transfer.json"
KIND: Final = FileFormat("graphhalu-transfer", 1, "Run:  graphhalu compare --transfer")
_NO_FOLD: Final = -1


Source = tuple[str, Sequence[Trace], Labels, Mapping[str, Any]]
"""One store: a name of its own, its traces, their labels, and its identity for the record."""


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
    """Every detector on every pair of stores; ``samples`` also names ``train`` and ``test``.

    Read back from its file it has no samples.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(arbitrary_types_allowed=True)

    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    stores: Mapping[str, Any]
    cells: tuple[TransferCell, ...]
    samples: pa.Table | None = None

    def detectors(self) -> list[str]:
        """Names in the order they were run."""
        return list(dict.fromkeys(cell.detector for cell in self.cells))

    def cell(self, detector: str, train: str, test: str) -> TransferCell:
        """One cell of the matrix.

        Raises:
            UsageError: If there is none.
        """
        cells = {(cell.detector, cell.train, cell.test): cell for cell in self.cells}
        if (detector, train, test) not in cells:
            raise UsageError(f"no transfer of {detector!r} from {train!r} to {test!r}")
        return cells[detector, train, test]

    def cell_text(self, detector: str, train: str, test: str) -> str:
        """AUROC with its interval, or that it failed."""
        auroc = self.cell(detector, train, test).metrics.get("auroc")
        return f"{auroc.value:.3f} [{auroc.low:.3f}, {auroc.high:.3f}]" if auroc else "failed"

    def write(self, folder: Path) -> None:
        """Write ``transfer.parquet``, ``transfer.csv`` and, last, ``transfer.json``."""
        rows = [vars(cell) | metric_columns(cell.metrics, ("value", "low", "high")) for cell in self.cells]
        for row in rows:
            del row["metrics"]
        table = csv_text(column_names(rows), rows).encode()
        beside = {"transfer.parquet": parquet_bytes(self.samples), "transfer.csv": table}
        values = {name: value for name, value in vars(self).items() if name != "samples"}
        write_document(folder / TRANSFER_FILE, values, KIND, beside=beside)


def transfer(
    sources: Sequence[Source],
    detectors: GivenDetectors | None = None,
    *,
    config: CompareConfig | None = None,
    on_progress: Progress = no_progress,
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
    names = [name for name, *_ in sources]
    if len(set(names)) < max(2, len(names)):
        raise UsageError(f"transfer needs two stores or more with different names, got {names}")
    config = config or CompareConfig()
    specs, steps, done = detector_specs(detectors, config), count(1), list[tuple[TransferCell, pa.Table]]()
    data = {name: comparison_data(traces, labels, config) for name, traces, labels, _ in sources}
    places = product(data.values(), config.seeds)
    n_fits = len(specs) * sum(len(each.splits["question", seed]) for each, seed in places)
    for spec, train in product(specs, names):
        done += _train_on(spec, train, data, lambda detail: on_progress(next(steps), n_fits, detail))
    return TransferResult(
        config=config.model_dump(mode="json"),
        provenance=provenance(),
        stores={name: dict(identity) for name, _, _, identity in sources},
        cells=tuple(cell for cell, _ in done),
        samples=pa.concat_tables([table for _, table in done]),
    )


def source_names(paths: Sequence[Path]) -> list[str]:
    """A short name for each store: that of its folder, with a number where two are alike."""
    stems = [path.stem for path in paths]
    return [stem if stems.count(stem) == 1 else f"{stem}-{number}" for number, stem in enumerate(stems)]


def folds_that_test(train: ComparisonData, seed: int, test: ComparisonData) -> Ints:
    """The fold of ``train`` that tests each trace of ``test``; -1 where each has seen it.

    Questions are the same if they share a group, or their text, as near-duplicates do; a group
    of both stores together is never parted. Of several folds that have not seen a question the
    choice goes round. Of a store itself it is the fold that tests the trace.
    """
    groups = question_groups([*train.traces, *test.traces])
    folds = train.splits["question", seed]
    of_train, of_test = groups[: len(train.traces)], groups[len(train.traces) :]
    seen = [of_train[np.concatenate([fold.train, fold.validation])] for fold in folds]
    is_free = np.array([~np.isin(of_test, each) for each in seen])
    n_free = is_free.sum(axis=0)
    # traces of one group get the same of their free folds
    wanted = group_codes(of_test)[0] % np.maximum(n_free, 1)
    chosen = np.argmax(is_free & (np.cumsum(is_free, axis=0) - 1 == wanted), axis=0)
    return np.where(n_free > 0, chosen, _NO_FOLD)


def _train_on(
    spec: DetectorSpec, train: str, data: Mapping[str, ComparisonData], on_fit: Callable[[str], None]
) -> list[tuple[TransferCell, pa.Table]]:
    """One detector trained on one store: a cell, and scores, for every store it is tested on."""
    home, failures = data[train], dict[str, str]()
    fits: dict[str, dict[SplitKey, OutOfFold]] = {name: {} for name in data}
    n_dropped: dict[str, list[int]] = {name: [] for name in data}
    for seed in home.config.seeds:
        if len(failures) == len(data):
            break
        tested_by = {name: folds_that_test(home, seed, other) for name, other in data.items()}
        for name, other in data.items():
            fits[name]["question", seed] = OutOfFold(len(other.traces))
            n_dropped[name].append(int((tested_by[name][other.labels.is_valid] == _NO_FOLD).sum()))
        for number, fold in enumerate(home.splits["question", seed]):
            where = f"in fold {number} of seed {seed}"
            model = attempted(where, fit_fold, partial(spec.make, seed), home.traces, home.labels, fold)
            if isinstance(model, str):
                failures = dict.fromkeys(data, f"training failed, {model}") | failures
                break
            for name, other in data.items():
                chosen = np.flatnonzero(other.labels.is_valid & (tested_by[name] == number))
                if len(chosen) and name not in failures:
                    add, scored = fits[name]["question", seed].add_fold, (other.traces, other.labels, chosen)
                    failure = attempted(where, add, number, model, *scored)
                    failures |= {} if failure is None else {name: failure}
            on_fit(f"{spec.name} on {train}, seed {seed}, fold {number}")
    cells = []
    for name, other in data.items():
        row, table = finished_detector(other, spec, failures.get(name) or fits[name])
        n_tested = float(np.mean([fit.is_tested.sum() for fit in fits[name].values()]))
        sizes = n_tested, float(np.mean(n_dropped[name]))
        for column, store in (("train", train), ("test", name)):
            table = table.append_column(column, pa.array([store] * len(table), pa.string()))
        cell = TransferCell(spec.name, train, name, *sizes, row.coverage, row.metrics, row.failure)
        cells.append((cell, table))
    return cells
