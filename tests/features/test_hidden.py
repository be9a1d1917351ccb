from dataclasses import replace

import numpy as np
import pytest

from graphhalu.core.errors import TraceNotFoundError
from graphhalu.features import hidden
from graphhalu.features.block import block_of
from graphhalu.traces.schema import to_bfloat16_bits
from tests.features.wholes import SHAPE, some_traces, whole_trace, with_arrays, without


def answer_states(trace, layer):
    return trace.hidden(layer)[trace.prompt_length :].astype(np.float64)


def slow(traces, function):
    return np.array([[function(trace, layer) for layer in range(8)] for trace in traces])


def slow_norm(trace, layer):
    return np.mean([np.linalg.norm(state) for state in answer_states(trace, layer)])


def slow_rank(trace, layer):
    singular = np.linalg.svd(answer_states(trace, layer), compute_uv=False)
    share = singular / singular.sum()
    return np.exp(-sum(p * np.log(p) for p in share))


def slow_score(trace, layer):
    states = answer_states(trace, layer)
    centring = np.eye(13) - np.ones((13, 13)) / 13
    gram = states @ centring @ states.T + 0.001 * np.eye(len(states))
    return np.mean(np.log(np.linalg.svd(gram, compute_uv=False)))


def slow_cosines(trace, layer):
    mean = trace.hidden(layer).astype(np.float64).mean(axis=0)
    lengths = np.linalg.norm(answer_states(trace, layer), axis=1) * np.linalg.norm(mean)
    return answer_states(trace, layer) @ mean / lengths


SUMMARIES = {
    "norm": (hidden.hidden_norm, slow_norm),
    "effective rank": (hidden.hidden_effective_rank, slow_rank),
    "score": (hidden.hidden_score, slow_score),
    "mean cosine": (hidden.hidden_cosine_mean, lambda trace, layer: slow_cosines(trace, layer).mean()),
    "largest cosine": (hidden.hidden_cosine_max, lambda trace, layer: slow_cosines(trace, layer).max()),
    "mean state": (hidden.state_mean_answer, lambda trace, layer: answer_states(trace, layer).mean(axis=0)),
    "last prompt state": (
        hidden.state_last_prompt,
        lambda trace, layer: trace.hidden(layer)[trace.prompt_length - 1],
    ),
    "last answer state": (
        hidden.state_last_answer,
        lambda trace, layer: trace.hidden(layer)[trace.length - 1],
    ),
}


@pytest.mark.parametrize("name", SUMMARIES)
def test_a_summary_is_that_of_a_loop_over_traces_and_layers(name):
    function, loop = SUMMARIES[name]
    traces = some_traces(2)

    np.testing.assert_allclose(function(block_of(traces)), slow(traces, loop), rtol=1e-4)


NEEDS_PROMPT = ("mean cosine", "largest cosine")


@pytest.mark.parametrize("name", [name for name in SUMMARIES if name not in NEEDS_PROMPT])
def test_states_of_the_stored_rows_are_enough(name):
    traces = some_traces(2, only_answer_rows=True)
    block = block_of([without(trace, "hidden") for trace in traces])

    values = SUMMARIES[name][0](block)
    np.testing.assert_array_equal(values, SUMMARIES[name][0](block_of(traces)))


@pytest.mark.parametrize("name", NEEDS_PROMPT)
def test_what_asks_for_the_prompt_is_missing_without_it(name):
    traces = some_traces(2, only_answer_rows=True)[:1] + some_traces(2)[1:2]
    block = block_of([without(trace, "hidden") for trace in traces])

    values = SUMMARIES[name][0](block)
    assert np.isnan(values[0]).all()
    assert np.isfinite(values[1]).all()


def test_a_state_that_was_not_kept_is_missing():
    trace = without(whole_trace(np.random.default_rng(1), 7, 3, row_start=7), "hidden")

    assert np.isnan(hidden.state_last_prompt(block_of([trace]))).all()
    assert np.isfinite(hidden.state_last_answer(block_of([trace]))).all()


def test_hidden_shift_is_one_minus_the_cosine_of_neighbouring_layers():
    def loop(trace, layer):
        pairs = zip(answer_states(trace, layer), answer_states(trace, layer + 1), strict=True)
        return np.mean([1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs])

    traces = some_traces(2)
    expected = [[loop(trace, layer) for layer in range(7)] for trace in traces]
    np.testing.assert_allclose(hidden.hidden_shift(block_of(traces)), expected, rtol=1e-4, atol=1e-6)


