"""Answers that a detector of tokens scores."""

from dataclasses import replace

import numpy as np

from graphhalu.evaluation.settings import CompareConfig
from graphhalu.evaluation.training import fit_for_use
from graphhalu.labels.labels import Labels
from graphhalu.scoring.scorer import AnswerScorer


def test_a_detector_of_tokens_gives_their_scores_and_the_highest_is_that_of_the_answer(trained, tmp_path):
    store = trained.store
    tokens = tuple(np.arange(trace.answer_length) % 2 for trace in store)
    labels = Labels(
        trace_ids=tuple(trace.trace_id for trace in store),
        values=np.array([int(each.any()) for each in tokens]),
        is_valid=np.ones(len(store), dtype=bool),
        reasons=("made up",) * len(store),
        labeller="turns",
        tokens=tokens,
    )
    turns = replace(labels, values=np.arange(len(store)) // 2 % 2)
    fit_for_use("token-likelihood", store, turns, CompareConfig(), tmp_path / "detector")
    scorer = AnswerScorer(tmp_path, name=str(trained.model), threads=1)
    found = scorer.score(store[0].record.question)
    expected = scorer.detector.score([found.trace]).values
    assert found.tokens == tuple(expected.tolist())
    assert found.score == max(found.tokens)
    assert found.is_hallucinated == (found.score >= found.threshold)
    assert found.probability is None
    reasons = scorer.explain(found)
    assert reasons.score == found.score
    assert len(reasons.tokens) == len(found.tokens)
