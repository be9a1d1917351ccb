"""How a node head is trained: cross-entropy a token, the best epoch by AUROC over tokens."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from graphhalu.detectors.graph_pack import GraphPack
from graphhalu.detectors.networks.node_head import NodeHead
from graphhalu.detectors.task import BestWeights, TraceBatches, auroc_or_nan
from graphhalu.errors import NonFiniteError


class NodeTraining(NamedTuple):
    """What the loop needs to know."""

    epochs: int
    patience: int
    learning_rate: float
    weight_decay: float
    batch_size: int
    seed: int


@dataclass(frozen=True)
class TokenPack:
    """Graphs of some traces with the labels of their answer tokens."""

    graphs: GraphPack
    labels: tuple[Float[Tensor, "_"], ...]

    def to(self, device: torch.device) -> "TokenPack":
        """The same on a device, where batches are made from then on."""
        return TokenPack(self.graphs.to(device), tuple(each.to(device) for each in self.labels))

    def labels_of(self, traces: Int[Tensor, "chosen"]) -> Float[Tensor, "token"]:
        """Labels of the tokens of some traces, trace after trace."""
        return torch.cat([self.labels[index] for index in traces.tolist()])


def train_nodes(
    network: NodeHead, train: TokenPack, validation: TokenPack, settings: NodeTraining
) -> dict[str, float | int | None]:
    """Train in place and put the best weights back; the network comes back on the CPU.

    Args:
        network: Its standardisation is set already.
        train: Graphs to learn from; each epoch draws its own batches.
        validation: Graphs that decide when to stop.
        settings: Loop and optimiser.

    Returns:
        Epochs that were run, the best of them from 0, and its loss and AUROC on the validation
        side; the AUROC is ``None`` if that side has one class only.

    Raises:
        NonFiniteError: If the validation loss was never finite.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device)
    train, validation = train.to(device), validation.to(device)
    weight = _positive_weight(train).to(device)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    best, generator = BestWeights(settings.patience), torch.Generator().manual_seed(settings.seed)
    batches = TraceBatches(len(train.labels), settings.batch_size, generator)
    epoch = 0
    for epoch in range(settings.epochs):
        network.train()
        for traces in batches:
            logits = network(train.graphs.batch(traces.to(device)))
            loss = _loss(logits, train.labels_of(traces), weight)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
        found = _validated(network, validation, weight, settings.batch_size)
        if not best.see(epoch, *found, network.state_dict()):
            break
    if not best.weights:
        message = (
            f"training gave no finite validation loss in {epoch + 1} epochs\n"
            f"  Use a smaller learning_rate (now {settings.learning_rate:g})"
        )
        raise NonFiniteError(message)
    network.load_state_dict(best.weights)
    network.cpu().eval()
    return {
        "n_epochs": epoch + 1, "best_epoch": best.epoch, "validation_loss": best.loss,
        "validation_auroc": None if np.isnan(best.auroc) else best.auroc,
    }  # fmt: skip


def _validated(
    network: NodeHead, side: TokenPack, weight: Tensor, batch_size: int
) -> tuple[float, float]:
    """Loss and AUROC over all tokens of a side."""
    network.eval()
    order = TraceBatches(len(side.labels), batch_size)
    with torch.inference_mode():
        logits = torch.cat([network(side.graphs.batch(traces)) for traces in order])
    labels = torch.cat(list(side.labels))
    found = auroc_or_nan(logits.double().cpu().numpy(), labels.double().cpu().numpy())
    return float(_loss(logits, labels, weight)), found


def _loss(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(logits, labels, pos_weight=weight)


def _positive_weight(side: TokenPack) -> Tensor:
    labels = torch.cat(list(side.labels))
    return (len(labels) - labels.sum()) / labels.sum()
