from math import inf, nan

import pytest

from graphhalu.core.errors import UsageError
from graphhalu.labels.registry import LabelDecision, make_labeller
from graphhalu.labels.stated import LetterChoice, read_letter
from graphhalu.traces.schema import TraceRecord

RIGHT = LabelDecision(0, is_valid=True, reason="right choice")
WRONG = LabelDecision(1, is_valid=True, reason="wrong choice")


def record(logprobs=(), *, choices=("Lyon", "Paris", "Rome"), correct=(1,), answer="", own=True):
    return TraceRecord(
        "q#0",
        "q",
        "q",
        "What?",
        ("Paris",),
        answer,
        "What?",
        2,
        3,
        choices=choices,
        correct_choices=correct,
        choice_logprobs=logprobs,
        is_on_policy=own,
    )


def undecided(reason):
    return LabelDecision(0, is_valid=False, reason=reason)


@pytest.mark.parametrize(
    ("logprobs", "correct", "expected"),
    [
        ((-2.0, -0.1, -3.0), (1,), RIGHT),
        ((-0.1, -2.0, -3.0), (1,), WRONG),
        ((-3.0, -2.0, -0.1), (0, 2), RIGHT),
        ((-inf, -2.0, -inf), (1,), RIGHT),
        ((-inf, 0.0, -0.5), (1,), RIGHT),
    ],
)
def test_the_likeliest_letter_is_the_choice(logprobs, correct, expected):
    assert LetterChoice().label(record(logprobs, correct=correct)) == expected


def test_what_the_answer_says_plays_no_part():
    assert LetterChoice().label(record((-2.0, -0.1, -3.0), answer="A. Lyon")) == RIGHT


@pytest.mark.parametrize(
    ("trace", "reason"),
    [
        (record(choices=(), correct=()), "no choices"),
        (record((-1.0, -2.0, -3.0), correct=()), "no right choice stated"),
        (record((-1.0, -2.0, -3.0), own=False), "a given answer"),
        (record((-1.0, -2.0)), "letters and choices differ in number"),
        (record((-1.0, nan, -3.0)), "letter probabilities are not numbers"),
        (record((nan, nan, nan)), "letter probabilities are not numbers"),
        (record((-inf, -inf, -inf)), "letter probabilities are not numbers"),
        (record((inf, -1.0, -2.0)), "letter probabilities are not numbers"),
        (record((-1.0, -1.0, -3.0)), "tied letters"),
        (record(answer="B"), "no letter probabilities"),
    ],
)
def test_a_trace_without_a_clear_letter_is_not_valid(trace, reason):
    assert LetterChoice().label(trace) == undecided(reason)


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        ("B", 1),
        (" b", 1),
        ("(B)", 1),
        ("B.", 1),
        ("B) Paris", 1),
        ("B: Paris", 1),
        ("[C]", 2),
        ("**B**", 1),
        ("B - Paris", 1),
        ("Answer: B", 1),
        ("The answer is B.", 1),
        ("The correct option is C", 2),
        ("Paris", 1),
        ("paris.", 1),
        ("Rome", 2),
        ("A dog", None),
        ("Because", None),
        ("D", None),
        ("", None),
        ("It is Paris", None),
        ("Bananas", None),
        ("Answer", None),
        ("B or C", None),
    ],
)
def test_a_letter_is_read_from_an_answer_only_by_its_rule(answer, place):
    assert read_letter(answer, ("Lyon", "Paris", "Rome")) == place


def test_two_options_of_one_text_are_not_told_apart():
    assert read_letter("Paris", ("Paris", "paris", "Rome")) is None


def test_an_answer_is_read_when_asked_and_only_without_probabilities():
    reading = LetterChoice(read_answer=True)
    assert reading.label(record(answer="B")) == RIGHT
    assert reading.label(record(answer="A")) == WRONG
    assert reading.label(record(answer="Hm")) == undecided("no letter in the answer")
    assert reading.label(record((-0.1, -2.0, -3.0), answer="B")) == WRONG
    assert reading.label(record((nan, -2.0, -3.0), answer="B")).is_valid is False


def test_the_settings_say_whether_answers_were_read():
    assert LetterChoice().settings()["read_answer"] is False
    assert make_labeller("choice", read_answer=True).settings()["read_answer"] is True
    with pytest.raises(UsageError, match="read_answer must be true or false, got 'maybe'"):
        make_labeller("choice", read_answer="maybe")
