"""Networks on the tokens of an answer and of what they attend to, with the evidence that edges bring.

Nodes carry hidden states, what the context changes in them, every head's attention, likelihood and
overlap with the prompt. Edges carry attention, the kind of token that is attended to, whether it is
the same token (so that a row which produces what it attends to is a copy), and the distance. Offline
networks send messages both ways; streaming ones send them forward only, so that a score does not change
while the answer goes on.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, ClassVar, Final, final

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GATv2Conv, MessagePassing, MultiAggregation
from torch_geometric.utils import subgraph

from graphhalu.core.axes import Span
from graphhalu.detectors.gnn.config import PRECISION, StopBy, TokenNetworkConfig
from graphhalu.detectors.gnn.detector import NetworkDetector
from graphhalu.detectors.gnn.networks import equally_large_block, logit_head
from graphhalu.graphs.edges import EdgeRule, GraphRecipe, TopK
from graphhalu.graphs.nodes import WIDE
from graphhalu.graphs.storage import OF_NODE
from graphhalu.labels.labels import Level
from graphhalu.traces.trace import Trace

NEIGHBOURS: Final = 8
"""Tokens before it in the text that a token is joined with where attention plays no part."""
RELATIONS: Final = ("distance", "from_context", "from_question", "from_answer", "is_same", "is_reversed")
"""What an edge carries beside attention."""
_KINDS: Final = ((Span.CONTEXT,), (Span.QUESTION, Span.TEMPLATE, Span.SYSTEM, Span.BOS), (Span.ANSWER,))
_DEPTHS: Final = (0.6, 0.77)
"""Shares of the depth whose hidden states are nodes' content."""

Pairs = tuple[Tensor, Tensor]
"""Key and query of each edge, and its attention."""


def attended(data: Data) -> Pairs:
    """Edges by attention: within the answer from a token's own row, to the prompt from the row before.

    That row produces the token. Each answer token is joined with the one before it, too.
    """
    return _with_chain(data, *_by_attention(data))


def _by_attention(data: Data) -> Pairs:
    key, query = pairs = data.edge_index
    is_within = data.is_answer[key] & data.is_answer[query]
    is_source = ~data.is_answer[key] & data.is_readout[query] & (query + 1 < data.num_nodes)
    produced = torch.stack([key, query + 1])
    joined = torch.cat([pairs[:, is_within], produced[:, is_source]], dim=1)
    return joined, torch.cat([data.edge_attr[is_within], data.edge_attr[is_source]])


def neighbours(data: Data) -> Pairs:
    """Each answer token with those before it in the text; no attention."""
    pairs = _previous(data, NEIGHBOURS)
    return pairs, data.edge_attr.new_zeros(pairs.shape[1], data.edge_attr.shape[1])


def random_pairs(data: Data) -> Pairs:
    """As :func:`attended`, from keys drawn anew on the same side of the prompt's end, without attention."""
    seed = hashlib.sha256(data.token_id.numpy().tobytes()).digest()  # the same whatever stands beside it
    generator = np.random.default_rng(list(seed))
    (key, query), attention = _by_attention(data)
    start = int((~data.is_answer).sum())
    is_within = data.is_answer[key]
    first, stop = torch.where(is_within, start, 0), torch.where(is_within, query, start)
    drawn = torch.from_numpy(generator.random(len(key)))
    pairs = torch.stack([first + (drawn * (stop - first)).long(), query])
    return _with_chain(data, pairs, torch.zeros_like(attention))


def evidence_graph(data: Data, *, pairs: Callable[[Data], Pairs], is_streaming: bool = False) -> Data:
    """Answer tokens and what they attend to, with relations on the edges.

    Tokens of the prompt that no edge touches are left out.

    Args:
        data: A multiplex graph; its tokens are in order.
        pairs: Which edges there are, and their attention.
        is_streaming: Whether edges go from earlier tokens to later ones only.
    """
    (key, query), attention = pairs(data)
    kinds = [torch.isin(data.span[key], torch.tensor(codes)) for codes in _KINDS]
    is_same = data.token_id[key] == data.token_id[query]
    columns = [torch.log1p((query - key).float()), *kinds, is_same, torch.zeros(len(key))]
    attr = torch.cat([attention.sqrt(), torch.stack([each.float() for each in columns], dim=1)], dim=1)
    index = torch.stack([key, query])
    if not is_streaming:
        is_within = data.is_answer[key]
        back = attr[is_within].clone()
        back[:, -1] = 1
        index = torch.cat([index, index.flip(0)[:, is_within]], dim=1)
        attr = torch.cat([attr, back])
    made = data.clone()
    is_kept = data.is_answer.clone()
    is_kept[index.flatten()] = True
    made.edge_index, made.edge_attr = subgraph(is_kept, index, attr, relabel_nodes=True)
    for name in OF_NODE:
        made[name] = data[name][is_kept]
    return made


