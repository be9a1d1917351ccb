import gc
import math
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import nn
from torch_geometric.data import Batch

from graphhalu.core.errors import NonFiniteError, UsageError
from graphhalu.detectors.gnn import task
from graphhalu.detectors.gnn.config import NetworkConfig
from graphhalu.detectors.gnn.inputs import InputScaler, wide_blocks
from graphhalu.detectors.gnn.networks import GCN
from graphhalu.graphs.dataset import AttentionGraphs
from graphhalu.graphs.edges import GraphRecipe

LAYERS = (2,)
RECIPE = GraphRecipe(nodes=("sink",), view="multiplex")


@pytest.fixture(scope="module")
def graphs(few):
    return AttentionGraphs.of_recipe(few.traces, LAYERS, RECIPE, few.labels).select(few.split.train[:13])


@pytest.fixture(scope="module")
def opposed(few):
    """The same graphs with turned labels: what training learns makes them worse."""
    turned = replace(few.labels, values=1 - few.labels.values)
    return AttentionGraphs.of_recipe(few.traces, LAYERS, RECIPE, turned).select(few.split.train[:13])


def train(graphs, stopping=None, log_folder=None, **changes):
    config = NetworkConfig(
        **{"epochs": 5, "patience": 5, "learning_rate": 0.01, "weight_decay": 0.0, "batch_size": 5, **changes}
    )
    with task.seeded(0):
        scaler = InputScaler(wide_blocks(graphs.node_feature_names), 3, 1, 2).fit(graphs, 0)
        network = nn.Sequential(scaler, GCN(scaler.n_features, 3, 1, hidden_channels=8))
        report = task.train(network, graphs, stopping or graphs, 1.0, config, log_folder=log_folder)
    return network, report


def loss_of(network, graphs):
    batch = Batch.from_data_list(list(graphs))
    with torch.no_grad():
        return float(nn.functional.binary_cross_entropy_with_logits(network(batch), batch.y))


def test_the_best_weights_come_back(graphs, opposed):
    network, report = train(graphs, opposed, epochs=9)
    assert report["best_epoch"] < report["n_epochs"] - 1
    assert loss_of(network, opposed) == pytest.approx(report["validation_loss"], rel=1e-4)


def test_training_learns(graphs):
    network, report = train(graphs, epochs=30, patience=30)
    assert report["validation_loss"] < 0.6
    assert loss_of(network, graphs) == pytest.approx(report["validation_loss"], rel=1e-4)


def test_the_epoch_of_the_highest_average_precision_comes_back(graphs, opposed, monkeypatch):
    seen = []

    class Watched(task.GraphTask):
        def validation_step(self, batch, batch_index):
            with torch.no_grad():
                seen.append((self.network(batch), batch.y))
            super().validation_step(batch, batch_index)

        def on_validation_epoch_end(self):
            logits, truth = (torch.cat(each).numpy() for each in zip(*seen, strict=True))
            precision.append(average_precision_score(truth, logits))
            seen.clear()
            super().on_validation_epoch_end()

    precision = []
    monkeypatch.setattr(task, "GraphTask", Watched)
    network, report = train(graphs, opposed, epochs=9, patience=3, stop_by="validation_average_precision")
    assert report["best_epoch"] == int(np.argmax(precision))
    assert report["n_epochs"] == len(precision) == min(9, report["best_epoch"] + 4)
    assert loss_of(network, opposed) == pytest.approx(report["validation_loss"], rel=1e-4)


def test_training_stops_when_patience_is_spent(graphs, opposed):
    _, report = train(graphs, opposed, epochs=50, patience=2)
    assert report["n_epochs"] == report["best_epoch"] + 3


