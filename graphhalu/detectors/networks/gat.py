"""Graph attention over attention: the heads of the language model are the features of an edge."""

from typing import Final, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GATv2Conv

from graphhalu.detectors.networks.base import GraphNetwork, NetworkShape

_N_CONVOLUTIONS: Final = 2
N_GAT_HEADS: Final = 4
"""Attention heads of the detector itself; they share the hidden channels."""


@final
class GAT(GraphNetwork):
    """Two GATv2 layers with residuals and layer norm.

    Source:
        Brody et al. 2022, arXiv:2105.14491. Different from it: edge features (the attention of
        every head of the layer, standardised) enter the attention logits, and a residual stands
        in place of self-loops.
    """

    def __init__(self, shape: NetworkShape, *, hidden_size: int = 32, dropout: float = 0.25):
        if hidden_size % N_GAT_HEADS:
            message = f"hidden_size must be a multiple of {N_GAT_HEADS}, got {hidden_size}"
            raise ValueError(message)
        super().__init__(shape, hidden_size=hidden_size, dropout=dropout)
        self.convolutions = nn.ModuleList(
            GATv2Conv(
                hidden_size,
                hidden_size // N_GAT_HEADS,
                heads=N_GAT_HEADS,
                edge_dim=shape.n_heads,
                add_self_loops=False,
            )
            for _ in range(_N_CONVOLUTIONS)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_size) for _ in range(_N_CONVOLUTIONS))

    def convolve(
        self, hidden: Float[Tensor, "node channel"], batch: Data
    ) -> Float[Tensor, "node channel"]:
        """Two layers of attention along the same edges."""
        edges = self.standardised_edges(batch)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            message = torch.nn.functional.elu(convolution(hidden, batch.edge_index, edges))
            hidden = norm(hidden + self.dropout(message))
        return hidden
