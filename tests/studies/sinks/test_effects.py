"""Differences between classes against formulas and numpy."""

import numpy as np
import pytest

from graphhalu.evaluation.bootstrap import EvaluationSet, drawn_blocks
from graphhalu.studies.sinks.effects import (
    cohens_d,
    correlation,
    median_differences,
    pearson,
    permutation_p,
    shift,
)
from graphhalu.studies.sinks.records import SinkTable
from graphhalu.studies.sinks.settings import AnalyzeConfig

HOW = AnalyzeConfig(n_resamples=200, n_permutations=400, seed=1)
RNG = np.random.default_rng(5)
LABELS = (np.arange(67) % 3 == 0).astype(np.int64)
GROUPS = np.array([f"q{i}" for i in range(67)])
VALUES = RNG.normal(size=67) + 1.2 * LABELS
SAMPLE = EvaluationSet(LABELS, GROUPS, HOW.n_resamples, HOW.seed)


def test_cohens_d_is_the_difference_of_means_over_the_pooled_deviation():
    a, b = VALUES[LABELS == 1], VALUES[LABELS == 0]
    pooled = ((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / (len(VALUES) - 2)
    found = cohens_d(SAMPLE, VALUES)
    assert found.value == pytest.approx((a.mean() - b.mean()) / np.sqrt(pooled))
    assert found.low < found.value < found.high
    assert found.excludes_zero


def test_an_effect_far_from_zero_in_large_numbers_keeps_its_digits():
    shifted = cohens_d(SAMPLE, VALUES + 1e6)
    assert shifted.value == pytest.approx(cohens_d(SAMPLE, VALUES).value, abs=1e-6)


def test_without_spread_there_is_no_effect():
    found = cohens_d(SAMPLE, np.ones(67))
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_a_difference_of_medians_is_that_of_whole_questions_drawn_again_and_again():
    groups = np.array([f"q{i // 2}" for i in range(67)])
    found = median_differences(EvaluationSet(LABELS, groups, 200, 1), VALUES)
    expected = [np.median(VALUES[LABELS == 1]) - np.median(VALUES[LABELS == 0])]
    codes = np.unique(groups, return_inverse=True)[1]
    for drawn in next(drawn_blocks(34, HOW.n_resamples, HOW.seed)):
        again = np.repeat(np.arange(67), drawn[codes])
        values, labels = VALUES[again], LABELS[again]
        expected.append(np.median(values[labels == 1]) - np.median(values[labels == 0]))
    np.testing.assert_allclose(found, expected)


def test_a_permutation_test_finds_a_shift_and_nothing_where_there_is_none():
    assert permutation_p(SAMPLE, VALUES, 400) < 0.05
    assert permutation_p(SAMPLE, RNG.normal(size=67), 400) > 0.05


def test_where_questions_have_both_classes_labels_are_exchanged_within_them():
    labels = np.tile([0, 1], 40).astype(np.int64)
    groups = np.repeat([f"q{i}" for i in range(40)], 2)
    level = np.repeat(RNG.normal(size=40) * 50, 2)
    small = level + 0.5 * labels + 0.01 * RNG.normal(size=80)
    # between questions values differ a hundred times more than the classes do
    assert permutation_p(EvaluationSet(labels, groups, 200, 1), small, 400) < 0.01


def test_a_shift_that_is_all_length_goes_when_length_is_taken_away():
    length = np.where(LABELS == 1, 60.0, 30.0) + RNG.integers(0, 20, size=67)
    mass = 0.8 - 0.1 * np.log(length) + 0.001 * RNG.normal(size=67)
    table = SinkTable(
        mass, RNG.uniform(size=67), length, np.zeros((67, 2, 3)), LABELS, GROUPS, np.full(67, "")
    )
    found = shift(table, HOW)
    assert abs(found.cohens_d.value) > 1
    assert abs(found.adjusted_d.value) < 0.5
    assert found.length_pearson < -0.9
    assert found.permutation == "free"
    assert found.mean_difference.value == pytest.approx(mass[LABELS == 1].mean() - mass[LABELS == 0].mean())
    assert found.median_difference.value == pytest.approx(
        np.median(mass[LABELS == 1]) - np.median(mass[LABELS == 0])
    )


def test_a_correlation_is_pearsons_with_an_interval_around_it():
    other = VALUES + RNG.normal(size=67)
    found = correlation(SAMPLE, VALUES, other)
    assert found.value == pytest.approx(np.corrcoef(VALUES, other)[0, 1])
    assert found.low < found.value < found.high
    assert np.isnan(pearson(VALUES, np.ones(67)))
    assert correlation(SAMPLE, VALUES, np.ones(67)) is None
