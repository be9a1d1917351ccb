"""The comparison of token detectors, against slow computations of the same metrics."""

import json
from dataclasses import replace
from operator import itemgetter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import average_precision_score

from graphhalu.core.errors import CorruptStoreError, DataFileError, UsageError
from graphhalu.core.numerics import auroc
from graphhalu.detectors.base import Scores
from graphhalu.detectors.registry import DETECTORS, POSITION_CONTROL, detector_names
from graphhalu.detectors.saved import load_detector
from graphhalu.evaluation.calibration import (
    CALIBRATION_FILE,
    Calibration,
    best_character_threshold,
    marked_answer,
    read_calibration,
)
from graphhalu.evaluation.compare import RunOptions, compare
from graphhalu.evaluation.crossfit import cross_fit, cross_fit_folds, fit_fold
from graphhalu.evaluation.detector_metrics import count_spans
from graphhalu.evaluation.result import SAMPLE_SCHEMA, SCORES_FILE, read_result
from graphhalu.evaluation.settings import CompareConfig, detector_specs
from graphhalu.evaluation.training import fit_for_use
from graphhalu.labels.planted import planted_token_traces
from graphhalu.labels.stated import label_tokens

TOKEN_METRICS = (
    "within_auroc",
    "char_precision",
    "char_recall",
    "char_f1",
    "span_precision",
    "span_recall",
    "span_f1",
    "answer_auroc_max",
    "answer_auroc_mean",
)


@pytest.fixture(scope="module")
def traces():
    return planted_token_traces(50, seed=1)


def compare_tokens(traces, config, **options):
    labels = label_tokens([trace.record for trace in traces])
    return compare(traces, labels, config=config, **options)


@pytest.fixture(scope="module")
def result(traces):
    config = CompareConfig(
        detectors=("token-attention", "token-likelihood"),
        seeds=(0, 1),
        n_resamples=100,
        settings={"token-attention": {"windows": [1]}},
    )
    fits = []
    found = compare_tokens(traces, config, on_progress=lambda *step: fits.append(step))
    assert fits[-1][:2] == (30, 30)
    return found


def by_trace(result, detector, seed):
    """The columns of the written scores of each answer, in the order of its tokens."""
    rows = {}
    for row in result.samples.to_pylist():
        if row["detector"] == detector and row["seed"] == seed:
            rows.setdefault(row["trace_id"], []).append(row)
    return {
        name: {
            column: np.array([row[column] for row in sorted(found, key=itemgetter("token"))])
            for column in result.samples.column_names
        }
        for name, found in rows.items()
    }


def test_metrics_are_those_of_the_written_scores(result, traces):
    row = result.row("token-attention")
    slow = {name: [] for name in ("auroc", "auprc", "brier", *TOKEN_METRICS)}
    for seed in (0, 1):
        found = by_trace(result, "token-attention", seed)
        labels = np.concatenate([rows["label"] for rows in found.values()])
        scores = np.concatenate([rows["score"] for rows in found.values()])
        slow["auroc"].append(auroc(scores, labels))
        slow["auprc"].append(average_precision_score(labels, scores))
        chances = np.concatenate([rows["probability"] for rows in found.values()])
        slow["brier"].append(np.mean((chances - labels) ** 2))
        mixed = [rows for rows in found.values() if rows["label"].any()]
        within = [auroc(rows["score"], rows["label"]) for rows in mixed]
        slow["within_auroc"].append(np.mean(within))
        truth = np.array([int(rows["label"].any()) for rows in found.values()])
        largest = np.array([rows["score"].max() for rows in found.values()])
        slow["answer_auroc_max"].append(auroc(largest, truth))
        counts = np.array(
            [
                count_spans(marked_answer(trace.record), found[trace.trace_id]["is_predicted_positive"])
                for trace in traces
            ]
        ).sum(axis=0)
        slow["char_f1"].append(2 * counts[0] / (counts[1] + counts[2]))
        precision, recall = counts[3] / counts[4], counts[5] / counts[6]
        slow["span_f1"].append(2 * precision * recall / (precision + recall))
    for name, values in slow.items():
        if values:
            assert row.metrics[name].value == pytest.approx(np.mean(values), abs=1e-12)
    assert row.metrics["auroc"].value > 0.9
    assert row.metrics["char_f1"].value > 0.6


def test_intervals_hold_the_value_and_the_position_control_is_the_one_to_beat(result):
    assert result.rows[0].detector == result.baseline.detector == POSITION_CONTROL
    assert result.comparison(POSITION_CONTROL) is None
    for row in result.rows:
        for name, metric in row.metrics.items():
            if name == "ece" or name.startswith("calibration_"):
                assert metric.low is metric.high is None
            else:
                assert metric.low <= metric.value + 1e-9, name
                assert metric.value <= metric.high + 1e-9, name
    test = result.comparison("token-attention")
    control, row = (result.row(name).metrics["auroc"] for name in (POSITION_CONTROL, test.detector))
    assert test.difference == pytest.approx(row.value - control.value)
    assert test.low > 0
    assert test.p_holm == pytest.approx(2 * test.p_delong)


