"""Beams, baselines, variants, costs, categories, resuming and processes of a comparison."""

import json
from dataclasses import replace

import numpy as np
import pytest

from graphhalu.core.errors import ConfigError, NotEnoughDataError, UnknownNameError, UsageError
from graphhalu.detectors.base import ChosenTraces, DetectorCard, Scores, sibling_traces
from graphhalu.evaluation.compare import CHECKPOINT_FOLDER, RunOptions, clear_checkpoints, compare
from graphhalu.evaluation.crossfit import best_beams
from graphhalu.evaluation.result import read_result
from graphhalu.evaluation.settings import CompareConfig
from graphhalu.labels.labels import Labels
from graphhalu.labels.planted import planted_traces
from graphhalu.traces.schema import ARRAYS
from graphhalu.traces.store import TraceStore

SMALL = CompareConfig(seeds=(3, 5), n_folds=3, n_resamples=100)


@pytest.fixture
def case(toys):
    return toys.planted(n=97, n_groups=41)


@pytest.fixture
def beams():
    """Two beams a question, from the planted store."""
    return planted_traces(94, traces_a_question=2)


def same_figures(first, second):
    """Equal in everything but seconds."""

    def still(row):
        return replace(row, fit_s=None, score_ms=None)

    assert [still(row) for row in first.rows] == [still(row) for row in second.rows]
    assert first.samples.equals(second.samples)
    assert first.comparisons == second.comparisons
    assert first.baseline == second.baseline
    assert first.subgroups == second.subgroups


# -- beams


def test_the_best_beam_of_each_question_is_compared_and_the_others_are_counted(beams):
    traces, labels = beams
    result = compare(traces, labels, ["length"], config=SMALL)
    assert (result.n_traces, result.n_siblings, result.n_left_out) == (47, 47, 0)
    assert all(name.endswith("#0") for name in result.samples["trace_id"].to_pylist())
    everyone = compare(traces, labels, ["length"], config=SMALL.model_copy(update={"beams": "all"}))
    assert (everyone.n_traces, everyone.n_siblings) == (94, 0)


def test_a_best_beam_without_a_label_is_not_replaced_by_the_next(beams):
    traces, labels = beams
    is_valid = np.array([trace.trace_id != "q3#0" for trace in traces])
    result = compare(traces, replace(labels, is_valid=is_valid), ["length"], config=SMALL)
    assert result.n_traces == 46
    assert not any(name.startswith("q3#") for name in result.samples["trace_id"].to_pylist())


def test_the_best_of_the_kept_beams_counts_and_given_answers_all_do(toys):
    traces = [toys.trace(i) for i in range(5)]
    records = [
        replace(t.record, question_id=q, beam_index=b, is_on_policy=p)
        for t, (q, b, p) in zip(
            traces,
            [("a", 2, True), ("a", 1, True), ("b", 0, True), ("c", 0, False), ("c", 1, False)],
            strict=True,
        )
    ]
    chosen = [replace(t, record=r) for t, r in zip(traces, records, strict=True)]
    assert best_beams(chosen).tolist() == [False, True, True, True, True]


def test_a_detector_finds_the_other_beams_while_it_scores_the_test_side_only(beams):
    traces, _ = beams
    found = sibling_traces(ChosenTraces(traces, (4, 9)))
    assert [[t.trace_id for t in answers] for answers in found] == [["q2#0", "q2#1"], ["q4#0", "q4#1"]]
    assert [len(answers) for answers in sibling_traces(traces)] == [2] * 94


def test_a_given_answer_has_no_sibling_but_itself(toys):
    traces = [toys.trace(i) for i in range(2)]
    given = [replace(t, record=replace(t.record, question_id="same", is_on_policy=False)) for t in traces]
    assert sibling_traces(given) == [[given[0]], [given[1]]]


def test_siblings_have_no_label_that_a_detector_could_see(beams, toys):
    traces, labels = beams
    seen = []

    class Looking(toys.Toy):
        def fit(self, traces, labels, split):
            seen.append((labels.is_valid.copy(), split))
            return self

        def score(self, traces):
            return Scores.of(np.arange(len(traces), dtype=float))

    compare(traces, labels, {"looking": Looking}, config=SMALL)
    is_best = best_beams(traces)
    assert seen
    for is_valid, split in seen:
        assert not is_valid[~is_best].any()
        assert not is_valid[split.test].any()
        assert len(split.groups) == len(traces)


