"""Standardised inputs of graph networks, learnt on the training side without labels."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Int, Shaped
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch_geometric.data import Data

from graphhalu.graphs.dataset import AttentionGraphs
from graphhalu.graphs.nodes import WIDE

MAX_NODES: Final = 20_000
"""Training tokens that principal components are fitted on."""
MEMORY_BYTES: Final = 2**30
"""Scaled graphs that stay in memory while networks are trained."""
_CONSTANT: Final = 1e-4
"""A deviation below this share of the largest value counts as none; division would blow rounding
up."""
_LIMIT: Final = 8.0
"""Standard deviations beyond which a feature counts as so far away."""


class InputScaler(nn.Module):
    """Standardises the inputs of a network, layer by layer.

    Node features get mean 0 and deviation 1, hidden states and other wide blocks become whitened
    principal components, and attention on edges gets root mean square 1, so that no attention stays 0.

    Args:
        wide: For each column of ``x`` the number of its wide block from 1 on, or 0; see :func:`wide_blocks`.
        edge_dim: Weights of an edge.
        n_layers: Layers that have graphs of their own.
        n_components: Principal components that stand for a wide block.
    """

    def __init__(
        self, wide: Shaped[np.ndarray, "column"], edge_dim: int, n_layers: int, n_components: int
    ) -> None:
        super().__init__()
        self.blocks = [int(number) for number in wide[wide > 0]]
        sizes = np.bincount(self.blocks, minlength=1)[1:].tolist()
        self.sizes = [min(n_components, size) for size in sizes]
        n_plain = len(wide) - len(self.blocks)
        self.plain_columns = nn.Buffer(torch.from_numpy(np.flatnonzero(wide == 0)))
        self.hidden_columns = nn.Buffer(torch.from_numpy(np.flatnonzero(wide)))
        self.mean = nn.Buffer(torch.zeros(n_layers, n_plain))
        self.deviation = nn.Buffer(torch.ones(n_layers, n_plain))
        self.edge_scale = nn.Buffer(torch.ones(n_layers, edge_dim))
        self.components = nn.Buffer(torch.zeros(len(self.blocks), sum(self.sizes)))
        self.shift = nn.Buffer(torch.zeros(sum(self.sizes)))

    @property
    def n_features(self) -> int:
        """Columns that a network gets."""
        return self.mean.shape[1] + self.components.shape[1]

    def fit(self, graphs: Iterable[Data], seed: int) -> "InputScaler":
        """Learn from training graphs; memory does not grow with their number.

        Args:
            graphs: Each with ``x``, ``edge_attr`` and ``layer_index``.
            seed: Of the principal components.
        """
        nodes = torch.zeros(len(self.mean), 3, self.mean.shape[1], dtype=torch.float64)
        edges = torch.zeros(len(self.mean), 2, self.edge_scale.shape[1], dtype=torch.float64)
        largest = torch.zeros_like(self.mean, dtype=torch.float64)
        hidden, n_kept = [], 0
        for data in graphs:
            plain = data.x.index_select(1, self.plain_columns).double()
            of_edge = data.layer_index[data.edge_index[1]]
            for layer in data.layer_index.unique().tolist():
                values, weights = plain[data.layer_index == layer], data.edge_attr[of_edge == layer]
                nodes[layer] += torch.stack([torch.ones_like(values), values, values**2]).sum(1)
                squares = weights.double() ** 2
                edges[layer] += torch.stack([torch.ones_like(squares), squares]).sum(1)
                largest[layer] = torch.maximum(largest[layer], values.abs().amax(0))
            if self.components.numel() and n_kept < MAX_NODES:
                hidden.append(data.x.index_select(1, self.hidden_columns))
                n_kept += len(hidden[-1])
        self._set(nodes, edges, largest)
        if hidden:
            self._set_components(torch.cat(hidden)[:MAX_NODES].numpy(), seed)
        return self

    def forward(self, batch: Any) -> Any:
        """A copy of a graph, or of a batch, with standardised ``x`` and ``edge_attr``."""
        layer = batch.layer_index
        plain = batch.x.index_select(1, self.plain_columns)
        plain = (plain - self.mean[layer]) / self.deviation[layer]
        hidden = batch.x.index_select(1, self.hidden_columns) @ self.components - self.shift
        scaled = copy.copy(batch)
        scaled.x = torch.cat([plain, hidden], dim=1).clamp(-_LIMIT, _LIMIT)
        scaled.edge_attr = batch.edge_attr / self.edge_scale[layer[batch.edge_index[1]]]
        return scaled

    def _set(self, nodes: Tensor, edges: Tensor, largest: Tensor) -> None:
        count, total, squares = nodes.unbind(1)
        mean = total / count.clamp(min=1)
        deviation = (squares / count.clamp(min=1) - mean**2).clamp(min=0).sqrt()
        is_constant = deviation <= _CONSTANT * largest
        self.mean.copy_(mean)
        self.deviation.copy_(torch.where(is_constant, 1.0, deviation))
        scale = (edges[:, 1] / edges[:, 0].clamp(min=1)).sqrt()
        self.edge_scale.copy_(torch.where(scale > 0, scale, 1.0))

    def _set_components(self, hidden: np.ndarray, seed: int) -> None:
        first = 0
        for number, size in enumerate(self.sizes, start=1):
            rows = np.flatnonzero(np.array(self.blocks) == number)
            values, n_components = hidden[:, rows], min(size, len(hidden))
            # exact and quick where there are fewer columns than tokens
            solver = "covariance_eigh" if len(rows) <= min(1024, len(hidden)) else "randomized"
            pca = PCA(n_components, whiten=True, svd_solver=solver, random_state=seed).fit(values)
            found = pca.components_.T / np.sqrt(pca.explained_variance_)
            columns = slice(first, first + n_components)
            self.components[torch.from_numpy(rows), columns] = torch.from_numpy(found).to(
                self.components.dtype
            )
            self.shift[columns] = torch.from_numpy(pca.mean_ @ found)
            first += size


class ScaledGraphs(Dataset[Data]):
    """Graphs with standardised inputs, so that no epoch projects hidden states again.

    They stay in memory up to :data:`MEMORY_BYTES`; further ones are scaled whenever they are read.

    Args:
        graphs: Graphs as they are built.
        scaler: Fitted.
    """

    def __init__(self, graphs: AttentionGraphs, scaler: InputScaler) -> None:
        self.graphs, self.scaler, self.bytes_left = graphs, scaler, MEMORY_BYTES
        self._kept: dict[int, Data] = {}

    def __len__(self) -> int:
        return len(self.graphs)

    def __getitem__(self, index: int) -> Data:
        """One graph, with ``x`` and ``edge_attr`` scaled."""
        if index in self._kept:
            return self._kept[index]
        scaled = self.scaler(self.graphs[index])
        n_bytes = scaled.x.nbytes + scaled.edge_attr.nbytes
        if n_bytes <= self.bytes_left:
            self.bytes_left -= n_bytes
            self._kept[index] = scaled
        return scaled


def wide_blocks(names: Sequence[str]) -> Int[np.ndarray, "column"]:
    """For each node feature the number of its wide block, in their order from 1 on; 0 for all others.

    Wide are hidden states and their shift, of one layer (``hidden@LAYER``) or of several, and ``heads``.
    """
    blocks = [name.rpartition(".")[0].rpartition(".")[2] for name in names]
    found = list(dict.fromkeys(block for block in blocks if block.partition("@")[0] in (*WIDE, "heads")))
    return np.array([found.index(block) + 1 if block in found else 0 for block in blocks], dtype=np.int64)
