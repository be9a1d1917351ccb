import math

import numpy as np
import pytest

from graphhalu.features.block import block_of
from graphhalu.features.instability import bounded_std, head_std, head_std_sink, logit_std


def layer_head_std(trace):
    return head_std_sink(block_of([trace]))[0]


def slow_std(values):
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))


def slow_over_heads(share, function):
    n_layers, n_heads, n_rows = share.shape
    result = np.empty((n_layers, n_rows))
    for layer in range(n_layers):
        for row in range(n_rows):
            result[layer, row] = function([share[layer, head, row] for head in range(n_heads)])
    return result


def test_head_std_is_the_population_std_over_heads(share):
    np.testing.assert_allclose(head_std(share), slow_over_heads(share, slow_std), rtol=1e-12)


def test_logit_std_is_the_std_of_the_log_odds(share):
    def slow(values):
        return slow_std([math.log(value / (1 - value)) for value in values])

    np.testing.assert_allclose(logit_std(share), slow_over_heads(share, slow), rtol=1e-9)


def test_logit_std_stays_finite_for_shares_of_zero_and_one():
    share = np.array([0.0, 1.0], dtype=np.float32).reshape(1, 2, 1)

    assert logit_std(share)[0, 0] == pytest.approx(math.log(1e6), rel=1e-5)


def test_bounded_std_is_relative_to_the_largest_std_of_that_mean(share):
    def slow(values):
        mean = sum(values) / len(values)
        return slow_std(values) / math.sqrt(mean * (1 - mean))

    np.testing.assert_allclose(bounded_std(share), slow_over_heads(share, slow), rtol=1e-12)


def test_bounded_std_is_one_for_heads_that_are_all_or_nothing():
    share = np.array([0.0, 1.0, 1.0]).reshape(1, 3, 1)

    assert bounded_std(share)[0, 0] == pytest.approx(1)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_bounded_std_is_undefined_where_no_head_can_differ(value):
    assert np.isnan(bounded_std(np.full((1, 3, 1), value))).all()


def slow_scalar(trace, counts=lambda layer, row: True):
    keys = np.asarray(trace.arrays["sink_keys"], dtype=np.float64)
    found = []
    for layer in range(keys.shape[0]):
        for row in range(trace.prompt_length - 1, trace.length - 1):
            if counts(layer, row):
                found.append(slow_std([float(keys[layer, h, row].sum()) for h in range(3)]))
    return sum(found) / len(found)


def test_head_std_of_the_sink_is_the_mean_over_answer_producing_rows(trace):
    assert layer_head_std(trace).mean() == pytest.approx(slow_scalar(trace), rel=1e-9)


def test_head_std_of_the_sink_leaves_out_rows_that_cannot_see_it(trace, change):
    window = trace.prompt_length + 1
    windowed = change(trace, shape={"layer_windows": (None, window, None, None, None)})

    expected = slow_scalar(trace, lambda layer, row: layer == 1 and row < window)
    assert layer_head_std(windowed)[1] == pytest.approx(expected, rel=1e-9)
    assert layer_head_std(windowed)[1] != pytest.approx(layer_head_std(trace)[1], rel=1e-9)


def test_an_answer_that_never_sees_the_sink_has_no_head_std(trace, change):
    assert np.isnan(layer_head_std(change(trace, shape={"layer_windows": (3,) * 5}))).all()
