"""Rank correlation of grids: scipy as the oracle, planted trends, and what is refused."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.studies.weights.agreement import rank_correlation

SHAPE = (23, 7)
QUICK = {"n_resamples": 300, "n_permutations": 300}


def grids(relation, seed=0):
    generator = np.random.default_rng(seed)
    first, noise = generator.normal(size=(2, *SHAPE))
    return first, relation * first + noise


def test_the_correlation_is_that_of_scipy_also_with_ties_and_gaps():
    first, second = grids(0.5)
    first = np.round(first, 1)
    first[3, 2] = second[4, :] = np.nan
    both = np.isfinite(first) & np.isfinite(second)
    found = rank_correlation(first, second, **QUICK)
    assert found.rho == pytest.approx(spearmanr(first[both], second[both]).statistic)
    assert found.n == both.sum()
    assert found.low < found.rho < found.high


def test_a_planted_relation_is_found_and_none_is_not():
    assert rank_correlation(*grids(1.0), **QUICK).p_value < 0.01
    assert rank_correlation(*grids(0.0, seed=3), **QUICK).p_value > 0.05


def test_p_values_are_even_where_nothing_is_related_but_members_of_a_group_are_alike():
    generator = np.random.default_rng(1)
    p_values = []
    for seed in range(60):
        group = generator.normal(size=(2, SHAPE[0], 1))
        first, second = group + 0.3 * generator.normal(size=(2, *SHAPE))
        p_values.append(rank_correlation(first, second, seed=seed, **QUICK).p_value)
    assert 0.3 < np.mean(p_values) < 0.7
    assert np.mean(np.array(p_values) < 0.05) < 0.15


def test_what_follows_the_order_of_groups_alone_has_nothing_beyond_it():
    order = np.arange(SHAPE[0])[:, None]
    generator = np.random.default_rng(2)
    first, second = order + generator.normal(size=(2, *SHAPE))
    found = rank_correlation(first, second, **QUICK)
    assert found.rho > 0.9
    assert abs(found.beyond_depth) < 0.25
    single = rank_correlation(first[:, :1], second[:, :1], **QUICK)
    assert single.rho > 0.9
    assert abs(single.beyond_depth) < 0.5


def test_constant_or_too_few_cells_have_no_correlation():
    with pytest.raises(NotEnoughDataError, match="needs 5 cells that differ, got 161"):
        rank_correlation(np.ones(SHAPE), grids(1.0)[1], **QUICK)
    with pytest.raises(NotEnoughDataError, match="got 4"):
        rank_correlation(np.arange(4.0)[:, None], np.arange(4.0)[:, None], **QUICK)
