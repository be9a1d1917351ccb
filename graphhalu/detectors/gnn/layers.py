"""Message passing over attention that PyG lacks, and the readout over the answer."""

from typing import Final

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch
from torch_geometric.nn import HeteroLinear, MultiAggregation, SumAggregation

from graphhalu.core.axes import N_SPANS
from graphhalu.labels.labels import Level

MAX_RANK: Final = 16
"""Combinations of heads that a layer keeps; all of them where a layer has no more heads."""


class AttentionMass(nn.Module):
    """Sums of attention over the edges of a query, which keep absolute mass.

    ``m_i = W_l [sum_{j in span s} P_l e_ij]_s + b_l``: how much goes to each named span, with an
    own ``P_l`` (low rank over heads) and ``W_l`` for each layer ``l`` of the language model, since
    head 3 of layer 10 is not head 3 of layer 20. A softmax over the edges would divide the mass
    away.

    Args:
        channels: Channels of node states.
        edge_dim: Weights of an edge.
        n_layers: Layers that have graphs of their own; 1 for multiplex graphs.

    Source:
        Our own: the sum aggregation of Xu et al. 2019, arXiv:1810.00826, by the relation of an
        edge as in Schlichtkrull et al. 2018, arXiv:1703.06103; here the span of the key.
    """

    def __init__(self, channels: int, edge_dim: int, n_layers: int) -> None:
        super().__init__()
        rank = min(edge_dim, MAX_RANK)
        self.heads = HeteroLinear(edge_dim, rank, n_layers, bias=False)
        self.of_span = HeteroLinear(N_SPANS * rank, channels, n_layers)
        self.sum = SumAggregation()

    def forward(self, graph: "Edges") -> Tensor:
        """What each node receives, ``[node, channel]``."""
        key, query = graph.index
        heads = self.heads(graph.attr, graph.layer[query])
        n_nodes = len(graph.span)
        mass = self.sum(heads, query * N_SPANS + graph.span[key], dim_size=n_nodes * N_SPANS)
        received: Tensor = self.of_span(mass.view(n_nodes, -1), graph.layer)
        return received


class Edges:
    """Edges of a batch for one round, with what their ends are.

    Args:
        batch: Token graphs.
        is_last: Whether only rows that are read out need new states.

    Attributes:
        index: Attended key and attending query of each edge.
        attr: Attention ``[edge, channel]``.
        span: Named span of each node.
        layer: Place of each node's layer.
    """

    def __init__(self, batch: Batch, *, is_last: bool = False) -> None:
        self.index, self.attr = batch.edge_index, batch.edge_attr
        self.span, self.layer = batch.span, batch.layer_index
        if is_last:
            is_needed = batch.is_readout[self.index[1]]
            self.index, self.attr = self.index[:, is_needed], self.attr[is_needed]


class Readout(nn.Module):
    """Logits from node states: one a graph over its answer rows, or one an answer token.

    An answer is read from mean and maximum over its rows, layer by layer; a token from two rows,
    the one that produces it and its own.

    Args:
        channels: Channels of node states.
        n_layers: Layers that have graphs of their own.
        dropout: Share of activations that training drops.
        level: ``"answer"`` or ``"token"``.
    """

    def __init__(self, channels: int, n_layers: int, dropout: float, level: Level) -> None:
        super().__init__()
        self.n_layers, self.level = n_layers, level
        self.pool = MultiAggregation(["mean", "max"])
        self.head = nn.Sequential(
            nn.Linear(2 * channels * (n_layers if level == "answer" else 1), channels),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(channels, 1),
        )

    def forward(self, hidden: Tensor, batch: Batch) -> Tensor:
        """``[graph]`` or ``[answer_token]``; higher = more likely hallucinated."""
        if self.level == "token":
            own = batch.is_answer.nonzero()[:, 0]
            states = torch.cat([hidden[own - 1], hidden[own]], dim=1)
        else:
            place = batch.batch * self.n_layers + batch.layer_index
            n_places = batch.num_graphs * self.n_layers
            is_read = batch.is_readout
            pooled = self.pool(hidden[is_read], place[is_read], dim_size=n_places)
            states = pooled.view(batch.num_graphs, -1)
        logits: Tensor = self.head(states)[:, 0]
        return logits
