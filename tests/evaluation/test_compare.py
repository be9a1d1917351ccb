import re

import numpy as np
import pytest

from graphhalu.core.config import validate
from graphhalu.core.errors import ConfigError, MissingExtraError, NotEnoughDataError, UsageError
from graphhalu.detectors.base import Detector, DetectorCard, Scores
from graphhalu.detectors.scalars import Length
from graphhalu.evaluation.compare import compare
from graphhalu.evaluation.metrics import METRICS, auroc, evaluate
from graphhalu.evaluation.settings import CompareConfig

SMALL = CompareConfig(seeds=(3, 5), n_resamples=200)


@pytest.fixture
def case(toys):
    return toys.planted()


def row_of(result, name):
    return next(row for row in result.rows if row.detector == name)


def scores_of(result, name, seed):
    lines = result.samples.to_pylist()
    return [line for line in lines if line["detector"] == name and line["seed"] == seed]


def test_every_detector_gets_a_row_with_every_metric_in_the_order_asked_for(case, toys):
    result = compare(*case, {"toy": toys.Toy, "constant": toys.Constant}, config=SMALL)
    assert [row.detector for row in result.rows] == ["toy", "constant"]
    for row in result.rows:
        curve = {"calibration_slope", "calibration_intercept"}
        assert set(row.metrics) == {*METRICS, "f1", "brier", "ece", *curve}
        assert row.failure is None
        assert row.coverage == 1.0
        assert row.fit_s >= 0 < row.score_ms
        for name, metric in row.metrics.items():
            if name in {"ece", *curve}:
                assert metric.low is metric.high is None
            else:
                assert metric.low - 1e-12 <= metric.value <= metric.high + 1e-12


def test_metrics_are_means_over_seeds_of_the_pooled_scores_in_the_samples(case, toys):
    result = compare(*case, {"toy": toys.Toy}, config=SMALL)
    found = []
    for seed in (3, 5):
        lines = scores_of(result, "toy", seed)
        scores = np.array([line["score"] for line in lines])
        found.append(evaluate(scores, np.array([line["label"] for line in lines])))
    row = row_of(result, "toy")
    for name in METRICS:
        of_seed = [values[name] for values in found]
        assert row.metric(name) == pytest.approx(np.mean(of_seed))
        assert row.metrics[name].seed_sd == pytest.approx(np.std(of_seed, ddof=1))


def test_a_planted_signal_is_found_and_a_constant_is_at_chance(case, toys):
    result = compare(*case, {"constant": toys.Constant, "toy": toys.Toy}, config=SMALL)
    traces, labels = case
    signal = np.array([trace.record.metadata["signal"] for trace in traces])
    toy = row_of(result, "toy").metrics["auroc"]
    assert toy.value == pytest.approx(auroc(signal, labels.values), abs=0.01)
    assert toy.fold_mean == pytest.approx(toy.value, abs=0.03)
    assert row_of(result, "constant").metrics["auroc"].fold_mean == 0.5
    assert [row.detector for row in result.ranked()] == ["toy", "constant"]


def test_a_detector_that_peeks_at_labels_stays_at_chance(case, toys):
    result = compare(*case, {"peeking": toys.Peeking}, config=SMALL)
    assert row_of(result, "peeking").metrics["auroc"].fold_mean == 0.5


def test_a_failing_detector_is_recorded_with_its_reason_and_the_others_go_on(case, toys):
    result = compare(*case, {"failing": toys.Failing, "toy": toys.Toy}, config=SMALL)
    failed = row_of(result, "failing")
    assert failed.failure == ("NotEnoughDataError in fold 0 of seed 3: the training side has one class")
    assert failed.metrics == {}
    assert failed.coverage is None
    assert row_of(result, "toy").failure is None
    assert [row.detector for row in result.ranked()] == ["toy", "failing"]
    assert set(result.samples["detector"].to_pylist()) == {"toy"}


def test_a_detector_whose_package_is_missing_is_recorded_as_failed(case, toys):
    def needs_ripser():
        message = "install graphhalu[topology]"
        raise MissingExtraError(message)

    result = compare(*case, {"topology": needs_ripser}, config=SMALL)
    assert "graphhalu[topology]" in row_of(result, "topology").failure


def raising(toys, error):
    class Broken(toys.Toy):
        def score(self, traces):
            raise error

    return Broken


def test_whatever_a_detector_raises_is_its_failure_with_the_line_of_its_file(case, toys):
    detectors = {"broken": raising(toys, KeyError("signal")), "toy": toys.Toy}
    result = compare(*case, detectors, config=SMALL)
    failure = row_of(result, "broken").failure
    assert re.fullmatch(r"KeyError in fold 0 of seed 3: 'signal' \(test_compare\.py, line \d+\)", failure)
    assert row_of(result, "toy").failure is None


