"""The labels that come from the data set: of an answer, and of a question."""

import pytest

from graphhalu.labels.registry import LabelDecision
from graphhalu.labels.stated import GivenLabel, PremiseLabel
from graphhalu.traces.schema import TraceRecord


def record(**fields):
    return TraceRecord("q#0", "q", "q", "What?", (), "Paris", "What?", 2, 3, **fields)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"given_label": 1}, LabelDecision(1, is_valid=True, reason="given as wrong")),
        ({"given_label": 0}, LabelDecision(0, is_valid=True, reason="given as right")),
        ({}, LabelDecision(0, is_valid=False, reason="no label given")),
    ],
)
def test_a_given_answer_keeps_the_label_of_the_data_set(fields, expected):
    assert GivenLabel().label(record(is_on_policy=False, **fields)) == expected


def test_the_models_own_answer_has_no_given_label():
    expected = LabelDecision(0, is_valid=False, reason="the model's own answer")
    assert GivenLabel().label(record(given_label=1)) == expected


@pytest.mark.parametrize(
    ("input_label", "expected"),
    [
        (1, LabelDecision(1, is_valid=True, reason="question misleads")),
        (0, LabelDecision(0, is_valid=True, reason="question is sound")),
        (None, LabelDecision(0, is_valid=False, reason="the data set does not say")),
    ],
)
@pytest.mark.parametrize("is_on_policy", [True, False])
def test_a_question_keeps_the_label_of_the_data_set(input_label, expected, is_on_policy):
    trace = record(input_label=input_label, is_on_policy=is_on_policy)
    assert PremiseLabel().label(trace) == expected


@pytest.mark.parametrize("labeller", [GivenLabel(), PremiseLabel()])
def test_these_labels_speak_of_the_input(labeller):
    assert labeller.meaning == "input"