# -- baseline and tests


def marked(toy, **changes):
    class Marked(toy):
        card = replace(toy.card, **changes)

    return Marked


def test_the_strongest_detector_that_is_no_graph_network_is_the_baseline(case, toys):
    detectors = {
        "graph": marked(toys.Toy, is_graph=True),
        "control": marked(toys.Partial, is_control=True, is_graph=True),
        "constant": toys.Constant,
    }
    result = compare(*case, detectors, config=SMALL)
    assert result.baseline.detector == "control"
    assert "same test scores" in result.baseline.rule
    assert [c.detector for c in result.comparisons] == ["graph", "constant"]
    test = result.comparison("graph")
    row = {row.detector: row for row in result.rows}
    medians = [row[name].auroc_invalid_at_median for name in ("graph", "control")]
    assert test.difference == pytest.approx(medians[0] - medians[1])
    assert test.low < test.difference < test.high
    assert 0 < test.p_delong <= test.p_holm <= 1
    assert test.p_not_worse < 0.05


def test_a_baseline_can_be_named(case, toys):
    config = SMALL.model_copy(update={"against": "constant"})
    result = compare(*case, {"toy": toys.Toy, "constant": toys.Constant}, config=config)
    assert result.baseline.detector == "constant"
    assert "named" in result.baseline.rule
    with pytest.raises(UnknownNameError, match="to test against"):
        compare(*case, {"toy": toys.Toy}, config=config)


def test_a_named_baseline_that_failed_leaves_no_tests(case, toys):
    config = SMALL.model_copy(update={"against": "failing"})
    result = compare(*case, {"toy": toys.Toy, "failing": toys.Failing}, config=config)
    assert result.comparisons == ()


# -- calibration, costs, categories


def test_probabilities_are_calibrated_on_the_validation_side_and_saved_with_the_scores(case, toys):
    result = compare(*case, {"toy": toys.Toy}, config=SMALL)
    row = result.rows[0]
    assert row.metric("brier") < 0.25
    assert row.metrics["ece"].low is None
    lines = [line for line in result.samples.to_pylist() if line["seed"] == 3]
    probability = np.array([line["probability"] for line in lines])
    label = np.array([line["label"] for line in lines])
    called = np.array([line["is_predicted_positive"] for line in lines])
    assert ((probability > 0) & (probability < 1)).all()
    found = 2 * (called & (label == 1)).sum() / (called.sum() + label.sum())
    other = [line for line in result.samples.to_pylist() if line["seed"] == 5]
    again = np.array([line["is_predicted_positive"] for line in other])
    truth = np.array([line["label"] for line in other])
    second = 2 * (again & (truth == 1)).sum() / (again.sum() + truth.sum())
    assert row.metric("f1") == pytest.approx((found + second) / 2)


def test_the_bytes_that_a_detector_needs_follow_from_what_it_reads(beams, toys):
    traces, labels = beams

    class Reading(toys.Toy):
        card = DetectorCard("r", "", "", ("attention",), True, reads=("attention", "span_mass"))

        def score(self, traces):
            return Scores.of(np.arange(len(traces), dtype=float))

    row = compare(traces, labels, {"reading": Reading}, config=SMALL).rows[0]
    best = [trace for trace in traces if trace.trace_id.endswith("#0")]
    sizes = [trace.arrays["attention"].nbytes + trace.arrays["span_mass"].nbytes for trace in best]
    assert row.trace_bytes == pytest.approx(np.mean(sizes))


def test_a_detector_of_text_needs_no_bytes_and_one_that_says_nothing_has_no_number(case, toys):
    detectors = {"toy": toys.Toy, "silent": marked(toys.Toy, inputs=("attention",))}
    rows = compare(*case, detectors, config=SMALL).rows
    assert [row.trace_bytes for row in rows] == [0.0, None]


def test_metrics_are_given_by_category_where_questions_have_one(toys):
    traces, labels = toys.planted(n=101, n_groups=101)
    for index, trace in enumerate(traces):
        trace.record.metadata["category"] = "hard" if index % 3 else "easy"
    result = compare(traces, labels, {"toy": toys.Toy}, config=SMALL)
    found = {group.name: group for group in result.subgroups}
    assert set(found) == {"easy", "hard"}
    assert found["easy"].n_traces == 34
    assert found["hard"].metrics["auroc"].low < found["hard"].metrics["auroc"].value
    assert not compare(
        traces, labels, {"toy": toys.Toy}, config=SMALL.model_copy(update={"subgroups": None})
    ).subgroups


