import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from graphhalu.core.errors import DetectorMismatchError, UsageError
from graphhalu.detectors.base import Scores
from graphhalu.evaluation.compare import compare
from graphhalu.evaluation.crossfit import comparison_data
from graphhalu.evaluation.settings import CompareConfig
from graphhalu.evaluation.transfer import folds_that_test, source_names, transfer

SMALL = CompareConfig(seeds=(3,), n_resamples=100, n_folds=3)


@pytest.fixture
def stores(toys):
    """Two stores whose questions differ, and a third that asks those of the first again."""

    def store(name, n, seed, prefix, groups):
        traces, labels = toys.planted(n=n, n_groups=n // 3, seed=seed)
        renamed = [
            toys.trace(
                i, group=f"{prefix}-{groups[i]}", question=f"{prefix} {i} is who?", **trace.record.metadata
            )
            for i, trace in enumerate(traces)
        ]
        return name, renamed, labels, {"path": f"{name}.zarr"}

    groups = np.random.default_rng(0).integers(31, size=97)
    return [
        store("first", 97, 1, "a", groups),
        store("second", 83, 2, "b", groups),
        store("again", 97, 5, "a", groups),
    ]


def test_the_matrix_has_a_cell_for_each_pair_and_the_diagonal_is_the_cross_fit(stores, toys):
    result = transfer(stores[:2], {"toy": toys.Toy}, config=SMALL)
    places = [(cell.train, cell.test) for cell in result.cells]
    assert places == [("first", "first"), ("first", "second"), ("second", "first"), ("second", "second")]
    for name, traces, labels, _ in stores[:2]:
        alone = compare(traces, labels, {"toy": toys.Toy}, config=SMALL)
        cell = result.cell("toy", name, name)
        assert cell.metrics["auroc"] == alone.rows[0].metrics["auroc"]
        assert cell.n_traces == len(traces)
    assert all(cell.n_dropped == 0 for cell in result.cells)
    assert result.cell("toy", "first", "second").metrics["auroc"].value > 0.75


def test_a_question_of_both_stores_is_only_tested_by_a_fold_that_never_saw_it(stores):
    first, again = (comparison_data(*store[1:3], SMALL) for store in (stores[0], stores[2]))
    chosen = folds_that_test(first, 3, again)
    # trace i of both stores asks the same question
    for number, fold in enumerate(first.splits["question", 3]):
        assert set(np.flatnonzero(chosen == number)) <= set(fold.test)
    assert (chosen >= 0).any()


def test_memory_of_questions_does_not_travel_between_stores_that_share_them(stores, toys):
    class Remembering(toys.Toy):
        """Scores a question that it saw by its label."""

        def fit(self, traces, labels, split):
            self.known = {
                traces[i].record.question: int(labels.values[i]) for i in [*split.train, *split.validation]
            }
            return self

        def score(self, traces):
            return Scores.of(np.array([float(self.known.get(t.record.question, 0.5)) for t in traces]))

    first, _, again = stores
    same = ("again", again[1], first[2], {})
    cell = transfer([first, same], {"memory": Remembering}, config=SMALL).cell("memory", "first", "again")
    # every question was new to the model that scored it
    assert cell.metrics["auroc"].fold_mean == 0.5


def test_with_one_split_the_questions_that_training_saw_are_dropped_and_counted(stores, toys):
    quick = CompareConfig(seeds=(3,), n_resamples=100, quick=True)
    result = transfer([stores[0], stores[2]], {"toy": toys.Toy}, config=quick)
    cell = result.cell("toy", "first", "again")
    assert cell.n_dropped + cell.n_traces == 97
    assert cell.n_dropped > 60


def test_a_detector_that_cannot_read_the_other_store_fails_in_that_cell_only(stores, toys):
    class Picky(toys.Toy):
        def score(self, traces):
            if any(trace.record.question.startswith("b") for trace in traces):
                message = "trained on a model with 2 layers, asked about one with 5"
                raise DetectorMismatchError(message)
            return super().score(traces)

    result = transfer(stores[:2], {"picky": Picky, "toy": toys.Toy}, config=SMALL)
    assert "2 layers" in result.cell("picky", "first", "second").failure
    assert result.cell("picky", "first", "first").failure is None
    assert "training failed" in result.cell("picky", "second", "first").failure
    assert result.cell("toy", "second", "first").failure is None
    assert result.cell_text("picky", "first", "second") == "failed"


def test_a_detector_that_fails_to_train_has_its_reason_in_every_cell_of_its_row(stores, toys):
    result = transfer(stores[:2], {"failing": toys.Failing}, config=SMALL)
    assert all("one class" in cell.failure for cell in result.cells)
    assert len(result.samples) == 0


def test_the_files_are_plain_json_csv_and_parquet(stores, toys, tmp_path):
    result = transfer(stores[:2], {"toy": toys.Toy, "failing": toys.Failing}, config=SMALL)
    result.write(tmp_path)
    values = json.loads((tmp_path / "transfer.json").read_text())
    assert (values["format"], values["format_version"]) == ("graphhalu-transfer", 1)
    assert values["stores"]["second"] == {"path": "second.zarr"}
    samples = pq.read_table(tmp_path / "transfer.parquet")
    assert {"train", "test", "probability"} <= set(samples.column_names)
    assert len(samples) == 2 * (97 + 83)
    assert len((tmp_path / "transfer.csv").read_text().splitlines()) == 9


def test_one_store_or_two_of_one_name_are_refused(stores, toys):
    for chosen in (stores[:1], [stores[0], stores[0]]):
        with pytest.raises(UsageError, match="two stores"):
            transfer(chosen, {"toy": toys.Toy}, config=SMALL)


def test_stores_of_one_name_get_numbers(tmp_path):
    paths = [tmp_path / "a" / "x.zarr", tmp_path / "b" / "x.zarr", tmp_path / "y.zarr"]
    assert source_names(paths) == ["x-0", "x-1", "y"]
