"""Recorders: what is kept of the attention rows that pass by.

Each recorder reduces a chunk of rows (in float32) and keeps the result of a whole batch in the
stored number format; afterwards it cuts out one trace without its padding.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from graphhalu.axes import N_SPANS
from graphhalu.numerics import n_pairs, triangle_size
from graphhalu.traces.schema import N_SINK_KEYS, TraceShape


@dataclass(frozen=True)
class Batch:
    """Sequences of one replay, padded on the right to a common length.

    Attributes:
        lengths: Tokens of each sequence without padding.
        row_starts: First query row that each sequence keeps.
        span_codes: Named span of each token, padding included (any value there).
        is_token: Which positions are tokens and not padding.
        layer_position: Model layer to its place on the stored layer axis.
    """

    lengths: tuple[int, ...]
    row_starts: tuple[int, ...]
    span_codes: Int[Tensor, "trace token"]
    is_token: Bool[Tensor, "trace token"]
    shape: TraceShape
    layer_position: dict[int, int]

    @property
    def width(self) -> int:
        """Tokens of the longest sequence."""
        return int(self.span_codes.shape[1])

    @property
    def size(self) -> int:
        """Number of sequences."""
        return len(self.lengths)


class Recorder(ABC):
    """Keeps one array of every trace of a batch."""

    name: str

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    @abstractmethod
    def rows(
        self, position: int, row_start: int, weights: Float[Tensor, "trace head row key"]
    ) -> None:
        """Take float32 weights of a chunk of rows of the layer at ``position``."""

    @abstractmethod
    def trace_array(self, index: int) -> Shaped[np.ndarray, "..."]:
        """The array of one trace in the stored number format, without padding."""


class _RowRecorder(Recorder):
    """Base of the recorders that keep ``[layer, head, row, …]``."""

    dtype = torch.float16
    trailing: tuple[int, ...] = ()

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch)
        n_layers, n_heads = len(batch.shape.attention_layers), batch.shape.n_heads
        size = (n_layers, batch.size, n_heads, batch.width, *self.trailing)
        self.kept = torch.empty(size, dtype=self.dtype)

    @abstractmethod
    def reduce(
        self, row_start: int, weights: Float[Tensor, "trace head row key"]
    ) -> Shaped[Tensor, "trace head row ..."]:
        """One value, or one short vector, a row."""

    def rows(
        self, position: int, row_start: int, weights: Float[Tensor, "trace head row key"]
    ) -> None:
        """Reduce the chunk and keep it."""
        stop = row_start + weights.shape[2]
        self.kept[position, :, :, row_start:stop] = self.reduce(row_start, weights)

    def trace_array(self, index: int) -> Shaped[np.ndarray, "layer head row ..."]:
        """Rows of one trace from its first kept row to its last token."""
        start, stop = self.batch.row_starts[index], self.batch.lengths[index]
        return np.ascontiguousarray(self.kept[:, index, :, start:stop].numpy())


class SpanMass(_RowRecorder):
    """Attention of a row summed over each named span."""

    name = "span_mass"
    trailing = (N_SPANS,)

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch)
        one_hot = torch.nn.functional.one_hot(batch.span_codes.long(), N_SPANS).float()
        self.is_span = one_hot[:, None]

    def reduce(
        self, row_start: int, weights: Float[Tensor, "trace head row key"]
    ) -> Float[Tensor, "trace head row span"]:
        """Weights times the membership of each key."""
        return weights @ self.is_span


class SelfAttention(_RowRecorder):
    """Attention of a row to its own token."""

    name = "self_attention"

    def reduce(
        self, row_start: int, weights: Float[Tensor, "trace head row key"]
    ) -> Float[Tensor, "trace head row"]:
        """The diagonal of the chunk."""
        return weights.diagonal(offset=row_start, dim1=2, dim2=3)


class RowEntropy(_RowRecorder):
    """Entropy of a row in nat."""

    name = "row_entropy"

    def reduce(
        self, row_start: int, weights: Float[Tensor, "trace head row key"]
    ) -> Float[Tensor, "trace head row"]:
        """Sum of ``-p ln p``; a weight of 0 adds nothing."""
        return torch.special.entr(weights).sum(-1)


class ArgmaxKey(_RowRecorder):
    """Key position of a row's largest weight; the first of equals."""

    name = "argmax_key"
    dtype = torch.int32

    def reduce(
        self, row_start: int, weights: Float[Tensor, "trace head row key"]
    ) -> Int[Tensor, "trace head row"]:
        """Position of the maximum."""
        return weights.argmax(-1).to(torch.int32)


class SinkKeys(_RowRecorder):
    """Attention of a row to each of the first tokens of the sequence."""

    name = "sink_keys"
    trailing = (N_SINK_KEYS,)

    def reduce(
        self, row_start: int, weights: Float[Tensor, "trace head row key"]
    ) -> Float[Tensor, "trace head row sink_key"]:
        """The first columns; a sequence shorter than that has zeros beyond its end."""
        first = weights[..., :N_SINK_KEYS]
        return torch.nn.functional.pad(first, (0, N_SINK_KEYS - first.shape[-1]))


