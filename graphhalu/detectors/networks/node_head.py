"""CHARM with a logit a token: rounds of messages, then one linear map of each token's states."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from graphhalu.detectors.networks.base import NetworkShape, NetworkSize, Standard
from graphhalu.detectors.networks.batch import GraphBatch
from graphhalu.detectors.networks.charm import Round
from graphhalu.detectors.networks.dropout import ByteDropout


@final
class NodeHead(nn.Module):
    """Rounds of CHARM, and a logit for each answer token.

    A token is read from two rows, which are neighbours in the readout: the one that produces it
    and the one that has read it.

    Args:
        shape: Sizes that the data give.
        size: Sizes that the user chooses.

    Source:
        Frasca et al., CHARM (OpenReview 4twbqwV4br), whose token-level form puts a logit on each
        response node. Different from it: two rows a token, and standardised node features.
    """

    def __init__(self, shape: NetworkShape, size: NetworkSize) -> None:
        super().__init__()
        self.node_standard = Standard(shape.n_layers, shape.n_node_features)
        sizes = (shape.n_node_features, *[size.hidden_size] * size.n_convolutions)
        self.rounds = nn.ModuleList(
            Round(n_inputs, shape.n_channels, size.hidden_size, size.dropout)
            for n_inputs in sizes[:-1]
        )
        self.head = nn.Sequential(
            nn.Linear(2 * size.hidden_size, size.hidden_size),
            nn.ReLU(),
            ByteDropout(size.dropout),
            nn.Linear(size.hidden_size, 1),
        )

    @property
    def n_parameters(self) -> int:
        """Numbers that training changes."""
        return sum(parameter.numel() for parameter in self.parameters())

    def standardise_by(self, nodes: Sequence[Float[Tensor, "_node feature"]]) -> None:
        """Take the moments of training data."""
        self.node_standard.take(nodes)

    def forward(self, batch: GraphBatch) -> Float[Tensor, "token"]:
        """One logit an answer token, trace after trace; higher = more likely hallucinated."""
        n_rounds = len(self.rounds)
        hidden = self.node_standard(batch.x[: batch.n_rows(n_rounds)], batch.row_runs(n_rounds))
        for left, each in zip(reversed(range(n_rounds)), self.rounds, strict=True):
            hidden = each(hidden, batch, left)
        before = torch.arange(len(hidden), device=hidden.device)[~is_last(batch.readout_counts)]
        logits: Float[Tensor, "token"] = self.head(
            torch.cat([hidden[before], hidden[before + 1]], dim=1)
        )[:, 0]
        return logits


def is_last(counts: Int[Tensor, "trace"]) -> Bool[Tensor, "readout"]:
    """Which readout row is the last one of its trace; it produces no token."""
    last = torch.zeros(int(counts.sum()), dtype=torch.bool, device=counts.device)
    last[counts.cumsum(0) - 1] = True
    return last
