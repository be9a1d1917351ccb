"""Agreement of sampled answers: hand-computed cases, slow loops, and a planted disagreement."""

from dataclasses import replace
from math import log

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import roc_auc_score

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.detectors.base import ChosenTraces
from graphhalu.detectors.registry import DETECTORS
from graphhalu.detectors.samples import (
    MEASURES,
    Answers,
    claimed_words,
    eigenvalue_sum,
    lexical_dissimilarity,
    likeness,
    mean_distance,
    measured,
    semantic_entropy,
)
from graphhalu.evaluation.compare import compare
from graphhalu.evaluation.settings import CompareConfig
from graphhalu.traces.schema import TraceRecord
from tests.detectors.conftest import OF_SAMPLES, with_samples

QUESTION = "What is the capital of France?"


def record(answer: str, place: int = 1, score: float = -1.0) -> TraceRecord:
    made = TraceRecord(f"q#{place}", "q", "q", QUESTION, ("Paris",), answer, "", 2, 3 + place)
    return replace(made, beam_score=score, is_sample=place > 0)


def answers(*texts: str, own: str = "Paris") -> Answers:
    return Answers(record(own, 0), [record(text, place) for place, text in enumerate(texts, start=1)])


def test_answers_mean_the_same_where_they_claim_the_same_words_beside_the_question():
    for answer in ("The capital of France is Paris.", "paris"):
        assert claimed_words(record(answer)) == {"paris"}
    assert claimed_words(record("The capital of France.")) == frozenset()


def test_semantic_entropy_of_two_meanings_is_that_of_their_shares():
    found = semantic_entropy(answers("Paris", "It is Paris.", "Lyon", "The capital of France is Paris"))
    assert found == pytest.approx(-(0.75 * log(0.75) + 0.25 * log(0.25)))
    assert semantic_entropy(answers("Paris", "It is Paris.")) == 0
    assert semantic_entropy(answers("Paris", "Lyon", "Nice")) == pytest.approx(log(3))


def test_semantic_entropy_equals_a_loop_over_pairs():
    texts = ["Paris", "Lyon", "in Paris", "Nice", "Lyon or Nice", "Nice or Lyon", "lyon", "no idea"]
    meanings: list[list[str]] = []
    for text in texts:
        for meaning in meanings:
            if claimed_words(record(meaning[0])) == claimed_words(record(text)):
                meaning.append(text)
                break
        else:
            meanings.append([text])
    total = sum(-len(each) / len(texts) * log(len(each) / len(texts)) for each in meanings)
    assert semantic_entropy(answers(*texts)) == pytest.approx(total)


def test_eigenvalues_count_meanings_that_are_wholly_alike_or_apart():
    assert eigenvalue_sum(answers("Paris", "Paris", "Paris")) == pytest.approx(1)
    assert eigenvalue_sum(answers("Paris", "Lyon", "Nice")) == pytest.approx(3)
    assert eigenvalue_sum(answers("Paris", "Lyon", "Paris", "Lyon", "Lyon")) == pytest.approx(2)


def test_likeness_is_the_share_of_words_that_both_claim():
    claims = [frozenset("ab"), frozenset("bc"), frozenset(), frozenset()]
    expected = [[1, 1 / 3, 0, 0], [1 / 3, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    np.testing.assert_allclose(likeness(claims), expected)
    assert mean_distance(answers("Paris", "Lyon")) == pytest.approx(0.5)


def test_lexical_dissimilarity_is_one_minus_the_mean_rouge_of_all_pairs():
    texts = ["Paris is the capital", "the capital is Paris", "I think Lyon"]
    scorer = RougeScorer(["rougeL"])
    values = [scorer.score(texts[i], texts[j])["rougeL"].fmeasure for i in range(3) for j in range(i + 1, 3)]
    assert lexical_dissimilarity(answers(*texts)) == pytest.approx(1 - np.mean(values))


def test_measures_of_the_answer_itself_look_at_what_it_claims():
    given = answers("Paris", "Lyon", "Lyon", own="The capital of France is Lyon.")
    assert MEASURES["share-against"](given) == pytest.approx(1 / 3)
    assert MEASURES["distance-to-answer"](given) == pytest.approx(1 / 3)
    spread = Answers(given.own, [record("a", 1, -1.0), record("b", 2, -3.0)])
    assert MEASURES["score-mean"](spread) == -2.0
    assert MEASURES["score-spread"](spread) == 1.0
    assert MEASURES["length-spread"](spread) == 0.5


@pytest.mark.parametrize("name", sorted(OF_SAMPLES))
def test_a_detector_of_samples_finds_hallucinations_whose_samples_disagree(name, few_samples):
    data = few_samples
    detector = DETECTORS.get(name)().fit(data.traces, data.labels, data.split)
    scores = detector.score(data.test_traces)
    assert scores.is_valid.all()
    assert roc_auc_score(data.test_labels, scores.values) > 0.95


@pytest.mark.parametrize("name", sorted(OF_SAMPLES))
def test_samples_that_agree_alike_tell_nothing(name, few):
    data = with_samples(few, share=0.0)
    detector = DETECTORS.get(name)().fit(data.traces, data.labels, data.split)
    values = detector.score(data.test_traces).values
    assert abs(roc_auc_score(data.test_labels, values) - 0.5) < 0.4


def test_a_question_without_two_samples_has_no_score_and_says_how_to_get_one(few, few_samples):
    with pytest.raises(NotEnoughDataError, match="--samples"):
        DETECTORS.get("semantic-entropy")().fit(few.traces, few.labels, few.split)
    one = [t for t in few_samples.traces if t.record.beam_index <= 1]
    assert np.isnan(measured(one, ("semantic-entropy",))).all()


def test_a_sample_is_not_compared_with_itself(few_samples):
    places = [i for i, t in enumerate(few_samples.traces) if t.record.question_id == "q3"]
    chosen = ChosenTraces(few_samples.traces, tuple(places))
    found = measured(chosen, ("share-against",))
    own = [t for t in chosen if not t.record.is_sample]
    assert len(own) == 1
    assert np.isfinite(found).all()
    without = [t for t in chosen if t.record.beam_index != 1]
    expected = np.mean([claimed_words(t.record) != claimed_words(chosen[1].record) for t in without[1:]])
    assert found[1, 0] == pytest.approx(expected)


def test_words_beside_a_question_do_not_change_with_its_case():
    upper = replace(record("PARIS"), question=QUESTION.upper())
    assert claimed_words(upper) == {"paris"}


def test_a_comparison_of_all_leaves_them_out_where_there_are_no_samples(few, few_samples, monkeypatch):
    names = ["length", "semantic-entropy"]
    monkeypatch.setattr("graphhalu.evaluation.settings.detector_names", lambda level: names)
    config = CompareConfig(quick=True, seeds=(0,), n_resamples=100)
    found = [compare(data.traces, data.labels, config=config) for data in (few, few_samples)]
    assert [[row.detector for row in result.rows] for result in found] == [["length"], names]
    named = compare(few.traces, few.labels, names, config=config)
    assert "--samples" in named.row("semantic-entropy").failure
