import math

import pytest
import torch

from graphhalu.detectors import task
from graphhalu.detectors.graph_batches import collate, layer_graphs, to_data
from graphhalu.detectors.graph_schema import GraphDetectorConfig
from graphhalu.detectors.networks.base import NetworkShape
from graphhalu.detectors.networks.gcn import GCN
from graphhalu.detectors.task import TrainingSettings, seeded, train_network
from graphhalu.errors import NonFiniteError


@pytest.fixture(scope="module")
def batches(few):
    recipe = GraphDetectorConfig(nodes=("sink",)).recipe
    data = []
    for number, index in enumerate(few.split.train[:13]):
        graphs = layer_graphs(few.traces[index], (2,), recipe)
        data += to_data(graphs, number, float(few.labels.values[index]))
    return collate(data, 5)


def train(batches, validation=None, **changes):
    settings = {
        "epochs": 5, "patience": 5, "learning_rate": 0.01, "weight_decay": 0.0, "seed": 0,
        **changes,
    }  # fmt: skip
    with seeded(0):
        network = GCN(NetworkShape(1, batches[0].x.shape[1], 3), hidden_size=8)
        report = train_network(
            network, batches, validation or batches, 1.0, TrainingSettings(**settings)
        )
    return network, report


def loss_of(network, batches):
    with torch.no_grad():
        logits = torch.cat([network(batch) for batch in batches])
    labels = torch.cat([batch.y for batch in batches])
    return float(torch.nn.functional.binary_cross_entropy_with_logits(logits, labels))


@pytest.fixture
def opposed(batches):
    """The same graphs with turned labels: what training learns makes them worse."""
    turned = [batch.clone() for batch in batches]
    for batch in turned:
        batch.y = 1 - batch.y
    return turned


def test_the_best_weights_come_back(batches, opposed):
    network, report = train(batches, opposed)
    assert report.best_epoch < report.n_epochs - 1
    assert loss_of(network, opposed) == pytest.approx(report.validation_loss, rel=1e-5)


def test_training_stops_when_patience_is_spent(batches, opposed):
    _, report = train(batches, opposed, epochs=50, patience=2)
    assert report.n_epochs == report.best_epoch + 3


def test_a_network_comes_back_ready_to_score(batches):
    network, _ = train(batches, epochs=1)
    assert not network.training


def test_a_loss_that_is_never_finite_is_an_error(batches):
    broken = [batch.clone() for batch in batches]
    for batch in broken:
        batch.x = batch.x * math.nan
    with pytest.raises(NonFiniteError, match="learning_rate"):
        train(broken)


def test_seeded_code_repeats_and_leaves_no_trace():
    before = torch.random.get_rng_state()
    with seeded(3):
        first = torch.rand(5)
    with seeded(3):
        assert torch.equal(torch.rand(5), first)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_flags_of_the_process_come_back(batches, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    train(batches, epochs=1)
    assert task.os.environ.get("CUBLAS_WORKSPACE_CONFIG") is None
    assert torch.backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_workspace_that_the_user_chose_comes_back(batches, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    train(batches, epochs=1)
    assert task.os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
