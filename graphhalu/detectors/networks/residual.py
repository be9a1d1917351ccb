"""What messages between tokens add to a logit that is there already."""

from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from graphhalu.detectors.networks.base import NetworkShape, NetworkSize
from graphhalu.detectors.networks.batch import GraphBatch
from graphhalu.detectors.networks.gat import AttentionNetwork


@final
class ResidualNetwork(AttentionNetwork):
    """Rounds of attention in each layer, a recurrence over layers, attention over layers.

    It begins as zero for every trace: the last linear map starts at 0, so that training leaves
    the logit that it is added to as it is until messages say something about it.

    Args:
        shape: Sizes that the data give.
        size: Sizes that the user chooses.
        has_recurrence: Whether a gated recurrent unit carries the state of each token from layer
            to layer.
        has_layer_attention: Whether layers are weighed for each trace; else they count alike.

    Source:
        Our own. Gated recurrent unit: Cho et al. 2014, arXiv:1406.1078.
    """

    starts_as_is: ClassVar[bool] = True

    def __init__(
        self,
        shape: NetworkShape,
        size: NetworkSize | None = None,
        *,
        has_recurrence: bool = True,
        has_layer_attention: bool = True,
    ) -> None:
        super().__init__(shape, size)
        channels = self.size.hidden_size
        self.recurrence = nn.GRU(channels, channels) if has_recurrence else None
        self.weigh = nn.Linear(3 * channels, 1) if has_layer_attention else None
        last = self.head[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def read_out(
        self, answer: Float[Tensor, "readout channel"], batch: GraphBatch
    ) -> Float[Tensor, "graph trace"]:
        """One logit a trace, from all its layers together."""
        if self.recurrence is not None:
            of_layer = answer.view(batch.n_layers, -1, answer.shape[1])
            answer = (of_layer + self.recurrence(of_layer)[0]).flatten(0, 1)
        pooled = self.pooled(answer, batch).view(batch.n_layers, batch.n_traces, -1)
        if self.weigh is not None:
            pooled = pooled * torch.softmax(self.weigh(pooled), dim=0) * batch.n_layers
        logits: Float[Tensor, "graph trace"] = self.head(pooled.mean(0)).view(1, -1)
        return logits
