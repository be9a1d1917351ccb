"""What a graph network reads: the graphs of some traces as a few tensors."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class GraphBatch:
    """Graphs of some traces, each with the same number of layers.

    A **row** is a token of a layer. Rows are ordered by their distance to the readout along
    edges (in hops, over all layers), then by layer, trace and token. So the tokens that are read
    out come first, and the message passing that ends in them needs only the first rows and the
    first edges: a network with two rounds computes its second round for the readout alone.
    Nothing farther away than the network has rounds is in the batch: it can change no logit.

    Attributes:
        x: Node features.
        strength: Attention that a row pays along all its edges, mean over the channels.
        source: Row of the attended key of each edge.
        target: Row of the attending query; never decreases.
        starts: First edge of each row that edges may end in, and the number of edges.
        edge_attr: Attention of each edge.
        node_counts: Tokens a layer, at each distance.
        edge_counts: Edges that end at each distance, layer by layer.
        readout_counts: Tokens that are read out, for each trace.
        y: Label of each trace; 1 = hallucinated.
        start: Logit of each trace that what the network says is added to.
    """

    x: Float[Tensor, "row feature"]
    strength: Float[Tensor, "row"]
    source: Int[Tensor, "edge"]
    target: Int[Tensor, "edge"]
    starts: Int[Tensor, "target_end"]
    edge_attr: Float[Tensor, "edge channel"]
    node_counts: tuple[int, ...]
    edge_counts: tuple[tuple[int, ...], ...]
    readout_counts: Int[Tensor, "trace"]
    y: Float[Tensor, "trace"]
    start: Float[Tensor, "trace"]

    @property
    def n_layers(self) -> int:
        """Graphs of a trace."""
        return len(self.edge_counts[0])

    @property
    def n_traces(self) -> int:
        """Traces of the batch."""
        return len(self.y)

    def n_rows(self, hops: int) -> int:
        """Rows at most ``hops`` away from the readout: the first of all rows."""
        return self.n_layers * sum(self.node_counts[: hops + 1])

    def n_edges(self, hops: int) -> int:
        """Edges that end at most ``hops`` away from the readout: the first of all edges."""
        return sum(sum(counts) for counts in self.edge_counts[: hops + 1])

    def row_runs(self, hops: int) -> list[tuple[int, int]]:
        """Runs of rows of one layer: ``(layer, rows)``, up to a distance."""
        return [
            (layer, count)
            for count in self.node_counts[: hops + 1]
            for layer in range(self.n_layers)
        ]

    def hop(self, distance: int) -> "HopEdges":
        """The edges that end at most so far away from the readout."""
        n_edges, n_rows = self.n_edges(distance), self.n_rows(distance)
        return HopEdges(
            self.source[:n_edges],
            self.target[:n_edges],
            self.starts[: n_rows + 1],
            self.edge_attr[:n_edges],
            [run for counts in self.edge_counts[: distance + 1] for run in enumerate(counts)],
            self.row_runs(distance),
        )

    def readout_starts(self) -> Int[Tensor, "graph_end"]:
        """First readout row of each graph (layer by layer, trace by trace), and their number."""
        ends = self.readout_counts.repeat(self.n_layers).cumsum(0)
        return torch.nn.functional.pad(ends, (1, 0))


@dataclass(frozen=True)
class HopEdges:
    """Edges of one round of message passing; attributes as in :class:`GraphBatch`.

    ``runs`` are runs of edges of one layer, ``(layer, edges)``; ``row_runs`` are the rows that
    they end in, ``(layer, rows)``.
    """

    source: Int[Tensor, "edge"]
    target: Int[Tensor, "edge"]
    starts: Int[Tensor, "target_end"]
    edge_attr: Float[Tensor, "edge channel"]
    runs: list[tuple[int, int]]
    row_runs: list[tuple[int, int]]

    @property
    def n_targets(self) -> int:
        """Rows that the edges may end in."""
        return len(self.starts) - 1
