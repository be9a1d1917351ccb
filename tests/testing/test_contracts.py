"""The contract refuses what breaks it: one plug-in for each promise."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from graphhalu.core.errors import GraphhaluError
from graphhalu.datasets.per_row import Worldfacts
from graphhalu.detectors.base import Scores
from graphhalu.detectors.registry import DETECTORS
from graphhalu.detectors.scalars import Perplexity
from graphhalu.features.likelihood import answer_length
from graphhalu.labels.labels import Level
from graphhalu.labels.match import AliasMatch
from graphhalu.labels.registry import LabelDecision
from graphhalu.testing.contracts import check_detector
from graphhalu.testing.contracts.detectors import PLANTED, planted_data, planted_token_data
from graphhalu.testing.contracts.inputs import check_dataset, check_feature, check_labeller


class Sound(Perplexity):
    card = replace(Perplexity.card, name="sound")


class Nameless(Sound):
    card = replace(Sound.card, summary="")


class ReadsNothing(Sound):
    card = replace(Sound.card, reads=())


class ReadsWhatIsNot(Sound):
    card = replace(Sound.card, reads=("token_logprop",))


class TakesAnySetting(Sound):
    @classmethod
    def settings(cls, **values):
        return {"seed": 0}


class NeverAsksForFit(Sound):
    def score(self, traces):
        self.sign = self.sign or 1
        return super().score(traces)


class LosesTraces(Sound):
    def score(self, traces):
        values = super().score(traces).values.copy()
        values[: len(values) // 2] = np.nan
        return Scores.of(values)


class NeedsTraces(Sound):
    def score(self, traces):
        return Scores.of(super().score([traces[0], *traces[1:]]).values)


class LooksAround(Sound):
    def score(self, traces):
        values = super().score(traces).values
        return Scores.of(values - values.mean() if len(values) else values)


class WritesPickle(Sound):
    def save(self, folder):
        super().save(folder)
        (folder / "model.pkl").write_bytes(b"")


class ForgetsItsSign(Sound):
    @classmethod
    def load(cls, folder):
        detector = super().load(folder)
        detector.sign = -detector.sign
        return detector


class LooksAtHiddenLabels(Sound):
    def fit(self, traces, labels, split):
        super().fit(traces, labels, split)
        self.sign = 1 if labels.values[split.test[0]] else -1
        return self


class FitsOnTop(Sound):
    n_fits = 0

    def fit(self, traces, labels, split):
        self.n_fits += 1
        super().fit(traces, labels, split)
        self.sign *= (-1) ** self.n_fits
        return self


class MakesUpScores(Sound):
    def score(self, traces):
        return Scores.of(np.nan_to_num(super().score(traces).values))


class LearnsFromOneClass(Sound):
    def fit(self, traces, labels, split):
        self.sign = 1
        return self


class ReturnsNothing(Sound):
    def fit(self, traces, labels, split):
        super().fit(traces, labels, split)


@pytest.fixture(scope="module")
def data():
    return planted_data(41)


def test_a_sound_detector_keeps_the_contract(data):
    check_detector(Sound, data=data)


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (Nameless, "the card lacks summary"),
        (ReadsNothing, "must name the arrays that it reads"),
        (ReadsWhatIsNot, "'token_logprop'"),
        (TakesAnySetting, "an unknown setting must raise ConfigError"),
        (NeverAsksForFit, "score before fit must raise UsageError"),
        (LosesTraces, "planted traces got no score"),
        (LooksAround, "of traces alone and together"),
        (WritesPickle, r"got \['model.pkl'\]"),
        (ForgetsItsSign, "after save and load"),
        (LooksAtHiddenLabels, "were changed"),
        (FitsOnTop, "of a detector that was fitted twice"),
        (MakesUpScores, "a trace without arrays got the score"),
        (LearnsFromOneClass, "a training side of one class must raise NotEnoughDataError"),
        (ReturnsNothing, "fit must return the detector"),
    ],
)
def test_a_detector_that_breaks_a_promise_is_told_which(broken, promise, data):
    with pytest.raises(AssertionError, match=promise):
        check_detector(broken, data=data)


def test_a_detector_that_cannot_score_nothing_raises_what_it_raises(data):
    with pytest.raises(IndexError):
        check_detector(NeedsTraces, data=data)


TokenOverlap = DETECTORS.get("token-overlap")


class SoundOfTokens(TokenOverlap):
    card = replace(TokenOverlap.card, name="sound-of-tokens")


class LosesTokens(SoundOfTokens):
    def score(self, traces):
        return Scores.ragged([each * np.nan for each in super().score(traces).by_trace()])


class LooksAroundTokens(SoundOfTokens):
    def score(self, traces):
        found = super().score(traces)
        return Scores.ragged([each + len(traces) for each in found.by_trace()])


class ScoresAnswersOnly(SoundOfTokens):
    def score(self, traces):
        return super().score(traces).highest()


class ForgetsTokens(SoundOfTokens):
    @classmethod
    def load(cls, folder):
        detector = super().load(folder)
        score = detector.score
        detector.score = lambda traces: Scores.ragged([-e for e in score(traces).by_trace()])
        return detector


def test_there_is_data_for_every_level():
    assert set(PLANTED) == set(get_args(Level))


@pytest.fixture(scope="module")
def token_data():
    return planted_token_data(41)


def test_a_sound_detector_of_tokens_keeps_the_contract(token_data):
    check_detector(SoundOfTokens, data=token_data)


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (LosesTokens, "planted tokens got no score"),
        (LooksAroundTokens, "of traces alone and together"),
        (ForgetsTokens, "after save and load"),
    ],
)
def test_a_detector_of_tokens_that_breaks_a_promise_is_told_which(broken, promise, token_data):
    with pytest.raises(AssertionError, match=promise):
        check_detector(broken, data=token_data)


def test_a_detector_of_tokens_that_scores_answers_is_refused(token_data):
    with pytest.raises(GraphhaluError, match="answer tokens"):
        check_detector(ScoresAnswersOnly, data=token_data)


def test_a_feature_that_breaks_a_promise_is_told_which():
    check_feature(answer_length)
    compute = answer_length.compute
    broken = {
        "summary must be one line": {"summary": "two\nlines"},
        "reads names": {"reads": ("no_array",)},
        "cost must be": {"cost": "matrix"},
        "depends on the other questions": {"compute": lambda block: compute(block) / len(block)},
        "has no value": {"compute": lambda block: np.full(len(block), np.nan)},
    }
    for promise, changes in broken.items():
        with pytest.raises(AssertionError, match=promise):
            check_feature(replace(answer_length, **changes))


class MakesUpLabels(AliasMatch):
    def label(self, record):
        return LabelDecision(1, is_valid=False, reason="unknown")


class LooksAtOtherAnswers(AliasMatch):
    def label_all(self, records):
        return [self.label(records[0])] * len(records)


class GivesNoReason(AliasMatch):
    def label(self, record):
        return LabelDecision(1, is_valid=True, reason="")


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (MakesUpLabels, "not valid has the value 0"),
        (LooksAtOtherAnswers, "alone gave"),
        (GivesNoReason, "needs a reason"),
    ],
)
def test_a_labeller_that_breaks_a_promise_is_told_which(broken, promise):
    with pytest.raises(AssertionError, match=promise):
        check_labeller(broken())


class SameId(Worldfacts):
    def read(self, path):
        return (replace(question, question_id="one") for question in super().read(path))


class NoAnswer(Worldfacts):
    def read(self, path):
        return (replace(question, answers=()) for question in super().read(path))


class NoLicence(Worldfacts):
    card = replace(Worldfacts.card, licence=" ")


@pytest.mark.parametrize(
    ("broken", "promise"),
    [(SameId, "an id of its own"), (NoAnswer, "has no answer"), (NoLicence, "the card lacks licence")],
)
def test_a_data_set_that_breaks_a_promise_is_told_which(broken, promise):
    with pytest.raises(AssertionError, match=promise):
        check_dataset(broken)
