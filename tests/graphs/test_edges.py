import numpy as np
import pytest

from graphhalu.core.errors import UsageError
from graphhalu.core.numerics import ragged_offsets
from graphhalu.graphs.edges import CumulativeMass, GraphRecipe, Threshold, TopK


def chosen_of(rule, importance, row_start=0):
    """What a rule chooses of a square: pairs of a row and an earlier key, row by row."""
    is_pair = np.tri(*importance.shape, k=row_start - 1, dtype=bool)
    is_edge = np.zeros(importance.shape, dtype=bool)
    is_edge[is_pair] = rule.choose_pairs(importance[is_pair][None], ragged_offsets(is_pair.sum(1)))[0]
    return is_edge


def ranked_keys(importance, row, position):
    """Earlier keys with importance, the largest first, ties by the lower key."""
    keys = [key for key in range(position) if importance[row, key] > 0]
    return sorted(keys, key=lambda key: (-importance[row, key], key))


def slow_threshold(importance, row, position, tau):
    return [key for key in ranked_keys(importance, row, position) if importance[row, key] > tau]


def slow_top_k(importance, row, position, k):
    return ranked_keys(importance, row, position)[:k]


def slow_cumulative(importance, row, position, p):
    keys = ranked_keys(importance, row, position)
    total = sum(importance[row, key] for key in keys)
    kept, mass = [], 0.0
    for key in keys:
        if mass >= p * total:
            break
        kept.append(key)
        mass += importance[row, key]
    return kept


def named(value):
    return getattr(value, "__name__", repr(value))


CASES = [
    (Threshold(0.05), slow_threshold, 0.05),
    (Threshold(0.0), slow_threshold, 0.0),
    (TopK(1), slow_top_k, 1),
    (TopK(5), slow_top_k, 5),
    (TopK(97), slow_top_k, 97),
    (CumulativeMass(0.5), slow_cumulative, 0.5),
    (CumulativeMass(0.9), slow_cumulative, 0.9),
    (CumulativeMass(1.0), slow_cumulative, 1.0),
]


@pytest.mark.parametrize(("rule", "slow", "argument"), CASES, ids=named)
@pytest.mark.parametrize("window", [None, 5])
def test_a_rule_chooses_what_a_loop_chooses(random_attention, rule, slow, argument, window):
    complete = random_attention(np.random.default_rng(7), (3, 13, 13), window=window).mean(0)

    for row_start in (0, 6):
        importance = complete[row_start:]
        expected = np.zeros(importance.shape, dtype=bool)
        for row in range(len(importance)):
            expected[row, slow(importance, row, row + row_start, argument)] = True
        np.testing.assert_array_equal(chosen_of(rule, importance, row_start), expected)


def test_keys_over_layers_are_those_with_the_largest_mean(random_attention):
    layers = random_attention(np.random.default_rng(11), (5, 13, 13))
    rows = np.tri(13, k=-1, dtype=bool)
    found = TopK(3, over_layers=True).choose_pairs(layers[:, rows], ragged_offsets(rows.sum(1)))
    expected = np.zeros(rows.shape, dtype=bool)
    for row in range(13):
        expected[row, slow_top_k(layers.mean(0), row, row, 3)] = True
    assert not np.array_equal(chosen_of(TopK(3), layers[0]), expected)
    for of_layer in found:
        np.testing.assert_array_equal(of_layer, expected[rows])


def test_layers_with_edges_of_their_own_share_none():
    with pytest.raises(UsageError, match='view="multiplex"'):
        GraphRecipe(edges=TopK(3, over_layers=True), view="stacked")


TIE_CASES = [(TopK(53), slow_top_k, 53), (CumulativeMass(0.5), slow_cumulative, 0.5)]


@pytest.mark.parametrize(("rule", "slow", "argument"), TIE_CASES, ids=named)
def test_a_tie_goes_to_the_lower_key(rule, slow, argument):
    # three values on many keys: an unstable sort would shuffle equal ones
    importance = np.random.default_rng(3).integers(1, 4, size=(211, 211)) / 8

    chosen = chosen_of(rule, importance, 0)

    assert np.flatnonzero(chosen[210]).tolist() == sorted(slow(importance, 210, 210, argument))


@pytest.mark.parametrize("rule", [Threshold(0.0), TopK(5), CumulativeMass(1.0)], ids=named)
def test_only_earlier_tokens_become_edges_whatever_the_rest_holds(rule):
    chosen = chosen_of(rule, np.full((5, 5), 0.5), 0)

    np.testing.assert_array_equal(chosen, np.tri(5, k=-1, dtype=bool))


@pytest.mark.parametrize("rule", [Threshold(0.0), TopK(5), CumulativeMass(1.0)], ids=named)
def test_a_pair_without_attention_is_no_edge(rule):
    assert not chosen_of(rule, np.eye(5), 0).any()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Threshold(1.0),
        lambda: Threshold(-0.1),
        lambda: TopK(0),
        lambda: CumulativeMass(0.0),
        lambda: CumulativeMass(1.5),
    ],
)
def test_a_rule_that_could_keep_nothing_sensible_is_refused(make):
    with pytest.raises(UsageError, match="got"):
        make()