def test_a_factory_that_raises_is_a_failure_too(case, toys):
    result = compare(*case, {"broken": lambda: 1 / 0, "toy": toys.Toy}, config=SMALL)
    assert row_of(result, "broken").failure == ("ZeroDivisionError in fold 0 of seed 3: division by zero")
    assert row_of(result, "toy").failure is None


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_what_concerns_the_whole_run_is_not_swallowed(case, toys, error):
    with pytest.raises(error):
        compare(*case, {"broken": raising(toys, error)}, config=SMALL)


class Own:
    """Detectors that a user has at hand."""

    @staticmethod
    def of(toys):
        class Mine(toys.Toy):
            card = DetectorCard("mine", "reads the signal", "none", ("text",), False)

            def __init__(self, factor=1.0):
                self.factor = factor
                self.is_fitted = False

            def fit(self, traces, labels, split):
                assert not self.is_fitted
                self.is_fitted = True
                return self

            def score(self, traces):
                return Scores.of(self.factor * super().score(traces).values)

        return Mine


def test_classes_and_detectors_are_compared_beside_names(case, toys):
    mine = Own.of(toys)
    result = compare(*case, [mine(3.0), toys.Toy], config=SMALL)
    assert [row.detector for row in result.rows] == ["mine", "toy"]
    assert [row.failure for row in result.rows] == [None, None]
    assert row_of(result, "mine").metric("auroc") == pytest.approx(row_of(result, "toy").metric("auroc"))


def test_a_detector_that_is_given_is_copied_for_every_fold_and_stays_as_it_was(case, toys):
    mine = Own.of(toys)(2.0)
    result = compare(*case, {"double": mine, "single": Own.of(toys)}, config=SMALL)
    assert [row.failure for row in result.rows] == [None, None]
    assert not mine.is_fitted


def test_two_detectors_of_one_name_are_refused(case, toys):
    mine = Own.of(toys)
    with pytest.raises(UsageError, match="different detectors, got \\['mine', 'mine'\\]"):
        compare(*case, [mine(1.0), mine(2.0)], config=SMALL)


def test_a_detector_that_was_saved_is_refused(case, toys):
    mine = Own.of(toys)()
    mine.identity = object()
    with pytest.raises(UsageError, match="mine was fitted and saved"):
        compare(*case, [mine], config=SMALL)


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("fractions:Fraction", r"inherits graphhalu\.detectors\.base\.Detector, got"),
        (type("Half", (Detector,), {}), "it lacks fit, load, save, score"),
    ],
)
def test_what_is_no_detector_is_refused(case, given, fault):
    with pytest.raises(UsageError, match=fault):
        compare(*case, [given], config=SMALL)


def test_a_detector_without_a_name_of_its_own_is_refused(case):
    class Mine(Length.__base__):
        card = Length.card

    with pytest.raises(UsageError, match="its name 'length' is that of graphhalu's own detector"):
        compare(*case, [Mine], config=SMALL)


@pytest.mark.parametrize(
    ("scores", "fault"),
    [
        (lambda n: None, r"mute: score must return Scores of \d+ traces, got None"),
        (lambda n: Scores.of(np.zeros(n + 1)), r"mute: expected \d+ scores, got \d+"),
        (lambda n: Scores(np.full(n, np.inf), np.ones(n, dtype=bool)), "mute: .* not finite"),
    ],
)
def test_scores_that_do_not_fit_are_told_with_the_name_of_the_detector(case, toys, scores, fault):
    class Mute(toys.Toy):
        card = DetectorCard("mute", "none", "none", ("text",), False)

        def score(self, traces):
            return scores(len(traces))

    failure = row_of(compare(*case, [Mute], config=SMALL), "mute").failure
    assert re.search(fault, failure)


def test_a_fit_that_returns_nothing_says_so(case, toys):
    class Lost(toys.Toy):
        def fit(self, traces, labels, split):
            pass

    failure = row_of(compare(*case, {"lost": Lost}, config=SMALL), "lost").failure
    assert "fit must return the detector, got None" in failure


def test_invalid_scores_are_left_out_and_counted_in_the_coverage(case, toys):
    traces, labels = case
    config = CompareConfig(seeds=(3,), n_resamples=200)
    result = compare(*case, {"partial": toys.Partial, "toy": toys.Toy}, config=config)
    row = row_of(result, "partial")
    has_score = np.arange(len(traces)) % 3 != 0
    assert row.coverage == pytest.approx(has_score.mean())
    lines = scores_of(result, "partial", 3)
    assert [line["is_valid"] for line in lines] == has_score.tolist()
    assert all((line["score"] is None) == (not line["is_valid"]) for line in lines)
    pooled = np.array([np.nan if line["score"] is None else line["score"] for line in lines])
    assert auroc(pooled[has_score], labels.values[has_score]) == row.metric("auroc")


