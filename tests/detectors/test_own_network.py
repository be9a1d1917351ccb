"""A network of a user: any PyG module, named by where it is, is trained like a registered one."""

import json
import sys

import numpy as np
import pytest

from graphhalu.cli.main import run
from graphhalu.core.errors import ConfigError, UnknownNameError, UsageError
from graphhalu.detectors.gnn.detector import NetworkDetector, network_detector
from graphhalu.detectors.registry import DETECTORS
from graphhalu.detectors.saved import load_detector, save_detector
from graphhalu.labels.planted import PLANTED_SHAPE
from graphhalu.traces.store import TraceStore

OWN = '''
import torch
from torch import nn
from torch_geometric.nn import GINEConv, Linear, global_mean_pool

class MyGNN(nn.Module):
    """Isomorphism network of mine.

    With edges.
    """

    def __init__(self, in_channels, edge_dim, hidden_channels=7, depth=1):
        super().__init__()
        sizes = [in_channels] + [hidden_channels] * depth
        self.convolutions = nn.ModuleList(
            GINEConv(nn.Linear(size, hidden_channels), edge_dim=edge_dim) for size in sizes[:-1]
        )
        self.head = nn.Linear(hidden_channels, 1)

    def forward(self, batch):
        x = batch.x
        for convolution in self.convolutions:
            x = convolution(x, batch.edge_index, batch.edge_attr).relu()
        return self.head(global_mean_pool(x, batch.batch))[:, 0]

class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = Linear(-1, 8), Linear(-1, 1)

    def forward(self, batch):
        return self.head(global_mean_pool(self.first(batch.x).relu(), batch.batch))[:, 0]

class Column(MyGNN):
    def forward(self, batch):
        return super().forward(batch)[:, None]

class PerNode(MyGNN):
    def forward(self, batch):
        return batch.x[:, 0]

class Pair(MyGNN):
    def forward(self, batch):
        return super().forward(batch), 1

class Raises(MyGNN):
    def forward(self, batch):
        return batch.no_such_field

class RaisesWhenMade(MyGNN):
    def __init__(self, in_channels, edge_dim):
        raise ValueError("not with these")
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_network.py").write_text(OWN)
    yield tmp_path
    sys.modules.pop("own_network", None)


def make(name, **settings):
    kind = DETECTORS.get(f"own_network:{name}")
    return kind(**kind.settings(**{"epochs": 2, "n_folds": 2, **settings}))


def fit(detector, few):
    return detector.fit(few.traces, few.labels, few.split)


def test_a_module_becomes_a_detector_with_a_card(own):
    kind = DETECTORS.get("own_network:MyGNN")
    assert issubclass(kind, NetworkDetector)
    assert (kind.card.name, kind.card.summary) == ("MyGNN", "Isomorphism network of mine.")
    assert kind.card.is_graph
    assert kind.card.is_supervised
    assert "own_network:MyGNN" in kind.card.source
    assert network_detector(kind.network_class).card == kind.card


def test_it_is_trained_saved_loaded_scored_and_attributed(own, few):
    detector = fit(make("MyGNN"), few)
    scores = detector.score(few.test_traces)
    assert scores.is_valid.all()
    save_detector(detector, own / "saved")
    assert json.loads((own / "saved" / "detector.json").read_text())["class"] == "own_network:MyGNN"
    with pytest.raises(UnknownNameError, match="--detector-class"):
        load_detector(own / "saved")
    loaded = load_detector(own / "saved", detector_class="own_network:MyGNN")
    np.testing.assert_array_equal(loaded.score(few.test_traces).values, scores.values)
    again = load_detector(own / "saved", detector_class=type(loaded))
    found = again.attribute(few.test_traces[0])
    assert found.edges
    assert found.heads.any()
    assert found.rest == pytest.approx(float(scores.values[0]), abs=1e-5)


def test_what_it_finds_it_finds_in_the_graph(own, with_signal):
    detector = fit(make("MyGNN", epochs=15), with_signal)
    scores = detector.score(with_signal.test_traces).values
    labels = with_signal.test_labels
    assert scores[labels == 1].mean() > scores[labels == 0].mean() + 1


def test_lazy_modules_get_their_sizes_and_come_back_from_disk(own, few):
    detector = fit(make("Lazy"), few)
    assert detector.networks[0].first.in_channels == detector.scaler.n_features
    save_detector(detector, own / "saved")
    loaded = load_detector(own / "saved", detector_class="own_network:Lazy")
    np.testing.assert_array_equal(
        loaded.score(few.test_traces).values, detector.score(few.test_traces).values
    )


def test_settings_and_arguments_of_its_own_reach_it(own, few):
    detector = fit(make("MyGNN", hidden_size=11, network={"depth": 3}), few)
    network = detector.networks[0]
    assert len(network.convolutions) == 3
    assert network.head.in_features == 11
    assert detector.config.network == {"depth": 3}


def test_an_argument_that_it_does_not_take_is_refused_with_the_list(own, few):
    detector = make("MyGNN", network={"deepth": 3})
    for call in (lambda: detector.check(few.traces), lambda: fit(detector, few)):
        with pytest.raises(ConfigError, match="'deepth'") as caught:
            call()
        assert "in_channels, edge_dim, hidden_channels, depth" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Column", r"shape \(2,\) for a batch of 2 graphs, got \(2, 1\)"),
        ("PerNode", r"one logit a graph, shape \(2,\) for a batch of 2 graphs, got \(\d+,\)"),
        ("Pair", "got tuple"),
        ("Raises", r"Raises.forward\(batch\) raised AttributeError: .*no_such_field"),
        ("RaisesWhenMade", r"RaisesWhenMade\(in_channels, edge_dim\) raised ValueError: not with"),
    ],
)
def test_a_network_that_gives_something_else_is_one_clear_error(own, few, name, said):
    with pytest.raises(UsageError, match=said):
        fit(make(name), few)


def test_it_is_compared_and_trained_on_the_command_line(own, few, capsys):
    store = TraceStore.create(
        "s.zarr", configuration={}, shape=PLANTED_SHAPE, arrays=tuple(few.traces[0].arrays)
    )
    with store.writer() as writer:
        some = few.traces[:61]
        writer.write_part(0, some, [trace.record.question_id for trace in some])
    settings = own / "settings.yaml"
    settings.write_text("settings: {MyGNN: {epochs: 1, n_folds: 2}}\n")
    compared = [
        "compare",
        "s.zarr",
        "--detectors",
        "length",
        "--detector",
        "own_network:MyGNN",
        "--quick",
        "--seeds",
        "0",
        "--set",
        "n_resamples=100",
        "--config",
        str(settings),
        "--json",
    ]
    assert run(compared) == 0
    rows = {row["detector"]: row for row in json.loads(capsys.readouterr().out)["detectors"]}
    assert rows["MyGNN"]["failure"] is None
    trained = ["train", "own_network:MyGNN", "--traces", "s.zarr", "--json", "--set", "epochs=1"]
    assert run([*trained, "--set", "n_folds=2", "--set", "network.depth=2"]) == 0
    folder = own / json.loads(capsys.readouterr().out)["run"] / "detector"
    loaded = load_detector(folder, detector_class="own_network:MyGNN")
    assert len(loaded.networks[0].convolutions) == 2
    assert run([*trained, "--set", "network.deepth=2"]) == 2
    said = capsys.readouterr().err
    assert "'deepth'" in said
    assert "hidden_channels, depth" in said
