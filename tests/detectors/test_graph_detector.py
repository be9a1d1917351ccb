from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from graphhalu.detectors.graph_build import PieceRecipe
from graphhalu.detectors.graph_detector import GraphDetector
from graphhalu.detectors.graph_memory import MEMORY
from graphhalu.detectors.graph_networks import (
    CHARMDetector,
    GATDetector,
    GCNDetector,
)
from graphhalu.detectors.graph_schema import GraphDetectorConfig
from sklearn.metrics import roc_auc_score

from graphhalu.config import load_config
from graphhalu.detectors.registry import DETECTORS
from graphhalu.errors import ConfigError, DetectorMismatchError, NotEnoughDataError
from graphhalu.graphs.build import build_graphs
from graphhalu.splits import Split
from graphhalu.traces.trace import Trace

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "train").glob("*.yaml"))
GRAPH_CONFIGS = [
    path for path in CONFIGS if issubclass(DETECTORS.get(path.stem.split("_")[0]), GraphDetector)
]


@pytest.fixture(scope="module")
def fitted(few):
    """Every graph detector, fitted for two epochs."""
    names = [n for n in DETECTORS.names() if issubclass(DETECTORS.get(n), GraphDetector)]
    detectors = {n: DETECTORS.get(n) for n in names}
    return {
        name: each(**each.settings(epochs=2)).fit(few.traces, few.labels, few.split)
        for name, each in detectors.items()
    }


def test_there_are_configurations():
    assert {"gat", "gcn", "charm", "mlp", "gat-rewired"} <= {path.stem for path in GRAPH_CONFIGS}


@pytest.mark.parametrize("path", GRAPH_CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_trains_the_detector_of_its_name(path, few):
    detector_class = DETECTORS.get(path.stem.split("_")[0])
    config_class = detector_class.config_class
    values = load_config(config_class, path, ["epochs=1"]).model_dump(mode="json")
    detector = detector_class(**detector_class.settings(**values))
    assert detector.fit(few.traces, few.labels, few.split).score(few.test_traces).is_valid.all()


def test_settings_read_plain_values():
    arguments = GATDetector.settings(seed=3, hidden_size=16, layers=[0, 2], nodes=["sink"])
    assert arguments["seed"] == 3
    assert arguments["config"] == GraphDetectorConfig(
        seed=3, hidden_size=16, layers=(0, 2), nodes=("sink",)
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", 6),
        ("epochs", 0),
        ("learning_rate", "fast"),
        ("dropout", 1.0),
        ("layers", []),
        ("nodes", ["sinc"]),
        ("edges_per_row", 0),
    ],
)
def test_a_value_that_cannot_be_used_is_an_error_with_its_field(field, value):
    with pytest.raises(ConfigError, match=field):
        GCNDetector.settings(**{field: value})


def test_an_unknown_block_of_nodes_lists_the_nearest():
    with pytest.raises(ConfigError, match="sink"):
        GCNDetector.settings(nodes=["sinc"])


def test_a_given_seed_wins_over_that_of_the_configuration():
    config = GraphDetectorConfig(seed=5)
    assert GATDetector(config=config).config.seed == 5
    assert GATDetector(seed=0, config=config).config.seed == 0


def test_another_seed_gives_other_scores(few, make_detector, fitted):
    other = make_detector("gcn", seed=1, epochs=2).fit(few.traces, few.labels, few.split)
    first = fitted["gcn"].score(few.test_traces).values
    assert not np.array_equal(other.score(few.test_traces).values, first)


def test_default_layers_lie_at_thirds_of_the_depth(fitted):
    assert len(fitted["gat"].schema.layers) == 3


