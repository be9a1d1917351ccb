"""Smoothing along the answer: against all label sequences, and on planted runs of labels."""

from itertools import product

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import average_precision_score

from graphhalu.core.errors import UnknownNameError, UsageError
from graphhalu.core.splits import grouped_split
from graphhalu.detectors.base import Detector, DetectorCard, Scores
from graphhalu.detectors.smoothing import SmoothedConfig, TokenSmoothed, persistent_logits
from graphhalu.labels.labels import Labels
from graphhalu.traces.schema import TraceRecord, TraceShape
from graphhalu.traces.trace import Trace

SHAPE = TraceShape(2, 3, 1, 5, (0, 1), (0, 1, 2), (None, None))


def dense_logits(evidence, p_stay, prior):
    """Sum over all label sequences of one answer."""
    p_start = min((1 - p_stay) * prior / (1 - prior), 0.5)
    total = np.zeros((2, len(evidence)))
    for labels in product((0, 1), repeat=len(evidence)):
        weight = 1.0
        for place, label in enumerate(labels):
            before = prior if place == 0 else (p_stay if labels[place - 1] else p_start)
            weight *= before if label else 1 - before
            weight *= np.exp(evidence[place]) if label else 1.0
        for place, label in enumerate(labels):
            total[label, place] += weight
    return np.log(total[1]) - np.log(total[0])


@pytest.mark.parametrize(("p_stay", "prior"), [(0.5, 0.5), (0.9, 0.1), (0.98, 0.3), (0.3, 0.7), (0.2, 0.2)])
def test_smoothed_logits_equal_a_sum_over_all_label_sequences(p_stay, prior):
    rng = np.random.default_rng(3)
    evidence = [rng.normal(scale=2, size=n) for n in (7, 1, 0, 5)]
    found = persistent_logits(evidence, p_stay=p_stay, prior=prior)
    assert [len(each) for each in found] == [7, 1, 0, 5]
    for each, logits in zip(evidence, found, strict=True):
        np.testing.assert_allclose(logits, dense_logits(each, p_stay, prior), rtol=1e-9, atol=1e-9)


def test_neighbours_say_nothing_where_staying_is_as_likely_as_the_prior():
    evidence = [np.array([-1.0, 3.0, 0.5, -7.0, 2.0])]
    (found,) = persistent_logits(evidence, p_stay=0.2, prior=0.2)
    np.testing.assert_allclose(found, evidence[0] + np.log(0.2 / 0.8), rtol=1e-12)


def test_long_answers_and_sure_evidence_stay_finite():
    (found,) = persistent_logits([np.tile([900.0, -900.0], 2003)], p_stay=0.98, prior=0.01)
    assert np.isfinite(found).all()


class Noisy(Detector):
    """Reads a noisy value of each token that the trace states."""

    card = DetectorCard("noisy", "reads a signal", "none", ("text",), False, level="token")

    def fit(self, traces, labels, split):
        return self

    def score(self, traces):
        return Scores.ragged([np.array(trace.record.metadata["signal"]) for trace in traces])

    def save(self, folder):
        raise AssertionError

    @classmethod
    def load(cls, folder):
        raise AssertionError


def answers(n: int, *, runs: bool, seed: int = 5):
    """Answers whose labels come in runs or not, and a signal that tells little of one token."""
    rng = np.random.default_rng(seed)
    traces, tokens = [], []
    for i in range(n):
        labels = np.zeros(41, dtype=np.int64)
        if i % 4 == 0:
            pass  # nothing in this answer is hallucinated
        elif runs:
            start = int(rng.integers(0, 29))
            labels[start : start + 11] = 1
        else:
            labels[rng.permutation(41)[:11]] = 1
        signal = labels + rng.normal(scale=1.5, size=41)
        record = TraceRecord(
            trace_id=f"q{i}#0",
            question_id=f"q{i}",
            group_id=f"q{i}",
            question=f"Question {i}?",
            answers=("x",),
            answer="y",
            prompt="",
            prompt_length=3,
            length=44,
            metadata={"signal": signal.tolist()},
        )
        traces.append(Trace(record, SHAPE, {}))
        tokens.append(labels)
    values = np.array([int(each.any()) for each in tokens])
    ids = tuple(trace.trace_id for trace in traces)
    labels = Labels(ids, values, np.ones(n, dtype=bool), ("spans",) * n, "spans", tokens=tuple(tokens))
    return traces, labels


def smoothed(monkeypatch, **settings) -> TokenSmoothed:
    detector = TokenSmoothed(config=SmoothedConfig(**settings))
    monkeypatch.setattr(TokenSmoothed, "_base", lambda self: Noisy())
    return detector


def precision(scores, labels, places):
    truth = np.concatenate([labels.tokens[place] for place in places])
    return average_precision_score(truth, scores)


def fitted(monkeypatch, *, runs: bool):
    """A smoothed detector, and the precision of its scores and of plain ones on tested answers."""
    traces, labels = answers(83, runs=runs)
    split = grouped_split(labels.values, np.array([t.record.group_id for t in traces]), seed=1)
    detector = smoothed(monkeypatch).fit(traces, labels, split)
    tested = [traces[place] for place in split.test.tolist()]
    found = [precision(each.score(tested).values, labels, split.test) for each in (detector, Noisy())]
    return detector, *found


def test_smoothing_finds_runs_of_labels_that_single_tokens_hide(monkeypatch):
    detector, better, plain = fitted(monkeypatch, runs=True)
    assert better > plain + 0.2
    assert detector.training_report["p_stay"] >= 0.8


def test_smoothing_leaves_labels_without_runs_nearly_as_they_are(monkeypatch):
    detector, other, plain = fitted(monkeypatch, runs=False)
    assert other > plain - 0.02
    assert detector.training_report["p_stay"] < 0.6


def test_a_token_without_a_score_has_none_after_smoothing_and_its_neighbours_keep_theirs(monkeypatch):
    traces, labels = answers(29, runs=True)
    split = grouped_split(labels.values, np.array([t.record.group_id for t in traces]), seed=1)
    detector = smoothed(monkeypatch).fit(traces, labels, split)
    signal = np.array(traces[0].record.metadata["signal"])
    signal[7] = np.nan
    traces[0].record.metadata["signal"] = signal.tolist()
    found = detector.score(traces[:1])
    assert np.flatnonzero(~found.is_valid).tolist() == [7]


def test_the_probability_of_an_answer_without_evidence_is_the_prior():
    (found,) = persistent_logits([np.zeros(17)], p_stay=0.9, prior=0.2)
    np.testing.assert_allclose(expit(found), 0.2, rtol=1e-9)


@pytest.mark.parametrize(
    ("base", "error"),
    [("tfidf", UsageError), ("token-smoothed", UsageError), ("none-such", UnknownNameError)],
)
def test_only_another_token_detector_can_be_smoothed(base, error):
    traces, labels = answers(29, runs=True)
    split = grouped_split(labels.values, np.array([t.record.group_id for t in traces]), seed=1)
    with pytest.raises(error):
        TokenSmoothed(config=SmoothedConfig(base=base)).fit(traces, labels, split)