def test_one_token_has_one_direction_and_orthogonal_tokens_have_their_number():
    states = np.zeros((8, 8, 13), dtype=np.float32)
    states[:, range(5, 8), range(3)] = 2
    trace = whole_trace(np.random.default_rng(1), 5, 3)
    one = whole_trace(np.random.default_rng(1), 5, 1)
    block = block_of([with_arrays(trace, hidden=to_bfloat16_bits(states)), one])

    np.testing.assert_allclose(hidden.hidden_effective_rank(block)[0], 3)
    np.testing.assert_allclose(hidden.hidden_effective_rank(block)[1], 1)


def massive(trace, places):
    """The trace with small states of size 1/8, and large values at some places."""
    states = np.full((8, trace.length, 13), 0.125, dtype=np.float32)
    for layer, token, unit, value in places:
        states[layer, token, unit] = value
    return with_arrays(trace, hidden=to_bfloat16_bits(states))


def test_massive_activations_are_above_100_and_1000_times_the_median():
    trace = whole_trace(np.random.default_rng(1), 7, 5)
    # 1000 times the median is 125; 124.5 and 125 are exact in bfloat16
    places = [(2, 0, 3, 500), (2, 8, 4, -125), (2, 9, 5, 124.5), (3, 11, 5, 126), (4, 1, 1, 101)]
    block = block_of([massive(trace, places), massive(trace, [])])

    everywhere = hidden.massive_activations(block, of="all")
    assert everywhere[0].tolist() == [0, 0, 2, 1, 0, 0, 0, 0]
    assert everywhere[1].tolist() == [0] * 8
    assert hidden.massive_activations(block, of="answer")[0].tolist() == [0, 0, 1, 1, 0, 0, 0, 0]


def test_exactly_100_is_not_massive():
    trace = whole_trace(np.random.default_rng(1), 7, 5)
    states = np.full((8, 12, 13), 1 / 64, dtype=np.float32)
    states[1, 8, 0], states[2, 8, 0] = 100, 100.5
    block = block_of([with_arrays(trace, hidden=to_bfloat16_bits(states))])

    assert hidden.massive_activations(block, of="all")[0, :3].tolist() == [0, 0, 1]


@pytest.mark.parametrize("scale", [0.5, 50.0, 5000.0])
def test_massive_activations_are_those_of_numpys_median(scale):
    generator = np.random.default_rng(4)
    traces = []
    for trace in some_traces(2):
        states = generator.standard_cauchy((8, trace.length, 13)) ** 3 * scale
        traces.append(with_arrays(trace, hidden=to_bfloat16_bits(states.astype(np.float32))))

    def loop(trace, layer):
        size = np.abs(trace.hidden(layer).astype(np.float64))
        return ((size > 100) & (size >= 1000 * np.median(size))).sum()

    counts = hidden.massive_activations(block_of(traces), of="all")
    np.testing.assert_array_equal(counts, slow(traces, loop))
    assert counts.any()


@pytest.mark.parametrize("bits", [0x7FC0, 0x7F80], ids=["nan", "infinity"])
@pytest.mark.parametrize("name", [*SUMMARIES, "massive"])
def test_a_state_that_is_not_finite_leaves_its_layer_missing(name, bits):
    traces = some_traces(2)
    states = traces[2].arrays["hidden"].copy()
    states[5, traces[2].prompt_length - 1 :] = bits
    traces[2] = with_arrays(traces[2], hidden=states)
    massive_of = {"massive": (hidden.massive_answer_activations, None)}

    values = {**SUMMARIES, **massive_of}[name][0](block_of(traces))
    is_missing = np.isnan(values).reshape(5, 8, -1).all(axis=-1)
    assert np.argwhere(is_missing).tolist() == [[2, 5]]


def test_a_store_of_four_hidden_states_has_four_values():
    shape = replace(SHAPE, hidden_layers=(0, 3, 5, 7))
    block = block_of(some_traces(2, shape))

    assert hidden.hidden_norm(block).shape == (5, 4)
    assert hidden.hidden_shift(block).shape == (5, 3)


def test_a_store_without_hidden_states_says_so():
    block = block_of([without(trace, "hidden", "hidden_rows") for trace in some_traces(2)])

    with pytest.raises(TraceNotFoundError, match="hidden"):
        hidden.hidden_norm(block)
