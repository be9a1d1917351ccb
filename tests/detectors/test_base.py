"""Scores of answers and of tokens in one record."""

import numpy as np
import pytest

from graphhalu.core.errors import GraphhaluError, NonFiniteError
from graphhalu.detectors.base import Scores, checked_scores
from graphhalu.detectors.registry import DETECTORS
from graphhalu.labels.planted import planted_token_traces


def test_scores_of_tokens_are_flat_with_the_length_of_each_answer():
    scores = Scores.ragged([np.array([0.5, np.nan]), np.zeros(0), np.array([1.0, 2.0, 3.0])])
    assert scores.lengths.tolist() == [2, 0, 3]
    assert scores.is_valid.tolist() == [True, False, True, True, True]
    assert [len(each) for each in scores.by_trace()] == [2, 0, 3]
    np.testing.assert_array_equal(scores.by_trace()[2], [1, 2, 3])


def test_no_answers_have_no_scores():
    scores = Scores.ragged([])
    assert (scores.values.shape, scores.is_valid.shape) == ((0,), (0,))
    assert scores.by_trace() == []


def test_a_score_a_trace_is_a_list_of_one_each():
    scores = Scores.of(np.array([0.5, np.nan]))
    assert scores.lengths is None
    first, second = scores.by_trace()
    assert first.tolist() == [0.5]
    assert np.isnan(second).tolist() == [True]


def test_the_highest_token_is_the_score_of_an_answer():
    scores = Scores.ragged([np.array([0.5, np.nan, 2.0]), np.full(2, np.nan), np.zeros(0)])
    np.testing.assert_array_equal(scores.highest().values, [2.0, np.nan, np.nan])
    assert scores.highest().lengths is None
    answers = Scores.of(np.array([1.0]))
    assert answers.highest() is answers


def test_scores_of_another_level_or_length_are_refused():
    traces = planted_token_traces(2)
    lengths = [trace.answer_length for trace in traces]
    answers, tokens = DETECTORS.get("length")(), DETECTORS.get("token-position")()
    ragged = Scores.ragged([np.zeros(length) for length in lengths])
    plain = Scores.of(np.zeros(2))
    assert checked_scores(tokens, ragged, traces).lengths.tolist() == lengths
    assert checked_scores(answers, plain, traces).lengths is None
    other = Scores.ragged([np.zeros(length + 1) for length in lengths])
    wrong = ((answers, ragged), (tokens, plain), (tokens, other), (tokens, "scores"))
    for detector, given in wrong:
        with pytest.raises(GraphhaluError, match=r"expected scores of|must return Scores of"):
            checked_scores(detector, given, traces)
    with pytest.raises(NonFiniteError, match="length: 2 scores are marked valid"):
        checked_scores(answers, Scores(np.full(2, np.nan), np.ones(2, dtype=bool)), traces)
