"""Graph attention over attention: the heads of the language model are the features of an edge."""

from typing import Final, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from graphhalu.detectors.networks.base import NetworkShape, NetworkSize, ReadoutNetwork
from graphhalu.detectors.networks.batch import GraphBatch
from graphhalu.detectors.networks.edge_attention import EdgeAttention

N_GAT_HEADS: Final = 4
"""Attention heads of the detector itself; they share the hidden channels."""


class AttentionNetwork(ReadoutNetwork):
    """Rounds of GATv2 with residuals and layer norm.

    Source:
        Brody et al. 2022, arXiv:2105.14491. Different from it: edge features (the attention of
        every head of the layer, standardised) enter the attention logits, and a residual stands
        in place of self-loops.
    """

    def __init__(self, shape: NetworkShape, size: NetworkSize | None = None) -> None:
        size = size or NetworkSize()
        if size.hidden_size % N_GAT_HEADS:
            message = f"hidden_size must be a multiple of {N_GAT_HEADS}, got {size.hidden_size}"
            raise ValueError(message)
        super().__init__(shape, size, reads_edges=True)
        self.convolutions = nn.ModuleList(
            EdgeAttention(size.hidden_size, shape.n_channels, N_GAT_HEADS)
            for _ in range(size.n_convolutions)
        )

    def convolve(
        self, hidden: Float[Tensor, "row channel"], batch: GraphBatch
    ) -> Float[Tensor, "readout channel"]:
        """Rounds of attention, each for the rows that the next one needs."""
        assert self.edge_standard is not None
        for left, convolution, norm in zip(
            reversed(range(len(self.norms))), self.convolutions, self.norms, strict=True
        ):
            hop = batch.hop(left)
            message = torch.nn.functional.elu(convolution(hidden, hop, self.edge_standard))
            hidden = norm(hidden[: hop.n_targets] + self.dropout(message))
        return hidden


@final
class GAT(AttentionNetwork):
    """Rounds of attention, then one logit a layer."""
