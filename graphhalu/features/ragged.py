"""Arrays of several traces, one after another along their ragged axis: reading and reductions."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from graphhalu.core.numerics import ragged_offsets
from graphhalu.traces.part import Part
from graphhalu.traces.schema import array_spec
from graphhalu.traces.trace import Trace


@dataclass(frozen=True)
class Ragged:
    """One ragged axis: where each trace's items lie.

    Attributes:
        offsets: Start of each trace, and the end of the last.
    """

    offsets: Int[np.ndarray, "offset"]

    @property
    def lengths(self) -> Int[np.ndarray, "trace"]:
        """Items of each trace."""
        return np.diff(self.offsets)

    @cached_property
    def trace(self) -> Int[np.ndarray, "item"]:
        """Trace of each item, counted within the block."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @cached_property
    def position(self) -> Int[np.ndarray, "item"]:
        """Place of each item among the items of its trace."""
        return np.arange(self.offsets[-1]) - self.offsets[self.trace]

    def among(self, chosen: Bool[np.ndarray, "item"] | Int[np.ndarray, "chosen"]) -> "Ragged":
        """The axis of some of the items: a mask, or their places in order."""
        counts = np.bincount(self.trace[chosen], minlength=len(self.lengths))
        return Ragged(ragged_offsets(counts))

    def sum(self, values: Shaped[np.ndarray, "*axes item"]) -> Float[np.ndarray, "trace *axes"]:
        """Sum over the items of each trace, in float64; 0 for a trace without items."""
        total = np.zeros((*values.shape[:-1], len(self.lengths)))
        filled = np.flatnonzero(self.lengths)
        if filled.size:
            starts = self.offsets[filled]
            total[..., filled] = np.add.reduceat(values, starts, axis=-1, dtype=np.float64)
        return np.moveaxis(total, -1, 0)

    def mean(
        self,
        values: Float[np.ndarray, "*axes item"],
        is_counted: Bool[np.ndarray, "*counted item"] | None = None,
    ) -> Float[np.ndarray, "trace *axes"]:
        """Mean over the counted items of each trace; NaN where none counts.

        Args:
            values: What is averaged; what is not counted may be anything, NaN included.
            is_counted: Which items count, broadcast against the values; by default all.
        """
        if is_counted is None or is_counted.all():
            total, count = self.sum(values), self.lengths.reshape(-1, *[1] * (values.ndim - 1))
        else:
            total = self.sum(np.where(is_counted, values, values.dtype.type(0)))
            wide = is_counted.reshape((1,) * (values.ndim - is_counted.ndim) + is_counted.shape)
            count = self.sum(wide)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    def std(
        self,
        values: Float[np.ndarray, "*axes item"],
        is_counted: Bool[np.ndarray, "*counted item"] | None = None,
    ) -> Float[np.ndarray, "trace *axes"]:
        """Population standard deviation of the counted items; NaN where none counts."""
        centre = np.moveaxis(self.mean(values, is_counted), 0, -1)
        # what is not counted may be infinite, and so may its distance
        with np.errstate(invalid="ignore"):
            distance = np.square(values - centre[..., self.trace])
        return np.sqrt(self.mean(distance, is_counted))

    def max(
        self,
        values: Float[np.ndarray, "*axes item"],
        is_counted: Bool[np.ndarray, "*counted item"] | None = None,
    ) -> Float[np.ndarray, "trace *axes"]:
        """Largest counted item of each trace; NaN where none counts."""
        if is_counted is None:
            is_counted = np.ones(values.shape[-1], dtype=bool)
        largest = np.full((*values.shape[:-1], len(self.lengths)), -np.inf)
        filled = np.flatnonzero(self.lengths)
        if filled.size:
            counted = np.where(is_counted, values, -np.inf)
            largest[..., filled] = np.maximum.reduceat(counted, self.offsets[filled], axis=-1)
        return np.moveaxis(np.where(np.isneginf(largest), np.nan, largest), -1, 0)


@runtime_checkable
class BlockArrays(Protocol):
    """Where a block reads its arrays, ragged axes concatenated."""

    def names(self) -> tuple[str, ...]:
        """Arrays that are there."""

    def read(self, name: str, first: int | None = None) -> np.ndarray:
        """An array in the stored number format, or one entry of its first axis."""


@dataclass(frozen=True)
class PartArrays:
    """Arrays of neighbouring traces of a part of a store.

    Attributes:
        part: The part.
        kept: Arrays that the store keeps.
        first: Place of the first trace within the part.
        last: Place behind the last one.
        is_member: Which of the traces between them are meant; by default all.
    """

    part: Part
    kept: tuple[str, ...]
    first: int
    last: int
    is_member: tuple[bool, ...] | None = None

    def names(self) -> tuple[str, ...]:
        """Arrays that are there."""
        return self.kept

    def read(self, name: str, first: int | None = None) -> np.ndarray:
        """As :meth:`BlockArrays.read`."""
        offsets = self.part.offsets[array_spec(name).ragged_axis]
        start, stop = int(offsets[self.first]), int(offsets[self.last])
        is_whole = stop - start == int(offsets[-1])
        values = self.part.read(name, first, None if is_whole else slice(start, stop))
        if self.is_member is None:
            return values
        lengths = np.diff(offsets[self.first : self.last + 1])
        dim = array_spec(name).ragged_dim - (first is not None)
        return np.compress(np.repeat(self.is_member, lengths), values, axis=dim)


@dataclass(frozen=True)
class MemoryArrays:
    """Arrays of traces in memory, put one after another when asked for."""

    traces: tuple[Trace, ...]

    def names(self) -> tuple[str, ...]:
        """Arrays that every trace has."""
        return tuple(n for n in self.traces[0].arrays if all(n in t.arrays for t in self.traces))

    def read(self, name: str, first: int | None = None) -> np.ndarray:
        """As :meth:`BlockArrays.read`."""
        dim = array_spec(name).ragged_dim
        if first is None:
            return np.concatenate([t.arrays[name][:] for t in self.traces], axis=dim)
        return np.concatenate([t.arrays[name][first] for t in self.traces], axis=dim - 1)
