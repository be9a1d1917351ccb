"""A score in parts: exact sums of linear models, effects of what is taken from a graph."""

import numpy as np
import pytest
import torch
from graphhalu.detectors.graph_build import graph_pieces
from graphhalu.detectors.graph_pack import GraphPack

from graphhalu.detectors.ensemble import AllFeatures
from graphhalu.detectors.probes.attention import SinkProbeHeads
from graphhalu.detectors.probes.logistic import LinearModel


def test_parts_and_bias_of_a_linear_model_sum_to_its_logit():
    generator = np.random.default_rng(0)
    used = generator.random(11) < 0.7
    model = LinearModel(
        generator.normal(size=11), generator.normal(size=11),
        generator.normal(size=11) * used, used, 0.3,
    )  # fmt: skip
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


@pytest.mark.parametrize("name", ["gat", "gcn", "charm", "graphhalu"])
def test_an_edge_has_the_effect_that_its_absence_has(name, fitted_on_few, data_of):
    detector = fitted_on_few[name]
    trace = data_of(name).test_traces[0]
    found = detector.attribute(trace)
    assert not found.is_exact
    recipe = detector._recipe(detector.schema.layers)
    piece = next(graph_pieces([trace], [0], recipe))
    layer_of = np.repeat(np.arange(piece.degree.size), piece.degree.reshape(-1)) // len(piece.token)
    query = np.repeat(np.arange(piece.degree.size), piece.degree.reshape(-1)) % len(piece.token)
    place = len(piece.source) // 2
    batch = GraphPack.of([piece]).batch(torch.tensor([0]))
    with torch.no_grad():
        whole = float(detector.network(batch).mean())
    assert found.edges
    one = next(
        edge
        for edge in found.edges
        if edge.key == piece.token[piece.source[place]]
        and edge.query == piece.token[query[place]]
        and edge.layer in (None, detector.schema.layers[layer_of[place]])
    )
    without = piece._replace(
        degree=piece.degree - np.bincount(
            [layer_of[place] * len(piece.token) + query[place]], minlength=piece.degree.size
        ).reshape(piece.degree.shape),
        source=np.delete(piece.source, place),
        edge_attr=np.delete(piece.edge_attr, place, axis=0),
        edges_a_layer=tuple(
            n - (layer == layer_of[place]) for layer, n in enumerate(piece.edges_a_layer)
        ),
    )  # fmt: skip
    with torch.no_grad():
        left = float(detector.network(GraphPack.of([without]).batch(torch.tensor([0]))).mean())
    if name != "gcn":  # which also reads how much a row pays in all
        assert one.effect == pytest.approx(whole - left, abs=1e-5)
    assert [abs(edge.effect) for edge in found.edges] == sorted(
        (abs(edge.effect) for edge in found.edges), reverse=True
    )


def test_a_head_that_a_network_does_not_see_has_no_effect(fitted_on_few, data_of):
    detector = fitted_on_few["gat"]
    found = detector.attribute(data_of("gat").test_traces[0])
    read = set(detector.schema.layers)
    others = [layer for layer in range(found.heads.shape[0]) if layer not in read]
    assert not found.heads[others].any()
    assert found.heads[sorted(read)].any()


def test_a_scalar_has_no_parts(fitted_on_few, data_of):
    assert fitted_on_few["length"].attribute(data_of("length").test_traces[0]) is None
