"""Graph networks as plain PyG modules: a ``Batch`` of token graphs in, logits out.

Each is made from sizes that the data give (``in_channels``, ``edge_dim``, ``n_layers``) and
settings; ``forward(batch)`` gives ``[graph]``, or ``[answer_token]`` for ``level="token"``.
"""

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Final, final

import torch
from torch import Tensor, nn
from torch.nn.functional import elu
from torch_geometric.data import Batch
from torch_geometric.nn import (
    GCNConv,
    HeteroLinear,
    MessagePassing,
    MultiAggregation,
    SumAggregation,
    TransformerConv,
)

from graphhalu.core.axes import N_SPANS
from graphhalu.core.errors import ConfigError, GraphhaluError, UsageError
from graphhalu.labels.labels import Level

MAX_RANK: Final = 16
"""Combinations of heads that a layer keeps; all of them where a layer has no more heads."""


class LayerLinear(HeteroLinear):
    """A linear map for each layer; on a GPU without a wait for it, where PyG reads how many rows each has."""

    def forward(self, x: Tensor, type_vec: Tensor) -> Tensor:
        """Rows by the map of their layer."""
        if x.device.type == "cpu":
            return super().forward(x, type_vec)
        out = x.new_zeros(len(x), self.out_channels)
        for number, weight in enumerate(self.weight):
            mapped = x @ weight if self.bias is None else x @ weight + self.bias[number]
            out = torch.where((type_vec == number)[:, None], mapped, out)
        return out


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
        self.heads = LayerLinear(edge_dim, rank, n_layers, bias=False)
        self.of_span = LayerLinear(N_SPANS * rank, channels, n_layers)
        self.sum = SumAggregation()

    def forward(self, batch: Batch) -> Tensor:
        """What each node receives, ``[node, channel]``."""
        key, query = batch.edge_index
        heads = self.heads(batch.edge_attr, batch.layer_index[query])
        n_nodes = len(batch.span)
        mass = self.sum(heads, query * N_SPANS + batch.span[key], dim_size=n_nodes * N_SPANS)
        return self.of_span(mass.view(n_nodes, -1), batch.layer_index)


def edges_read_out(batch: Batch) -> Batch:
    """The batch with those edges that end in rows that are read out: no others need new states at last."""
    # places and not a mask, which waits for a GPU each time it is used
    needed = batch.is_readout[batch.edge_index[1]].nonzero()[:, 0]
    cut = copy.copy(batch)
    cut.edge_index, cut.edge_attr = batch.edge_index[:, needed], batch.edge_attr[needed]
    return cut


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
        n_inputs = 2 * channels * (n_layers if level == "answer" else 1)
        self.head = logit_head(n_inputs, channels, dropout)

    def forward(self, hidden: Tensor, batch: Batch) -> Tensor:
        """``[graph]`` or ``[answer_token]``; higher = more likely hallucinated."""
        if self.level == "token":
            own = batch.is_answer.nonzero()[:, 0]
            states = torch.cat([hidden[own - 1], hidden[own]], dim=1)
        else:
            place = batch.batch * self.n_layers + batch.layer_index
            n_places = batch.num_graphs * self.n_layers
            read = batch.is_readout.nonzero()[:, 0]
            pooled = self.pool(hidden[read], place[read], dim_size=n_places)
            states = pooled.view(batch.num_graphs, -1)
        logits: Tensor = self.head(states)[:, 0]
        return logits


def logit_head(n_inputs: int, channels: int, dropout: float) -> nn.Sequential:
    """A hidden layer, and one logit."""
    return nn.Sequential(
        nn.Linear(n_inputs, channels), nn.ReLU(), nn.Dropout(dropout), nn.Linear(channels, 1)
    )


def equally_large_block(channels: int, make: Callable[[], nn.Module]) -> nn.Sequential:
    """Two linear maps from states to states, with as many parameters as what ``make`` gives."""
    with torch.random.fork_rng(devices=[]):  # making it draws weights
        wanted = n_parameters(make())
    n_inner = max(1, round((wanted - channels) / (2 * channels + 1)))
    return nn.Sequential(nn.Linear(channels, n_inner), nn.ReLU(), nn.Linear(n_inner, channels))


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
    def make_round(self) -> nn.ModuleDict:
        """Parts of one round."""

    @abstractmethod
    def messages(self, parts: Any, hidden: Tensor, batch: Batch) -> Tensor:
        """What a round with these parts adds to the states ``[node, channel]``."""

    def forward(self, batch: Batch) -> Tensor:
        """``[graph]`` or ``[answer_token]``; higher = more likely hallucinated."""
        hidden = self.encode(batch.x)
        for number, (each, norm) in enumerate(zip(self.rounds, self.norms, strict=True), start=1):
            is_last = number == len(self.rounds) and not self.needs_all_edges
            read = edges_read_out(batch) if is_last else batch
            # over all tokens of the batch, so that what a token receives stays comparable
            hidden = hidden + self.dropout(norm(self.messages(each, hidden, read)))
        return self.readout(hidden, batch)


@final
class GCN(TokenGraphNetwork):
    """Graph convolutions weighted by the mean attention of the heads.

    Source:
        Kipf and Welling 2017, arXiv:1609.02907. Different from it: edges are directed (key to
        query), so degrees are sums of incoming attention; residuals keep a token's own features.
    """

    needs_all_edges: ClassVar[bool] = True  # for the degrees of keys

    def make_round(self) -> nn.ModuleDict:
        """A convolution."""
        return nn.ModuleDict({"convolution": GCNConv(self.channels, self.channels)})

    def messages(self, parts: Any, hidden: Tensor, batch: Batch) -> Tensor:
        """Means over incoming attention."""
        return elu(parts["convolution"](hidden, batch.edge_index, batch.edge_attr.mean(1).abs()))


