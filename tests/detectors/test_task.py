import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from graphhalu.detectors.graph_build import PieceRecipe, graph_pieces
from graphhalu.detectors.graph_pack import GraphPack
from graphhalu.detectors.graph_schema import GraphDetectorConfig
from graphhalu.detectors.networks.base import NetworkShape, NetworkSize
from graphhalu.detectors.networks.gcn import GCN
from graphhalu.detectors.task import (
    BestWeights,
    TraceBatches,
    TrainingSettings,
    auroc_or_nan,
    seeded,
    train_network,
)
from sklearn.metrics import roc_auc_score

from graphhalu.detectors import task
from graphhalu.errors import NonFiniteError


@pytest.fixture(scope="module")
def graphs(few):
    recipe = PieceRecipe(GraphDetectorConfig(nodes=("sink",)).recipe, layers=(2,), n_hops=2)
    chosen = few.split.train[:13].tolist()
    return GraphPack.of(
        list(graph_pieces(few.traces, chosen, recipe)),
        few.labels.values[chosen].astype(float).tolist(),
    )


def train(graphs, validation=None, **changes):
    settings = {
        "epochs": 5, "patience": 5, "learning_rate": 0.01, "weight_decay": 0.0, "batch_size": 5,
        "seed": 0, **changes,
    }  # fmt: skip
    with seeded(0):
        network = GCN(NetworkShape(1, graphs.x.shape[2], 3), NetworkSize(8))
        report = train_network(
            network, graphs, validation or graphs, 1.0, TrainingSettings(**settings)
        )
    return network, report


def loss_of(network, graphs):
    with torch.no_grad():
        logits = network(graphs.batch(torch.arange(len(graphs))))[0]
    return float(torch.nn.functional.binary_cross_entropy_with_logits(logits, graphs.y))


@pytest.fixture
def opposed(graphs):
    """The same graphs with turned labels: what training learns makes them worse."""
    return replace(graphs, y=1 - graphs.y)


def test_the_best_weights_come_back(graphs, opposed):
    network, report = train(graphs, opposed)
    assert report.best_epoch < report.n_epochs - 1
    assert loss_of(network, opposed) == pytest.approx(report.validation_loss, rel=1e-5)


def test_training_stops_when_patience_is_spent(graphs, opposed):
    _, report = train(graphs, opposed, epochs=50, patience=2)
    assert report.n_epochs == report.best_epoch + 3


def test_a_network_comes_back_ready_to_score(graphs):
    network, _ = train(graphs, epochs=1)
    assert not network.training


def test_a_loss_that_is_never_finite_is_an_error(graphs):
    broken = replace(graphs, x=graphs.x * math.nan)
    with pytest.raises(NonFiniteError, match="learning_rate"):
        train(broken)


def test_seeded_code_repeats_and_leaves_no_trace():
    before = torch.random.get_rng_state()
    with seeded(3):
        first = torch.rand(5)
    with seeded(3):
        assert torch.equal(torch.rand(5), first)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_flags_of_the_process_come_back(graphs, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    train(graphs, epochs=1)
    assert task.os.environ.get("CUBLAS_WORKSPACE_CONFIG") is None
    assert torch.backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_workspace_that_the_user_chose_comes_back(graphs, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    train(graphs, epochs=1)
    assert task.os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_auroc_is_that_of_another_library_with_ties():
    generator = np.random.default_rng(0)
    for _ in range(7):
        scores, labels = generator.integers(0, 5, 23), generator.integers(0, 2, 23)
        found = auroc_or_nan(scores.astype(float), labels.astype(float))
        assert found == pytest.approx(roc_auc_score(labels, scores))


def test_auroc_of_one_class_is_none():
    assert math.isnan(auroc_or_nan(np.array([1.0, 2.0]), np.array([1.0, 1.0])))


@pytest.mark.parametrize(
    ("epochs", "best"),
    [
        ([(0.9, 0.7), (0.1, 0.6)], 0),  # the AUROC decides, not the loss
        ([(0.9, 0.7), (0.8, 0.7), (0.85, 0.7)], 1),  # of equals, the loss
        ([(0.9, math.nan), (0.7, math.nan), (0.8, math.nan)], 1),  # one class: the loss alone
        ([(math.nan, math.nan), (0.9, 0.5)], 1),
    ],
)
def test_the_best_epoch_has_the_highest_auroc_then_the_lowest_loss(epochs, best):
    keeper = BestWeights(patience=5)
    for number, (loss, found) in enumerate(epochs):
        keeper.see(number, loss, found, {"weight": torch.tensor([float(number)])})
    assert keeper.epoch == best
    assert float(keeper.weights["weight"]) == best


def test_patience_counts_epochs_that_are_not_better():
    keeper = BestWeights(patience=2)
    seen = [
        keeper.see(number, loss, 0.5, {"w": torch.zeros(1)})
        for number, loss in enumerate([0.9, 0.8, 0.9, 0.85])
    ]
    assert seen == [True, True, True, False]


def test_every_trace_is_seen_once_an_epoch_in_another_order():
    batches = TraceBatches(13, 5, torch.Generator().manual_seed(0))
    first, second = (torch.cat(list(batches)).tolist() for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(13))
    assert first != second
    assert [len(each) for each in batches] == [5, 5, 3]
    assert len(batches) == 3
    assert torch.cat(list(TraceBatches(13, 5))).tolist() == list(range(13))


def test_weights_before_the_first_step_count_as_an_epoch():
    best = BestWeights(patience=2)
    best.see(-1, 0.5, 0.8, {"w": torch.zeros(1)})
    assert best.see(0, 0.9, 0.7, {"w": torch.ones(1)})
    assert not best.see(2, 0.9, 0.7, {"w": torch.ones(1)})
    assert best.epoch == -1
    assert best.weights["w"].item() == 0
