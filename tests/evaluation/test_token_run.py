"""The comparison of token detectors, against slow computations of the same metrics."""

from dataclasses import replace
from operator import itemgetter

import numpy as np
import pytest

from graphhalu.detectors.registry import DETECTORS, POSITION_CONTROL
from graphhalu.detectors.sides import auroc
from graphhalu.errors import ConfigError, CorruptStoreError, DataFileError, UsageError
from graphhalu.evaluation.token_metrics import TOKEN_METRICS
from graphhalu.evaluation.token_result import SCORES_FILE, read_token_result
from graphhalu.evaluation.token_run import TokenCompareConfig, compare_tokens
from graphhalu.evaluation.token_spans import count_spans, marked_answer
from graphhalu.labels.tokens import label_tokens
from graphhalu.testing.planted_tokens import planted_token_traces


@pytest.fixture(scope="module")
def traces():
    return planted_token_traces(50, seed=1)


@pytest.fixture(scope="module")
def result(traces):
    config = TokenCompareConfig(
        detectors=("token-attention", "token-likelihood"), seeds=(0, 1), n_resamples=100,
        settings={"token-attention": {"windows": [1]}},
    )  # fmt: skip
    fits = []
    found = compare_tokens(traces, config, on_fit=lambda *progress: fits.append(progress))
    assert fits[-1] == (30, 30)
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
    slow = {name: [] for name in TOKEN_METRICS}
    for seed in (0, 1):
        found = by_trace(result, "token-attention", seed)
        labels = np.concatenate([rows["label"] for rows in found.values()])
        scores = np.concatenate([rows["score"] for rows in found.values()])
        slow["token_auroc"].append(auroc(scores, labels))
        mixed = [rows for rows in found.values() if rows["label"].any()]
        within = [auroc(rows["score"], rows["label"]) for rows in mixed]
        slow["within_auroc"].append(np.mean(within))
        truth = np.array([int(rows["label"].any()) for rows in found.values()])
        largest = np.array([rows["score"].max() for rows in found.values()])
        slow["answer_auroc_max"].append(auroc(largest, truth))
        counts = np.array([
            count_spans(marked_answer(trace.record), found[trace.trace_id]["is_called"])
            for trace in traces
        ]).sum(axis=0)  # fmt: skip
        slow["char_f1"].append(2 * counts[0] / (counts[1] + counts[2]))
        precision, recall = counts[3] / counts[4], counts[5] / counts[6]
        slow["span_f1"].append(2 * precision * recall / (precision + recall))
    for name, values in slow.items():
        if values:
            assert row.metrics[name].value == pytest.approx(np.mean(values), abs=1e-12)
    assert row.metrics["token_auroc"].value > 0.9
    assert row.metrics["char_f1"].value > 0.6


def test_intervals_hold_the_value_and_the_position_control_is_the_one_to_beat(result):
    assert result.rows[0].detector == POSITION_CONTROL
    assert not result.row(POSITION_CONTROL).differences
    for row in result.rows:
        for name, metric in row.metrics.items():
            assert metric.low <= metric.value + 1e-9, name
            assert metric.value <= metric.high + 1e-9, name
    row = result.row("token-attention")
    difference = row.differences["token_auroc"]
    control = result.row(POSITION_CONTROL).metrics["token_auroc"]
    expected = row.metrics["token_auroc"].value - control.value
    assert difference.value == pytest.approx(expected)
    assert difference.low > 0
    assert row.p_holm == pytest.approx(2 * difference.p_value)


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
    monkeypatch.setattr("graphhalu.evaluation.token_run.question_groups", lambda _: names)
    with pytest.raises(UsageError, match="a question leaks"):
        compare_tokens(traces, TokenCompareConfig(detectors=(POSITION_CONTROL,), seeds=(0,)))


def test_a_detector_sees_no_label_of_the_side_that_it_is_tested_on(traces, monkeypatch):
    kind = DETECTORS.get(POSITION_CONTROL)
    truth, fit = label_tokens([trace.record for trace in traces]), kind.fit
    seen = []

    def spy(self, given, labels, split):
        seen.append(sum(int(labels.tokens[index].sum()) for index in split.test))
        assert sum(int(truth.tokens[index].sum()) for index in split.test) > 0
        return fit(self, given, labels, split)

    monkeypatch.setattr(kind, "fit", spy)
    config = TokenCompareConfig(detectors=(POSITION_CONTROL,), seeds=(0,), n_resamples=100)
    compare_tokens(traces, config)
    assert seen == [0] * 5


def test_the_result_says_what_was_compared_and_that_others_wrote_it(result, traces):
    counts = result.counts
    assert (counts.n_traces, counts.n_groups, counts.n_spans) == (50, 25, 25)
    assert counts.prevalence == 100 / sum(trace.answer_length for trace in traces)
    assert counts.all_called_f1 == pytest.approx(2 * counts.character_share
                                                 / (1 + counts.character_share))  # fmt: skip
    assert any(note.startswith("Off-policy: 50 of 50") for note in result.notes)


def test_a_result_comes_back_from_its_files(result, tmp_path):
    result.write(tmp_path)
    read = read_token_result(tmp_path)
    assert (read.rows, read.counts, read.notes) == (result.rows, result.counts, result.notes)
    assert read.samples.equals(result.samples)
    (tmp_path / SCORES_FILE).write_bytes(b"other")
    with pytest.raises(CorruptStoreError, match="run it again"):
        read_token_result(tmp_path)
    with pytest.raises(DataFileError, match="graphhalu tokens"):
        read_token_result(tmp_path / "nowhere")


def test_a_detector_that_fails_has_a_row_that_says_why(traces):
    changed = [
        replace(trace, arrays={n: v for n, v in trace.arrays.items() if n != "sink_keys"})
        for trace in traces
    ]
    config = TokenCompareConfig(detectors=("token-attention",), quick=True, seeds=(0,))
    row = compare_tokens(changed, config).row("token-attention")
    assert "sink_keys" in row.failure
    assert "in fold 0" in row.failure
    assert not row.metrics


def test_settings_that_make_no_sense_are_refused(traces):
    with pytest.raises(ConfigError):
        compare_tokens(traces, TokenCompareConfig(settings={"token-text": {"nothing": 1}}))
    with pytest.raises(UsageError, match="not among"):
        compare_tokens(
            traces, TokenCompareConfig(detectors=("token-text",), settings={"token-graph": {}})
        )
