"""What graph networks share: standardised inputs, a readout over the answer, one logit a graph."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Final, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from graphhalu.detectors.networks.batch import GraphBatch
from graphhalu.detectors.networks.dropout import ByteDropout
from graphhalu.detectors.networks.segments import segment_max, segment_mean

_CONSTANT: Final = 1e-4
"""A deviation below this share of the largest value counts as none; division would blow rounding
up."""


class NetworkShape(NamedTuple):
    """Sizes that the data give.

    Attributes:
        n_layers: Graphs a trace.
        n_node_features: Features of a node.
        n_channels: Weights of an edge.
    """

    n_layers: int
    n_node_features: int
    n_channels: int


class NetworkSize(NamedTuple):
    """Sizes that the user chooses.

    Attributes:
        hidden_size: Channels of every layer.
        n_convolutions: Rounds of message passing.
        dropout: Share of activations that training drops.
    """

    hidden_size: int = 32
    n_convolutions: int = 2
    dropout: float = 0.25


class Standard(nn.Module):
    """Mean and standard deviation of each input feature in each layer.

    Args:
        n_layers: Graphs a trace.
        n_features: Features.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, n_layers: int, n_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_layers, n_features))
        self.register_buffer("scale", torch.ones(n_layers, n_features))

    def take(self, layers: Sequence[Float[Tensor, "_item feature"]]) -> None:
        """Take them from the values of each layer; a feature that never changes keeps scale 1."""
        for layer, values in enumerate(layers):
            mean, scale = _moments(values)
            self.mean[layer], self.scale[layer] = mean, scale

    def forward(
        self, values: Float[Tensor, "item feature"], runs: Sequence[tuple[int, int]]
    ) -> Float[Tensor, "item feature"]:
        """Standardised values; ``runs`` as in :meth:`linear`."""
        pieces = torch.split(values, [length for _, length in runs])
        return torch.cat(
            [
                (piece - self.mean[layer]) / self.scale[layer]
                for (layer, _), piece in zip(runs, pieces, strict=True)
            ]
        )

    def linear(
        self,
        linear: nn.Linear,
        values: Float[Tensor, "item feature"],
        runs: Sequence[tuple[int, int]],
    ) -> Float[Tensor, "item channel"]:
        """``linear`` of the standardised values, without a standardised copy of them.

        Args:
            linear: A linear map of the features; it may lack a bias.
            values: Values as they are, run after run.
            runs: Layer and length of each run.
        """
        weights, shift = self.folded(linear)
        pieces = torch.split(values, [length for _, length in runs])
        return torch.cat(
            [
                torch.addmm(shift[layer], piece, weights[layer])
                for (layer, _), piece in zip(runs, pieces, strict=True)
            ]
        )

    def folded(
        self, linear: nn.Linear
    ) -> tuple[Float[Tensor, "layer feature channel"], Float[Tensor, "layer channel"]]:
        """Weights and shift of ``linear`` of standardised values, for values as they are."""
        weights = (linear.weight / self.scale[:, None]).transpose(1, 2).contiguous()
        shift = -torch.einsum("lf,lfc->lc", self.mean, weights)
        return weights, shift if linear.bias is None else shift + linear.bias


class GraphNetwork(nn.Module, ABC):
    """A plain torch module from a batch of graphs to one logit a graph.

    Args:
        shape: Sizes that the data give.
        size: Sizes that the user chooses.
        reads_edges: Whether weights of edges are standardised for it.
    """

    starts_as_is: ClassVar[bool] = False
    """Whether the network is worth keeping as it starts, before any step."""

    def __init__(
        self, shape: NetworkShape, size: NetworkSize | None = None, *, reads_edges: bool = False
    ) -> None:
        super().__init__()
        self.shape, self.size = shape, size or NetworkSize()
        self.node_standard = Standard(shape.n_layers, shape.n_node_features)
        self.edge_standard = Standard(shape.n_layers, shape.n_channels) if reads_edges else None

    @abstractmethod
    def forward(self, batch: GraphBatch) -> Float[Tensor, "graph trace"]:
        """One logit a graph, or one a trace; higher means more likely hallucinated."""

    @property
    def n_parameters(self) -> int:
        """Numbers that training changes."""
        return sum(parameter.numel() for parameter in self.parameters())

    def standardise_by(
        self,
        nodes: Sequence[Float[Tensor, "_node feature"]],
        edges: Sequence[Float[Tensor, "_edge channel"]],
    ) -> None:
        """Take the moments of training data, one entry a layer."""
        self.node_standard.take(nodes)
        if self.edge_standard is not None:
            self.edge_standard.take(edges)