class Received(Recorder):
    """Attention that a key received, summed over the kept rows."""

    name = "received"

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch)
        n_layers, n_heads = len(batch.shape.attention_layers), batch.shape.n_heads
        self.kept = torch.zeros(n_layers, batch.size, n_heads, batch.width)
        rows = torch.arange(batch.width, device=batch.is_token.device)
        starts = torch.tensor(batch.row_starts, device=batch.is_token.device)
        self.is_kept_row = (batch.is_token & (rows >= starts[:, None])).float()

    def rows(
        self, position: int, row_start: int, weights: Float[Tensor, "trace head row key"]
    ) -> None:
        """Add the chunk's rows, padding rows left out."""
        stop = row_start + weights.shape[2]
        is_kept = self.is_kept_row[:, None, None, row_start:stop]
        self.kept[position] += (is_kept @ weights)[:, :, 0].cpu()

    def trace_array(self, index: int) -> Float[np.ndarray, "layer head token"]:
        """Column sums of one trace."""
        return np.ascontiguousarray(self.kept[:, index, :, : self.batch.lengths[index]].numpy())


class FullAttention(Recorder):
    """The complete causal rows, packed one after another, in float16."""

    name = "attention"

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch)
        n_layers, n_heads = len(batch.shape.attention_layers), batch.shape.n_heads
        self.kept = [
            np.empty((n_layers, n_heads, n_pairs(length, start)), dtype=np.float16)
            for length, start in zip(batch.lengths, batch.row_starts, strict=True)
        ]

    def rows(
        self, position: int, row_start: int, weights: Float[Tensor, "trace head row key"]
    ) -> None:
        """Pack the chunk's rows of every trace; rows of padding are dropped."""
        half = weights.to(torch.float16).cpu().numpy()
        for index, (length, first_row) in enumerate(
            zip(self.batch.lengths, self.batch.row_starts, strict=True)
        ):
            start = max(row_start, first_row)
            stop = min(row_start + half.shape[2], length)
            if start >= stop:
                continue
            rows, keys = np.tril_indices(stop - start, k=start, m=stop)
            begin = triangle_size(start) - triangle_size(first_row)
            chunk = half[index][:, rows + (start - row_start), keys]
            self.kept[index][position, :, begin : begin + len(rows)] = chunk

    def trace_array(self, index: int) -> Shaped[np.ndarray, "layer head pair"]:
        """The packed rows of one trace."""
        return self.kept[index]


class ValueNorm:
    """Euclidean norm of each value vector; fed by values, not by rows."""

    name: Final = "value_norm"

    def __init__(self, batch: Batch) -> None:
        n_layers, n_heads = len(batch.shape.attention_layers), batch.shape.n_kv_heads
        self.batch = batch
        self.kept = torch.empty(n_layers, batch.size, n_heads, batch.width, dtype=torch.float16)

    def values(self, position: int, value: Float[Tensor, "trace kv_head key channel"]) -> None:
        """Take the value vectors of the layer at ``position``."""
        self.kept[position] = value.float().norm(dim=-1)

    def trace_array(self, index: int) -> Shaped[np.ndarray, "layer kv_head token"]:
        """Norms of one trace."""
        return np.ascontiguousarray(self.kept[:, index, :, : self.batch.lengths[index]].numpy())


ROW_RECORDERS: Final[dict[str, type[Recorder]]] = {
    recorder.name: recorder
    for recorder in (
        SpanMass, SelfAttention, RowEntropy, ArgmaxKey, SinkKeys, Received, FullAttention,
    )
}  # fmt: skip
"""Recorders of attention rows by the name of the array that they keep."""


class RecorderSet:
    """All recorders of one replay; the observer that the capture function feeds."""

    def __init__(self, batch: Batch, arrays: tuple[str, ...]) -> None:
        self.batch = batch
        self.row_recorders = [
            ROW_RECORDERS[name](batch) for name in arrays if name in ROW_RECORDERS
        ]
        self.value_norm = ValueNorm(batch) if ValueNorm.name in arrays else None
        self.n_rows_seen: dict[int, int] = dict.fromkeys(batch.layer_position, 0)
        self.bad_layers: dict[int, int] = {}

    def rows(
        self, layer: int, row_start: int, weights: Float[Tensor, "trace head row key"]
    ) -> None:
        """Give a chunk of rows to every recorder; note traces whose weights are not finite."""
        position = self.batch.layer_position.get(layer)
        if position is None:
            return
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

    def trace_arrays(self, index: int) -> dict[str, np.ndarray]:
        """Every recorded array of one trace."""
        arrays = {recorder.name: recorder.trace_array(index) for recorder in self.row_recorders}
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
