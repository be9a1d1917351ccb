from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax

from graphhalu.core.errors import TraceNotFoundError, UsageError
from graphhalu.features.block import block_of
from graphhalu.features.layer_shift import icr, strongest_keys, updated_layers
from graphhalu.features.matrices import row_pairs
from tests.features.wholes import SHAPE, answer_rows, some_traces, visible, whole_trace, with_arrays, without


def slow_icr(trace, layer, top_k):
    mean, found = trace.attention(layer).mean(axis=0), []
    before, after = (trace.hidden(n).astype(np.float64) for n in (layer, layer + 1))
    for i in answer_rows(trace):
        row = mean[i - trace.record.row_start]
        keys = sorted(visible(trace, layer, i), key=lambda j: (-row[j], j))[:top_k]
        if len(keys) > 1:
            weights = row[keys].astype(np.float64)
            attended = softmax((weights - weights.mean()) / weights.std())
            update = after[i] - before[i]
            updated = softmax([update @ before[j] / np.linalg.norm(before[j]) for j in keys])
            found.append(jensenshannon(attended, updated, base=2) ** 2)
    return np.mean(found)


@pytest.mark.parametrize("top_k", [2, 5, 20])
@pytest.mark.parametrize("only_answer_rows", [False, True])
def test_icr_is_the_divergence_of_a_loop_over_rows(top_k, only_answer_rows):
    traces = some_traces(2, only_answer_rows=only_answer_rows)
    values = icr(block_of(traces), top_k=top_k)

    slow = [[slow_icr(trace, layer, top_k) for layer in range(6)] for trace in traces]
    assert values.shape == (5, 6)
    np.testing.assert_allclose(values, slow, rtol=1e-3, atol=1e-6)


def test_of_equal_weights_the_earlier_keys_are_taken():
    block = block_of([whole_trace(np.random.default_rng(1), 7, 4)])
    pairs = row_pairs(block, block.is_answer_row)

    key, _, is_kept = strongest_keys(np.zeros(len(pairs.key), dtype=np.float32), pairs, 3)
    assert np.sort(key, axis=1).tolist() == [[0, 1, 2]] * 4
    assert is_kept.all()


def test_the_last_layer_and_layers_without_both_states_are_left_out():
    assert updated_layers(block_of(some_traces(2))) == [0, 1, 2, 3, 4, 5]
    few = replace(SHAPE, hidden_layers=(0, 2, 3, 5, 6, 7))
    assert updated_layers(block_of(some_traces(2, few))) == [2, 5]


def test_a_store_without_the_states_of_the_prompt_says_so():
    traces = [without(trace, "hidden") for trace in some_traces(2, only_answer_rows=True)]

    with pytest.raises(TraceNotFoundError, match="states of all tokens"):
        icr(block_of(traces), top_k=5)


def test_states_that_are_not_a_number_leave_their_layers_missing():
    traces = some_traces(2)
    hidden = traces[1].arrays["hidden"].copy()
    hidden[3, 0] = 0x7FC0
    traces[1] = with_arrays(traces[1], hidden=hidden)

    values = icr(block_of(traces), top_k=20)
    assert np.argwhere(np.isnan(values)).tolist() == [[1, 3]]


def test_one_key_has_nothing_to_be_compared_with():
    with pytest.raises(UsageError, match="at least 2"):
        icr(block_of(some_traces(2)), top_k=1)
