"""Intervals, contrasts and false-discovery control, against slow loops."""

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from graphhalu.core.errors import NotEnoughDataError, UsageError
from graphhalu.core.numerics import benjamini_hochberg, group_multiplicities
from graphhalu.heads.table import contrast, mean_of_present, percentile_interval, resampled_means

GROUPS = ["a", "b", "a", "c", "b", "d", "d"]


def values_with_gaps():
    values = np.random.default_rng(3).normal(size=(7, 3, 2))
    values[[0, 4], 1, 0] = np.nan
    values[:, 2, 1] = np.nan
    return values


def test_resampled_means_equal_a_slow_loop_over_drawn_groups():
    values = values_with_gaps()
    found = resampled_means(values, GROUPS, n_resamples=19, seed=5)
    draws = group_multiplicities(4, 19, np.random.default_rng(5))
    for resample in range(19):
        rows = [
            values[trial]
            for group, times in zip("abcd", draws[resample], strict=True)
            for _ in range(int(times))
            for trial in range(7)
            if GROUPS[trial] == group
        ]
        for place in np.ndindex(3, 2):
            there = [row[place] for row in rows if not np.isnan(row[place])]
            expected = np.mean(there) if there else np.nan
            np.testing.assert_allclose(found[resample][place], expected)


def test_every_resample_draws_as_many_groups_as_there_are():
    assert (group_multiplicities(13, 17, np.random.default_rng(0)).sum(1) == 13).all()


def test_a_mean_leaves_missing_values_out_and_an_empty_one_is_missing():
    means = mean_of_present(values_with_gaps())
    np.testing.assert_allclose(means[1, 0], values_with_gaps()[[1, 2, 3, 5, 6], 1, 0].mean())
    assert np.isnan(means[2, 1])
    assert np.isnan(means).sum() == 1


def test_an_interval_is_the_middle_of_the_resamples_of_each_head():
    means = resampled_means(values_with_gaps(), GROUPS, n_resamples=997)
    low, high = percentile_interval(means, 0.9)
    np.testing.assert_allclose(low[0, 1], np.quantile(means[:, 0, 1], 0.05))
    np.testing.assert_allclose(high[1, 0], np.nanquantile(means[:, 1, 0], 0.95))
    assert np.isnan(low[2, 1])
    assert np.isnan(high[2, 1])


def test_a_contrast_finds_the_head_that_differs_and_no_other():
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(53, 2, 3)), generator.normal(size=(47, 2, 3))
    first[:, 1, 2] += 2
    groups = ([f"r{i}" for i in range(53)], [f"w{i}" for i in range(47)])
    found = contrast(first, second, groups)
    assert np.argwhere(found["_q"] < 0.001).tolist() == [[1, 2]]
    np.testing.assert_allclose(found[""], first.mean(0) - second.mean(0))
    assert (found["_low"] < found[""]).all()
    assert (found[""] < found["_high"]).all()


def test_a_contrast_keeps_the_two_sides_of_a_question_in_one_draw():
    generator = np.random.default_rng(0)
    shared = 10 * generator.normal(size=(31, 1))
    first = shared + generator.normal(size=(31, 1))
    second = shared + generator.normal(size=(31, 1))
    names = [str(i) for i in range(31)]
    paired = contrast(first, second, (names, names))
    unpaired = contrast(first, second, (names, [f"x{n}" for n in names]))
    assert (paired["_high"] - paired["_low"])[0] < 0.5 * (unpaired["_high"] - unpaired["_low"])[0]


def test_false_discovery_control_equals_that_of_scipy_and_skips_missing_values():
    p_values = np.random.default_rng(0).uniform(size=(5, 7)) ** 3
    np.testing.assert_allclose(
        benjamini_hochberg(p_values), false_discovery_control(p_values.ravel()).reshape(5, 7)
    )
    gapped = p_values.copy()
    gapped[2, 3] = np.nan
    there = ~np.isnan(gapped)
    found = benjamini_hochberg(gapped)
    np.testing.assert_allclose(found[there], false_discovery_control(gapped[there]))
    assert np.isnan(found[2, 3])


def test_what_cannot_be_computed_is_refused():
    with pytest.raises(NotEnoughDataError, match="no trial"):
        resampled_means(np.zeros((0, 2)), [])
    with pytest.raises(UsageError, match="at least one resample"):
        resampled_means(np.zeros((3, 2)), ["a", "b", "c"], n_resamples=0)
    with pytest.raises(UsageError, match="between 0 and 1"):
        percentile_interval(np.zeros((3, 2)), 1.0)
    with pytest.raises(NotEnoughDataError, match="both sides"):
        contrast(np.zeros((0, 2)), np.zeros((3, 2)), ([], ["a", "b", "c"]))
