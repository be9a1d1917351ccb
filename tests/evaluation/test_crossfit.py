import numpy as np
import pytest

from graphhalu.core.errors import GraphhaluError, NonFiniteError, NotEnoughDataError
from graphhalu.core.splits import Split
from graphhalu.detectors.base import ChosenTraces, Scores
from graphhalu.evaluation.calibration import Calibration
from graphhalu.evaluation.crossfit import cross_fit, cross_fit_folds, fit_fold, standardise
from graphhalu.evaluation.metrics import auroc
from graphhalu.labels.labels import question_groups


@pytest.fixture
def case(toys):
    traces, labels = toys.planted()
    folds = cross_fit_folds(labels.values, question_groups(traces), labels.is_valid, seed=1)
    return traces, labels, folds


def test_every_trace_gets_one_out_of_fold_score(case, toys):
    traces, labels, folds = case
    done = cross_fit(toys.Toy, traces, labels, folds)
    signal = [trace.record.metadata["signal"] for trace in traces]
    np.testing.assert_array_equal(done.raw, signal)
    assert done.is_valid.all()
    for number, fold in enumerate(folds):
        assert (done.fold[fold.test] == number).all()
    assert len(done.fit_s) == 5


def test_pooling_undoes_the_scale_and_offset_of_each_fold(case, toys):
    traces, labels, folds = case
    steady = cross_fit(toys.Toy, traces, labels, folds)
    rescaled = cross_fit(toys.Rescaled, traces, labels, folds)
    np.testing.assert_allclose(rescaled.values, steady.values, atol=1e-9)
    assert auroc(rescaled.raw, labels.values) < 0.7
    assert auroc(rescaled.values, labels.values) > 0.8


def test_pooling_changes_no_ranking_within_a_fold(case, toys):
    traces, labels, folds = case
    done = cross_fit(toys.Rescaled, traces, labels, folds)
    for fold in folds:
        order = np.argsort(done.raw[fold.test])
        assert (np.diff(done.values[fold.test][order]) >= 0).all()


def test_one_huge_reference_score_does_not_squeeze_the_others():
    reference = np.append(np.linspace(0, 1, 41), 1e9)
    calm = standardise(np.array([0.0, 1.0]), np.linspace(0, 1, 41))
    assert standardise(np.array([0.0, 1.0]), reference) == pytest.approx(calm, rel=0.05)


def test_two_heaps_of_scores_stay_aligned_whichever_is_larger():
    few, many = np.repeat([0.0, 1.0], [24, 20]), np.repeat([0.0, 1.0], [20, 24])
    first, second = standardise(np.array([0.0, 1.0]), few), standardise(np.array([0.0, 1.0]), many)
    assert first == pytest.approx(second, abs=0.2)


@pytest.mark.parametrize("level", [0.0, 0.1, -7.0])
def test_a_constant_reference_is_only_shifted(level):
    found = standardise(np.array([level, level + 2]), np.full(13, level))
    assert found == pytest.approx([0, 2])


def test_invalid_scores_stay_invalid(case, toys):
    traces, labels, folds = case
    done = cross_fit(toys.Partial, traces, labels, folds)
    assert done.is_valid.tolist() == [i % 3 != 0 for i in range(len(traces))]
    assert np.isnan(done.raw[~done.is_valid]).all()
    assert np.isnan(done.values[~done.is_valid]).all()


def test_scores_without_any_reference_cannot_be_pooled():
    with pytest.raises(NotEnoughDataError, match="validation side"):
        standardise(np.array([1.0]), np.full(3, np.nan))


def test_nothing_valid_on_both_sides_stays_nothing_valid():
    assert np.isnan(standardise(np.full(2, np.nan), np.full(3, np.nan))).all()


def test_a_wrong_number_of_scores_is_refused(case, toys):
    class Short(toys.Toy):
        def score(self, traces):
            return Scores.of(np.zeros(len(traces) - 1))

    traces, labels, folds = case
    with pytest.raises(GraphhaluError, match=r"expected \d+ scores, got \d+") as caught:
        cross_fit(Short, traces, labels, folds)
    assert caught.value.__notes__ == ["in fold 0"]


def test_a_valid_score_that_is_not_finite_is_refused(case, toys):
    class Wrong(toys.Toy):
        def score(self, traces):
            return Scores(np.full(len(traces), np.nan), np.ones(len(traces), dtype=bool))

    traces, labels, folds = case
    with pytest.raises(NonFiniteError, match="marked valid"):
        cross_fit(Wrong, traces, labels, folds)


def test_a_subset_gives_the_chosen_traces_in_their_order(toys):
    traces = [toys.trace(number) for number in range(7)]
    subset = ChosenTraces(traces, (5, 2, 3))
    assert len(subset) == 3
    assert [trace.trace_id for trace in subset] == ["q5#0", "q2#0", "q3#0"]
    assert subset[-1] is traces[3]
    assert list(subset[1:]) == traces[2:4]
    with pytest.raises(IndexError):
        subset[3]


def test_probabilities_and_calls_come_from_the_validation_side_of_each_fold(case, toys):
    traces, labels, folds = case
    done = cross_fit(toys.Rescaled, traces, labels, folds)
    models = [fit_fold(toys.Rescaled, traces, labels, fold) for fold in folds]
    for model, fold in zip(models, folds, strict=True):
        own = Calibration.fit(model.reference, labels.values[fold.validation])
        assert model.calibration == own
        np.testing.assert_array_equal(done.probability[fold.test], own.probability(done.raw[fold.test]))
        np.testing.assert_array_equal(
            done.is_predicted_positive[fold.test], done.raw[fold.test] >= own.threshold
        )


def test_a_validation_side_of_one_class_gives_scores_and_no_probability(toys):
    traces = [toys.trace(i, signal=float(i)) for i in range(9)]
    labels = toys.labels([0, 1, 0, 1, 0, 0, 0, 1, 0])
    fold = Split(np.arange(4), np.array([4, 5, 6]), np.array([7, 8]))
    done = cross_fit(toys.Toy, traces, labels, [fold])
    assert done.is_valid.sum() == 2
    assert np.isnan(done.probability).all()
    assert not done.is_predicted_positive.any()


def test_a_subset_knows_the_traces_that_it_is_taken_from(toys):
    traces = [toys.trace(number) for number in range(5)]
    assert ChosenTraces(traces, (2,)).pool is traces