def _with_chain(data: Data, pairs: Tensor, attention: Tensor) -> Pairs:
    before = _previous(data, 1)
    none = attention.new_zeros(before.shape[1], attention.shape[1])
    return torch.cat([pairs, before], dim=1), torch.cat([attention, none])


def _previous(data: Data, n_tokens: int) -> Tensor:
    """Each answer token with the ``n_tokens`` before it."""
    query = data.is_answer.nonzero()[:, 0]
    back = torch.arange(1, n_tokens + 1)
    key = (query[:, None] - back).flatten()
    pairs = torch.stack([key, query.repeat_interleave(n_tokens)])
    return pairs[:, key >= 0]


class EvidenceConv(MessagePassing):
    """Graph attention, beside sum, mean and maximum of messages that carry what edges hold.

    ``m_ij = relu(A h_j + B e_ij)`` of few channels; the softmax of graph attention divides absolute
    attention away, and its values do not hold edges at all.

    Args:
        channels: Channels of node states.
        edge_dim: Features of an edge.
        n_sent: Channels of a message.

    Source:
        Brody et al. 2022, arXiv:2105.14491 (attention with edge features); Hu et al. 2020,
        arXiv:1905.12265 (messages of node and edge); Corso et al. 2020, arXiv:2004.05718 (several
        aggregations).
    """

    def __init__(self, channels: int, edge_dim: int, n_sent: int = 16) -> None:
        super().__init__(aggr=MultiAggregation(["sum", "mean", "max"]))
        self.attention = GATv2Conv(channels, channels // 4, heads=4, edge_dim=edge_dim, add_self_loops=False)
        self.of_node = nn.Linear(channels, n_sent)
        self.of_edge = nn.Linear(edge_dim, n_sent, bias=False)
        self.norm = nn.LayerNorm(3 * n_sent)
        self.joined = nn.Linear(3 * n_sent, channels)

    def forward(self, states: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        """What each node receives, ``[node, channel]``."""
        sent = self.propagate(edge_index, sent=self.of_node(states), weight=self.of_edge(edge_attr))
        return self.attention(states, edge_index, edge_attr) + self.joined(self.norm(sent))

    def message(self, sent_j: Tensor, weight: Tensor) -> Tensor:
        """The message of an edge."""
        return torch.relu(sent_j + weight)


class EvidenceNetwork(nn.Module):
    """Rounds of messages with residuals over projected tokens, one logit an answer token.

    Args:
        in_channels: Features of a node.
        edge_dim: Features of an edge.
        hidden_channels: Channels of node states; a multiple of 4.
        n_rounds: Rounds of message passing.
        dropout: Share of activations that training drops.
        level: ``"token"``.

    Source:
        Our own; residuals and norms around the messages as in Vaswani et al. 2017.
    """

    has_messages: ClassVar[bool] = True
    """Whether a round sends messages; else it is a map of each state with as many parameters."""

    def __init__(
        self,
        in_channels: int,
        edge_dim: int,
        *,
        hidden_channels: int = 64,
        n_rounds: int = 2,
        dropout: float = 0.3,
        level: Level = "token",
    ) -> None:
        super().__init__()
        assert level == "token", "these graphs are read token by token"
        self.encode = nn.Sequential(nn.Linear(in_channels, hidden_channels), nn.ReLU(), nn.Dropout(dropout))
        make: Callable[[], nn.Module] = partial(EvidenceConv, hidden_channels, edge_dim)
        if not self.has_messages:
            make = partial(equally_large_block, hidden_channels, make)
        self.rounds = nn.ModuleList(make() for _ in range(n_rounds))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_channels) for _ in range(n_rounds))
        self.dropout = nn.Dropout(dropout)
        self.head = logit_head(hidden_channels, hidden_channels, dropout)

    def forward(self, batch: Batch) -> Tensor:
        """``[answer_token]``; higher = more likely hallucinated."""
        states, edges = self.encode(batch.x), (batch.edge_index, batch.edge_attr)
        for layer, norm in zip(self.rounds, self.norms, strict=True):
            received = layer(states, *edges) if self.has_messages else layer(states)
            states = norm(states + self.dropout(torch.relu(received)))
        logits: Tensor = self.head(states[batch.is_answer])[:, 0]
        return logits


