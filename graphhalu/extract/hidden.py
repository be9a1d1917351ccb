"""Hidden states of a batch in the stored number format."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt16
from torch import Tensor

from graphhalu.traces.schema import TraceShape


class HiddenStates:
    """The kept hidden states of a batch, as bfloat16 bits.

    Args:
        states: What the model gave for each of its hidden states; emptied while it is read, so
            that float32 and bfloat16 of all layers never exist together. ``None`` keeps nothing.
        shape: Which of them are kept.
        lengths: Tokens of each sequence without padding.
    """

    def __init__(
        self, states: list[Tensor | None] | None, shape: TraceShape, lengths: Sequence[int]
    ) -> None:
        self._bad: dict[int, int] = {}
        self._kept: list[np.ndarray] = []
        if states is None:
            return
        n_layers, n_features = len(shape.hidden_layers), shape.hidden_size
        self._kept = [np.empty((n_layers, n, n_features), dtype=np.uint16) for n in lengths]
        for place, layer in enumerate(shape.hidden_layers):
            state, states[layer] = states[layer], None
            assert state is not None, f"the model gave no hidden states of layer {layer}"
            self._take(place, layer, state)

    def failure(self, index: int) -> str | None:
        """Why a sequence failed, if its hidden states are not finite; names the first layer."""
        if index not in self._bad:
            return None
        return f"the hidden states after layer {self._bad[index]} hold NaN or infinity"

    def trace_arrays(
        self, index: int
    ) -> dict[str, UInt16[np.ndarray, "hidden_layer token feature"]]:
        """The hidden states of one sequence, if any are kept."""
        return {"hidden": self._kept[index]} if self._kept else {}

    def _take(self, place: int, layer: int, state: Tensor) -> None:
        for index, kept in enumerate(self._kept):
            own = state[index, : kept.shape[1]]
            # the sum is cheap and catches all but an overflow of the sum itself
            if not bool(torch.isfinite(own.sum())) and not bool(torch.isfinite(own).all()):
                self._bad.setdefault(index, layer)
            kept[place] = own.to(torch.bfloat16).view(torch.uint16).cpu().numpy()
