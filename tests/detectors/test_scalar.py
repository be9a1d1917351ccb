from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from graphhalu.detectors.scalar import AnswerLength, ScalarDetector, SinkMass, _auroc
from graphhalu.features.sinks import scalar_sink_mass
from graphhalu.splits import Split


class Fixed(ScalarDetector):
    """Looks its number up by trace."""

    card = AnswerLength.card

    def value(self, trace):
        return self.numbers[trace.trace_id]


def fixed(traces, numbers):
    detector = Fixed()
    detector.numbers = {trace.trace_id: n for trace, n in zip(traces, numbers, strict=True)}
    return detector


def test_the_score_is_the_feature_times_the_sign(few):
    detector = SinkMass().fit(few.traces, few.labels, few.split)
    expected = [detector.sign * scalar_sink_mass(trace, 4) for trace in few.test_traces]
    np.testing.assert_array_equal(detector.score(few.test_traces).values, expected)


def test_the_sign_is_learnt_on_the_training_side_only(few):
    values, train = few.labels.values.copy(), few.split.train
    detector = SinkMass().fit(few.traces, few.labels, few.split)
    values[train] = 1 - values[train]
    reversed_ = SinkMass().fit(few.traces, replace(few.labels, values=values), few.split)
    assert (detector.sign, reversed_.sign) == (1, -1)
    auroc = [
        roc_auc_score(few.test_labels, found.score(few.test_traces).values)
        for found in (detector, reversed_)
    ]
    assert auroc[0] > 0.8
    assert auroc[1] == pytest.approx(1 - auroc[0])


def test_the_auroc_that_sets_the_sign_is_that_of_scikit_learn():
    generator = np.random.default_rng(0)
    values, labels = generator.integers(0, 7, 43).astype(float), generator.integers(0, 2, 43)
    assert _auroc(values, labels, "x") == pytest.approx(roc_auc_score(labels, values))


def test_a_useless_value_keeps_its_sign(few):
    detector = fixed(few.traces, [2.0] * len(few.traces))
    detector.fit(few.traces, few.labels, few.split)
    assert (detector.train_auroc, detector.sign) == (0.5, 1)


def test_an_infinite_value_is_no_score(few):
    numbers = np.arange(len(few.traces), dtype=float)
    numbers[few.split.test[0]] = np.inf
    detector = fixed(few.traces, numbers).fit(few.traces, few.labels, few.split)
    scores = detector.score(few.test_traces)
    assert scores.is_valid.tolist() == [False] + [True] * 16
    assert np.isnan(scores.values[0])


def test_length_counts_answer_tokens(few):
    train = np.arange(len(few.traces))
    split = Split(train, train[:0], train[:0])
    detector = AnswerLength().fit(few.traces, few.labels, split)
    lengths = [trace.length - trace.prompt_length for trace in few.traces]
    np.testing.assert_array_equal(detector.score(few.traces).values * detector.sign, lengths)


def test_length_is_a_control():
    assert AnswerLength.card.is_control
    assert not SinkMass.card.is_control
