"""Where a block of traces reads its arrays: a part of a store, or memory."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from graphhalu.traces.part import Part
from graphhalu.traces.schema import array_spec
from graphhalu.traces.trace import Trace


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