def test_a_category_of_one_class_has_no_metric(toys):
    traces, labels = toys.planted(n=101, n_groups=101)
    for index, trace in enumerate(traces):
        trace.record.metadata["category"] = "wrong" if labels.values[index] else "right"
    result = compare(traces, labels, {"toy": toys.Toy}, config=SMALL)
    assert [dict(group.metrics) for group in result.subgroups] == [{}, {}]


# -- settings and variants


class Configured:
    """Mixed into a toy: settings as every registered detector has them."""

    def __init__(self, seed=0, sign=1):
        self.sign = sign

    @classmethod
    def settings(cls, **values):
        if set(values) - {"seed", "sign"}:
            message = "there is no such field"
            raise ConfigError(message)
        return values


def test_settings_reach_the_detector_and_are_recorded(case, toys):
    class Turned(Configured, toys.Toy):
        def score(self, traces):
            return Scores.of(self.sign * super().score(traces).values)

    config = SMALL.model_copy(update={"settings": {"toy@turned": {"sign": -1}}})
    result = compare(*case, {"toy": Turned, "toy@turned": Turned}, config=config)
    assert result.rows[1].settings == {"sign": -1}
    assert result.rows[0].metric("auroc") > 0.7
    assert result.rows[1].metric("auroc") < 0.3


def test_a_setting_that_a_detector_does_not_know_is_its_failure(case):
    config = CompareConfig(seeds=(3,), n_folds=3, settings={"length": {"colour": 1}})
    assert "colour" in compare(*case, ["length"], config=config).rows[0].failure


def test_settings_for_a_detector_that_is_not_compared_are_refused(case):
    config = CompareConfig(settings={"gat": {"epochs": 2}})
    with pytest.raises(UnknownNameError, match="compared detector with settings"):
        compare(*case, ["length"], config=config)


def test_the_detectors_of_the_configuration_are_run_also_as_variants(beams):
    config = CompareConfig(seeds=(3,), n_folds=3, n_resamples=100, detectors=("length", "length@again"))
    result = compare(*beams, config=config)
    assert [row.detector for row in result.rows] == ["length", "length@again"]
    assert result.rows[0].metrics == result.rows[1].metrics
    assert result.config["detectors"] == ["length", "length@again"]


# -- resuming


def counting(toy, counter):
    class Counting(toy):
        def fit(self, traces, labels, split):
            counter.append(1)
            return super().fit(traces, labels, split)

    return Counting


def test_a_killed_comparison_goes_on_with_the_same_figures(case, toys, tmp_path):
    class Killed(toys.Toy):
        def fit(self, traces, labels, split):
            raise KeyboardInterrupt

    n_fits = []
    first = counting(toys.Toy, n_fits)
    detectors = {"toy": first, "partial": Killed}
    options = RunOptions(folder=tmp_path, is_resumed=True)
    with pytest.raises(KeyboardInterrupt):
        compare(*case, detectors, config=SMALL, options=options)
    assert [p.name for p in (tmp_path / CHECKPOINT_FOLDER).iterdir()] == ["toy.parquet"]
    assert len(n_fits) == 6
    whole = {"toy": first, "partial": toys.Partial}
    resumed = compare(*case, whole, config=SMALL, options=options)
    assert len(n_fits) == 6
    same_figures(resumed, compare(*case, whole, config=SMALL))


def test_a_detector_is_added_to_a_written_result_and_tested_with_the_others(case, toys, tmp_path):
    options = RunOptions(folder=tmp_path, is_resumed=True)
    compare(*case, {"toy": toys.Toy}, config=SMALL, options=options).write(tmp_path)
    clear_checkpoints(tmp_path)
    n_fits = []
    again = counting(toys.Toy, n_fits)
    added = compare(*case, {"toy": again, "partial": toys.Partial}, config=SMALL, options=options)
    assert not n_fits
    both = {"toy": toys.Toy, "partial": toys.Partial}
    same_figures(added, compare(*case, both, config=SMALL))
    only = compare(*case, {"partial": toys.Partial}, config=SMALL, options=options)
    assert [row.detector for row in only.rows] == ["partial", "toy"]


