"""All recorders of one replay, as the one observer that the capture feeds."""

from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from graphhalu.axes import RowRange
from graphhalu.extract.matrices import Edges, FixedAttention, FullAttention
from graphhalu.extract.recorders import (
    ArgmaxKey,
    Batch,
    Received,
    Recorder,
    RowEntropy,
    SelfAttention,
    SinkKeys,
    SpanMass,
    ValueNorm,
)

ROW_RECORDERS: Final[tuple[type[Recorder], ...]] = (
    SpanMass, SelfAttention, RowEntropy, ArgmaxKey, SinkKeys, Received, Edges, FullAttention,
    FixedAttention,
)  # fmt: skip
"""Recorders of attention rows; each says which arrays it keeps."""


class RecorderSet:
    """All recorders of one replay; the observer that the capture function feeds."""

    def __init__(self, batch: Batch, arrays: tuple[str, ...]) -> None:
        self.batch = batch
        self.row_recorders = [
            recorder(batch) for recorder in ROW_RECORDERS if set(recorder.names) & set(arrays)
        ]
        self.value_norm = ValueNorm(batch) if ValueNorm.name in arrays else None
        self.n_rows_seen: dict[int, int] = dict.fromkeys(batch.layer_position, 0)
        self.bad_layers: dict[int, int] = {}

    def wanted_rows(self, layer: int) -> RowRange | None:
        """The rows from the first that any sequence keeps, of the layers that are kept."""
        if layer not in self.batch.layer_position or not self.row_recorders:
            return None
        return RowRange(self.batch.first_row, self.batch.width)

    def rows(
        self, layer: int, row_start: int, weights: Float[Tensor, "trace head row key"]
    ) -> None:
        """Give a chunk of rows to every recorder; note traces whose weights are not finite."""
        position = self.batch.layer_position[layer]
        exact = weights.float()
        self._note_bad_rows(layer, row_start, exact)
        for recorder in self.row_recorders:
            recorder.rows(position, row_start, exact)
        self.n_rows_seen[layer] += exact.shape[2]

    def values(self, layer: int, value: Float[Tensor, "trace kv_head key channel"]) -> None:
        """Give the value vectors to the recorder of their norms."""
        position = self.batch.layer_position.get(layer)
        if position is not None and self.value_norm is not None:
            self.value_norm.values(position, value)

    def require_complete(self) -> None:
        """Every layer has shown every wanted row: what was not would be stored as noise."""
        expected = self.batch.width - self.batch.first_row if self.row_recorders else 0
        for layer, n_rows in self.n_rows_seen.items():
            assert n_rows == expected, f"layer {layer} showed {n_rows} of {expected} rows"
        if self.value_norm is not None:
            missing = self.batch.layer_position.keys() - self.value_norm.seen
            assert not missing, f"layers {missing} showed no values"

    def failure(self, index: int) -> str | None:
        """Why a trace failed, if its attention is not finite; names the first such layer."""
        if index not in self.bad_layers:
            return None
        return f"the attention of layer {self.bad_layers[index]} holds NaN or infinity"

    def trace_arrays(self, index: int) -> dict[str, np.ndarray]:
        """Every recorded array of one trace."""
        arrays: dict[str, np.ndarray] = {}
        for recorder in self.row_recorders:
            arrays |= recorder.trace_arrays(index)
        if self.value_norm is not None:
            arrays[self.value_norm.name] = self.value_norm.trace_array(index)
        return arrays

    def _note_bad_rows(
        self, layer: int, row_start: int, weights: Float[Tensor, "trace head row key"]
    ) -> None:
        if bool(torch.isfinite(weights.sum())):
            return
        for index, length in enumerate(self.batch.lengths):
            rows = weights[index, :, : max(0, length - row_start)]
            if not bool(torch.isfinite(rows).all()):
                self.bad_layers.setdefault(index, layer)
