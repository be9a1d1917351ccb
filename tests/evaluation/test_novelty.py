"""Novelty of answers: distances against a dense formula, and what is said of them."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf

from graphhalu.core.axes import Span
from graphhalu.core.errors import NotEnoughDataError
from graphhalu.evaluation.novelty import (
    FALSE_ALARMS,
    NUMBERS,
    Novelty,
    numbers_of,
    read_novelty,
    training_novelty,
    write_novelty,
)
from graphhalu.testing.contracts.detectors import planted_data


@pytest.fixture(scope="module")
def data():
    return planted_data(211)


@pytest.fixture(scope="module")
def fitted(data):
    found = training_novelty(data.traces, data.labels, data.split)
    assert found is not None
    return found


def test_the_numbers_are_means_over_answer_tokens_layers_and_heads(data):
    trace = data.traces[3]
    found = dict(zip(NUMBERS, numbers_of(trace), strict=True))
    answer = range(trace.prompt_length, trace.length)
    rows = [place - 1 - trace.record.row_start for place in answer]
    logprob = trace.stream("token_logprob")
    assert found["logprob_min"] == pytest.approx(min(logprob[place] for place in answer))
    assert found["log_answer_length"] == pytest.approx(np.log(trace.answer_length))
    mass = trace.stream("span_mass")
    slow = np.mean(
        [mass[a, b, r, Span.QUESTION] for a in range(len(mass)) for b in range(mass.shape[1]) for r in rows]
    )
    assert found["attention_to_question"] == pytest.approx(slow, abs=1e-6)


def test_the_distance_is_that_of_mahalanobis(data, fitted):
    train = [data.traces[place] for place in data.split.train]
    values = np.array([numbers_of(trace) for trace in train])
    scale = np.where(values.std(0) > 1e-9 * (1 + np.abs(values).max(0)), values.std(0), 1.0)
    covariance = LedoitWolf().fit(values / scale)
    for trace in [data.traces[place] for place in data.split.test[:7]]:
        dense = mahalanobis(numbers_of(trace) / scale, values.mean(0) / scale, covariance.precision_)
        assert fitted.distance(trace) == pytest.approx(dense, rel=1e-6)


def test_the_limit_is_a_quantile_of_answers_that_were_not_fitted_on(data, fitted):
    distances = [fitted.distance(data.traces[place]) for place in data.split.validation]
    assert np.mean(np.array(distances) > fitted.limit) == fitted.false_alarm_rate
    assert fitted.false_alarm_rate <= FALSE_ALARMS + 1 / len(distances)


def test_an_answer_like_no_other_is_called_so_and_others_seldom_are(data, fitted):
    test = [data.traces[place] for place in data.split.test]
    said = [any("unlike" in warning for warning in fitted.warnings(trace)) for trace in test]
    assert np.mean(said) < 0.2
    strange = test[0].arrays | {"token_logprob": np.full(test[0].length, -60.0, dtype=np.float32)}
    assert any("unlike" in each for each in fitted.warnings(replace(test[0], arrays=strange)))


def test_a_given_answer_meets_a_detector_of_generated_ones(data, fitted):
    trace = data.traces[0]
    other = replace(trace, record=replace(trace.record, is_on_policy=not trace.record.is_on_policy))
    assert not any("trained on answers" in each for each in fitted.warnings(trace))
    assert any("trained on answers" in each for each in fitted.warnings(other))


def test_what_is_saved_is_read_again(fitted, tmp_path):
    write_novelty(tmp_path, fitted)
    assert read_novelty(tmp_path) == fitted
    assert read_novelty(tmp_path / "nowhere") is None


def test_few_answers_say_nothing(data):
    with pytest.raises(NotEnoughDataError, match="novelty needs"):
        Novelty.fit(list(data.traces[:11]), list(data.traces[11:90]))
