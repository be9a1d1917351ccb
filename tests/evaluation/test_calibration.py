import json

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import f1_score

from graphhalu.core.errors import ConfigError, NotEnoughDataError, UsageError
from graphhalu.evaluation.calibration import (
    ISOTONIC_MINIMUM,
    Calibration,
    best_f1_threshold,
    read_calibration,
)
from graphhalu.evaluation.metrics import ece


class Identity(ClassifierMixin, BaseEstimator):
    """A classifier whose decision is its only feature, for sklearn to calibrate."""

    def __init__(self):
        self.classes_ = np.array([0, 1])

    def fit(self, features, labels):
        return self

    def predict(self, features):
        return (features[:, 0] > 0).astype(int)

    def decision_function(self, features):
        return features[:, 0]


def make(n, seed=0, prevalence=0.4):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < prevalence).astype(np.int64)
    return 3 * labels + 2 * rng.normal(size=n) + 7, labels


@pytest.mark.parametrize("prevalence", [0.1, 0.4, 0.9])
def test_platt_equals_sklearn(prevalence):
    scores, labels = make(211, prevalence=prevalence)
    oracle = CalibratedClassifierCV(FrozenEstimator(Identity()), method="sigmoid")
    oracle.fit(scores[:, None], labels)
    expected = oracle.predict_proba(scores[:, None])[:, 1]
    found = Calibration.fit(scores, labels, method="platt").probability(scores)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_isotonic_equals_sklearn_away_from_certainty():
    scores, labels = make(997)
    oracle = CalibratedClassifierCV(FrozenEstimator(Identity()), method="isotonic")
    oracle.fit(scores[:, None], labels)
    new = np.linspace(-10, 20, 601)
    expected = oracle.predict_proba(new[:, None])[:, 1]
    found = Calibration.fit(scores, labels, method="isotonic").probability(new)
    certain = 2 / min(labels.sum(), (1 - labels).sum())
    np.testing.assert_allclose(found, expected, atol=certain)
    assert 0 < found.min() < found.max() < 1


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_a_probability_never_falls_with_the_score_even_where_the_scores_are_wrong_way_round(method):
    scores, labels = make(307)
    new = np.linspace(-30, 30, 1009)
    for turned in (scores, -scores):
        found = Calibration.fit(turned, labels, method=method).probability(new)
        assert (np.diff(found) >= 0).all()
        assert found.std() < 0.01 or turned is scores


def test_the_rule_takes_isotonic_from_enough_traces_of_the_rarer_class():
    labels = np.repeat([0, 1], [ISOTONIC_MINIMUM, 1000])
    scores = np.random.default_rng(0).normal(size=len(labels)) + labels
    assert Calibration.fit(scores, labels).method == "isotonic"
    assert Calibration.fit(scores[1:], labels[1:]).method == "platt"


def test_probabilities_of_new_traces_are_calibrated():
    calibration = Calibration.fit(*make(2003, seed=1))
    scores, labels = make(4001, seed=2)
    assert ece(calibration.probability(scores), labels) < 0.05


def test_one_huge_score_does_not_hide_the_others():
    scores, labels = make(211)
    calm = Calibration.fit(scores, labels).probability(scores)
    found = Calibration.fit(np.append(scores, 1e12), np.append(labels, 1)).probability(scores)
    np.testing.assert_allclose(found, calm, atol=0.05)


def test_a_constant_score_gives_the_prevalence():
    calibration = Calibration.fit(np.full(99, 5.0), np.arange(99) % 3 // 2)
    assert calibration.probability(np.array([4.0, 5.0])) == pytest.approx(np.full(2, 1 / 3), abs=0.02)


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_plain_json_gives_the_same_calibration_back(method):
    scores, labels = make(97)
    calibration = Calibration.fit(scores, labels, method=method)
    again = Calibration.model_validate_json(calibration.model_dump_json())
    assert again == calibration
    np.testing.assert_array_equal(again.probability(scores), calibration.probability(scores))
    np.testing.assert_array_equal(
        again.is_predicted_positive(scores), calibration.is_predicted_positive(scores)
    )


def test_the_threshold_has_the_best_f1_of_all():
    scores, labels = make(101)
    threshold = best_f1_threshold(scores, labels)
    best = max(f1_score(labels, scores >= other) for other in scores)
    assert f1_score(labels, scores >= threshold) == pytest.approx(best)
    assert Calibration.fit(scores, labels).threshold == threshold


def test_an_invalid_score_has_no_probability_and_is_not_called():
    calibration = Calibration.fit(*make(53))
    assert np.isnan(calibration.probability(np.array([np.nan]))[0])
    assert not calibration.is_predicted_positive(np.array([np.nan]))[0]


def test_one_class_is_refused():
    with pytest.raises(NotEnoughDataError, match="both classes"):
        Calibration.fit(np.arange(3.0), np.ones(3, dtype=np.int64))


def test_a_saved_calibration_with_an_unknown_field_is_refused(tmp_path):
    values = Calibration.fit(*make(53)).model_dump(mode="json")
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({**values, "colour": 1}))
    with pytest.raises(ConfigError, match="a saved calibration"):
        read_calibration(path)


def calibration_of(n=211, seed=3):
    generator = np.random.default_rng(seed)
    labels = (generator.random(n) < 0.4).astype(np.int64)
    return Calibration.fit(generator.normal(size=n) + labels, labels)


@pytest.mark.parametrize("target", [0.0, 0.05, 0.2, 0.5, 1.0])
def test_a_threshold_by_false_alarms_is_the_lowest_that_keeps_the_target(target):
    found = calibration_of()
    scores, labels = np.array(found.seen_scores), np.array(found.seen_labels)
    threshold = found.threshold_at_fpr(target)
    assert (scores[labels == 0] >= threshold).mean() <= target
    lower = scores[scores < threshold]
    if len(lower):
        nearest = max(lower[labels[scores < threshold] == 0], default=None)
        if nearest is not None:
            assert (scores[labels == 0] >= nearest).mean() > target


@pytest.mark.parametrize("target", [0.45, 0.6, 0.8])
def test_a_threshold_by_precision_is_the_lowest_that_reaches_it(target):
    found = calibration_of()
    scores, labels = np.array(found.seen_scores), np.array(found.seen_labels)
    threshold = found.threshold_at_precision(target)
    assert labels[scores >= threshold].mean() >= target
    assert all(labels[scores >= each].mean() < target for each in scores[scores < threshold])


def test_a_precision_that_nothing_reaches_names_the_best():
    labels = np.array([0, 1, 0, 1, 0, 1])
    found = Calibration.fit(np.array([1.0, 1.0, 2.0, 2.0, 3.0, 3.0]), labels)
    with pytest.raises(UsageError, match=r"the best is 0\.500"):
        found.threshold_at_precision(0.9)


def test_an_old_calibration_has_no_scores_to_choose_by():
    old = calibration_of().model_copy(update={"seen_scores": (), "seen_labels": ()})
    with pytest.raises(UsageError, match="without its validation scores"):
        old.threshold_at_fpr(0.1)


def test_very_many_scores_are_kept_in_part():
    generator = np.random.default_rng(0)
    labels = np.arange(7_001) % 2
    found = Calibration.fit(generator.normal(size=7_001), labels)
    assert len(found.seen_scores) == len(found.seen_labels) == 5_000
