from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from graphhalu.config import load_config
from graphhalu.detectors.graph_detector import GATDetector, GCNDetector, GraphDetectorConfig
from graphhalu.detectors.registry import DETECTORS
from graphhalu.errors import ConfigError, DetectorMismatchError, NotEnoughDataError
from graphhalu.splits import Split
from graphhalu.traces.trace import Trace

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "train").glob("*.yaml"))


def test_there_are_configurations():
    assert {path.stem for path in CONFIGS} == {"gat", "gcn"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_trains_the_detector_of_its_name(path, few):
    values = load_config(GraphDetectorConfig, path, ["epochs=1"]).model_dump(mode="json")
    detector_class = DETECTORS.get(path.stem)
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


def test_another_seed_gives_other_scores(few, make_detector, fitted_on_few):
    other = make_detector("gcn", seed=1, epochs=2).fit(few.traces, few.labels, few.split)
    first = fitted_on_few["gcn"].score(few.test_traces).values
    assert not np.array_equal(other.score(few.test_traces).values, first)


def test_default_layers_lie_at_thirds_of_the_depth(fitted_on_few):
    assert len(fitted_on_few["gat"].schema.layers) == 3


def test_training_leaves_the_caller_as_it_was(few, make_detector, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = torch.random.get_rng_state()
    make_detector("gcn", epochs=1).fit(few.traces, few.labels, few.split)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()
    assert list(tmp_path.iterdir()) == []


def test_the_state_of_the_callers_generator_changes_no_score(few, make_detector, fitted_on_few):
    torch.rand(7)
    again = make_detector("gat", epochs=2).fit(few.traces, few.labels, few.split)
    np.testing.assert_array_equal(
        again.score(few.test_traces).values, fitted_on_few["gat"].score(few.test_traces).values
    )


def test_a_layer_that_is_not_kept_is_an_error(few, make_detector):
    with pytest.raises(ConfigError, match="11"):
        make_detector("gcn", layers=[11]).fit(few.traces, few.labels, few.split)


def test_an_empty_validation_side_is_not_enough(few, make_detector):
    split = Split(few.split.train, few.split.validation[:0], few.split.test)
    with pytest.raises(NotEnoughDataError, match="validation side"):
        make_detector("gcn").fit(few.traces, few.labels, split)


def test_traces_of_another_model_are_refused(few, fitted_on_few):
    trace = few.test_traces[0]
    other = Trace(trace.record, replace(trace.shape, n_heads=7), trace.arrays)
    with pytest.raises(DetectorMismatchError, match="7"):
        fitted_on_few["gat"].score([other])