def test_another_baseline_can_be_named(traces):
    config = CompareConfig(
        detectors=("token-attention", "token-overlap"),
        against="token-overlap",
        quick=True,
        seeds=(0,),
        n_resamples=100,
    )
    result = compare_tokens(traces, config)
    assert result.baseline.detector == "token-overlap"
    assert {test.detector for test in result.comparisons} == {POSITION_CONTROL, "token-attention"}


def test_a_threshold_makes_the_f1_of_characters_highest_and_chances_come_from_the_same_side(traces):
    labels = label_tokens([trace.record for trace in traces])
    groups = np.array([trace.record.group_id for trace in traces])
    folds = cross_fit_folds(labels.values, groups, labels.is_valid, n_folds=3)
    kind = DETECTORS.get("token-attention")
    done = cross_fit(kind, traces, labels, folds)
    for fold in folds:
        model = fit_fold(kind, traces, labels, fold)
        marked = [marked_answer(traces[index].record) for index in fold.validation]
        assert model.calibration.threshold == best_character_threshold(model.reference, marked)
        held_out = np.concatenate([labels.tokens[index] for index in fold.validation])
        own = Calibration.fit(model.reference, held_out)
        tested = labels.places(fold.test)
        raw = done.raw[tested]
        np.testing.assert_array_equal(done.probability[tested], own.probability(raw))
        expected = raw >= model.calibration.threshold
        np.testing.assert_array_equal(done.is_predicted_positive[tested], expected)
    assert done.is_tested.all()


def test_every_token_is_tested_once_a_seed_by_a_fold_that_never_saw_its_context(result, traces):
    context = {trace.trace_id: trace.record.group_id for trace in traces}
    for seed in (0, 1):
        found = by_trace(result, POSITION_CONTROL, seed)
        assert found.keys() == context.keys()
        fold_of = {}
        for trace in traces:
            rows = found[trace.trace_id]
            assert rows["token"].tolist() == list(range(trace.answer_length))
            (fold,) = set(rows["fold"].tolist())
            fold_of.setdefault(context[trace.trace_id], set()).add(fold)
        assert all(len(folds) == 1 for folds in fold_of.values())
        assert len(set().union(*fold_of.values())) == 5


def test_folds_that_part_a_context_are_refused(traces, monkeypatch):
    names = np.array([trace.trace_id for trace in traces])
    monkeypatch.setattr("graphhalu.evaluation.crossfit.question_groups", lambda _: names)
    with pytest.raises(UsageError, match="a question leaks"):
        compare_tokens(traces, CompareConfig(detectors=(POSITION_CONTROL,), seeds=(0,)))


def test_a_detector_sees_no_label_of_the_side_that_it_is_tested_on(traces, monkeypatch):
    kind = DETECTORS.get(POSITION_CONTROL)
    truth, fit = label_tokens([trace.record for trace in traces]), kind.fit
    seen = []

    def spy(self, given, labels, split):
        seen.append(sum(int(labels.tokens[index].sum()) for index in split.test))
        assert sum(int(truth.tokens[index].sum()) for index in split.test) > 0
        return fit(self, given, labels, split)

    monkeypatch.setattr(kind, "fit", spy)
    config = CompareConfig(detectors=(POSITION_CONTROL,), seeds=(0,), n_resamples=100)
    compare_tokens(traces, config)
    assert seen == [0] * 5


def test_the_result_says_what_was_compared_and_that_others_wrote_it(result, traces):
    counts = result.counts
    assert (counts.n_traces, counts.n_groups, counts.n_spans) == (50, 25, 25)
    assert counts.prevalence == 100 / sum(trace.answer_length for trace in traces)
    assert counts.all_positive_f1 == pytest.approx(2 * counts.character_share / (1 + counts.character_share))
    assert any(note.startswith("Off-policy: 50 of 50") for note in result.notes)


def test_a_result_comes_back_from_its_files(result, tmp_path):
    result.write(tmp_path)
    read = read_result(tmp_path)
    assert (read.rows, read.counts, read.notes) == (result.rows, result.counts, result.notes)
    assert (read.level, read.comparisons) == ("token", result.comparisons)
    assert read.samples.equals(result.samples)
    (tmp_path / SCORES_FILE).write_bytes(b"other")
    with pytest.raises(CorruptStoreError, match="compare again"):
        read_result(tmp_path)
    with pytest.raises(DataFileError, match="graphhalu tokens"):
        read_result(tmp_path / "nowhere")


