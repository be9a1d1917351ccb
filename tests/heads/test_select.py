"""Choosing heads: by rank, threshold and stability."""

import numpy as np
import pytest

from graphhalu.core.errors import NotEnoughDataError, UsageError
from graphhalu.core.numerics import group_multiplicities
from graphhalu.heads.table import heads_above, stable_heads, top_k_heads, top_k_share
from tests.heads.conftest import make_table


def test_the_highest_means_are_chosen_and_named(table):
    mask = top_k_heads(table, 4)
    order = sorted(np.ndindex(5, 3), key=lambda place: -table.mean[place])[:4]
    assert set(mask.heads) == set(order)
    assert set(mask.names) == {f"L{layer}H{head}" for layer, head in order}


def test_names_are_of_model_layers(scores):
    mask = top_k_heads(make_table(scores, layers=(3, 5, 8, 13, 21)), 15)
    assert mask.names[-1] == "L21H2"
    assert len(mask.names) == 15


def test_equal_heads_come_by_layer_and_head():
    assert top_k_heads(make_table(np.ones((2, 3, 2))), 3).heads == ((0, 0), (0, 1), (1, 0))


def test_a_head_without_a_score_is_never_chosen(scores):
    scores[:, 2, 1] = np.nan
    table = make_table(scores)
    assert (2, 1) not in top_k_heads(table, 14).heads
    assert (2, 1) not in heads_above(table, -5.0).heads
    assert top_k_share(table, 14)[2, 1] == 0
    with pytest.raises(UsageError, match=r"15 heads were asked for.*has 14 heads"):
        top_k_heads(table, 15)


def test_a_threshold_takes_what_reaches_it(table):
    threshold = float(np.sort(table.mean.ravel())[-6])
    assert heads_above(table, threshold).is_chosen.sum() == 6
    with pytest.raises(NotEnoughDataError, match=r"mean >= 2.*highest mean is 0"):
        heads_above(table, 2.0)
    with pytest.raises(UsageError, match="is a number"):
        heads_above(table, float("nan"))


def test_the_share_of_resamples_equals_a_slow_loop(scores):
    groups = [f"q{i // 2}" for i in range(11)]
    table = make_table(scores, groups=groups)
    found = top_k_share(table, 4, n_resamples=83, seed=3)
    names = sorted(set(groups))
    counts = np.zeros((5, 3))
    for draw in group_multiplicities(len(names), 83, np.random.default_rng(3)):
        trials = [
            trial
            for name, times in zip(names, draw, strict=True)
            for _ in range(int(times))
            for trial in range(11)
            if groups[trial] == name
        ]
        means = scores[trials].mean(0)
        for place in sorted(np.ndindex(5, 3), key=lambda p: -means[p])[:4]:
            counts[place] += 1
    np.testing.assert_allclose(found, counts / 83)
    np.testing.assert_allclose(found.sum(), 4)


def test_stable_heads_are_those_that_stay_on_top(scores):
    scores[:, 4, 2] += 5
    mask = stable_heads(make_table(scores), 1)
    assert mask.heads == ((4, 2),)
    with pytest.raises(UsageError, match="above 0 and at most 1"):
        stable_heads(make_table(scores), 1, min_share=0.0)
    with pytest.raises(UsageError, match="0 heads were asked for"):
        stable_heads(make_table(scores), 0)


def test_no_stable_head_is_said(scores):
    noise = scores - scores.mean(0)
    with pytest.raises(NotEnoughDataError, match="no tested head by the rule"):
        stable_heads(make_table(noise), 1, min_share=1.0)
