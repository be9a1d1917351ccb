"""A small network on how much each head attends to the first token."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from graphhalu.core.config import Config, validate
from graphhalu.core.errors import NotEnoughDataError, UsageError
from graphhalu.core.splits import Split
from graphhalu.detectors.base import Detector, DetectorCard, Scores
from graphhalu.detectors.saved import (
    read_description,
    read_weights,
    required,
    write_description,
    write_weights,
)
from graphhalu.labels.labels import Labels
from graphhalu.traces.trace import Trace


class SinkNetworkConfig(Config):
    """Settings; the command line sets them with ``--set hidden_size=16``."""

    seed: int = 0
    """Seed of the weights."""
    hidden_size: int = 8
    """Units of the hidden layer."""
    epochs: int = 60
    """Steps over the whole training side."""


class SinkNetwork(Detector):
    """A network with one hidden layer, trained on the training side of the split alone."""

    card: ClassVar[DetectorCard] = DetectorCard(
        name="sink-network",
        summary="network with one hidden layer on the attention of each head to the first token",
        source="Template of a plug-in; put your paper, and every difference from it, here.",
        inputs=("attention",),
        is_supervised=True,
        reads=("sink_keys",),
    )

    def __init__(self, seed: int = 0, hidden_size: int = 8, epochs: int = 60) -> None:
        self.config = SinkNetworkConfig(seed=seed, hidden_size=hidden_size, epochs=epochs)
        self.network: nn.Module | None = None

    @classmethod
    def settings(cls, **values: Any) -> dict[str, Any]:
        """Arguments of the constructor from plain values; an unknown one is refused."""
        source = f"settings of {cls.card.name}"
        return validate(SinkNetworkConfig, values, source=source).model_dump()

    def fit(self, traces: Sequence[Trace], labels: Labels, split: Split) -> "SinkNetwork":
        """Train on the traces of the training side that have a valid label and can be read."""
        usable = [i for i in split.train.tolist() if labels.is_valid[i] and is_readable(traces[i])]
        targets = torch.tensor([float(labels.values[i]) for i in usable])
        if len(set(targets.tolist())) < 2:
            message = f"{self.card.name} needs both classes on the training side"
            raise NotEnoughDataError(message)
        inputs = torch.stack([sink_mass(traces[i]) for i in usable])
        # a network of its own for every fit, from the seed alone; other random numbers stay as is
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            self.network = make_network(inputs.shape[1], self.config.hidden_size)
        train(self.network, inputs, targets, self.config.epochs)
        return self

    def score(self, traces: Sequence[Trace]) -> Scores:
        """One score a trace; one that cannot be read has none."""
        if self.network is None:
            message = f"{self.card.name} is not fitted: call fit first, or load a saved one"
            raise UsageError(message)
        values = np.full(len(traces), np.nan)
        with torch.no_grad():
            # one at a time: a batch would round a score otherwise than the trace alone
            for place, trace in enumerate(traces):
                if is_readable(trace):
                    values[place] = self.network(sink_mass(trace)[None]).item()
        return Scores.of(values)

    @property
    def n_parameters(self) -> int | None:
        """Weights of the network."""
        if self.network is None:
            return None
        return sum(parameter.numel() for parameter in self.network.parameters())

    def save(self, folder: Path) -> None:
        """Write weights as safetensors and settings as JSON."""
        if self.network is None:
            message = f"{self.card.name} is not fitted: there is nothing to save"
            raise UsageError(message)
        weights = self.network.state_dict()
        write_weights(folder, weights)
        described = {"config": self.config.model_dump(), "n_inputs": weights["1.weight"].shape[1]}
        write_description(folder, self.card.name, described)

    @classmethod
    def load(cls, folder: Path) -> "SinkNetwork":
        """Read what :meth:`save` wrote."""
        values = read_description(folder, cls.card.name)
        detector = cls(**cls.settings(**required(values, "config", folder)))
        n_inputs = required(values, "n_inputs", folder)
        detector.network = make_network(n_inputs, detector.config.hidden_size)
        detector.network.load_state_dict(read_weights(folder))
        detector.network.eval()
        return detector


def is_readable(trace: Trace) -> bool:
    """Whether a trace keeps what the network reads."""
    return "sink_keys" in trace.arrays


def sink_mass(trace: Trace) -> Tensor:
    """Mean attention of the answer's rows to the first token: one number a layer and head."""
    to_first = trace.stream("sink_keys")[..., 0]  # [layer, head, query]
    return torch.from_numpy(to_first[..., trace.is_answer].mean(axis=-1).reshape(-1)).float()


def make_network(n_inputs: int, hidden_size: int) -> nn.Sequential:
    """Inputs are normalised by what training saw, then one hidden layer."""
    return nn.Sequential(
        nn.BatchNorm1d(n_inputs), nn.Linear(n_inputs, hidden_size), nn.Tanh(), nn.Linear(hidden_size, 1)
    )


def train(network: nn.Module, inputs: Tensor, targets: Tensor, epochs: int) -> None:
    """Fit the weights; the network is left ready to score."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.02, weight_decay=0.1)
    network.train()
    for _ in range(epochs):
        optimiser.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(network(inputs)[:, 0], targets)
        loss.backward()
        optimiser.step()
    network.eval()
