"""Lazy arrays: the share that one trace has of the arrays of its part, decoded when asked for."""

from collections import OrderedDict
from pathlib import Path
from typing import Final

import numpy as np

from graphhalu.traces.part import Part
from graphhalu.traces.schema import array_spec

CACHE_BYTES: Final = 384 * 2**20
"""Decoded chunks that an open store keeps."""


class ChunkCache:
    """Decoded chunks; the one that was used the longest ago is let go first.

    Traces that lie side by side share chunks, so a walk over all traces decodes each chunk once.

    Args:
        limit_bytes: How much is kept; the last chunk stays even if it alone is larger.
    """

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.n_bytes = 0
        self._kept: OrderedDict[tuple[Path, str, int, int], np.ndarray] = OrderedDict()

    def get(self, part: Part, name: str, first: int, ragged: int) -> np.ndarray:
        """A chunk by its place along the first and along the ragged axis."""
        key = (part.folder, name, first, ragged)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        values = part.read_chunk(name, first, ragged)
        self._kept[key] = values
        self.n_bytes += values.nbytes
        while self.n_bytes > self.limit_bytes and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self.n_bytes -= dropped.nbytes
        return values


class LazyArray:
    """An array of one trace; satisfies :class:`graphhalu.traces.trace.StoredArray`.

    Args:
        part: The part that holds the trace.
        name: Name of the array.
        place: Place of the trace within the part.
        cache: Where decoded chunks are kept.
        n_traces: How many traces from ``place`` on, their ragged axes one after another.
    """

    def __init__(self, part: Part, name: str, place: int, cache: ChunkCache, n_traces: int = 1) -> None:
        self.part, self.place, self.n_traces = part, place, n_traces
        self._name, self._cache = name, cache
        self._spec = array_spec(name)

    def joined(self, n_traces: int) -> "LazyArray":
        """The same array of this trace and of those behind it in its part, in one piece."""
        return LazyArray(self.part, self._name, self.place, self._cache, n_traces)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes of this trace."""
        sizes = list(self.part.size(self._name))
        start, stop = self._range()
        sizes[self._spec.ragged_dim] = stop - start
        return tuple(sizes)

    def __getitem__(self, index: int | slice) -> np.ndarray:
        """Entries along the first axis; a copy, so that nobody can change what is cached."""
        if self._spec.ragged_dim == 0:
            return np.asarray(self._window(0, 1)[index])
        if not isinstance(index, slice):
            first = range(self.shape[0])[index]
            return np.asarray(self._window(first, first + 1)[0])
        wanted = range(self.shape[0])[index]
        if not wanted:
            return self._window(0, 0)
        low = min(wanted)
        window = self._window(low, max(wanted) + 1)
        return window if wanted.step == 1 else window[[entry - low for entry in wanted]]

    def _range(self) -> tuple[int, int]:
        offsets = self.part.offsets[self._spec.ragged_axis]
        return int(offsets[self.place]), int(offsets[self.place + self.n_traces])

    def _window(self, low: int, high: int) -> np.ndarray:
        """Entries ``low … high - 1`` of the first axis, put together from chunks."""
        start, stop = self._range()
        chunk, dim = self.part.chunk(self._name), self._spec.ragged_dim
        sizes = list(self.shape)
        if dim:
            sizes[0] = high - low
        window = np.empty(sizes, dtype=self._spec.dtype)
        firsts = _pieces(low, high, chunk[0]) if dim else [(0, slice(None), slice(None))]
        for first, first_from, first_to in firsts:
            for ragged, ragged_from, ragged_to in _pieces(start, stop, chunk[dim]):
                values = self._cache.get(self.part, self._name, first, ragged)
                window[_index(dim, first_to, ragged_to)] = values[_index(dim, first_from, ragged_from)]
        return window


def _pieces(start: int, stop: int, size: int) -> list[tuple[int, slice, slice]]:
    """Chunks that ``start … stop`` touches: which one, where in the chunk, where in the window."""
    pieces = []
    for chunk in range(start // size, -(-stop // size) if stop > start else start // size):
        low, high = max(start, chunk * size), min(stop, (chunk + 1) * size)
        within = slice(low - chunk * size, high - chunk * size)
        pieces.append((chunk, within, slice(low - start, high - start)))
    return pieces


def _index(dim: int, first: slice, ragged: slice) -> tuple[slice, ...]:
    return (ragged,) if dim == 0 else (first, *[slice(None)] * (dim - 1), ragged)
