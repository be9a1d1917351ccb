import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphhalu.core.errors import UsageError
from graphhalu.labels.planted import planted_traces
from graphhalu.traces.schema import array_spec, stored_shape
from graphhalu.traces.trace import without_tokens


@pytest.fixture(scope="module")
def trace():
    return planted_traces(3, seed=0)[0][1]


def test_rows_and_keys_of_the_taken_tokens_go_and_all_else_stays(trace):
    taken = [2, trace.prompt_length + 1]
    kept = [t for t in range(trace.length) if t not in taken]
    found = without_tokens(trace, taken)
    assert (found.length, found.prompt_length) == (trace.length - 2, trace.prompt_length - 1)
    for layer in trace.shape.attention_layers:
        expected = trace.attention(layer)[:, kept][:, :, kept]
        np.testing.assert_array_equal(found.attention(layer), expected)
    np.testing.assert_array_equal(found.span_code, trace.span_code[kept])
    np.testing.assert_array_equal(found.stream("sink_keys"), trace.stream("sink_keys")[:, :, kept])
    received = trace.stream("received")
    given_away = np.stack([trace.attention(layer)[:, taken].sum(1) for layer in trace.shape.attention_layers])
    np.testing.assert_allclose(found.stream("received"), (received - given_away)[..., kept], atol=1e-6)


@settings(max_examples=31, deadline=None)
@given(data=st.data())
def test_every_array_keeps_the_shape_of_its_new_lengths(data, trace):
    answer = range(trace.prompt_length, trace.length)
    taken = data.draw(st.sets(st.sampled_from(range(1, trace.length)), max_size=trace.length - 3))
    if set(answer) <= taken:
        with pytest.raises(UsageError, match="keep no token"):
            without_tokens(trace, taken)
        return
    found = without_tokens(trace, taken)
    for name, array in found.arrays.items():
        assert array.shape == stored_shape(array_spec(name), found.shape, found.record)


def test_taking_nothing_changes_nothing(trace):
    found = without_tokens(trace, [])
    assert found.record == trace.record
    for name, array in trace.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array[:])


def test_a_position_outside_is_refused(trace):
    with pytest.raises(UsageError, match=f"token {trace.length} is not among"):
        without_tokens(trace, [trace.length])
