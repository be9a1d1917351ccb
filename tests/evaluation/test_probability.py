from itertools import pairwise

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import log_loss

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.evaluation.metrics import ece, log_losses, recalibration, reliability_curve


@pytest.fixture
def case():
    rng = np.random.default_rng(2)
    probability = rng.random(151)
    return probability, (rng.random(151) < probability**2).astype(np.int64)


def slow_ece(probability, labels, n_bins):
    """Sort, cut the order into equal pieces, average the distances weighted by size."""
    order = np.argsort(probability)
    edges = [round(len(order) * b / n_bins) for b in range(n_bins + 1)]
    total = 0.0
    for low, high in pairwise(edges):
        here = order[low:high]
        total += len(here) * abs(probability[here].mean() - labels[here].mean())
    return total / len(order)


@pytest.mark.parametrize("n", [150, 45, 300])
def test_ece_equals_a_slow_loop_over_equal_pieces(n):
    rng = np.random.default_rng(n)
    probability = rng.random(n)
    labels = (rng.random(n) < probability**2).astype(np.int64)
    assert ece(probability, labels) == pytest.approx(slow_ece(probability, labels, 15))


def test_ece_by_hand():
    # two bins: mean 0.2 against 1/2, and mean 0.8 against 1
    probability, labels = np.array([0.1, 0.3, 0.7, 0.9]), np.array([0, 1, 1, 1])
    assert ece(probability, labels, n_bins=2) == pytest.approx((0.3 + 0.2) / 2)


def test_equal_probabilities_are_never_parted_whatever_their_order():
    probability = np.repeat([0.2, 0.6], [40, 3])
    labels = np.arange(43) % 2
    _, _, n_traces = reliability_curve(probability, labels)
    assert n_traces.tolist() == [40, 3]
    order = np.random.default_rng(0).permutation(43)
    assert ece(probability[order], labels[order]) == pytest.approx(ece(probability, labels))


def test_a_constant_at_the_prevalence_is_calibrated():
    labels = np.arange(20) % 4 // 3
    assert ece(np.full(20, 0.25), labels) == pytest.approx(0)


def test_what_has_no_value_is_refused(case):
    probability, labels = case
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        ece(probability + 1, labels)
    with pytest.raises(ValueError, match="n_bins"):
        ece(probability, labels, n_bins=0)
    with pytest.raises(NotEnoughDataError, match="no trace"):
        ece(np.zeros(0), np.zeros(0, dtype=np.int64))


def test_the_mean_of_log_losses_is_that_of_sklearn_and_a_sure_mistake_costs_all(case):
    assert log_losses(*case).mean() == pytest.approx(log_loss(case[1], case[0]))
    found = log_losses(np.array([0.0, 1.0]), np.array([1, 1]))
    assert found.tolist() == [np.inf, 0.0]


def test_right_probabilities_have_slope_one_and_intercept_zero_and_sharpened_ones_less():
    rng = np.random.default_rng(5)
    logits = rng.normal(scale=2, size=40_009)
    labels = (rng.random(len(logits)) < expit(logits)).astype(np.int64)
    slope, intercept = recalibration(expit(logits), labels)
    assert slope == pytest.approx(1, abs=0.04)
    assert intercept == pytest.approx(0, abs=0.04)
    slope, intercept = recalibration(expit(2 * logits + 1), labels)
    assert slope == pytest.approx(0.5, abs=0.02)
    assert intercept == pytest.approx(-0.5, abs=0.04)


def test_one_class_or_equal_probabilities_have_no_calibration_curve():
    assert np.isnan(recalibration(np.full(5, 0.3), np.array([0, 1, 0, 1, 1]))).all()
    assert np.isnan(recalibration(np.linspace(0, 1, 5), np.ones(5, dtype=np.int64))).all()
