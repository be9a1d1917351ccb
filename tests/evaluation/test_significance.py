"""Tests of differences against slow loops, scipy and hand-computed cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from graphhalu.core.errors import NotEnoughDataError, UsageError
from graphhalu.evaluation.bootstrap import EvaluationSet, percentile_interval, two_sided_p
from graphhalu.evaluation.metrics import auroc
from graphhalu.evaluation.significance import (
    auroc_influence,
    compare_to_baseline,
    grouped_delong_test,
    holm,
    pooled_auroc,
    tost,
)


@pytest.fixture
def case():
    """101 traces of 41 questions; two detectors that agree in part."""
    rng = np.random.default_rng(4)
    labels = (rng.random(101) < 0.6).astype(np.int64)
    good = labels + rng.normal(size=101)
    poor = 0.3 * labels + 0.5 * good + rng.normal(size=101)
    return good, poor, labels, rng.integers(41, size=101)


def test_holm_equals_the_example_by_hand():
    # sorted 0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1, and never falling
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=13), st.floats(0.01, 0.2))
@settings(deadline=None)
def test_holm_refuses_what_the_step_down_loop_refuses(p_values, alpha):
    refused = set()
    for rank, place in enumerate(np.argsort(p_values, kind="stable").tolist()):
        if (len(p_values) - rank) * p_values[place] > alpha:
            break
        refused.add(place)
    found = {place for place, p in enumerate(holm(p_values)) if p <= alpha}
    assert found == refused


def test_tost_equals_two_normal_tests():
    p_not_worse, p_not_better = tost(0.004, 0.005, 0.015)
    assert p_not_worse == pytest.approx(norm.sf((0.004 + 0.015) / 0.005))
    assert p_not_better == pytest.approx(norm.cdf((0.004 - 0.015) / 0.005))
    # the interval of level 1 - 2 alpha lies within the margin exactly if TOST refuses at alpha
    assert (0.004 + norm.ppf(0.95) * 0.005 < 0.015) == (max(p_not_worse, p_not_better) < 0.05)
    with pytest.raises(ValueError, match="positive"):
        tost(0.0, 0.0)


def test_influences_of_a_class_sum_to_nothing(case):
    good, _, labels, _ = case
    influence = auroc_influence(good, labels)
    assert influence[labels == 1].sum() == pytest.approx(0, abs=1e-12)
    assert influence[labels == 0].sum() == pytest.approx(0, abs=1e-12)


def test_grouped_error_equals_the_slow_sum_over_pairs_within_a_group(case):
    good, _, labels, groups = case
    influence = auroc_influence(good, labels)
    slow = sum(influence[i] * influence[j] for i in range(101) for j in range(101) if groups[i] == groups[j])
    assert grouped_delong_test(0.1, influence, groups)[0] == pytest.approx(np.sqrt(slow))


def test_copies_of_a_question_do_not_make_the_grouped_test_surer(case):
    good, poor, labels, _ = case
    once = auroc_influence(good, labels) - auroc_influence(poor, labels)
    five = [np.repeat(v, 5) for v in (good, poor, labels)]
    repeated = auroc_influence(five[0], five[2]) - auroc_influence(five[1], five[2])
    expected = grouped_delong_test(0.1, once, np.arange(101))[0]
    found = grouped_delong_test(0.1, repeated, np.repeat(np.arange(101), 5))[0]
    assert found == pytest.approx(expected, rel=0.02)


def test_every_other_detector_is_tested_against_the_baseline(case):
    good, poor, labels, groups = case
    tested = EvaluationSet(labels, groups, n_resamples=300)
    scores = {"poor": [poor], "good": [good], "same": [3 * poor - 1]}
    found = compare_to_baseline(scores, "poor", tested)
    assert [(c.detector, c.baseline) for c in found] == [("good", "poor"), ("same", "poor")]
    drawn = [EvaluationSet(labels, groups, 300).resample(["auroc"], s)["auroc"] for s in (good, poor)]
    low, high, _ = percentile_interval(drawn[0] - drawn[1], 0.95)
    assert found[0].difference == pytest.approx(auroc(good, labels) - auroc(poor, labels))
    assert (found[0].low, found[0].high) == pytest.approx((low, high))
    assert found[0].p_bootstrap == two_sided_p(drawn[0] - drawn[1])
    assert found[0].p_holm == pytest.approx(min(1, 2 * found[0].p_delong))
    # a rising map of the baseline has the same ranks: no difference, and nothing to test
    assert found[1].difference == 0
    assert found[1].p_delong == found[1].p_bootstrap == 1.0
    assert found[1].p_equivalent is None


def test_seeds_are_averaged_before_the_test(case):
    good, poor, labels, groups = case
    tested = EvaluationSet(labels, groups, n_resamples=100)
    value, influence, resampled = pooled_auroc([good, poor], tested)
    alone = [pooled_auroc([s], tested) for s in (good, poor)]
    assert value == pytest.approx((auroc(good, labels) + auroc(poor, labels)) / 2)
    np.testing.assert_allclose(influence, (alone[0][1] + alone[1][1]) / 2)
    np.testing.assert_allclose(resampled, (alone[0][2] + alone[1][2]) / 2)


def test_the_grouped_test_is_right_about_as_often_as_it_says():
    rng = np.random.default_rng(7)
    refused = 0
    for _ in range(150):
        labels = np.arange(90) % 2
        shared = np.repeat(rng.normal(size=45), 2)
        pair = [labels + shared + rng.normal(size=90) for _ in range(2)]
        influence = auroc_influence(pair[0], labels) - auroc_influence(pair[1], labels)
        difference = auroc(pair[0], labels) - auroc(pair[1], labels)
        p_value = grouped_delong_test(difference, influence, np.arange(90) // 2)[1]
        refused += p_value < 0.05
    assert 0.01 <= refused / 150 <= 0.10


def test_a_baseline_that_is_no_detector_is_refused(case):
    good, _, labels, groups = case
    with pytest.raises(UsageError, match="none of good"):
        compare_to_baseline({"good": [good]}, "best", EvaluationSet(labels, groups))


def test_one_trace_of_a_class_is_refused():
    with pytest.raises(NotEnoughDataError, match="two traces"):
        auroc_influence(np.arange(5.0), np.array([1, 0, 0, 0, 0]))
