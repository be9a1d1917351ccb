"""Token detectors: what they find in planted tokens, and what they must not find."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from graphhalu.core.axes import Span
from graphhalu.core.errors import ConfigError, DetectorMismatchError, NotEnoughDataError, UsageError
from graphhalu.core.numerics import auroc
from graphhalu.core.splits import grouped_split
from graphhalu.detectors.gnn.config import TokenNetworkConfig
from graphhalu.detectors.linear import Scaling
from graphhalu.detectors.registry import DETECTORS, POSITION_CONTROL, detector_names
from graphhalu.detectors.saved import load_detector, save_detector
from graphhalu.detectors.text import neighbours
from graphhalu.detectors.token_features import View, averaged, family_columns, view_columns
from graphhalu.detectors.token_probes import ridge_path, sample_tokens
from graphhalu.evaluation.crossfit import visible_labels
from graphhalu.graphs.dataset import AttentionGraphs
from graphhalu.labels.labels import question_groups
from graphhalu.labels.planted import PLANTED_SHAPE, planted_token_traces
from graphhalu.labels.stated import label_tokens

FIXTURES = Path(__file__).parent / "fixtures"
FINDERS = ("token-attention", "token-probe", "token-graph")
QUICK = {
    "token-graph": {"epochs": 15, "n_folds": 2},
    **{
        name: {"epochs": 1, "n_folds": 2, **({"hidden_size": 8} if "evidence" in name else {})}
        for name in detector_names("token")
        if name.startswith(("token-no-edges", "token-evidence"))
    },
}


def planted(*, signal):
    traces = planted_token_traces(70, seed=1, signal=signal)
    labels = label_tokens([trace.record for trace in traces])
    return traces, labels, grouped_split(labels.values, question_groups(traces))


@pytest.fixture(scope="module")
def stores():
    return {signal: planted(signal=signal) for signal in (True, False)}


def fitted(name, store, **values):
    traces, labels, split = store
    kind = DETECTORS.get(name)
    detector = kind(**kind.settings(**{**QUICK.get(name, {}), **values}))
    return detector.fit(traces, visible_labels(labels, split), split)


@pytest.fixture(scope="module")
def detectors(stores):
    """Every token detector, fitted on the planted signal; the sweep is not empty."""
    names = detector_names("token")
    assert POSITION_CONTROL in names
    assert set(FINDERS) < set(names)
    return {name: fitted(name, stores[True]) for name in names}


def found(detector, store):
    traces, labels, split = store
    scores = detector.score([traces[index] for index in split.test])
    truth = np.concatenate([labels.tokens[index] for index in split.test])
    assert scores.is_valid.all()
    return auroc(scores.values, truth)


@pytest.mark.parametrize("name", FINDERS)
def test_planted_tokens_are_found(name, detectors, stores):
    assert found(detectors[name], stores[True]) > 0.9


@pytest.mark.parametrize("name", FINDERS)
def test_nothing_is_found_in_the_twin(name, stores):
    # seven spans are tested: chance is wide
    assert found(fitted(name, stores[False]), stores[False]) < 0.7


def test_nothing_is_learnt_from_shuffled_labels(stores):
    # the planted direction is the largest, so a chance direction has a part of it, of either sign
    seeds = [fitted("token-shuffled", stores[True], windows=[1], seed=seed) for seed in range(9)]
    aurocs = [found(detector, stores[True]) for detector in seeds]
    assert min(aurocs) < 0.5 < max(aurocs)
    assert abs(np.mean(aurocs) - 0.5) < 0.15


def test_controls_that_read_no_attention_do_not_find_it(detectors, stores):
    for name in ("token-likelihood", "token-overlap", "token-text"):
        assert found(detectors[name], stores[True]) < 0.75


def test_every_detector_says_what_it_is_and_scores_a_token_whatever_stands_beside_it(detectors, stores):
    traces = stores[True][0]
    for name, detector in detectors.items():
        assert (detector.card.name, detector.card.level) == (name, "token")
        together = detector.score(traces[:3])
        alone = detector.score(traces[2:3])
        # networks sum a batch in another order
        rounding = 1e-5 if hasattr(detector, "networks") or hasattr(detector, "members") else 0
        np.testing.assert_allclose(together.by_trace()[2], alone.values, rounding, rounding)
        assert alone.lengths.tolist() == [traces[2].answer_length]


def test_every_detector_comes_back_from_disk_with_the_same_scores(detectors, stores, tmp_path):
    traces = stores[True][0]
    for name, detector in detectors.items():
        save_detector(detector, tmp_path / name)
        files = {path.name for path in (tmp_path / name).iterdir()}
        is_smoothed = "smoothed" in name or name == "token-cortex"
        parts = set(getattr(detector, "members", ())) or {"base" if is_smoothed else "model.safetensors"}
        assert files == {"detector.json", *parts}
        loaded = load_detector(tmp_path / name)
        assert loaded.card.name == name
        before, after = (each.score(traces[:2]) for each in (detector, loaded))
        np.testing.assert_array_equal(before.values, after.values)
        np.testing.assert_array_equal(before.lengths, after.lengths)


def test_an_unfitted_detector_says_so(stores):
    for name in detector_names("token"):
        with pytest.raises(UsageError, match="not fitted"):
            DETECTORS.get(name)().score(stores[True][0][:1])


def test_one_class_is_refused(stores):
    traces, labels, split = stores[True]
    nothing = replace(labels, tokens=tuple(np.zeros_like(each) for each in labels.tokens))
    for name in ("token-position", "token-text", "token-graph"):
        with pytest.raises(NotEnoughDataError, match="both classes"):
            DETECTORS.get(name)().fit(traces, nothing, split)


def test_labels_of_answers_are_refused_with_the_way_out(stores):
    traces, labels, split = stores[True]
    for name in detector_names("token"):
        with pytest.raises(UsageError, match="needs labels of tokens"):
            DETECTORS.get(name)().fit(traces, replace(labels, tokens=None), split)


def test_a_trace_of_another_model_is_refused(detectors):
    shape = replace(PLANTED_SHAPE, n_heads=2, n_kv_heads=2)
    other = planted_token_traces(2, seed=3, shape=shape)
    for name in ("token-attention", "token-graph"):
        with pytest.raises(DetectorMismatchError):
            detectors[name].score(other)


def test_a_setting_that_makes_no_sense_is_refused():
    with pytest.raises(ConfigError, match="odd"):
        DETECTORS.get("token-probe").settings(windows=[1, 4])
    with pytest.raises(ConfigError, match="no attention of layers"):
        traces, labels, split = planted(signal=True)
        kind = DETECTORS.get("token-graph")
        kind(**kind.settings(layers=[99])).fit(traces, labels, split)


def test_a_token_has_the_row_that_produces_it_and_its_own(stores):
    trace = stores[True][0][0]
    columns = family_columns(trace, "attention")
    place = columns.names.index("sink.l3.h1")
    sink = trace.layer_stream("sink_keys", 3)[1].sum(-1)
    first = trace.prompt_length
    before = view_columns(trace, View("attention", "before", 1))[0][:, place]
    own = view_columns(trace, View("attention", "own", 1))[0][:, place]
    np.testing.assert_allclose(before, sink[first - 1 : -1], atol=2e-3)
    np.testing.assert_allclose(own, sink[first:], atol=2e-3)
    lookback = columns.values[0, columns.names.index("lookback.l3.h1")]
    mass = trace.layer_stream("span_mass", 3)[1, first - 1]
    prompt = mass.sum() - mass[Span.ANSWER] - sink[first - 1]
    assert lookback == pytest.approx(prompt / (prompt + mass[Span.ANSWER]), abs=5e-3)


def test_overlap_looks_runs_of_tokens_up_in_the_prompt(stores):
    trace = stores[True][0][0]
    ids = np.array([5, 6, 7, 8, 5, 6, 8, 9, 6, 7])
    record = replace(trace.record, prompt_length=4, length=10)
    changed = replace(trace, record=record, arrays={"token_ids": ids.astype(np.int32)})
    values = family_columns(changed, "overlap").values
    assert values[:, 0].tolist() == [1, 1, 1, 0, 1, 1]
    assert values[:, 1].tolist() == [0, 1, 0, 0, 0, 1]  # (8,5) (5,6) (6,8) (8,9) (9,6) (6,7)
    assert values[:, 2].tolist() == [0, 0, 0, 0, 0, 0]
    assert neighbours(changed)[0].tolist() == [-1, -1, 5, 6, 8]


def test_the_mean_over_a_window_is_that_of_a_slow_loop():
    values = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)
    slow = np.stack([values[max(0, at - 2) : at + 3].mean(axis=0) for at in range(11)])
    np.testing.assert_allclose(averaged(values, 5), slow, atol=1e-6)
    values[4, 1] = np.nan
    assert np.isnan(averaged(values, 5)).sum() == 5


def test_a_sample_keeps_hallucinated_tokens_up_to_half(stores):
    _, labels, split = stores[True]
    side = np.sort(split.train).tolist()
    sample = sample_tokens(labels.tokens, side, n_most=60, seed=0)
    assert (len(sample.labels), int(sample.labels.sum())) == (60, 30)
    pairs = zip(sample.traces, sample.tokens, strict=True)
    slow = [int(labels.tokens[index][place]) for index, places in pairs for place in places]
    assert sample.labels.tolist() == slow
    everything = sample_tokens(labels.tokens, side, n_most=10**6, seed=0)
    assert len(everything.labels) == sum(len(labels.tokens[index]) for index in side)


def test_the_closed_form_is_that_of_weighted_least_squares():
    generator = np.random.default_rng(2)
    values = generator.normal(size=(97, 5)) * [1, 2, 3, 4, 5]
    labels = (values[:, 1] + generator.normal(size=97) > 1).astype(np.int64)
    x = Scaling.of(values).apply(values)
    ((weight, bias),) = ridge_path(x.astype(np.float32), labels, (0.07,))

    y = 2.0 * labels - 1
    share = np.where(labels == 1, 0.5 / (y > 0).sum(), 0.5 / (y < 0).sum())
    mean = share @ x
    std = np.sqrt(share @ (x - mean) ** 2)
    scaled = np.column_stack([(x - mean) / std, np.ones(len(x))])
    ridge = np.diag([0.07 * 5] * 5 + [0.0])
    u = np.linalg.solve((scaled.T * share) @ scaled + ridge, scaled.T @ (share * y))
    np.testing.assert_allclose(weight, u[:5] / std, rtol=1e-3)
    assert bias == pytest.approx(u[5] - mean @ (u[:5] / std), abs=1e-4)


def token_graphs(traces, layers, tau, labels=None):
    recipe = TokenNetworkConfig(tau=tau).recipe(layers, traces[0])
    return AttentionGraphs.of_recipe(traces, layers, recipe, labels)


def test_a_token_graph_has_the_edges_of_a_slow_loop(stores):
    trace = stores[True][0][1]
    layers = (1, 4)
    data = token_graphs([trace], layers, 0.2)[0]
    attention = np.concatenate([trace.attention(layer) for layer in layers])
    expected = {}
    for query in range(trace.prompt_length - 1, trace.length):
        for key in range(query):
            weights = np.where(attention[:, query, key] > 0.2, attention[:, query, key], 0)
            if weights.any():
                expected[query, key] = weights
    came = {
        (query, key): weights
        for (key, query), weights in zip(data.edge_index.T.tolist(), data.edge_attr, strict=True)
    }
    assert came.keys() == expected.keys()
    for pair, weights in expected.items():
        np.testing.assert_allclose(came[pair], weights, atol=1e-3)


def test_a_store_of_answer_rows_gives_the_same_graph(stores):
    trace = stores[True][0][1]
    first = trace.prompt_length - 1
    cut = {}
    for name in ("sink_keys", "self_attention", "row_entropy", "edge_key", "edge_weight", "dropped_mass"):
        cut[name] = trace.arrays[name][:, :, first:]
    cut["received"] = trace.arrays["received"]
    record = replace(trace.record, row_start=first)
    answer_rows = replace(trace, record=record, arrays={**cut, "span_code": trace.arrays["span_code"]})
    whole = replace(
        trace,
        arrays={name: values for name, values in trace.arrays.items() if not name.startswith("attention")},
    )
    of_all, of_answer = (token_graphs([each], (0, 2), 0.1) for each in (whole, answer_rows))
    one, other = of_all[0], of_answer[0]
    assert one.num_edges
    np.testing.assert_array_equal(other.edge_index, one.edge_index)
    np.testing.assert_array_equal(other.edge_attr, one.edge_attr)
    # what is received is a mean over the rows that are kept
    places = {name: place for place, name in enumerate(of_answer.node_feature_names)}
    assert set(places) == {*of_all.node_feature_names, "row.is_missing"}
    for place, name in enumerate(of_all.node_feature_names):
        if "received" not in name:
            np.testing.assert_array_equal(other.x[first:, places[name]], one.x[first:, place])
    is_missing = other.x[:, places["row.is_missing"]]
    assert is_missing.tolist() == [1] * first + [0] * (trace.length - first)
    late = replace(answer_rows, record=replace(record, row_start=first + 1))
    with pytest.raises(UsageError, match="keeps the rows from"):
        token_graphs([late], (0, 2), 0.1)[0]


@pytest.mark.parametrize("name", ["token-likelihood", "token-text"])
def test_a_detector_saved_by_the_first_version_gives_the_scores_that_it_gave_then(name, stores):
    told = json.loads((FIXTURES / "token_scores_v1.json").read_text())
    scores = load_detector(FIXTURES / f"{name}_v1").score(stores[True][0][:1])
    np.testing.assert_allclose(scores.values, told[name], rtol=1e-9, atol=1e-12)
