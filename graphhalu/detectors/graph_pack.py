"""Graphs of many traces as a few large tensors; a batch is a gather of their rows."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from graphhalu.detectors.graph_pieces import GraphPiece
from graphhalu.detectors.networks.batch import GraphBatch
from graphhalu.errors import StoreFullError


@dataclass(frozen=True)
class GraphPack:
    """Graphs of many traces side by side.

    Attributes:
        x: Node features.
        strength: As in :class:`GraphPiece`.
        degree: Edges that end in each node.
        first_edge: The first of them.
        source: Attended key of each edge, ``layer * nodes + node``.
        edge_attr: Attention of each edge, layer by layer.
        node_starts: First node of each trace at each distance.
        node_counts: Nodes of each trace at each distance.
        y: Label of each trace.
        start: Logit of each trace that what a network says is added to.
    """

    x: Float[Tensor, "layer node feature"]
    strength: Float[Tensor, "layer node"]
    degree: Int[Tensor, "layer node"]
    first_edge: Int[Tensor, "layer node"]
    source: Int[Tensor, "edge"]
    edge_attr: Float[Tensor, "edge channel"]
    node_starts: Int[Tensor, "hop trace"]
    node_counts: Int[Tensor, "hop trace"]
    y: Float[Tensor, "trace"]
    start: Float[Tensor, "trace"]

    @classmethod
    def of(
        cls,
        pieces: Sequence[GraphPiece],
        labels: Sequence[float] | None = None,
        start: Sequence[float] | None = None,
    ) -> "GraphPack":
        """Put the graphs of traces side by side.

        Args:
            pieces: Graphs of each trace.
            labels: 1 = hallucinated; without, all are 0.
            start: Logit of each trace to begin from; without, 0.
        """
        counts = np.array([piece.node_counts for piece in pieces]).T
        sizes = counts.sum(0)
        first_node = np.concatenate([[0], sizes.cumsum()])
        degree = np.concatenate([piece.degree for piece in pieces], axis=1)
        ends = degree.reshape(-1).cumsum().reshape(degree.shape)
        layers = range(len(degree))
        source = [
            _of_layer(piece, layer, piece.source) + (layer * first_node[-1] + start)
            for layer in layers
            for piece, start in zip(pieces, first_node[:-1].tolist(), strict=True)
        ]
        edge_attr = [
            _of_layer(piece, layer, piece.edge_attr) for layer in layers for piece in pieces
        ]
        return cls(
            x=torch.from_numpy(np.concatenate([piece.x for piece in pieces], axis=1)),
            strength=torch.from_numpy(np.concatenate([piece.strength for piece in pieces], axis=1)),
            degree=torch.from_numpy(degree),
            first_edge=torch.from_numpy(ends - degree),
            source=torch.from_numpy(np.concatenate(source)),
            edge_attr=torch.from_numpy(np.concatenate(edge_attr)),
            node_starts=torch.from_numpy(first_node[:-1] + counts.cumsum(0) - counts),
            node_counts=torch.from_numpy(counts),
            y=torch.tensor(list(labels or [0.0] * len(pieces)), dtype=torch.float32),
            start=torch.tensor(list(start or [0.0] * len(pieces)), dtype=torch.float32),
        )

    def __len__(self) -> int:
        """Traces."""
        return len(self.y)

    @property
    def n_layers(self) -> int:
        """Graphs of a trace."""
        return len(self.x)

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(value.nbytes for value in self._tensors().values())

    def to(self, device: torch.device) -> "GraphPack":
        """The same on a device, where batches are made from then on."""
        moved = {name: value.to(device) for name, value in self._tensors().items()}
        return replace(self, **moved)

    def write(self, path: Path) -> None:
        """Put the tensors into a file that other processes read.

        Raises:
            StoreFullError: If it does not fit there.
        """
        try:
            save_file({name: value.contiguous() for name, value in self._tensors().items()}, path)
        except (OSError, SafetensorError) as error:
            message = (
                f"the graphs ({self.n_bytes / 1e9:.1f} GB) cannot be written to {path.parent} for "
                f"other processes: {error}\n  Make room there, or set TMPDIR"
            )
            raise StoreFullError(message) from None

    @classmethod
    def read(cls, path: Path) -> "GraphPack":
        """What :meth:`write` put there; the file is mapped, so that processes share its memory."""
        return cls(**load_file(path))

    def edges_of_layers(self) -> list[Float[Tensor, "_edge channel"]]:
        """Attention of the edges of each layer."""
        counts: list[int] = self.degree.sum(1).tolist()
        return [edges.float() for edges in torch.split(self.edge_attr, counts)]

    def batch(self, traces: Int[Tensor, "chosen"]) -> GraphBatch:
        """The graphs of some traces; see :class:`GraphBatch` for their order."""
        n_layers, n_nodes = self.degree.shape
        counts = self.node_counts[:, traces]
        nodes = [
            _ranges(start, count)
            for start, count in zip(self.node_starts[:, traces], counts, strict=True)
        ]
        layer_starts = torch.arange(n_layers, device=self.x.device)[:, None] * n_nodes
        of_hop = [(layer_starts + chosen).view(-1) for chosen in nodes]
        rows = torch.cat(of_hop)
        targets = rows[: len(rows) - len(of_hop[-1])]
        degree = self.degree.view(-1)[targets]
        edges = _ranges(self.first_edge.view(-1)[targets], degree)
        place = torch.zeros(n_layers * n_nodes, dtype=torch.int64, device=self.x.device)
        place[rows] = torch.arange(len(rows), device=self.x.device)
        ends = degree.cumsum(0)
        return GraphBatch(
            x=self.x.view(-1, self.x.shape[2]).index_select(0, rows),
            strength=self.strength.view(-1)[rows],
            source=place[self.source[edges]],
            target=torch.arange(len(targets), device=ends.device).repeat_interleave(
                degree, output_size=len(edges)
            ),
            starts=torch.nn.functional.pad(ends, (1, 0)),
            edge_attr=self.edge_attr.index_select(0, edges).float(),
            node_counts=tuple(len(chosen) for chosen in nodes),
            edge_counts=_edge_counts(degree, nodes[:-1], n_layers),
            readout_counts=counts[0],
            y=self.y[traces],
            start=self.start[traces],
        )

    def _tensors(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}


def _of_layer(piece: GraphPiece, layer: int, values: np.ndarray) -> np.ndarray:
    start = sum(piece.edges_a_layer[:layer])
    return values[start : start + piece.edges_a_layer[layer]]


def _ranges(starts: Int[Tensor, "run"], counts: Int[Tensor, "run"]) -> Int[Tensor, "item"]:
    """``start, start + 1, …`` of each run, one run after another."""
    ends = counts.cumsum(0)
    n_items = int(ends[-1]) if len(ends) else 0
    shift = (starts - ends + counts).repeat_interleave(counts, output_size=n_items)
    return torch.arange(n_items, device=starts.device) + shift


def _edge_counts(
    degree: Int[Tensor, "target"], nodes: Sequence[Tensor], n_layers: int
) -> tuple[tuple[int, ...], ...]:
    per_hop = torch.split(degree, [n_layers * len(chosen) for chosen in nodes])
    return tuple(tuple(each.view(n_layers, -1).sum(1).tolist()) for each in per_hop)
