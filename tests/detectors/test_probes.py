"""What single probes do beside the contract: subspaces, networks, missing features."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from graphhalu.core.errors import DetectorMismatchError
from graphhalu.core.splits import Split
from graphhalu.detectors.columns import columns_of
from graphhalu.detectors.linear import Scaling
from graphhalu.detectors.probes import Lookback, SinkProbeHeads
from graphhalu.detectors.published_probes import Haloscope, NetworkModel, Saplma, membership_score, train
from graphhalu.features.registry import FeatureSpec
from graphhalu.labels.planted import PLANTED_SHAPE, planted_traces
from graphhalu.traces.trace import Trace


def without(trace, *arrays):
    kept = {name: array for name, array in trace.arrays.items() if name not in arrays}
    return Trace(trace.record, trace.shape, kept)


def test_a_membership_score_is_the_mean_of_weighted_squared_projections():
    scores = np.random.default_rng(0).normal(size=(11, 5))
    for number in (1, 3):
        expected = [
            sum(s[j] ** 2 * np.sqrt((scores[:, j] ** 2).sum()) for j in range(number)) / number
            for s in scores
        ]
        np.testing.assert_allclose(membership_score(scores, number, is_weighted=True), expected)
        plain = (scores[:, :number] ** 2).mean(axis=1)
        np.testing.assert_allclose(membership_score(scores, number, is_weighted=False), plain)


def test_haloscope_finds_a_rare_class_that_lies_apart(with_signals):
    data = with_signals("hidden")
    train_side, values = data.split.train, data.labels.values
    rare = np.sort(
        np.concatenate([train_side[values[train_side] == 1][:6], train_side[values[train_side] == 0]])
    )
    split = Split(rare, data.split.validation, data.split.test)
    detector = Haloscope().fit(data.traces, data.labels, split)
    assert roc_auc_score(data.test_labels, detector.score(data.test_traces).values) > 0.9


def test_true_labels_only_choose_between_pseudo_labels_of_haloscope(few):
    detector = Haloscope().fit(few.traces, few.labels, few.split)
    report = detector.training_report
    assert {"layer", "n_components", "sign", "quantile", "membership_auroc"} <= set(report)


def test_a_network_scores_as_its_layers_do_one_after_another():
    generator = np.random.default_rng(0)
    side = generator.normal(size=(23, 7)), np.arange(23) % 2
    other = generator.normal(size=(11, 7)), np.arange(11) % 2
    network, report = train(side, other, seed=3)
    assert 1 <= report["epoch"] <= 40
    model = NetworkModel(Scaling(np.zeros(7), np.ones(7), np.zeros(7)), network)
    arrays = model.arrays()
    state = other[0]
    for place in range(4):
        state = state @ arrays[f"weight{place}"].T + arrays[f"bias{place}"]
        state = np.maximum(state, 0) if place < 3 else state
    np.testing.assert_allclose(model.logits(other[0]), state[:, 0], rtol=1e-9)


def test_a_network_stops_by_a_fold_of_the_training_side_and_never_sees_the_validation_side(few):
    turned = few.labels.values.copy()
    turned[few.split.validation] = 1 - turned[few.split.validation]
    first, second = (
        Saplma().fit(few.traces, replace(few.labels, values=v), few.split)
        for v in (few.labels.values, turned)
    )
    assert 1 <= first.training_report["epoch"] <= 40
    assert first.training_report == second.training_report
    scores = [each.score(few.test_traces).values for each in (first, second)]
    np.testing.assert_array_equal(*scores)


def test_a_network_without_held_out_traces_trains_for_the_epochs_asked_for():
    generator = np.random.default_rng(0)
    side = generator.normal(size=(23, 7)), np.arange(23) % 2
    short, _ = train(side, n_epochs=1, seed=3)
    long, report = train(side, n_epochs=5, seed=3)
    assert report == {}
    assert not np.array_equal(short[0].weight.detach().numpy(), long[0].weight.detach().numpy())


def test_the_report_says_what_is_missing(few):
    traces = list(few.traces)
    lacking = few.split.train[:2]
    for index in lacking:
        traces[index] = without(traces[index], "sink_keys")
    report = SinkProbeHeads().fit(traces, few.labels, few.split).training_report
    assert report["n_without_features"] == 2
    assert report["n_train"] == 29
    assert report["missing_share"] == 0


def test_a_missing_feature_is_filled_in_and_all_missing_is_no_score(few, fitted_on_few):
    detector = fitted_on_few["likelihood-probe"]
    trace = few.test_traces[0]
    some = detector.score([without(trace, "top1_margin")])
    assert some.is_valid.all()
    assert some.values[0] != detector.score([trace]).values[0]
    none = detector.score([without(trace, "top1_margin", "token_logprob", "token_entropy")])
    assert not none.is_valid.any()


def test_a_broken_trace_changes_no_score_of_another(few, fitted_on_few):
    for name in ("likelihood-probe", "hallushift", "sinkprobe"):
        detector, traces = fitted_on_few[name], list(few.test_traces[:3])
        broken = without(traces[0], "top1_margin", "received", "hidden", "hidden_rows")
        scores = detector.score([broken, *traces]).values[1:]
        np.testing.assert_array_equal(scores, detector.score(traces).values)


def test_traces_of_another_model_are_refused(few, fitted_on_few):
    other, _ = planted_traces(2, shape=replace(PLANTED_SHAPE, n_heads=7))
    with pytest.raises(DetectorMismatchError, match="n_heads 3, got 7"):
        fitted_on_few["lookback"].score(other)
    with pytest.raises(DetectorMismatchError, match="n_heads"):
        Lookback().fit([few.traces[0], other[0]], few.labels, Split(*[np.arange(2)] * 3))


def test_columns_are_those_of_the_features_side_by_side(few):
    traces = list(few.test_traces[:5])
    specs = (FeatureSpec("sink_mass_k1"), FeatureSpec("hidden_norm"))
    columns = columns_of(traces, specs)
    assert columns.values.shape == (5, 15 + 6)
    assert columns.names[0] == "sink_mass_k1.l00.h00"
    assert [entry.n_columns for entry in columns.layout] == [15, 6]


def test_columns_of_what_no_trace_has_are_missing_where_they_are_expected(few):
    traces = list(few.test_traces[:3])
    specs = (FeatureSpec("sink_mass_k1"), FeatureSpec("hidden_norm"))
    layout = columns_of(traces, specs).layout
    lacking = [without(trace, "hidden", "hidden_rows") for trace in traces]
    columns = columns_of(lacking, specs, layout)
    assert columns.values.shape == (3, 21)
    assert np.isnan(columns.values[:, 15:]).all()
    assert columns_of(lacking, specs).values.shape == (3, 15)


def test_a_detector_refuses_columns_that_mean_something_else(few, fitted_on_few):
    detector = SinkProbeHeads().fit(few.traces, few.labels, few.split)
    detector.layout = (detector.layout[0]._replace(digest="other"), detector.layout[1])
    with pytest.raises(DetectorMismatchError, match="sink_mass_k1"):
        detector.score(few.test_traces)
