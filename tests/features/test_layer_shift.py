from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from scipy.stats import wasserstein_distance

from graphhalu.core.errors import TraceNotFoundError
from graphhalu.features import layer_shift
from graphhalu.features.block import block_of
from tests.features.wholes import (
    SHAPE,
    answer_rows,
    row_of,
    some_traces,
    square,
    visible,
    whole_trace,
    with_arrays,
    without,
)


def mean_or_nan(values):
    return np.mean(values, axis=0) if values else np.nan


def slow_divergence(trace, layer):
    one, other = square(trace, layer).mean(axis=0), square(trace, layer + 1).mean(axis=0)
    found = []
    for row in answer_rows(trace):
        keys = visible(trace, layer, row)
        if keys == visible(trace, layer + 1, row):
            place = row - trace.record.row_start
            # scipy gives the root, and scales rows to 1
            found.append(jensenshannon(one[place, keys], other[place, keys], base=2) ** 2)
    return mean_or_nan(found)


@pytest.mark.parametrize("only_answer_rows", [False, True])
def test_layer_divergence_is_that_of_scipy_over_rows_with_the_same_keys(only_answer_rows):
    traces = some_traces(2, only_answer_rows=only_answer_rows)
    values = layer_shift.layer_divergence(block_of(traces))

    slow = [[slow_divergence(trace, layer) for layer in range(6)] for trace in traces]
    np.testing.assert_allclose(values, slow, rtol=1e-5, atol=1e-9)
    # the last trace leaves a window of 7 before its answer begins
    assert np.isnan(values[4, 4:]).all()


def test_equal_layers_do_not_diverge_and_layers_apart_diverge_by_one_bit():
    trace = whole_trace(np.random.default_rng(1), 5, 3, shape=replace(SHAPE, layer_windows=(None,) * 7))
    attention = np.zeros_like(trace.arrays["attention"])
    starts = [row * (row + 1) // 2 for row in range(8)]
    attention[:2, :, starts] = 1
    attention[2:, :, [start + 1 for start in starts[1:]]] = 1

    values = layer_shift.layer_divergence(block_of([with_arrays(trace, attention=attention)]))
    np.testing.assert_allclose(values, [[0, 1, 0, 0, 0, 0]], atol=1e-12)


def slow_pairs(trace, layer, compare):
    one, other = square(trace, layer), square(trace, layer + 2)
    found = []
    for row in answer_rows(trace):
        keys = visible(trace, layer, row)
        if keys == visible(trace, layer + 2, row):
            rows = (row_of(trace, weights, row)[:, keys] for weights in (one, other))
            found.append([compare(a, b) for a, b in zip(*rows, strict=True)])
    return mean_or_nan(found) if found else [np.nan] * 5


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize(
    ("function", "compare"),
    [
        (layer_shift.hallushift_attention_distance, wasserstein_distance),
        (layer_shift.hallushift_attention_cosine, cosine),
    ],
    ids=["wasserstein", "cosine"],
)
def test_attention_two_layers_apart_is_compared_head_by_head(function, compare):
    traces = some_traces(5)
    values = function(block_of(traces))

    slow = [[slow_pairs(trace, layer, compare) for layer in range(5)] for trace in traces]
    assert values.shape == (5, 5, 5)
    np.testing.assert_allclose(values, slow, rtol=1e-5, atol=1e-7)


def test_attention_that_moves_to_another_key_has_moved_by_nothing():
    # the fault that the source has
    trace = whole_trace(np.random.default_rng(1), 5, 3, shape=replace(SHAPE, layer_windows=(None,) * 7))
    attention = np.zeros_like(trace.arrays["attention"])
    starts = [row * (row + 1) // 2 for row in range(1, 8)]
    attention[:2, :, starts] = 1
    attention[2:, :, [start + 1 for start in starts]] = 1
    block = block_of([with_arrays(trace, attention=attention)])

    np.testing.assert_array_equal(layer_shift.hallushift_attention_distance(block), 0)
    np.testing.assert_array_equal(layer_shift.hallushift_attention_cosine(block)[:, :2], 0)


@pytest.mark.parametrize(
    ("function", "compare"),
    [
        (layer_shift.hallushift_hidden_distance, lambda a, b: wasserstein_distance(softmax(a), softmax(b))),
        (layer_shift.hallushift_hidden_cosine, cosine),
    ],
    ids=["wasserstein", "cosine"],
)
def test_states_two_layers_apart_are_compared_row_by_row(function, compare):
    traces = some_traces(6)
    values = function(block_of(traces))

    states = [[trace.hidden(layer).astype(np.float64) for layer in range(8)] for trace in traces]
    slow = [
        [
            np.mean([compare(kept[layer][row], kept[layer + 2][row]) for row in answer_rows(trace)])
            for layer in range(6)
        ]
        for trace, kept in zip(traces, states, strict=True)
    ]
    np.testing.assert_allclose(values, slow, rtol=1e-4, atol=1e-7)


def test_states_of_the_stored_rows_are_enough():
    traces = some_traces(6, only_answer_rows=True)
    rows_alone = [without(trace, "hidden") for trace in traces]

    for function in (layer_shift.hallushift_hidden_distance, layer_shift.hallushift_hidden_cosine):
        np.testing.assert_array_equal(function(block_of(rows_alone)), function(block_of(traces)))


def test_layers_that_are_not_two_apart_are_not_compared():
    shape = replace(SHAPE, hidden_layers=(0, 1, 3, 4, 6, 8))
    assert layer_shift.shifted_places(shape.hidden_layers, "x") == [(1, 2), (3, 4), (4, 5)]


def test_a_store_without_such_layers_says_which_it_keeps():
    traces = some_traces(6, replace(SHAPE, hidden_layers=(0, 3, 6)))

    with pytest.raises(TraceNotFoundError, match="kept: 0, 3, 6"):
        layer_shift.hallushift_hidden_cosine(block_of(traces))
