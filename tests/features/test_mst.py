import numpy as np
import pytest
from scipy.sparse.csgraph import minimum_spanning_tree

from graphhalu.core.errors import TraceNotFoundError
from graphhalu.features.block import block_of
from graphhalu.features.spectral import mst_divergence, prim_length
from tests.features.wholes import SHAPE, some_traces, square, whole_trace, with_arrays, without


def slow_divergence(trace, layer, head):
    """The definition: a complete graph of all tokens whose prompt tokens are 0 apart."""
    prompt, length = trace.prompt_length, trace.length
    weights = np.zeros((length, length))
    weights[trace.record.row_start :] = square(trace, layer)[head]
    # scipy takes what is below 1e-8 for no edge
    tiny = 1e-6
    distance = 1 - np.maximum(weights, weights.T) + tiny
    distance[:prompt, :prompt] = tiny
    np.fill_diagonal(distance, 0)
    return minimum_spanning_tree(distance).sum() / (length - prompt)


@pytest.mark.parametrize("only_answer_rows", [False, True])
def test_the_tree_is_that_of_scipy_over_all_tokens(only_answer_rows):
    traces = some_traces(2, only_answer_rows=only_answer_rows)
    values = mst_divergence(block_of(traces))

    assert values.shape == (5, 7, 5)
    for trace, found in zip(traces, values, strict=True):
        slow = [[slow_divergence(trace, la, h) for h in range(5)] for la in range(7)]
        np.testing.assert_allclose(found, slow, atol=1e-5)


def test_a_tree_may_join_a_token_through_a_later_one():
    # token 1 hangs from token 2 (0.1) and not from the prompt (1.0)
    weights = np.zeros((1, 1, 3, 3), dtype=np.float32)
    weights[0, 0, 2, 0], weights[0, 0, 2, 1] = 0.8, 0.9

    assert prim_length(weights, np.array([2]))[0, 0] == pytest.approx(0.2 + 0.1)


def test_an_answer_of_one_token_is_as_far_as_its_strongest_prompt_token():
    trace = whole_trace(np.random.default_rng(3), 7, 1)

    values = mst_divergence(block_of([trace]))[0]
    strongest = [square(trace, layer)[:, 7, :7].max(axis=1) for layer in range(7)]
    np.testing.assert_allclose(values, 1 - np.array(strongest), atol=1e-6)


def test_a_trace_without_all_rows_of_its_answer_has_no_tree():
    generator = np.random.default_rng(3)
    cut = whole_trace(generator, 7, 5, row_start=8)
    whole = whole_trace(generator, 5, 3, row_start=5)

    values = mst_divergence(block_of([cut, whole]))
    assert np.isnan(values[0]).all()
    assert np.isfinite(values[1]).all()


def test_fixed_point_gives_the_same_as_half_precision():
    trace = whole_trace(np.random.default_rng(3), 7, 5)

    fixed = mst_divergence(block_of([without(trace, "attention")]))
    np.testing.assert_allclose(fixed, mst_divergence(block_of([trace])), atol=1e-3)


def test_a_weight_that_is_not_a_number_leaves_only_its_head_missing():
    traces = some_traces(4)
    attention = traces[2].arrays["attention"].copy()
    attention[1, 3, -2] = np.nan

    traces[2] = with_arrays(traces[2], attention=attention)
    values = mst_divergence(block_of(traces))
    assert np.argwhere(np.isnan(values)).tolist() == [[2, 1, 3]]


def test_a_layer_that_sees_only_itself_has_no_tree():
    from dataclasses import replace

    shape = replace(SHAPE, layer_windows=(1, *SHAPE.layer_windows[1:]))
    values = mst_divergence(block_of(some_traces(2, shape)))

    assert np.isnan(values[:, 0]).all()
    assert np.isfinite(values[:, 1:]).all()


def test_censored_edges_have_no_tree():
    trace = without(some_traces(2)[0], "attention", "attention_fixed")

    with pytest.raises(TraceNotFoundError, match="attention"):
        mst_divergence.values(block_of([trace]))
