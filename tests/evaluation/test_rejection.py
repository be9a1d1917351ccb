"""Rejection metrics against slow loops over every number of kept traces."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.evaluation.metrics import (
    counted_aurc,
    counted_excess_aurc,
    counted_prr,
    risk_coverage_curve,
    roc_counts,
)


def prr(scores, labels, **options):
    return counted_prr(roc_counts(scores, labels), **options)[0]


def aurc(scores, labels):
    return counted_aurc(roc_counts(scores, labels))[0]


def excess_aurc(scores, labels):
    return counted_excess_aurc(roc_counts(scores, labels))[0]


def lm_polygraph_prr(uncertainty, quality, max_rejection=0.5):
    """Its PredictionRejectionArea and normalisation, line by line; the random curve is exact."""

    def area(order):
        n = len(quality)
        n_rejected = int(max_rejection * n)
        cumsum = np.cumsum(quality[order])[-n_rejected:]
        scores = (cumsum / np.arange((n - n_rejected) + 1, n + 1))[::-1]
        return np.sum(scores) / n_rejected

    found = area(np.argsort(uncertainty, kind="stable"))
    oracle = area(np.argsort(-quality, kind="stable"))
    return (found - quality.mean()) / (oracle - quality.mean())


def slow_aurc(scores, labels):
    """Mean risk over all numbers of kept traces, averaged over shuffles of ties."""
    order = np.argsort(scores, kind="stable")
    return np.mean([labels[order[:k]].mean() for k in range(1, len(labels) + 1)])


def shuffled_mean(function, scores, labels, n_shuffles=4000):
    rng = np.random.default_rng(0)
    found = []
    for _ in range(n_shuffles):
        order = rng.permutation(len(labels))
        found.append(function(scores[order], labels[order]))
    return np.mean(found)


@st.composite
def distinct_scores(draw):
    n = draw(st.integers(6, 47))
    scores = np.array(draw(st.permutations(list(range(n))))) / 7
    labels = np.array([*draw(st.lists(st.integers(0, 1), min_size=n - 2, max_size=n - 2)), 0, 1])
    return scores, labels


@given(distinct_scores(), st.sampled_from([0.3, 0.5, 1.0]))
@settings(deadline=None)
def test_prr_equals_the_definition_of_lm_polygraph(case, max_rejection):
    scores, labels = case
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = lm_polygraph_prr(scores, 1 - labels, max_rejection)
    if np.isfinite(expected) and abs(expected) < 1e6:
        assert prr(scores, labels, max_rejection=max_rejection) == pytest.approx(expected, abs=1e-9)


@given(distinct_scores())
@settings(deadline=None)
def test_aurc_is_the_mean_risk_over_all_numbers_of_kept_traces(case):
    assert aurc(*case) == pytest.approx(slow_aurc(*case), abs=1e-12)
    assert risk_coverage_curve(*case)[1].mean() == pytest.approx(aurc(*case), abs=1e-12)


def test_ties_count_as_the_mean_over_their_orders():
    scores = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]) / 3
    labels = np.array([0, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1])
    expected = shuffled_mean(lambda s, y: lm_polygraph_prr(s, 1 - y), scores, labels)
    assert prr(scores, labels) == pytest.approx(expected, abs=0.02)
    assert aurc(scores, labels) == pytest.approx(shuffled_mean(slow_aurc, scores, labels), abs=0.005)


def test_an_oracle_has_a_ratio_of_one_and_no_excess_and_a_constant_has_zero():
    labels = np.array([0, 1, 1, 0, 1, 0, 0, 1, 1, 1, 0])
    assert prr(labels.astype(float), labels) == pytest.approx(1)
    assert excess_aurc(labels.astype(float), labels) == pytest.approx(0, abs=1e-12)
    assert prr(np.zeros(11), labels) == pytest.approx(0, abs=1e-12)
    assert prr(-labels.astype(float), labels) < -0.5
    assert aurc(np.zeros(11), labels) == pytest.approx(labels.mean())


def test_a_hand_computed_case():
    # kept by rising score: correct, wrong, correct, wrong; rejecting 0 or 1 keeps 4 or 3
    scores, labels = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0, 1, 0, 1])
    area, oracle = (2 / 4 + 2 / 3) / 2, (2 / 4 + 2 / 3) / 2
    assert prr(scores, labels) == pytest.approx((area - 0.5) / (oracle - 0.5))
    assert aurc(scores, labels) == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)
    assert excess_aurc(scores, labels) == pytest.approx((1 / 2 + 1 / 3 - 1 / 3) / 4)


@given(distinct_scores())
@settings(deadline=None)
def test_a_rising_map_and_the_order_of_the_file_change_nothing(case):
    scores, labels = case
    order = np.random.default_rng(3).permutation(len(labels))
    for function in (aurc, excess_aurc):
        expected = pytest.approx(function(scores, labels), abs=1e-12)
        assert function(np.exp(scores) - 5, labels) == expected
        assert function(scores[order], labels[order]) == expected


def test_weights_equal_literal_repetition():
    rng = np.random.default_rng(1)
    labels, scores = np.arange(31) % 2, np.round(rng.normal(size=31), 1)
    weights = rng.integers(0, 4, size=(13, 31))
    counts = roc_counts(scores, labels, weights)
    for counted, literal in ((counted_prr, prr), (counted_aurc, aurc), (counted_excess_aurc, excess_aurc)):
        expected = [literal(np.repeat(scores, w), np.repeat(labels, w)) for w in weights]
        np.testing.assert_allclose(counted(counts), expected, atol=1e-12)


def test_one_class_is_refused_and_without_anything_to_reject_there_is_no_ratio():
    with pytest.raises(NotEnoughDataError, match="both classes"):
        risk_coverage_curve(np.arange(5.0), np.zeros(5, dtype=np.int64))
    assert np.isnan(prr(np.arange(5.0), np.array([0, 1, 0, 1, 1]), max_rejection=0.1))
