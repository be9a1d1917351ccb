from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.core.numerics import auroc
from graphhalu.core.splits import Split
from graphhalu.detectors.base import ChosenTraces
from graphhalu.detectors.scalars import (
    Eigenscore,
    Focus,
    HeadStd,
    Length,
    Perplexity,
    ScalarDetector,
    SinkMass,
    row_means,
)
from graphhalu.features.block import block_of
from graphhalu.features.instability import head_std_sink
from graphhalu.features.likelihood import perplexity
from graphhalu.features.sinks import sink_mass_k4_all
from graphhalu.traces.schema import from_bfloat16_bits, to_bfloat16_bits
from graphhalu.traces.trace import Trace


class Fixed(ScalarDetector):
    """Looks its number up by trace."""

    card = Length.card

    def values(self, traces):
        return np.array([self.numbers[trace.trace_id] for trace in traces], dtype=float)


def fixed(traces, numbers):
    detector = Fixed()
    detector.numbers = {trace.trace_id: n for trace, n in zip(traces, numbers, strict=True)}
    return detector


@pytest.mark.parametrize(
    ("detector_class", "feature"),
    [(SinkMass, sink_mass_k4_all), (HeadStd, head_std_sink), (Perplexity, perplexity)],
)
def test_the_score_is_the_feature_times_the_sign(few, detector_class, feature):
    detector = detector_class().fit(few.traces, few.labels, few.split)
    expected = [detector.sign * np.nanmean(feature(block_of([trace]))) for trace in few.test_traces]
    np.testing.assert_allclose(detector.score(few.test_traces).values, expected, rtol=2e-6)


def test_focus_is_the_mass_on_question_and_context(few):
    detector = Focus().fit(few.traces, few.labels, few.split)
    trace = few.test_traces[0]
    mass = trace.stream("span_mass")[:, :, trace.answer_rows].astype(np.float64)
    expected = detector.sign * (mass[..., 2] + mass[..., 3]).mean()
    assert detector.score([trace]).values[0] == pytest.approx(expected, rel=1e-5)


def test_the_sign_is_learnt_on_the_training_side_only(few):
    values, train = few.labels.values.copy(), few.split.train
    detector = SinkMass().fit(few.traces, few.labels, few.split)
    values[train] = 1 - values[train]
    reversed_ = SinkMass().fit(few.traces, replace(few.labels, values=values), few.split)
    assert (detector.sign, reversed_.sign) == (1, -1)
    found = [
        roc_auc_score(few.test_labels, each.score(few.test_traces).values) for each in (detector, reversed_)
    ]
    assert found[0] > 0.8
    assert found[1] == pytest.approx(1 - found[0])


def test_the_auroc_that_sets_the_sign_is_that_of_scikit_learn():
    generator = np.random.default_rng(0)
    values, labels = generator.integers(0, 7, 43).astype(float), generator.integers(0, 2, 43)
    assert auroc(values, labels) == pytest.approx(roc_auc_score(labels, values))


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
    detector = Length().fit(few.traces, few.labels, split)
    lengths = [trace.length - trace.prompt_length for trace in few.traces]
    np.testing.assert_array_equal(detector.score(few.traces).values * detector.sign, lengths)


def test_length_is_a_control():
    assert Length.card.is_control
    assert not SinkMass.card.is_control


def test_a_mean_leaves_out_what_is_missing():
    values = np.array([[1.0, np.nan, 4.0], [np.nan] * 3])
    np.testing.assert_array_equal(row_means(values), [2.5, np.nan])


def alike(trace, other):
    """The hidden states of another trace, as far as the last token goes."""
    hidden = from_bfloat16_bits(trace.arrays["hidden"]).copy()
    hidden[:, -1] = from_bfloat16_bits(other.arrays["hidden"])[:, -1]
    bits = to_bfloat16_bits(hidden)
    return Trace(trace.record, trace.shape, {**trace.arrays, "hidden": bits, "hidden_rows": bits})


def test_eigenscore_finds_questions_whose_beams_differ(few_beams):
    traces, labels = list(few_beams.traces), few_beams.labels
    n_pairs = len(traces) // 2
    of_question = np.repeat(np.arange(n_pairs) % 2, 2)
    labels = replace(labels, values=np.append(of_question, [0] * (len(traces) % 2)))
    for first in range(0, 2 * n_pairs, 2):
        if not labels.values[first]:
            traces[first + 1] = alike(traces[first + 1], traces[first])
    detector = Eigenscore().fit(traces, labels, few_beams.split)
    chosen = ChosenTraces(traces, tuple(few_beams.split.test.tolist()))
    scores = detector.score(chosen)
    assert roc_auc_score(labels.values[few_beams.split.test], scores.values) > 0.9


def test_eigenscore_finds_the_other_beam_beside_the_chosen_traces(few_beams, fitted_on_few):
    chosen = few_beams.test_traces[:1]
    assert fitted_on_few["eigenscore"].score(chosen).is_valid.all()
    assert not fitted_on_few["eigenscore"].score(list(chosen)).is_valid.any()


def test_eigenscore_without_a_second_beam_says_how_to_get_one(few):
    with pytest.raises(NotEnoughDataError, match="--keep-beams"):
        Eigenscore().fit(few.traces, few.labels, few.split)
