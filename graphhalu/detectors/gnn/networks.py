"""Graph networks as plain PyG modules: a ``Batch`` of token graphs in, logits out.

Each is made from sizes that the data give (``in_channels``, ``edge_dim``, ``n_layers``) and
settings; ``forward(batch)`` gives ``[graph]``, or ``[answer_token]`` for ``level="token"``.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn.functional import elu
from torch_geometric.data import Batch
from torch_geometric.nn import GCNConv, MessagePassing, TransformerConv

from graphhalu.detectors.gnn.layers import AttentionMass, Edges, Readout
from graphhalu.labels.labels import Level


class TokenGraphNetwork(nn.Module, ABC):
    """Projected tokens, rounds of messages with residuals, a readout over the answer.

    The scale of every residual starts at 0 (Goyal et al. 2017, arXiv:1706.02677), so a network
    begins as one without messages and takes from them what lowers the loss.

    Args:
        in_channels: Features of a node.
        edge_dim: Weights of an edge.
        n_layers: Layers of the language model that have graphs of their own.
        hidden_channels: Channels of node states.
        n_rounds: Rounds of message passing.
        dropout: Share of activations that training drops.
        level: ``"answer"`` or ``"token"``.
    """

    needs_all_edges: ClassVar[bool] = False
    """Whether the last round, for the rows that are read out, reads edges that end elsewhere."""

    def __init__(
        self,
        in_channels: int,
        edge_dim: int,
        n_layers: int,
        *,
        hidden_channels: int = 32,
        n_rounds: int = 2,
        dropout: float = 0.25,
        level: Level = "answer",
    ) -> None:
        super().__init__()
        self.edge_dim, self.n_layers, self.channels = edge_dim, n_layers, hidden_channels
        self.encode = nn.Sequential(nn.Linear(in_channels, hidden_channels), nn.ReLU(), nn.Dropout(dropout))
        self.rounds = nn.ModuleList(self.make_round() for _ in range(n_rounds))
        norms = [nn.BatchNorm1d(hidden_channels) for _ in range(n_rounds)]
        for norm in norms:  # training starts from what the nodes say by themselves
            nn.init.zeros_(norm.weight)
        self.norms = nn.ModuleList(norms)
        self.dropout = nn.Dropout(dropout)
        self.readout = Readout(hidden_channels, n_layers, dropout, level)

    @abstractmethod
    def make_round(self) -> nn.Module:
        """One round: from states ``[node, channel]`` and :class:`Edges` to what is added."""

    def forward(self, batch: Batch) -> Tensor:
        """``[graph]`` or ``[answer_token]``; higher = more likely hallucinated."""
        hidden = self.encode(batch.x)
        for number, (each, norm) in enumerate(zip(self.rounds, self.norms, strict=True), start=1):
            is_last = number == len(self.rounds) and not self.needs_all_edges
            edges = Edges(batch, is_last=is_last)
            # over all tokens of the batch, so that what a token receives stays comparable
            hidden = hidden + self.dropout(norm(each(hidden, edges)))
        logits: Tensor = self.readout(hidden, batch)
        return logits


@final
class GCN(TokenGraphNetwork):
    """Graph convolutions weighted by the mean attention of the heads.

    Source:
        Kipf and Welling 2017, arXiv:1609.02907. Different from it: edges are directed (key to
        query), so degrees are sums of incoming attention; residuals keep a token's own features.
    """

    needs_all_edges: ClassVar[bool] = True  # for the degrees of keys

    def make_round(self) -> nn.Module:
        """A convolution."""
        return _GCNRound(self.channels)


class _GCNRound(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = GCNConv(channels, channels)

    def forward(self, hidden: Tensor, edges: Edges) -> Tensor:
        new: Tensor = self.convolution(hidden, edges.index, edges.attr.mean(1).abs())
        return elu(new)


@final
class GAT(TokenGraphNetwork):
    """Attention over edges with every head of the language model, and sums of absolute mass.

    Source:
        Shi et al. 2021, arXiv:2009.03509 (the graph transformer's attention with edge features),
        plus :class:`AttentionMass`, which the softmax would divide away. What is attended to
        enters through a gate that starts at 0 (Bachlechner et al. 2021, arXiv:2003.04887): states
        of prompt tokens tell questions apart, and a few hundred questions are learnt by heart.
    """

    def make_round(self) -> nn.Module:
        """Attention and mass."""
        return _GATRound(self.channels, self.edge_dim, self.n_layers)


class _GATRound(nn.Module):
    def __init__(self, channels: int, edge_dim: int, n_layers: int) -> None:
        super().__init__()
        n_heads = next(number for number in (4, 2, 1) if channels % number == 0)
        self.attention = TransformerConv(
            channels, channels // n_heads, heads=n_heads, edge_dim=edge_dim, root_weight=False
        )
        self.gate = nn.Parameter(torch.zeros(channels))
        self.mass = AttentionMass(channels, edge_dim, n_layers)

    def forward(self, hidden: Tensor, edges: Edges) -> Tensor:
        attended = elu(self.attention(hidden, edges.index, edges.attr))
        new: Tensor = self.mass(edges) + self.gate * attended
        return new


@final
class MLP(TokenGraphNetwork):
    """The control without messages: as many parameters as :class:`GAT` on the same nodes.

    Source:
        Frasca et al., CHARM, ablation "no graph": same features, no messages. Here the size is
        matched too, so that a difference to ``gat`` can only come from the edges.
    """

    def make_round(self) -> nn.Module:
        """A residual block of two linear maps with as many parameters as a round of the GAT."""
        with torch.random.fork_rng(devices=[]):  # making it draws weights
            wanted = n_parameters(_GATRound(self.channels, self.edge_dim, self.n_layers))
        n_inner = max(1, round((wanted - self.channels) / (2 * self.channels + 1)))
        return _MLPRound(self.channels, n_inner)


class _MLPRound(nn.Module):
    def __init__(self, channels: int, n_inner: int) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(channels, n_inner), nn.ReLU(), nn.Linear(n_inner, channels))

    def forward(self, hidden: Tensor, edges: Edges) -> Tensor:
        new: Tensor = elu(self.block(hidden))
        return new


@final
class CHARM(nn.Module):
    """Messages over all layers and heads at once, a mean over the answer, one linear map.

    ``m_i = mean_j MLP([h_j, e_ij, type_ij])`` and ``h_i' = MLP([h_i, m_i])``.

    Args:
        in_channels: Features of a node.
        edge_dim: Weights of an edge: every head of every layer.
        hidden_channels: Channels of messages and new states.
        n_rounds: Rounds of message passing.
        dropout: Share of activations that training drops.
        level: ``"answer"`` or ``"token"``.

    Source:
        Frasca et al., CHARM (OpenReview 4twbqwV4br), formulas of section 3 and code
        (``model/mp.py``): node features are the diagonal of all layers and heads, edge features
        the attention of all layers and heads where it passes a threshold, with the one-hot type
        of the edge (prompt or response to response); messages are averaged, and response tokens
        are read out, the last prompt token being the first of them. Different from it: features
        are standardised on the training side; means of messages and new states are normalised
        over the batch, without which a signal two hops away is not found; an answer is read from
        mean and maximum, a token from the row that produces it and its own.
    """

    def __init__(
        self,
        in_channels: int,
        edge_dim: int,
        *,
        hidden_channels: int = 32,
        n_rounds: int = 2,
        dropout: float = 0.25,
        level: Level = "answer",
    ) -> None:
        super().__init__()
        sizes = (in_channels, *[hidden_channels] * n_rounds)
        self.rounds = nn.ModuleList(
            CHARMConv(n_inputs, edge_dim, hidden_channels, dropout) for n_inputs in sizes[:-1]
        )
        self.readout = Readout(hidden_channels, 1, dropout, level)

    def forward(self, batch: Batch) -> Tensor:
        """``[graph]`` or ``[answer_token]``; higher = more likely hallucinated."""
        hidden = batch.x
        for number, each in enumerate(self.rounds, start=1):
            edges = Edges(batch, is_last=number == len(self.rounds))
            hidden = each(hidden, edges, batch.is_readout)
        logits: Tensor = self.readout(hidden, batch)
        return logits


class CHARMConv(MessagePassing):
    """One round of :class:`CHARM`."""

    def __init__(self, n_inputs: int, edge_dim: int, channels: int, dropout: float) -> None:
        super().__init__(aggr="mean")
        self.of_node = nn.Linear(n_inputs, channels)
        self.of_edge = nn.Linear(edge_dim, channels, bias=False)
        self.of_type = nn.Embedding(2, channels)
        self.last = nn.Sequential(nn.ReLU(), nn.Dropout(dropout), nn.Linear(channels, channels))
        self.norm_received = nn.BatchNorm1d(channels)
        self.update_state = nn.Sequential(
            nn.Linear(n_inputs + channels, channels),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(channels, channels),
            nn.BatchNorm1d(channels),
        )

    def forward(self, hidden: Tensor, edges: Edges, is_response: Tensor) -> Tensor:
        """New states ``[node, channel]``."""
        sent = self.of_node(hidden) + self.of_type(is_response.long())
        received = self.propagate(edges.index, sent=sent, weight=self.of_edge(edges.attr))
        new: Tensor = self.update_state(torch.cat([hidden, self.norm_received(received)], dim=1))
        return new

    def message(self, sent_j: Tensor, weight: Tensor) -> Tensor:
        """``MLP([h_j, e_ij, type_ij])``; its first linear map is a sum of three."""
        message: Tensor = self.last(sent_j + weight)
        return message


def n_parameters(network: nn.Module) -> int:
    """Numbers that training changes."""
    return sum(parameter.numel() for parameter in network.parameters())
