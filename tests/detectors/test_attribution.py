"""A score in parts: exact sums of linear models, effects of what is taken from a graph."""

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch

from graphhalu.detectors.linear import LinearModel
from graphhalu.detectors.probes import SinkProbeHeads
from graphhalu.detectors.stack import AllFeatures


def test_parts_and_bias_of_a_linear_model_sum_to_its_logit():
    generator = np.random.default_rng(0)
    used = generator.random(11) < 0.7
    model = LinearModel(
        generator.normal(size=11), generator.normal(size=11), generator.normal(size=11) * used, used, 0.3
    )
    values = generator.normal(size=(7, 11)).astype(np.float32)
    values[2, 3] = np.nan
    values[4] = np.nan
    parts = model.parts(values)
    np.testing.assert_allclose(parts.sum(axis=1) + 0.3, model.logits(values))
    assert np.isnan(parts[4]).all()
    assert not parts[0][~used].any()


@pytest.fixture(scope="module")
def probe(with_signal):
    return SinkProbeHeads().fit(with_signal.traces, with_signal.labels, with_signal.split)


def test_heads_and_rest_of_a_probe_sum_to_its_score(with_signal, probe):
    trace = with_signal.test_traces[0]
    found = probe.attribute(trace)
    assert found.is_exact
    total = found.heads.sum() + found.rest
    assert total == pytest.approx(probe.score([trace]).values[0])
    assert found.heads.shape == (trace.shape.n_layers, trace.shape.n_heads)


def test_the_planted_heads_make_the_difference(with_signal, probe):
    labels = with_signal.test_labels
    heads = np.stack([probe.attribute(trace).heads for trace in with_signal.test_traces])
    apart = heads[labels == 1].mean(0) - heads[labels == 0].mean(0)
    assert apart.max() > 5 * np.median(np.abs(apart))


def test_parts_of_an_ensemble_sum_to_its_score(few):
    blocks = ("sink-probe-heads", "likelihood-probe", "summaries")
    detector = AllFeatures(**AllFeatures.settings(blocks=blocks, n_folds=2))
    detector.fit(few.traces, few.labels, few.split)
    for trace in few.test_traces[:3]:
        found = detector.attribute(trace)
        score = detector.score([trace]).values[0]
        assert found.heads.sum() + found.rest == pytest.approx(score)


def graph_and_logit(detector, trace):
    """The graph of a trace, and the mean logit of the networks for any such graph."""
    data = detector._graphs([trace], detector.schema.layers, None)[0]

    def logit(graph):
        with torch.no_grad():
            scaled = detector.scaler(Batch.from_data_list([graph]))
            return float(torch.stack([each(scaled) for each in detector.networks]).mean())

    return data, logit


@pytest.mark.parametrize("name", ["gat", "gcn", "charm"])
def test_an_edge_has_the_effect_that_its_absence_has(name, fitted_on_few, data_of):
    detector, trace = fitted_on_few[name], data_of(name).test_traces[0]
    found = detector.attribute(trace)
    assert not found.is_exact
    data, logit = graph_and_logit(detector, trace)
    place = data.num_edges // 2
    is_kept = torch.arange(data.num_edges) != place
    less = data.clone()
    less.edge_index, less.edge_attr = data.edge_index[:, is_kept], data.edge_attr[is_kept]
    key, query = data.edge_index[:, place].tolist()
    (one,) = [edge for edge in found.edges if (edge.key, edge.query) == (key, query)]
    assert one.layer is None
    assert one.effect == pytest.approx(logit(data) - logit(less), abs=1e-5)
    assert [abs(edge.effect) for edge in found.edges] == sorted(
        (abs(edge.effect) for edge in found.edges), reverse=True
    )


@pytest.mark.parametrize("name", ["gat", "charm"])
def test_a_head_has_the_effect_that_its_silence_has(name, fitted_on_few, data_of):
    detector, trace = fitted_on_few[name], data_of(name).test_traces[0]
    found = detector.attribute(trace)
    data, logit = graph_and_logit(detector, trace)
    layer = detector.schema.layers[1]
    column = detector.schema.edge_feature_names.index(f"layer{layer}.attention_head2")
    less = data.clone()
    less.edge_attr = data.edge_attr.clone()
    less.edge_attr[:, column] = 0
    assert found.heads[layer, 2] == pytest.approx(logit(data) - logit(less), abs=1e-5)


def test_edges_of_graphs_side_by_side_name_their_layer(few, make_detector):
    detector = make_detector("gat", epochs=1, view="stacked")
    detector.fit(few.traces, few.labels, few.split)
    trace = few.test_traces[0]
    found = detector.attribute(trace)
    assert {edge.layer for edge in found.edges} == set(detector.schema.layers)
    assert all(0 <= edge.key < edge.query < trace.length for edge in found.edges)
    data, logit = graph_and_logit(detector, trace)
    of_edge = data.layer_index[data.edge_index[1]]
    less = data.clone()
    less.edge_attr = data.edge_attr.clone()
    less.edge_attr[of_edge == 2, 1] = 0
    layer = detector.schema.layers[2]
    assert found.heads[layer, 1] == pytest.approx(logit(data) - logit(less), abs=1e-5)


def test_parts_of_the_stack_are_those_of_its_members_weighed(fitted_on_few, data_of):
    detector, trace = fitted_on_few["graphhalu"], data_of("graphhalu").test_traces[0]
    found = detector.attribute(trace)
    heads = np.zeros_like(found.heads)
    for name, member in detector.members.items():
        joint = detector.joints[name]
        heads += joint.weight * joint.scale * member.attribute(trace).heads
    np.testing.assert_allclose(found.heads, heads)
    assert found.features.keys() == {"probe", "graph"}
    assert found.edges == detector.members["graph"].attribute(trace).edges


def test_a_head_that_a_network_does_not_see_has_no_effect(fitted_on_few, data_of):
    detector = fitted_on_few["gat"]
    found = detector.attribute(data_of("gat").test_traces[0])
    read = set(detector.schema.layers)
    others = [layer for layer in range(found.heads.shape[0]) if layer not in read]
    assert not found.heads[others].any()
    assert found.heads[sorted(read)].any()


def test_a_scalar_has_no_parts(fitted_on_few, data_of):
    assert fitted_on_few["length"].attribute(data_of("length").test_traces[0]) is None
