import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphhalu.core.errors import UsageError
from graphhalu.labels.registry import LabelDecision
from graphhalu.labels.stated import SpanLabel, n_lost_spans, token_labels
from graphhalu.traces.schema import TraceRecord

# characters:  0123456789012345678
ANSWER = "It is Paris, Texas."
OFFSETS = ((0, 2), (2, 5), (5, 11), (11, 12), (12, 18), (18, 19))


def record(spans=(), offsets=OFFSETS, *, label=None, own=False):
    return TraceRecord(
        "q#0",
        "q",
        "q",
        "What?",
        (),
        ANSWER,
        "What?",
        2,
        2 + len(offsets),
        given_spans=spans,
        answer_offsets=offsets,
        given_label=label,
        is_on_policy=own,
    )


def by_a_slow_loop(trace):
    """A token is marked if any character lies in both; counted one character at a time."""
    marked = []
    for token in trace.answer_offsets:
        shared = [c for span in trace.given_spans for c in range(*span) if c in range(*token)]
        marked.append(int(bool(shared)))
    return marked


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        (((6, 11),), [0, 0, 1, 0, 0, 0]),
        (((10, 13),), [0, 0, 1, 1, 1, 0]),
        (((11, 12),), [0, 0, 0, 1, 0, 0]),
        (((0, 19),), [1, 1, 1, 1, 1, 1]),
        (((0, 1), (18, 19)), [1, 0, 0, 0, 0, 1]),
        (((5, 5),), [0, 0, 0, 0, 0, 0]),
        ((), [0, 0, 0, 0, 0, 0]),
    ],
)
def test_a_token_is_marked_if_it_shares_a_character_with_a_span(spans, expected):
    labels = token_labels(record(spans))
    assert labels.tolist() == expected
    assert labels.dtype == np.int64


RANGES = st.tuples(st.integers(0, 23), st.integers(0, 7)).map(lambda t: (t[0], t[0] + t[1]))


@given(st.lists(RANGES, max_size=5), st.lists(RANGES, min_size=1, max_size=11))
def test_token_labels_are_those_of_a_slow_loop(spans, offsets):
    trace = record(tuple(spans), tuple(offsets))
    assert token_labels(trace).tolist() == by_a_slow_loop(trace)
    alone = [record((span,), tuple(offsets)) for span in spans]
    assert n_lost_spans(trace) == sum(not any(by_a_slow_loop(each)) for each in alone)


def test_a_span_that_covers_no_token_is_counted():
    trace = record(((0, 2), (19, 25), (30, 31), (4, 4)))
    assert n_lost_spans(trace) == 3
    assert token_labels(trace).tolist() == [1, 0, 0, 0, 0, 0]
    assert SpanLabel().label(trace).reason == "span without a token"


def test_without_offsets_there_are_no_token_labels():
    with pytest.raises(UsageError, match=r"'q#0' has no character offsets(?s:.*)graphhalu extract"):
        token_labels(record(((0, 2),), ()))


@pytest.mark.parametrize(
    ("trace", "value", "is_valid", "reason"),
    [
        (record(((0, 2),), label=1), 1, True, "hallucinated span"),
        (record(((0, 2),), ()), 1, True, "hallucinated span"),
        (record(label=0), 0, True, "no span"),
        (record(label=1), 0, False, "wrong without spans"),
        (record(), 0, False, "no label given"),
        (record(((0, 2),), own=True), 0, False, "the model's own answer"),
    ],
)
def test_an_answer_with_a_span_is_hallucinated(trace, value, is_valid, reason):
    assert SpanLabel().label(trace) == LabelDecision(value, is_valid=is_valid, reason=reason)


def test_these_labels_speak_of_the_input():
    assert SpanLabel().meaning == "input"
