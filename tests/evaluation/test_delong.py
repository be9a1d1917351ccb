import numpy as np
import pytest
from scipy.stats import norm

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.evaluation.metrics import auroc
from graphhalu.evaluation.significance import auroc_influence, grouped_delong_test


def delong_test(first, second, labels):
    """The test whose every trace is a question of its own."""
    difference = auroc(first, labels) - auroc(second, labels)
    influence = auroc_influence(first, labels) - auroc_influence(second, labels)
    return grouped_delong_test(difference, influence, np.arange(len(labels)))


def slow_delong(scores, labels):
    """AUROCs and their covariance by the sums over all pairs in DeLong's paper."""
    n_detectors = len(scores)
    m, n = int((labels == 1).sum()), int((labels == 0).sum())
    kernel = np.zeros((n_detectors, m, n))
    for d in range(n_detectors):
        for i, x in enumerate(scores[d][labels == 1]):
            for j, y in enumerate(scores[d][labels == 0]):
                kernel[d, i, j] = 1.0 if x > y else 0.5 if x == y else 0.0
    aurocs = kernel.mean(axis=(1, 2))
    covariance = np.zeros((n_detectors, n_detectors))
    for a in range(n_detectors):
        for b in range(n_detectors):
            s10 = sum(
                (kernel[a, i].mean() - aurocs[a]) * (kernel[b, i].mean() - aurocs[b]) for i in range(m)
            ) / (m - 1)
            s01 = sum(
                (kernel[a, :, j].mean() - aurocs[a]) * (kernel[b, :, j].mean() - aurocs[b]) for j in range(n)
            ) / (n - 1)
            covariance[a, b] = s10 / m + s01 / n
    return aurocs, covariance


@pytest.fixture
def case():
    rng = np.random.default_rng(9)
    labels = (rng.random(43) < 0.35).astype(np.int64)
    first = np.round(labels + rng.normal(size=43), 1)
    second = np.round(0.4 * labels + 0.5 * first + rng.normal(size=43), 1)
    return first, second, labels


def test_the_variance_equals_the_sums_over_all_pairs(case):
    first, _, labels = case
    aurocs, covariance = slow_delong([first], labels)
    assert auroc(first, labels) == pytest.approx(aurocs[0], abs=1e-12)
    influence = auroc_influence(first, labels)
    assert influence @ influence == pytest.approx(covariance[0, 0], abs=1e-12)


def test_the_paired_test_equals_the_sums_over_all_pairs(case):
    first, second, labels = case
    aurocs, c = slow_delong([first, second], labels)
    error = np.sqrt(c[0, 0] + c[1, 1] - 2 * c[0, 1])
    found = delong_test(first, second, labels)
    difference = aurocs[0] - aurocs[1]
    assert found == pytest.approx((error, 2 * norm.sf(abs(difference) / error)), abs=1e-12)


def test_p_values_are_spread_evenly_where_there_is_no_difference():
    rng = np.random.default_rng(0)
    p_values = []
    for _ in range(300):
        labels = np.arange(150) % 2
        pair = [labels + rng.normal(size=150) for _ in range(2)]
        p_values.append(delong_test(*pair, labels)[1])
    assert 0.02 <= np.mean(np.array(p_values) < 0.05) <= 0.09
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.05)


def test_a_monotone_change_of_scores_is_no_difference(case):
    first, _, labels = case
    assert delong_test(first, np.exp(first), labels) == (0.0, 1.0)


def test_a_difference_without_spread_has_no_p_value():
    labels = np.array([0, 0, 1, 1])
    with pytest.raises(NotEnoughDataError, match="no spread"):
        delong_test(np.arange(4.0), -np.arange(4.0), labels)


def test_one_trace_of_a_class_has_no_variance():
    with pytest.raises(NotEnoughDataError, match="two traces of each class"):
        auroc_influence(np.arange(5.0), np.array([1, 0, 0, 0, 0]))
