"""Hidden states of a batch in the stored number format."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from graphhalu.axes import RowRange
from graphhalu.extract.sequence import TokenSequence
from graphhalu.traces.schema import TraceShape


class HiddenStates:
    """The kept hidden states of a batch, as bfloat16 bits.

    Args:
        arrays: Names of the arrays to keep: ``hidden`` has all tokens, ``hidden_rows`` those of
            the kept rows; others are passed over.
        states: What the model gave for each of its hidden states; emptied while it is read, so
            that float32 and bfloat16 of all layers never exist together. ``None`` keeps nothing.
        shape: Which of them are kept.
        sequences: The batch.
    """

    def __init__(
        self,
        arrays: Sequence[str],
        states: list[Tensor | None] | None,
        shape: TraceShape,
        sequences: Sequence[TokenSequence],
    ) -> None:
        self._bad: dict[int, int] = {}
        self._kept: list[dict[str, np.ndarray]] = [{} for _ in sequences]
        if states is None:
            return
        self._tokens = [
            {
                name: RowRange(start, sequence.length)
                for name, start in (("hidden", 0), ("hidden_rows", sequence.row_start))
                if name in arrays
            }
            for sequence in sequences
        ]
        n_layers, n_features = len(shape.hidden_layers), shape.hidden_size
        self._kept = [
            {
                name: np.empty((n_layers, stop - start, n_features), dtype=np.uint16)
                for name, (start, stop) in tokens.items()
            }
            for tokens in self._tokens
        ]
        for place, layer in enumerate(shape.hidden_layers):
            state, states[layer] = states[layer], None
            assert state is not None, f"the model gave no hidden states of layer {layer}"
            self._take(place, layer, state)

    def failure(self, index: int) -> str | None:
        """Why a sequence failed, if its hidden states are not finite; names the first layer."""
        if index not in self._bad:
            return None
        return f"the hidden states after layer {self._bad[index]} hold NaN or infinity"

    def trace_arrays(self, index: int) -> dict[str, np.ndarray]:
        """The hidden states of one sequence, if any are kept."""
        return self._kept[index]

    def _take(self, place: int, layer: int, state: Tensor) -> None:
        for index, tokens in enumerate(self._tokens):
            for name, (start, stop) in tokens.items():
                own = state[index, start:stop]
                # the sum is cheap and catches all but an overflow of the sum itself
                if not bool(torch.isfinite(own.sum())) and not bool(torch.isfinite(own).all()):
                    self._bad.setdefault(index, layer)
                bits = own.to(torch.bfloat16).view(torch.uint16)
                self._kept[index][name][place] = bits.cpu().numpy()