@final
class EvidenceAlone(EvidenceNetwork):
    """The control without messages: the same nodes, with a linear map in place of each round."""

    has_messages: ClassVar[bool] = False


class EvidenceConfig(TokenNetworkConfig):
    """Settings of a network on evidence of an answer's tokens."""

    nodes: Annotated[tuple[str, ...], Field(min_length=1)] = (
        *("position", "overlap", "likelihood", "contrast", "heads", "hidden", "shift"),
    )
    """Blocks of node features; ``hidden`` and ``shift`` are those of two layers, ``heads`` of all. Blocks
    that the traces do not keep are left out."""
    edges_per_row: Annotated[int, Field(ge=1)] = 8
    """Keys of each query with the most attention of any head, in the mean over layers, that become edges."""
    n_folds: Annotated[int, Field(ge=2)] = 5
    """As of every network; more than there, since each network learns from all folds but one and few answers
    have marked spans."""
    n_components: Annotated[int, Field(ge=1)] = 48
    """Principal components, fitted on the training side, that stand for a wide block."""
    hidden_size: Annotated[int, Field(ge=4, multiple_of=4)] = 48
    """Channels of every layer of the network."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Share of activations that training drops."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 2e-3
    """Step size of AdamW."""
    epochs: Annotated[int, Field(ge=1)] = 12
    """Epochs at most."""
    patience: Annotated[int, Field(ge=1)] = 3
    """Epochs without a better one on the held-out inner fold before training stops."""
    balance: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Power of correct over hallucinated tokens that a hallucinated one weighs; 1: both classes alike."""
    stop_by: StopBy = PRECISION
    """What decides which epoch is the best: few tokens are hallucinated, so their precision is."""
    answer_loss: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the loss of an answer, whose logit is the largest of its tokens."""

    @property
    def edges(self) -> EdgeRule:
        """The strongest keys of each row, over all layers."""
        return TopK(self.edges_per_row, over_layers=True)

    def recipe(self, layers: tuple[int, ...], trace: Trace) -> GraphRecipe:
        """How graphs of these layers are built; see the base class."""
        shape, is_compared = trace.shape, "contrast_hidden" in trace.arrays
        wanted = [round(depth * shape.n_layers) for depth in _DEPTHS]
        kept = [layer - 1 for layer in shape.hidden_layers if layer]
        nearest = dict.fromkeys(min(kept, key=lambda layer: abs(layer - at)) for at in wanted if kept)
        blocks: list[str] = []
        for name in self.nodes:
            if is_compared or name not in ("contrast", "shift"):
                blocks += [f"{name}@{layer}" for layer in nearest] if name in WIDE else [name]
        # the head that retrieves or copies is one of many, and is not seen in their mean
        return GraphRecipe(
            self.edges, tuple(blocks), prompt_edges=False, importance="max", view="multiplex", sinks="remove"
        )


class StreamingConfig(EvidenceConfig):
    """Settings of a network that scores an answer while it is written."""

    nodes: Annotated[tuple[str, ...], Field(min_length=1)] = (
        *("overlap", "likelihood", "contrast", "heads", "hidden", "shift"),
    )
    """As of the network that reads whole answers, without places, which say how long the answer is."""


def _detector(
    name: str, pairs: Callable[[Data], Pairs] = attended, *, is_streaming: bool = False, **settings: Any
) -> type[NetworkDetector]:
    values = {"network_class": EvidenceNetwork, "config_class": EvidenceConfig, **settings}
    transform = partial(evidence_graph, pairs=pairs, is_streaming=is_streaming)
    return NetworkDetector.variant(name, __name__, **values, transform=transform, relations=RELATIONS)


TokenEvidence: Final = _detector("token-evidence")
TokenEvidenceStreaming: Final = _detector(
    "token-evidence-streaming", config_class=StreamingConfig, is_streaming=True
)
TokenEvidenceAlone: Final = _detector("token-evidence-alone", network_class=EvidenceAlone)
TokenEvidenceNeighbours: Final = _detector("token-evidence-neighbours", neighbours)
TokenEvidenceRandom: Final = _detector("token-evidence-random", random_pairs)
