import os
import signal
import time

import numpy as np
import pytest
import torch

from graphhalu.detectors.graph_build import graph_pieces
from graphhalu.detectors.graph_detector import GraphDetector
from graphhalu.detectors.graph_networks import GATDetector
from graphhalu.detectors.graph_pack import GraphPack
from graphhalu.detectors.graph_schema import GraphSchema
from graphhalu.detectors.ranks import joined_by, training_device
from graphhalu.detectors.registry import DETECTORS
from graphhalu.errors import ProcessLostError, UsageError
from graphhalu.evaluation.training import train_detector

TOLERANCE = 1e-4
"""Scores of one and of two processes without dropout; sums in another order round differently."""


@pytest.fixture(scope="module")
def fitted(few):
    """The same network trained by one process and by two; 31 traces leave a share empty."""

    def fit(devices):
        settings = GATDetector.settings(
            epochs=3, dropout=0.0, batch_size=10, nodes=["sink", "entropy"], layers=[1, 3],
            hidden_size=8, devices=devices, accelerator="cpu", learning_rate=0.01,
        )  # fmt: skip
        return GATDetector(**settings).fit(few.traces, few.labels, few.split)

    return fit(1), fit(2)


def test_two_processes_give_the_scores_of_one(fitted, few):
    one, two = (each.score(few.test_traces).values for each in fitted)
    assert np.ptp(one) > 100 * TOLERANCE
    np.testing.assert_allclose(two, one, atol=TOLERANCE)


def test_two_processes_keep_and_stop_at_the_epoch_of_one(fitted):
    one, two = (each.training_report for each in fitted)
    for name in ("n_epochs", "best_epoch", "n_train", "n_validation"):
        assert two[name] == one[name]
    assert two["validation_loss"] == pytest.approx(one["validation_loss"], abs=TOLERANCE)
    assert two["validation_auroc"] == one["validation_auroc"]


def test_nothing_of_the_group_is_left(fitted):
    assert not torch.distributed.is_initialized()
    assert not {"LOCAL_RANK", "MASTER_PORT", "WORLD_SIZE"} & set(os.environ)


@pytest.mark.parametrize(
    "name", [n for n in DETECTORS.names() if issubclass(DETECTORS.get(n), GraphDetector)]
)
def test_every_weight_gets_a_gradient_since_torch_refuses_to_average_without(name, few):
    detector = make_untrained(name)
    recipe = detector._recipe(detector._layers(few.traces))
    pieces = list(graph_pieces(few.traces, [0, 1], recipe))
    network = detector._network(GraphSchema.of(few.traces[0], recipe.layers, pieces[0]))
    network(GraphPack.of(pieces).batch(torch.arange(2))).sum().backward()
    assert [key for key, weight in network.named_parameters() if weight.grad is None] == []


def make_untrained(name):
    detector_class = DETECTORS.get(name)
    return detector_class(**detector_class.settings(dropout=0.0))


def broken():
    message = "no room"
    raise MemoryError(message)


def killed():
    return lambda: os.kill(os.getpid(), signal.SIGKILL)


def patient():
    return lambda: time.sleep(30)


def test_a_process_that_cannot_begin_is_named_with_its_reason():
    with (
        pytest.raises(ProcessLostError, match=r"process 1 of the training.*MemoryError: no room"),
        joined_by(2, broken),
    ):
        pytest.fail("the body began without it")


def test_a_process_that_is_killed_is_named():
    with pytest.raises(ProcessLostError, match=r"process 1 .*exit code -9"), joined_by(2, killed):
        message = "what torch says when a peer is gone"
        raise RuntimeError(message)


def test_the_others_end_when_rank_zero_fails():
    started = time.monotonic()
    with pytest.raises(ZeroDivisionError), joined_by(2, patient):
        raise ZeroDivisionError
    assert time.monotonic() - started < 28


@pytest.mark.parametrize(
    ("devices", "accelerator", "batch_size", "text"),
    [(2, "gpu", 32, "2 GPUs are needed.*has 1"), (7, "cpu", 5, "7 devices share the 5 traces")],
)
def test_devices_that_cannot_be_are_refused(devices, accelerator, batch_size, text, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match=text):
        training_device(devices, accelerator, batch_size)


def test_without_a_gpu_the_cpu_is_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert training_device(3, "auto", 32).type == "cpu"


def test_a_training_is_refused_before_it_begins(few, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="2 GPUs are needed"):
        train_detector(
            "gat", few.traces, few.labels, settings={"devices": 2, "accelerator": "gpu"},
            runs=tmp_path / "runs",
        )  # fmt: skip
    with pytest.raises(UsageError, match="devices"):
        train_detector("sink-mass", few.traces, few.labels, settings={"devices": 2}, runs=tmp_path)
    assert not (tmp_path / "runs").exists()
