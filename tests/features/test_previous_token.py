import numpy as np
import pytest

from graphhalu.features.block import block_of
from graphhalu.features.earlier_tokens import previous_token, previous_token_mass
from tests.features.wholes import answer_rows, row_of, some_traces, square, with_arrays, without


def slow_mass(trace, layer):
    weights = square(trace, layer)
    return np.mean([row_of(trace, weights, i)[:, i - 1] for i in answer_rows(trace)], axis=0)


@pytest.mark.parametrize("only_answer_rows", [False, True])
def test_the_mass_is_the_mean_of_the_entries_left_of_the_diagonal(only_answer_rows):
    traces = some_traces(2, only_answer_rows=only_answer_rows)

    slow = [[slow_mass(trace, layer) for layer in range(7)] for trace in traces]
    np.testing.assert_allclose(previous_token_mass(block_of(traces)), slow, rtol=1e-6)


def edges_alone(traces):
    return [without(trace, "attention", "attention_fixed") for trace in traces]


def test_edges_give_the_same_where_every_row_kept_that_edge():
    traces = some_traces(2)
    whole = previous_token_mass(block_of(traces))

    values = previous_token_mass(block_of(edges_alone(traces)))
    is_known = np.isfinite(values)
    assert 0 < is_known.sum() < values.size
    np.testing.assert_allclose(values[is_known], whole[is_known], rtol=1e-3)


def test_an_edge_that_was_not_kept_is_missing_and_bounded():
    traces = some_traces(2)
    whole, _ = previous_token(block_of(traces), 0)
    values, bound = previous_token(block_of(edges_alone(traces)), 0)

    is_missing = np.isnan(values) & np.isfinite(whole)
    assert is_missing.any()
    assert (bound[is_missing] >= whole[is_missing] - 1e-3).all()
    assert (bound[is_missing] < 0.5).all()
    np.testing.assert_allclose(bound[~is_missing], values[~is_missing], rtol=1e-6, equal_nan=True)


def test_a_row_that_lists_all_its_edges_pays_nothing_to_the_token_before():
    trace = edges_alone(some_traces(2))[0]
    key = np.full_like(trace.arrays["edge_key"], -1)
    key[..., 0] = 0
    changed = with_arrays(trace, edge_key=key)

    values, _ = previous_token(block_of([changed]), 0)
    assert np.isnan(values[:, 0]).all()
    np.testing.assert_allclose(values[:, 1], trace.arrays["edge_weight"][0, :, 1, 0], rtol=1e-6)
    np.testing.assert_array_equal(values[:, 2:], 0)


def test_the_first_token_has_none_before_it():
    values, bound = previous_token(block_of(some_traces(2)), 0)

    assert np.isnan(values[:, 0]).all()
    assert np.isnan(bound[:, 0]).all()