def test_other_settings_and_earlier_failures_are_run_again(case, toys, tmp_path):
    class Turned(Configured, toys.Toy):
        pass

    n_fits = []
    make = counting(Turned, n_fits)
    options = RunOptions(folder=tmp_path, is_resumed=True)
    compare(*case, {"toy": make, "bad": toys.Failing}, config=SMALL, options=options)
    assert len(n_fits) == 6
    config = SMALL.model_copy(update={"settings": {"toy": {"sign": 1}}})
    result = compare(*case, {"toy": make, "bad": toys.Toy}, config=config, options=options)
    assert len(n_fits) == 12
    assert result.rows[1].failure is None


def test_a_folder_of_another_comparison_is_refused_with_the_fields_that_differ(case, toys, tmp_path):
    options = RunOptions(folder=tmp_path, is_resumed=True)
    compare(*case, {"toy": toys.Toy}, config=SMALL, options=options).write(tmp_path)
    other = SMALL.model_copy(update={"n_folds": 4})
    with pytest.raises(UsageError, match=r"config\.n_folds: 3 in the store, 4 asked for"):
        compare(*case, {"toy": toys.Toy}, config=other, options=options)
    traces, labels = case
    turned = replace(labels, values=1 - labels.values)
    with pytest.raises(UsageError, match="labels"):
        compare(traces, turned, {"toy": toys.Toy}, config=SMALL, options=options)


def test_a_damaged_part_is_run_again(case, toys, tmp_path):
    (tmp_path / CHECKPOINT_FOLDER).mkdir()
    (tmp_path / CHECKPOINT_FOLDER / "toy.parquet").write_bytes(b"half a file")
    options = RunOptions(folder=tmp_path, is_resumed=True)
    result = compare(*case, {"toy": toys.Toy}, config=SMALL, options=options)
    assert result.rows[0].failure is None


def test_without_resuming_earlier_parts_are_swept_away(case, toys, tmp_path):
    compare(*case, {"toy": toys.Toy}, config=SMALL, options=RunOptions(folder=tmp_path))
    n_fits = []
    make = counting(toys.Toy, n_fits)
    compare(*case, {"toy": make}, config=SMALL, options=RunOptions(folder=tmp_path))
    assert len(n_fits) == 6


def test_what_is_written_is_read_back_with_its_tests_and_subgroups(toys, tmp_path):
    traces, labels = toys.planted(n=101, n_groups=101)
    for index, trace in enumerate(traces):
        trace.record.metadata["category"] = "hard" if index % 3 else "easy"
    detectors = {"toy": toys.Toy, "constant": toys.Constant, "bad": toys.Failing}
    result = compare(traces, labels, detectors, config=SMALL)
    result.write(tmp_path)
    again = read_result(tmp_path)
    same_figures(again, result)
    assert again.identity == json.loads(json.dumps(result.identity))
    assert "p_holm" in (tmp_path / "table.csv").read_text().splitlines()[0]


# -- processes


def test_a_factory_that_is_not_registered_cannot_run_in_another_process(case, toys):
    with pytest.raises(UsageError, match="use 1 job"):
        compare(*case, {"toy": toys.Toy}, config=SMALL, options=RunOptions(jobs=2))


@pytest.mark.slow
def test_two_processes_give_the_same_figures_in_the_same_order(tmp_path):
    traces, labels = planted_traces(61)
    store = TraceStore.create(
        tmp_path / "planted.zarr", configuration={}, shape=traces[0].shape, arrays=tuple(ARRAYS)
    )
    with store.writer() as writer:
        writer.write_part(0, traces, [trace.record.question_id for trace in traces])
    config = CompareConfig(
        seeds=(0, 1),
        n_folds=3,
        n_resamples=100,
        settings={"length@bad": {"colour": 1}},
        detectors=("sink-mass", "length@bad", "perplexity"),
    )
    steps = []
    spread = compare(
        store, labels, config=config, options=RunOptions(jobs=2), on_progress=lambda *step: steps.append(step)
    )
    alone = compare(store, labels, config=config)
    assert [row.failure is None for row in alone.rows] == [True, False, True]
    same_figures(spread, alone)
    assert [step[:2] for step in steps] == [(done, 18) for done in range(3, 19, 3)]


def test_too_few_labels_are_refused_before_anything_runs(beams):
    traces, labels = beams
    nothing = Labels(labels.trace_ids, labels.values * 0, labels.is_valid, labels.reasons, "none", {})
    with pytest.raises(NotEnoughDataError, match="both classes"):
        compare(traces, nothing, ["length"], config=SMALL)
