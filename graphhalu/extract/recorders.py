"""Recorders: what is kept of the attention rows that pass by.

Each recorder reduces a chunk of rows (in float32) and keeps the result of a whole batch in the
stored number format; afterwards it cuts out one trace without its padding. The keys of a chunk
end at its last row or behind it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from graphhalu.axes import N_SPANS
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
        edge_mass: Share of a row after which no more of its edges are kept, or ``None``.
    """

    lengths: tuple[int, ...]
    row_starts: tuple[int, ...]
    span_codes: Int[Tensor, "trace token"]
    is_token: Bool[Tensor, "trace token"]
    shape: TraceShape
    layer_position: dict[int, int]
    edge_mass: float | None = None

    @property
    def first_row(self) -> int:
        """First row that any sequence keeps."""
        return min(self.row_starts)

    @property
    def width(self) -> int:
        """Tokens of the longest sequence."""
        return int(self.span_codes.shape[1])

    @property
    def size(self) -> int:
        """Number of sequences."""
        return len(self.lengths)


class Recorder(ABC):
    """Keeps one array of every trace of a batch, or a few that are made together."""

    names: tuple[str, ...]

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    @abstractmethod
    def rows(
        self, position: int, row_start: int, weights: Float[Tensor, "trace head row key"]
    ) -> None:
        """Take float32 weights of a chunk of rows of the layer at ``position``."""

    @abstractmethod
    def trace_arrays(self, index: int) -> dict[str, np.ndarray]:
        """The arrays of one trace in the stored number format, without padding."""

    def empty_rows(self, *trailing: int, dtype: torch.dtype) -> Tensor:
        """Room for ``[layer, trace, head, row, …]`` of the rows that are kept."""
        n_layers, n_heads = len(self.batch.shape.attention_layers), self.batch.shape.n_heads
        n_rows = self.batch.width - self.batch.first_row
        return torch.empty(n_layers, self.batch.size, n_heads, n_rows, *trailing, dtype=dtype)

    def cut_rows(self, kept: Tensor, index: int) -> Shaped[np.ndarray, "layer head row ..."]:
        """Rows of one trace from its first kept row to its last token."""
        first = self.batch.first_row
        start, stop = self.batch.row_starts[index] - first, self.batch.lengths[index] - first
        return np.ascontiguousarray(kept[:, index, :, start:stop].numpy())


class _RowRecorder(Recorder):
    """Base of the recorders that keep ``[layer, head, row, …]``."""

    dtype = torch.float16
    trailing: tuple[int, ...] = ()

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch)
        self.kept = self.empty_rows(*self.trailing, dtype=self.dtype)

    @abstractmethod
    def reduce(
        self, row_start: int, weights: Float[Tensor, "trace head row key"]
    ) -> Shaped[Tensor, "trace head row ..."]:
        """One value, or one short vector, a row."""

    def rows(
        self, position: int, row_start: int, weights: Float[Tensor, "trace head row key"]
    ) -> None:
        """Reduce the chunk and keep it."""
        start = row_start - self.batch.first_row
        stop = start + weights.shape[2]
        self.kept[position, :, :, start:stop] = self.reduce(row_start, weights)

    def trace_arrays(self, index: int) -> dict[str, np.ndarray]:
        """The one array of one trace."""
        return {self.names[0]: self.cut_rows(self.kept, index)}


class SpanMass(_RowRecorder):
    """Attention of a row summed over each named span."""

    names = ("span_mass",)
    trailing = (N_SPANS,)

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch)
        one_hot = nn.functional.one_hot(batch.span_codes.long(), N_SPANS).float()
        self.is_span = one_hot[:, None]

    def reduce(
        self, row_start: int, weights: Float[Tensor, "trace head row key"]
    ) -> Float[Tensor, "trace head row span"]:
        """Weights times the membership of each key."""
        return weights @ self.is_span[:, :, : weights.shape[-1]]


class SelfAttention(_RowRecorder):
    """Attention of a row to its own token."""

    names = ("self_attention",)

    def reduce(
        self, row_start: int, weights: Float[Tensor, "trace head row key"]
    ) -> Float[Tensor, "trace head row"]:
        """The diagonal of the chunk."""
        return weights.diagonal(offset=row_start, dim1=2, dim2=3)


_TINY: Final = torch.finfo(torch.float32).tiny


class RowEntropy(_RowRecorder):
    """Entropy of a row in nat."""

    names = ("row_entropy",)

    def reduce(
        self, row_start: int, weights: Float[Tensor, "trace head row key"]
    ) -> Float[Tensor, "trace head row"]:
        """Sum of ``-p ln p``; a weight of 0 adds nothing."""
        # a weight of 0 times a finite logarithm is 0; torch.special.entr takes three times as long
        return -(weights * weights.clamp_min(_TINY).log_()).sum(-1)


class ArgmaxKey(_RowRecorder):
    """Key position of a row's largest weight; the first of equals."""

    names = ("argmax_key",)
    dtype = torch.int32

    def reduce(
        self, row_start: int, weights: Float[Tensor, "trace head row key"]
    ) -> Int[Tensor, "trace head row"]:
        """Position of the maximum."""
        return weights.argmax(-1).to(torch.int32)


class SinkKeys(_RowRecorder):
    """Attention of a row to each of the first tokens of the sequence."""

    names = ("sink_keys",)
    trailing = (N_SINK_KEYS,)

    def reduce(
        self, row_start: int, weights: Float[Tensor, "trace head row key"]
    ) -> Float[Tensor, "trace head row sink_key"]:
        """The first columns; a sequence shorter than that has zeros beyond its end."""
        first = weights[..., :N_SINK_KEYS]
        return nn.functional.pad(first, (0, N_SINK_KEYS - first.shape[-1]))


class Received(Recorder):
    """Attention that a key received, summed over the kept rows."""

    names = ("received",)

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
        sums = (is_kept @ weights)[:, :, 0]
        self.kept[position, ..., : sums.shape[-1]] += sums.cpu()

    def trace_arrays(self, index: int) -> dict[str, np.ndarray]:
        """Column sums of one trace."""
        own = self.kept[:, index, :, : self.batch.lengths[index]]
        return {"received": np.ascontiguousarray(own.numpy())}


class ValueNorm:
    """Euclidean norm of each value vector; fed by values, not by rows."""

    name: Final = "value_norm"

    def __init__(self, batch: Batch) -> None:
        n_layers, n_heads = len(batch.shape.attention_layers), batch.shape.n_kv_heads
        self.batch = batch
        self.kept = torch.empty(n_layers, batch.size, n_heads, batch.width, dtype=torch.float16)
        self.seen: set[int] = set()

    def values(self, position: int, value: Float[Tensor, "trace kv_head key channel"]) -> None:
        """Take the value vectors of the layer at ``position``."""
        norms = value.float().norm(dim=-1)
        assert norms.shape[1] == self.kept.shape[2], f"{norms.shape[1]} heads of values"
        self.kept[position] = norms
        self.seen.add(self.batch.shape.attention_layers[position])

    def trace_array(self, index: int) -> Shaped[np.ndarray, "layer kv_head token"]:
        """Norms of one trace."""
        return np.ascontiguousarray(self.kept[:, index, :, : self.batch.lengths[index]].numpy())