@final
class GAT(TokenGraphNetwork):
    """Attention over edges with every head of the language model, and sums of absolute mass.

    Source:
        Shi et al. 2021, arXiv:2009.03509 (the graph transformer's attention with edge features),
        plus :class:`AttentionMass`, which the softmax would divide away. What is attended to
        enters through a gate that starts at 0 (Bachlechner et al. 2021, arXiv:2003.04887): states
        of prompt tokens tell questions apart, and a few hundred questions are learnt by heart.
    """

    def make_round(self) -> nn.ModuleDict:
        """Attention and mass."""
        return _gat_round(self.channels, self.edge_dim, self.n_layers)

    def messages(self, parts: Any, hidden: Tensor, batch: Batch) -> Tensor:
        """Absolute mass, and what is attended to through the gate."""
        attended = elu(parts["attention"](hidden, batch.edge_index, batch.edge_attr))
        return parts["mass"](batch) + parts.gate * attended


def _gat_round(channels: int, edge_dim: int, n_layers: int) -> nn.ModuleDict:
    n_heads = next(number for number in (4, 2, 1) if channels % number == 0)
    sizes = {"heads": n_heads, "edge_dim": edge_dim, "root_weight": False}
    attention = TransformerConv(channels, channels // n_heads, **sizes)
    parts = nn.ModuleDict({"attention": attention, "mass": AttentionMass(channels, edge_dim, n_layers)})
    parts.register_parameter("gate", nn.Parameter(torch.zeros(channels)))
    return parts


@final
class MLP(TokenGraphNetwork):
    """The control without messages: as many parameters as :class:`GAT` on the same nodes.

    Source:
        Frasca et al., CHARM, ablation "no graph": same features, no messages. Here the size is
        matched too, so that a difference to ``gat`` can only come from the edges.
    """

    def make_round(self) -> nn.ModuleDict:
        """A residual block of two linear maps with as many parameters as a round of the GAT."""
        channels = self.channels
        make = partial(_gat_round, channels, self.edge_dim, self.n_layers)
        return nn.ModuleDict({"block": equally_large_block(channels, make)})

    def messages(self, parts: Any, hidden: Tensor, batch: Batch) -> Tensor:
        """No messages: what the block makes of each state."""
        return elu(parts["block"](hidden))


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
            hidden = each(hidden, edges_read_out(batch) if number == len(self.rounds) else batch)
        return self.readout(hidden, batch)


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

    def forward(self, hidden: Tensor, batch: Batch) -> Tensor:
        """New states ``[node, channel]``."""
        sent = self.of_node(hidden) + self.of_type(batch.is_readout.long())
        received = self.propagate(batch.edge_index, sent=sent, weight=self.of_edge(batch.edge_attr))
        return self.update_state(torch.cat([hidden, self.norm_received(received)], dim=1))

    def message(self, sent_j: Tensor, weight: Tensor) -> Tensor:
        """``MLP([h_j, e_ij, type_ij])``; its first linear map is a sum of three."""
        return self.last(sent_j + weight)


def n_parameters(network: nn.Module) -> int:
    """Numbers that training changes."""
    return sum(parameter.numel() for parameter in network.parameters())


def make_network(
    kind: Callable[..., nn.Module], sizes: Mapping[str, Any], given: Mapping[str, Any]
) -> nn.Module:
    """A network from those of ``sizes`` that its signature names, and the given arguments.

    ``sizes`` has ``in_channels`` (node features), ``edge_dim`` (weights of an edge),
    ``n_layers``, ``hidden_channels``, ``n_rounds``, ``dropout`` and ``level``.

    Raises:
        ConfigError: If it does not take a given argument; lists those that it takes.
        UsageError: If it cannot be made.
    """
    arguments = network_arguments(kind, sizes, given)
    try:
        return kind(**arguments)
    except GraphhaluError:
        raise
    except Exception as error:  # whatever a user's network raises
        name = getattr(kind, "__name__", kind)
        raise UsageError(f"{name}({', '.join(arguments)}) raised {type(error).__name__}: {error}") from error


def check_network(network: nn.Module, batch: Batch, level: Level) -> None:
    """Try a network on a batch, which also gives lazy layers their sizes.

    Raises:
        UsageError: If it raises, or gives something else than one logit a graph or answer token.
    """
    name = type(network).__name__
    n_expected = batch.num_graphs if level == "answer" else int(batch.is_answer.sum())
    what = "graph" if level == "answer" else "answer token"
    network.eval()
    try:
        with torch.no_grad():
            logits = network(batch)
    except Exception as error:  # whatever a user's network raises
        raise UsageError(f"{name}.forward(batch) raised {type(error).__name__}: {error}") from error
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != (n_expected,):
        raise UsageError(
            f"{name}.forward(batch) must give one logit a {what}, shape ({n_expected},) for a "
            f"batch of {batch.num_graphs} graphs, got {shape}"
        )


def network_arguments(
    kind: Callable[..., nn.Module], sizes: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Those of ``sizes`` that the signature names, and the given ones.

    Raises:
        ConfigError: If it does not take a given one; lists those that it takes.
    """
    parameters = inspect.signature(kind).parameters
    takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    unknown = [name for name in given if name not in parameters]
    if unknown and not takes_all:
        name = getattr(kind, "__name__", kind)
        raise ConfigError(f"{name} takes no argument {unknown[0]!r}; it takes {', '.join(parameters)}")
    return {**{n: value for n, value in sizes.items() if n in parameters}, **given}
