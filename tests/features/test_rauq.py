import math

import numpy as np
import pytest

from graphhalu.core.errors import UsageError
from graphhalu.features.block import Ragged, block_of
from graphhalu.features.earlier_tokens import chosen_head, rauq
from tests.features.wholes import some_traces, square, whole_trace, with_arrays, without


def slow_rauq(trace, alpha):
    probability = np.exp(trace.stream("token_logprob").astype(np.float64))
    first, length = trace.prompt_length, trace.length
    scores = []
    for layer in range(7 // 3, math.ceil(14 / 3) + 1):
        weights = square(trace, layer)
        carried = [
            [weights[head, t - trace.record.row_start, t - 1] for t in range(first + 1, length)]
            for head in range(5)
        ]
        best = max(carried, key=sum) if length > first + 1 else []
        confidence, logs = probability[first], [math.log(probability[first])]
        for t, attention in zip(range(first + 1, length), best, strict=True):
            confidence = alpha * probability[t] + (1 - alpha) * attention * confidence
            logs.append(math.log(confidence))
        scores.append(1 - sum(logs) / len(logs))
    return max(scores)


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("only_answer_rows", [False, True])
def test_rauq_is_the_recursion_over_the_head_that_looks_back_most(alpha, only_answer_rows):
    traces = some_traces(2, only_answer_rows=only_answer_rows)

    slow = [slow_rauq(trace, alpha) for trace in traces]
    np.testing.assert_allclose(rauq(block_of(traces), alpha=alpha), slow, rtol=1e-6)


def test_an_answer_of_one_token_has_its_own_surprise():
    trace = whole_trace(np.random.default_rng(1), 7, 1)

    expected = 1 - float(trace.arrays["token_logprob"][-1])
    assert rauq(block_of([trace]), alpha=0.5)[0] == pytest.approx(expected)


def test_edges_give_the_same_where_the_head_is_beyond_doubt():
    traces = [whole_trace(np.random.default_rng(seed), 7, 3) for seed in range(40)]
    whole = rauq(block_of(traces), alpha=0.5)

    edges = [without(trace, "attention", "attention_fixed") for trace in traces]
    values = rauq(block_of(edges), alpha=0.5)
    is_known = np.isfinite(values)
    assert 0 < is_known.sum() < 40
    np.testing.assert_allclose(values[is_known], whole[is_known], rtol=1e-3)


def test_a_head_is_not_chosen_while_another_one_could_have_more():
    values = np.array([[0.5, 0.5], [0.3, np.nan]])
    one_trace = Ragged(np.array([0, 2]))

    sure = np.array([[0.5, 0.5], [0.3, 0.6]])
    in_doubt = np.array([[0.5, 0.5], [0.3, 0.8]])
    assert chosen_head(values, sure, one_trace).tolist() == [0]
    assert chosen_head(values, in_doubt, one_trace).tolist() == [-1]


def test_a_value_that_is_not_a_number_leaves_its_trace_missing():
    traces = some_traces(2)
    attention = traces[2].arrays["attention"].copy()
    attention[3, 1] = np.nan
    logprob = traces[0].arrays["token_logprob"].copy()
    logprob[-1] = np.nan
    traces[2] = with_arrays(traces[2], attention=attention)
    traces[0] = with_arrays(traces[0], token_logprob=logprob)

    assert np.isnan(rauq(block_of(traces), alpha=0.5)).tolist() == [True, False, True, False, False]


@pytest.mark.parametrize("alpha", [0.0, 1.1, -0.2])
def test_alpha_is_a_weight(alpha):
    with pytest.raises(UsageError, match="alpha"):
        rauq(block_of(some_traces(2)), alpha=alpha)
