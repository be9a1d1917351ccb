"""Message passing over attention that PyG lacks, and the readout over the answer."""

from typing import Final

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch
from torch_geometric.nn import HeteroLinear, MessagePassing, MultiAggregation, SumAggregation

from graphhalu.axes import N_SPANS
from graphhalu.labels.labels import Level

MAX_RANK: Final = 16
"""Combinations of heads that a layer keeps; all of them where a layer has no more heads."""


class AttentionMass(MessagePassing):
    """Sums of attention over the edges of a query, which keep absolute mass.

    ``m_i = W_l vec_s(sum_{j in span s} P_l e_ij) + U sum_j (F e_ij) * (V h_j)``: how much goes to
    each named span, with an own ``P_l`` (low rank over heads) and ``W_l`` for each layer ``l`` of
    the language model, since head 3 of layer 10 is not head 3 of layer 20; and what the attended
    states say, weighted by attention. A softmax over the edges would divide the mass away.

    Args:
        channels: Channels of node states.
        edge_dim: Weights of an edge.
        n_layers: Layers that have graphs of their own; 1 for multiplex graphs.

    Source:
        Our own. The second sum is the continuous filter of SchNet (Schütt et al. 2017,
        arXiv:1706.08566) with a linear filter.
    """

    def __init__(self, channels: int, edge_dim: int, n_layers: int) -> None:
        super().__init__(aggr="sum")
        rank = min(edge_dim, MAX_RANK)
        self.heads = HeteroLinear(edge_dim, rank, n_layers, bias=False)
        self.filter = nn.Linear(edge_dim, channels, bias=False)
        self.content = nn.Linear(channels, channels)
        self.of_span = HeteroLinear(N_SPANS * rank, channels, n_layers)
        self.of_content = nn.Linear(channels, channels, bias=False)
        self.sum = SumAggregation()

    def forward(self, hidden: Tensor, graph: "Edges") -> Tensor:
        """New states ``[node, channel]``."""
        key, query = graph.index
        place = query * N_SPANS + graph.span[key]
        heads = self.heads(graph.attr, graph.layer[query])
        mass = self.sum(heads, place, dim_size=len(hidden) * N_SPANS).view(len(hidden), -1)
        received = self.propagate(
            graph.index, content=self.content(hidden), weight=self.filter(graph.attr)
        )
        new: Tensor = self.of_span(mass, graph.layer) + self.of_content(received)
        return new

    def message(self, content_j: Tensor, weight: Tensor) -> Tensor:
        """The key's content times the attention paid to it."""
        return content_j * weight


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
