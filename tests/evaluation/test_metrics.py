import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.evaluation.metrics import METRICS, auroc, counted_tpr_at_fpr, evaluate, roc_counts


def tpr_at_fpr(scores, labels, *, max_fpr):
    return counted_tpr_at_fpr(roc_counts(scores, labels), max_fpr=max_fpr)[0]


@st.composite
def tied_scores(draw):
    """Both classes, and few distinct scores, so that ties within and across classes abound."""
    n = draw(st.integers(2, 61))
    labels = np.array([0, 1, *draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))])
    scores = draw(st.lists(st.integers(-3, 5), min_size=n + 2, max_size=n + 2))
    return np.array(scores) / 7, labels


@given(tied_scores())
@settings(deadline=None)
def test_auroc_equals_sklearn_with_ties(case):
    assert auroc(*case) == pytest.approx(oracle.roc_auc_score(case[1], case[0]), abs=1e-12)


@given(tied_scores())
@settings(deadline=None)
def test_average_precision_equals_sklearn_with_ties(case):
    scores, labels = case
    expected = oracle.average_precision_score(labels, scores)
    assert evaluate(scores, labels)["auprc"] == pytest.approx(expected, abs=1e-12)


@given(tied_scores(), st.sampled_from([0.0, 0.01, 0.05, 0.2, 1.0]))
@settings(deadline=None)
def test_tpr_at_fpr_equals_a_search_over_all_thresholds(case, bound):
    scores, labels = case
    best = 0.0
    for threshold in [np.inf, *scores.tolist()]:
        called = scores >= threshold
        if (called & (labels == 0)).sum() / (labels == 0).sum() <= bound:
            best = max(best, (called & (labels == 1)).sum() / (labels == 1).sum())
    assert tpr_at_fpr(scores, labels, max_fpr=bound) == pytest.approx(best, abs=1e-12)


def test_auroc_counts_a_tie_as_one_half():
    # pairs: 2 > 1, 2 > 2 is a tie, 1 > 1 is a tie, 1 < 2: (1 + .5 + .5 + 0) / 4
    scores, labels = np.array([2.0, 1.0, 1.0, 2.0]), np.array([1, 1, 0, 0])
    assert auroc(scores, labels) == 0.5


def test_a_reversed_detector_is_not_flipped():
    assert auroc(np.array([0.0, 1.0, 2.0]), np.array([1, 0, 0])) == 0.0


def test_tpr_at_a_bound_that_a_point_meets_exactly_counts_that_point():
    # 20 correct answers: one false alarm is exactly 5 %
    labels = np.array([1, 0, 1, 1] + [0] * 19)
    scores = np.arange(23, 0, -1).astype(float)
    assert tpr_at_fpr(scores, labels, max_fpr=0.05) == 1.0
    assert tpr_at_fpr(scores, labels, max_fpr=0.01) == pytest.approx(1 / 3)


def test_tied_scores_are_called_together_and_not_interpolated():
    # the tie holds 2 hallucinated and 10 of 20 correct traces: no threshold splits it
    scores = np.array([3.0, 2.0, 2.0] + [2.0] * 10 + [1.0] * 10)
    labels = np.array([1, 1, 1] + [0] * 20)
    assert tpr_at_fpr(scores, labels, max_fpr=0.05) == pytest.approx(1 / 3)
    assert tpr_at_fpr(scores, labels, max_fpr=0.5) == 1.0


def test_a_constant_score_has_no_threshold_within_the_bound():
    scores, labels = np.zeros(13), np.array([1] * 6 + [0] * 7)
    assert auroc(scores, labels) == 0.5
    assert tpr_at_fpr(scores, labels, max_fpr=0.05) == 0.0
    assert evaluate(scores, labels)["auprc"] == pytest.approx(6 / 13)


def test_average_precision_by_hand():
    # hits at ranks 1 and 3: (1/1 + 2/3) / 2
    found = evaluate(np.array([4.0, 3.0, 2.0, 1.0]), np.array([1, 0, 1, 0]))
    assert found["auprc"] == pytest.approx(5 / 6)


@pytest.mark.parametrize("function", [auroc, evaluate])
@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_no_metric(function, label):
    with pytest.raises(NotEnoughDataError, match="both classes"):
        function(np.arange(5.0), np.full(5, label))


def test_no_traces_have_no_metric():
    with pytest.raises(NotEnoughDataError):
        auroc(np.zeros(0), np.zeros(0, dtype=np.int64))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("function", [auroc, evaluate])
def test_a_score_that_is_not_finite_is_refused(function, bad):
    with pytest.raises(ValueError, match="1 of 3 scores are not finite"):
        function(np.array([0.0, bad, 1.0]), np.array([0, 1, 1]))


def test_a_label_that_is_neither_0_nor_1_is_refused():
    with pytest.raises(ValueError, match="labels must be 0 or 1"):
        auroc(np.arange(3.0), np.array([0, 1, 2]))


def test_evaluate_gives_every_metric_of_the_table():
    rng = np.random.default_rng(3)
    scores, labels = rng.normal(size=101), np.arange(101) % 2
    found = evaluate(scores, labels)
    assert set(found) == set(METRICS)
    assert found["auroc"] == auroc(scores, labels)
    assert found["tpr_at_5_fpr"] == tpr_at_fpr(scores, labels, max_fpr=0.05)
    assert found["tpr_at_1_fpr"] == tpr_at_fpr(scores, labels, max_fpr=0.01)


def test_a_resample_without_a_class_is_nan_in_every_metric():
    scores, labels = np.array([3.0, 1.0, 2.0]), np.array([1, 0, 0])
    weights = np.array([[0, 2, 3], [5, 0, 0], [2, 1, 2]])
    counts = roc_counts(scores, labels, weights)
    assert METRICS
    for metric in METRICS.values():
        assert np.isnan(metric(counts)).tolist() == [True, True, False]