def test_training_leaves_the_caller_as_it_was(few, make_detector, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = torch.random.get_rng_state()
    make_detector("gcn", epochs=1).fit(few.traces, few.labels, few.split)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()
    assert list(tmp_path.iterdir()) == []


def test_the_state_of_the_callers_generator_changes_no_score(few, make_detector, fitted):
    torch.rand(7)
    again = make_detector("gat", epochs=2).fit(few.traces, few.labels, few.split)
    np.testing.assert_array_equal(
        again.score(few.test_traces).values, fitted["gat"].score(few.test_traces).values
    )


def test_a_layer_that_is_not_kept_is_an_error(few, make_detector):
    with pytest.raises(ConfigError, match="11"):
        make_detector("gcn", layers=[11]).fit(few.traces, few.labels, few.split)


def test_an_empty_validation_side_is_not_enough(few, make_detector):
    split = Split(few.split.train, few.split.validation[:0], few.split.test)
    with pytest.raises(NotEnoughDataError, match="validation side"):
        make_detector("gcn").fit(few.traces, few.labels, split)


def test_traces_of_another_model_are_refused(few, fitted):
    trace = few.test_traces[0]
    other = Trace(trace.record, replace(trace.shape, n_heads=7), trace.arrays)
    with pytest.raises(DetectorMismatchError, match="7"):
        fitted["gat"].score([other])


def test_charm_reads_every_layer_and_head(fitted):
    schema = fitted["charm"].schema
    assert schema.layers == (0, 1, 2, 3, 4)
    assert (schema.n_graphs, schema.n_channels, len(schema.node_feature_names)) == (1, 15, 15)


def test_charm_edges_begin_at_the_last_prompt_token_and_pass_the_threshold(few):
    recipe = CHARMDetector.settings(tau=0.3)["config"].recipe
    trace = few.traces[0]
    (graph,) = build_graphs(trace, (0, 1, 2, 3, 4), recipe)
    attention = np.concatenate([trace.attention(layer) for layer in range(5)])
    expected = [
        (key, query)
        for query in range(trace.prompt_length - 1, trace.length)
        for key in range(query)
        if (attention[:, query, key] > 0.3).any()
    ]
    assert list(zip(*graph.edge_index.tolist(), strict=True)) == expected
    weights = np.stack([attention[:, query, key] for key, query in expected])
    np.testing.assert_array_equal(graph.edge_attr, np.where(weights > 0.3, weights, 0))
    diagonal = np.stack([np.diagonal(head) for head in attention], axis=1)
    np.testing.assert_array_equal(graph.x, diagonal)


def test_the_controls_of_the_gat_have_as_many_parameters(fitted):
    counts = {name: each.training_report["n_parameters"] for name, each in fitted.items()}
    assert counts["gat-rewired"] == counts["gat"]
    assert counts["mlp"] == pytest.approx(counts["gat"], rel=0.05)


def test_graphs_are_built_once_for_many_fits(few, make_detector, monkeypatch):
    MEMORY.clear()
    asked = []
    real = PieceRecipe.piece
    monkeypatch.setattr(PieceRecipe, "piece", lambda *args: asked.append(0) or real(*args))
    make_detector("gat", epochs=1).fit(few.traces, few.labels, few.split)
    assert len(asked) == 31 + 13
    make_detector("gat", seed=1, epochs=1).fit(few.traces, few.labels, few.split)
    make_detector("mlp", epochs=1).fit(few.traces, few.labels, few.split)
    assert len(asked) == 31 + 13


def test_remembered_graphs_give_the_same_scores(few, make_detector, fitted):
    MEMORY.clear()
    fresh = fitted["gat"].score(few.test_traces).values
    np.testing.assert_array_equal(fitted["gat"].score(few.test_traces).values, fresh)


def test_a_rare_class_is_still_found(with_signal, make_detector):
    """Nine of ten answers are wrong, as with a small model."""
    values, split = with_signal.labels.values, with_signal.split
    correct = split.train[values[split.train] == 0][:4]
    wrong = split.train[values[split.train] == 1][:36]
    rare = Split(np.concatenate([correct, wrong]), split.validation, split.test)
    detector = make_detector("gat", epochs=20).fit(with_signal.traces, with_signal.labels, rare)
    scores = detector.score(with_signal.test_traces).values
    assert roc_auc_score(with_signal.test_labels, scores) > 0.9
    is_called = scores > 0
    assert 0.2 < is_called.mean() < 0.8


def test_a_graph_a_trace_trains_too(few, make_detector):
    detector = make_detector("gat", epochs=1, view="multiplex", n_convolutions=3)
    detector.fit(few.traces, few.labels, few.split)
    assert detector.schema.n_graphs == 1
    assert detector.score(few.test_traces).is_valid.all()
