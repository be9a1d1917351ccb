"""Graph convolution over attention: one weight an edge, the mean over heads."""

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv

from graphhalu.detectors.networks.base import GraphNetwork, NetworkShape

_N_CONVOLUTIONS = 2


@final
class GCN(GraphNetwork):
    """Two graph convolutions with residuals.

    Source:
        Kipf and Welling 2017, arXiv:1609.02907. Different from it: edges are directed (key to
        query) and weighted by attention, so degrees are sums of incoming weights; residuals and
        layer norm keep the answer's own features.
    """

    def __init__(self, shape: NetworkShape, *, hidden_size: int = 32, dropout: float = 0.25):
        super().__init__(shape, hidden_size=hidden_size, dropout=dropout)
        self.convolutions = nn.ModuleList(
            GCNConv(hidden_size, hidden_size, normalize=False) for _ in range(_N_CONVOLUTIONS)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_size) for _ in range(_N_CONVOLUTIONS))

    def convolve(
        self, hidden: Float[Tensor, "node channel"], batch: Data
    ) -> Float[Tensor, "node channel"]:
        """Two convolutions with the same normalised weights."""
        edge_index, weight = normalised_edges(
            batch.edge_index, batch.edge_attr.mean(1), len(batch.x)
        )
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            message = torch.relu(convolution(hidden, edge_index, weight))
            hidden = norm(hidden + self.dropout(message))
        return hidden


def normalised_edges(
    edge_index: Int[Tensor, "2 edge"], weight: Float[Tensor, "edge"], n_nodes: int
) -> tuple[Int[Tensor, "2 looped"], Float[Tensor, "looped"]]:
    """Edges of ``D^-1/2 (A + I) D^-1/2``, where ``D`` sums the incoming weights of ``A + I``."""
    nodes = torch.arange(n_nodes, device=edge_index.device)
    looped = torch.cat([edge_index, nodes.expand(2, -1)], dim=1)
    weights = torch.cat([weight, weight.new_ones(n_nodes)])
    degree = weights.new_zeros(n_nodes).index_add_(0, looped[1], weights)
    inverse_root = degree.rsqrt()
    return looped, inverse_root[looped[0]] * weights * inverse_root[looped[1]]