def test_a_network_is_trained_in_training_mode_whatever_it_was_in_before(graphs):
    modes = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout, self.weight = nn.Dropout(0.5), nn.Parameter(torch.zeros(1))

        def forward(self, batch):
            modes.append((torch.is_grad_enabled(), self.dropout.training))
            return self.weight * batch.y

    network = Watched().eval()
    task.train(network, graphs, graphs, 1.0, NetworkConfig(epochs=2, batch_size=5))
    assert set(modes) == {(True, True), (False, False)}
    assert not network.dropout.training


def test_a_network_comes_back_ready_to_score(graphs):
    network, _ = train(graphs, epochs=1)
    assert not any(module.training for module in network.modules())
    assert {parameter.device.type for parameter in network.parameters()} == {"cpu"}


def test_a_loss_that_is_never_finite_is_an_error(graphs):
    def broken(data):
        data.x = data.x * math.nan
        return data

    view = graphs[:]
    view.transform = broken
    with pytest.raises(NonFiniteError, match="learning_rate"):
        train(view, epochs=2)


def test_seeded_code_repeats_and_leaves_no_trace():
    before = torch.random.get_rng_state()
    with task.seeded(3):
        first = torch.rand(5)
    with task.seeded(3):
        assert torch.equal(torch.rand(5), first)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_training_repeats_with_its_seed(graphs):
    weights = [
        torch.cat([each.flatten() for each in train(graphs, epochs=2)[0].parameters()]) for _ in range(2)
    ]
    assert torch.equal(*weights)


def test_flags_of_the_process_come_back(graphs, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    n_threads = torch.get_num_threads()
    train(graphs, epochs=1)
    assert task.torch.backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.is_grad_enabled()
    assert torch.get_num_threads() == n_threads


def test_training_writes_nothing_where_no_folder_is_given(graphs, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    train(graphs, epochs=1)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_the_csv_logger_writes_metrics_into_the_given_folder(graphs, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    train(graphs, epochs=2, log_folder=tmp_path / "logs")
    (path,) = (tmp_path / "logs").rglob("metrics.csv")
    header, *lines = path.read_text().splitlines()
    assert {"validation_loss", "validation_auroc", "epoch"} <= set(header.split(","))
    assert len(lines) >= 2
    assert list((tmp_path / "work").iterdir()) == []


def test_no_logger_writes_nothing(graphs, tmp_path):
    train(graphs, epochs=1, log_folder=tmp_path, logger="none")
    assert list(tmp_path.iterdir()) == []


def test_a_logger_without_its_package_is_an_error_that_names_it(tmp_path, monkeypatch):
    def missing(**_):
        raise ModuleNotFoundError("no module named wandb")

    monkeypatch.setitem(task._LOGGERS, "wandb", missing)
    with pytest.raises(UsageError, match=r"graphhalu\[wandb\]"):
        task.make_logger("wandb", tmp_path)


def test_more_devices_than_traces_of_a_step_are_refused():
    with pytest.raises(UsageError, match="5 devices share the 3 traces"):
        task.accelerator(NetworkConfig(devices=5, batch_size=3))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has GPUs")
def test_a_gpu_that_there_is_not_is_refused():
    with pytest.raises(UsageError, match="this machine has 0"):
        task.accelerator(NetworkConfig(accelerator="gpu"))
    assert task.accelerator(NetworkConfig()) == "cpu"


def test_validation_of_one_class_has_a_loss_and_stops_nothing(graphs, few):
    side = few.split.train[:13]
    ones = side[few.labels.values[side] == 1]
    _, report = train(graphs, graphs.select(ones), epochs=2)
    assert math.isfinite(report["validation_loss"])


def test_many_fits_leave_nothing_alive(graphs, monkeypatch):
    alive = []

    class Watched(task.GraphTask):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            alive.append(weakref.ref(self))

    monkeypatch.setattr(task, "GraphTask", Watched)
    for _ in range(16):
        network, _ = train(graphs, epochs=1)
        del network
    gc.collect()
    assert len(alive) == 16
    assert [each for each in alive if each() is not None] == []