def test_invalid_scores_at_the_median_pull_the_auroc_towards_chance(case, toys):
    row = row_of(compare(*case, {"partial": toys.Partial}, config=SMALL), "partial")
    assert 0.5 < row.auroc_invalid_at_median < row.metric("auroc") - 0.03


def test_at_full_coverage_the_median_rule_changes_nothing(case, toys):
    row = row_of(compare(*case, {"toy": toys.Toy}, config=SMALL), "toy")
    assert row.auroc_invalid_at_median == row.metric("auroc")


def test_a_detector_without_any_score_fails_with_a_reason(case, toys):
    class Mute(toys.Toy):
        def score(self, traces):
            return Scores.of(np.full(len(traces), np.nan))

    assert "both classes" in row_of(compare(*case, {"mute": Mute}, config=SMALL), "mute").failure


def test_traces_without_a_valid_label_are_left_out_and_counted(case, toys):
    traces, labels = case
    is_valid = np.arange(len(traces)) % 7 != 0
    labels = toys.labels(labels.values.tolist(), is_valid)
    result = compare(traces, labels, {"toy": toys.Toy}, config=SMALL)
    assert result.n_traces == is_valid.sum()
    assert result.n_left_out == (~is_valid).sum()
    assert result.coverage == pytest.approx(is_valid.mean())
    assert result.prevalence == pytest.approx(labels.values[is_valid].mean())
    tested = {line["trace_id"] for line in scores_of(result, "toy", 3)}
    assert tested == {trace.trace_id for trace in np.array(traces, dtype=object)[is_valid]}


def test_answers_to_one_question_are_tested_in_one_fold(case, toys):
    result = compare(*case, {"toy": toys.Toy}, config=SMALL)
    folds = {}
    for line in scores_of(result, "toy", 3):
        folds.setdefault(line["group"], set()).add(line["fold"])
    assert len(folds) == result.n_groups == 83
    assert all(len(numbers) == 1 for numbers in folds.values())


def test_quick_tests_one_grouped_split_a_seed(case, toys):
    config = CompareConfig(quick=True, seeds=(0,), n_resamples=200)
    result = compare(*case, {"toy": toys.Toy}, config=config)
    lines = scores_of(result, "toy", 0)
    assert {line["fold"] for line in lines} == {0}
    assert len(lines) == pytest.approx(211 / 5, rel=0.1)
    assert row_of(result, "toy").metrics["auroc"].seed_sd is None


def test_the_same_settings_give_the_same_result(case, toys):
    first, second = (compare(*case, {"toy": toys.Toy}, config=SMALL) for _ in range(2))
    assert first.rows[0].metrics == second.rows[0].metrics
    assert first.samples.equals(second.samples)


def test_a_factory_that_takes_a_seed_is_given_that_of_the_comparison(case, toys):
    seeds = []

    def make(seed):
        seeds.append(seed)
        return toys.Seeded(seed)

    compare(*case, {"seeded": make}, config=SMALL)
    assert set(seeds) >= {3, 5}


def test_progress_counts_up_to_the_total_also_past_a_failure(case, toys):
    seen = []
    detectors = {"failing": toys.Failing, "toy": toys.Toy}
    compare(*case, detectors, config=SMALL, on_progress=lambda *step: seen.append(step))
    assert [step[:2] for step in seen] == [(done, 20) for done in range(11, 21)]
    assert seen[-1][2] == "toy, seed 5, fold 4"


def test_labels_of_other_traces_are_refused(case, toys):
    traces, labels = case
    with pytest.raises(UsageError, match="trace 'q1#0' meets the label of 'q0#0'"):
        compare([traces[1], traces[0], *traces[2:]], labels, {"toy": toys.Toy}, config=SMALL)
    with pytest.raises(UsageError, match="210 traces and 211 labels"):
        compare(traces[:-1], labels, {"toy": toys.Toy}, config=SMALL)


def test_no_detector_is_refused(case):
    with pytest.raises(UsageError, match="names of different detectors"):
        compare(*case, {}, config=SMALL)


def test_too_few_questions_are_refused(toys):
    traces = [toys.trace(i, signal=0.0) for i in range(4)]
    with pytest.raises(NotEnoughDataError, match="5 folds need at least 5 questions"):
        compare(traces, toys.labels([0, 1, 0, 1]), {"toy": toys.Toy}, config=SMALL)


@pytest.mark.parametrize(
    "values", [{"n_folds": 2}, {"seeds": []}, {"seeds": [1, 1]}, {"level": 95}, {"folds": 5}]
)
def test_settings_that_make_no_sense_are_refused(values):
    with pytest.raises(ConfigError):
        validate(CompareConfig, values, source="the test")