class ReadoutNetwork(GraphNetwork):
    """Projected tokens, some rounds, then mean and maximum over the answer of each graph.

    Args:
        shape: Sizes that the data give.
        size: Sizes that the user chooses.
        reads_edges: Whether weights of edges are standardised for it.
    """

    def __init__(
        self, shape: NetworkShape, size: NetworkSize | None = None, *, reads_edges: bool = False
    ) -> None:
        super().__init__(shape, size, reads_edges=reads_edges)
        hidden_size, n_rounds, dropout = self.size
        self.project = nn.Linear(shape.n_node_features, hidden_size)
        self.layer_embedding = nn.Embedding(shape.n_layers, hidden_size)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_size) for _ in range(n_rounds))
        self.dropout = ByteDropout(dropout)
        self.head = nn.Sequential(
            nn.Linear(3 * hidden_size, hidden_size),
            nn.ReLU(),
            ByteDropout(dropout),
            nn.Linear(hidden_size, 1),
        )

    @abstractmethod
    def convolve(
        self, hidden: Float[Tensor, "row channel"], batch: GraphBatch
    ) -> Float[Tensor, "readout channel"]:
        """Pass messages along the edges; only the rows of the readout come back.

        Args:
            hidden: State of every row as far away from the readout as there are rounds.
            batch: Its edges.
        """

    def forward(self, batch: GraphBatch) -> Float[Tensor, "graph trace"]:
        """One logit a graph; higher means more likely hallucinated."""
        hops = self.size.n_convolutions
        projected = self.node_standard.linear(
            self.project, batch.x[: batch.n_rows(hops)], batch.row_runs(hops)
        )
        return self.read_out(self.convolve(self.dropout(torch.relu(projected)), batch), batch)

    def read_out(
        self, answer: Float[Tensor, "readout channel"], batch: GraphBatch
    ) -> Float[Tensor, "graph trace"]:
        """One logit a graph from the states of its readout."""
        logits: Float[Tensor, "graph trace"] = self.head(self.pooled(answer, batch))
        return logits.view(batch.n_layers, -1)

    def pooled(
        self, answer: Float[Tensor, "readout channel"], batch: GraphBatch
    ) -> Float[Tensor, "graph pooled"]:
        """Mean and maximum over the readout of each graph, layer by layer, and its layer."""
        starts, owner = readout_segments(batch)
        layer = self.layer_embedding.weight.repeat_interleave(batch.n_traces, 0)
        return torch.cat(
            [segment_mean(answer, starts, owner), segment_max(answer, starts), layer], dim=1
        )


def readout_segments(
    batch: GraphBatch,
) -> tuple[Int[Tensor, "graph_end"], Int[Tensor, "readout"]]:
    """Where the readout of each graph starts, and the graph of each readout row."""
    starts = batch.readout_starts()
    n_rows = batch.n_rows(0)
    graphs = torch.arange(len(starts) - 1, device=starts.device)
    return starts, graphs.repeat_interleave(starts.diff(), output_size=n_rows)


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    if not len(values):
        return torch.zeros(values.shape[1]), torch.ones(values.shape[1])
    exact = values.double()
    scale = exact.std(0, correction=0)
    is_constant = scale <= _CONSTANT * exact.abs().amax(0)
    return exact.mean(0).float(), torch.where(is_constant, 1.0, scale).float()