def test_a_result_of_the_first_version_is_read_with_its_metrics_and_tests():
    folder = Path(__file__).parent / "fixtures" / "tokens_v1"
    told = json.loads((folder / "tokens.json").read_text())
    read = read_result(folder)
    assert (read.level, read.n_traces, read.n_groups) == ("token", 16, 8)
    assert read.counts.n_hallucinated_tokens == told["counts"]["n_hallucinated_tokens"]
    assert read.prevalence == read.counts.prevalence
    assert list(read.notes) == told["notes"]
    for row, values in zip(read.rows, told["rows"], strict=True):
        assert (row.detector, row.failure) == (values["detector"], values["failure"])
        assert len(row.metrics) == len(values["metrics"])
        for name, metric in values["metrics"].items():
            mine = row.metrics[name.removeprefix("token_")]
            assert (mine.value, mine.low, mine.high) == (metric["value"], metric["low"], metric["high"])
        test, difference = read.comparison(row.detector), values["differences"].get("token_auroc")
        assert (test is None) == (difference is None)
        if test is not None:
            assert (test.difference, test.p_bootstrap) == (difference["value"], difference["p_value"])
            assert test.p_holm == values["p_holm"]
    assert read.rows[-1].failure is not None
    assert read.baseline.detector == POSITION_CONTROL
    assert read.samples.schema.equals(SAMPLE_SCHEMA)
    before = pq.read_table(folder / "tokens.parquet")
    for name in ("detector", "seed", "trace_id", "token", "label", "score"):
        assert read.samples[name].equals(before[name])
    assert read.samples["is_predicted_positive"].equals(before["is_called"])


def test_a_detector_that_fails_has_a_row_that_says_why(traces):
    changed = [
        replace(trace, arrays={n: v for n, v in trace.arrays.items() if n != "sink_keys"}) for trace in traces
    ]
    config = CompareConfig(detectors=("token-attention",), quick=True, seeds=(0,))
    row = compare_tokens(changed, config).row("token-attention")
    assert "sink_keys" in row.failure
    assert "in fold 0" in row.failure
    assert not row.metrics


def test_settings_that_make_no_sense_are_told_by_the_row_or_refused(traces):
    config = CompareConfig(
        detectors=("token-text",), settings={"token-text": {"nothing": 1}}, quick=True, seeds=(0,)
    )
    assert "ConfigError" in compare_tokens(traces, config).row("token-text").failure
    with pytest.raises(UsageError, match="no compared detector with settings"):
        compare_tokens(traces, CompareConfig(detectors=("token-text",), settings={"token-graph": {}}))


def test_a_comparison_is_of_one_level(traces):
    config = CompareConfig(detectors=("token-text", "length"))
    with pytest.raises(UsageError, match="length scores answers, and the labels are of tokens"):
        compare_tokens(traces, config)
    labels = replace(label_tokens([trace.record for trace in traces]), tokens=None)
    with pytest.raises(UsageError, match="token-text scores tokens, and the labels are of answers"):
        compare(traces, labels, config=config)
    given = {"mine": DETECTORS.get("token-text")}
    with pytest.raises(UsageError, match="mine scores tokens"):
        compare(traces, labels, given)


def test_detectors_of_a_level_are_the_default():
    names = [spec.name for spec in detector_specs(None, CompareConfig(), "token")]
    assert names == detector_names("token")
    assert POSITION_CONTROL in names
    others = [spec.name for spec in detector_specs(None, CompareConfig())]
    assert sorted([*names, *others]) == sorted(DETECTORS.names())


def test_scores_that_do_not_fit_the_answers_are_refused(traces):
    class Short(DETECTORS.get(POSITION_CONTROL)):
        def score(self, chosen):
            return Scores.ragged(super().score(chosen).by_trace()[1:])

    config = CompareConfig(quick=True, seeds=(0,), n_resamples=100)
    labels = label_tokens([trace.record for trace in traces])
    row = compare(traces, labels, {"short": Short}, config=config).row("short")
    assert "answer tokens of" in row.failure


def test_a_trained_token_detector_is_saved_with_the_threshold_of_its_validation_side(traces, tmp_path):
    labels = label_tokens([trace.record for trace in traces])
    config = CompareConfig(seeds=(3,), settings={"token-attention": {"windows": [1]}})
    model = fit_for_use("token-attention", traces, labels, config, tmp_path)
    loaded = load_detector(tmp_path)
    assert loaded.config.seed == 3
    np.testing.assert_array_equal(loaded.score(traces[:3]).values, model.detector.score(traces[:3]).values)
    calibration = read_calibration(tmp_path / CALIBRATION_FILE)
    assert calibration.threshold == model.calibration.threshold
    assert len(model.reference) < len(labels.items) / 3


def test_a_comparison_of_tokens_is_gone_on_with_where_it_stopped(traces, tmp_path):
    config = CompareConfig(detectors=("token-overlap",), quick=True, seeds=(0,), n_resamples=100)
    first = compare_tokens(traces, config, options=RunOptions(folder=tmp_path))
    fits = []
    options = RunOptions(folder=tmp_path, is_resumed=True)
    again = compare_tokens(traces, config, options=options, on_progress=lambda *step: fits.append(step))
    assert fits == []
    assert (again.rows, again.comparisons) == (first.rows, first.comparisons)
    assert again.samples.equals(first.samples)
    first.write(tmp_path)
    labels = label_tokens([trace.record for trace in traces])
    changed = replace(labels, tokens=tuple(1 - each for each in labels.tokens))
    with pytest.raises(UsageError, match="other traces, labels or settings"):
        compare(traces, changed, config=config, options=options)
