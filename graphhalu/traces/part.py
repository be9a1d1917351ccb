"""Parts of a store, and the arrays of their traces, read and checked when asked for.

A part is a fixed block of questions. Its files are compared with the commit record, since a missing
chunk of a Zarr array would be read as zeros.
"""

import json
import math
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
from jaxtyping import Int

from graphhalu.core.errors import CorruptStoreError
from graphhalu.core.files import MALFORMED, reason_of
from graphhalu.core.provenance import file_sha256
from graphhalu.traces.metadata import COMMIT, read_commit
from graphhalu.traces.schema import ARRAYS, RAGGED_AXES, RECORDS, TraceRecord, TraceShape, array_spec
from graphhalu.traces.storage import StorageBackend

CACHE_BYTES: Final = 384 * 2**20
"""Bytes of decoded chunks that an open store keeps."""


class Part:
    """A committed part, read when asked for.

    Args:
        folder: Its folder, or that of its mirror.
        shape: Sizes and meaning of the axes.
        backend: Storage of its store; fetches files that are not in the folder.

    Raises:
        CorruptStoreError: If its commit record is damaged; likewise whatever is read later.
    """

    def __init__(self, folder: Path, shape: TraceShape, backend: StorageBackend) -> None:
        self.folder = folder
        self.shape = shape
        self.backend = backend
        self._stamped = _stamp(folder)
        self.commit = read_commit(folder)
        self._arrays: dict[str, Any] = {}

    def is_current(self) -> bool:
        """Whether the commit record that was read is still the one of the folder."""
        return _stamp(self.folder) == self._stamped

    @cached_property
    def records(self) -> list[TraceRecord]:
        """The record of each trace."""
        # a text may hold characters that str.splitlines takes for the end of a line
        lines = self._read(RECORDS, ...).tobytes().split(b"\n")[:-1]
        try:
            found = [_record(json.loads(line)) for line in lines]
        except MALFORMED as error:
            raise self._corrupt(RECORDS, reason_of(error)) from error
        if tuple(record.trace_id for record in found) != self.commit.trace_ids:
            raise self._corrupt(RECORDS, "its traces are not those of the commit record")
        return found

    @cached_property
    def offsets(self) -> dict[str, Int[np.ndarray, "offset"]]:
        """Offsets of the traces on each ragged axis, with the end of the last one."""
        found: dict[str, np.ndarray] = {axis: self._read(f"{axis}_offsets", ...) for axis in RAGGED_AXES}
        for axis, values in found.items():
            is_rising = values.shape == (len(self.commit.trace_ids) + 1,) and not values[0]
            if values.dtype != np.int64 or not is_rising or (np.diff(values) < 0).any():
                raise self._corrupt(f"{axis}_offsets", "its numbers are not offsets of the traces")
        return found

    def read(self, name: str, first: int | slice | None = None, ragged: slice | None = None) -> np.ndarray:
        """A whole array in the stored number format, or some of it.

        The ragged axis is that of all traces of the part, one after another: see ``offsets``.

        Args:
            name: Name of the array.
            first: Entries of its first axis; by default all.
            ragged: Range of its ragged axis; by default all.
        """
        dim = array_spec(name).ragged_dim
        if ragged is None:
            return self._read(name, ... if first is None else first)
        if dim == 0:
            return self._read(name, ragged)
        entries = slice(None) if first is None else first
        return self._read(name, (entries, *[slice(None)] * (dim - 1), ragged))

    def read_chunk(self, name: str, first: int, ragged: int) -> np.ndarray:
        """One stored chunk by its place along the first and along the ragged axis."""
        spec, chunk = array_spec(name), self.chunk(name)
        place = [0] * len(chunk)
        place[0] = first
        place[spec.ragged_dim] = ragged
        index = tuple(
            slice(number * size, (number + 1) * size) for number, size in zip(place, chunk, strict=True)
        )
        return self._read(name, index, file=f"{name}/c/{'/'.join(map(str, place))}")

    def size(self, name: str) -> tuple[int, ...]:
        """Shape of an array of the part."""
        return tuple(self._open(name).shape)

    def chunk(self, name: str) -> tuple[int, ...]:
        """Shape of a chunk of an array of the part."""
        return tuple(self._open(name).chunks)

    def _read(self, name: str, index: Any, file: str | None = None) -> np.ndarray:
        array = self._open(name)
        self._require_whole(name, file)
        try:
            return np.asarray(array[index])
        except IndexError:
            raise
        except (*MALFORMED, RuntimeError) as error:
            raise self._corrupt(name, reason_of(error)) from error

    def _open(self, name: str) -> Any:
        if name not in self._arrays:
            self.backend.fetch(self.folder, self.commit, [f"{name}/zarr.json"])
            description = self._require_file(name, f"{name}/zarr.json")
            if file_sha256(description) != self.commit.files[f"{name}/zarr.json"]["sha256"]:
                raise self._corrupt(name, f"{name}/zarr.json differs from what was written")
            try:
                array = zarr.open_array(self.folder / name, mode="r", zarr_format=3)
                is_sound = self._is_sound(name, array)
            except CorruptStoreError:
                raise
            except (*MALFORMED, RuntimeError) as error:
                raise self._corrupt(name, reason_of(error)) from error
            if not is_sound:
                came = f"{array.dtype} {list(array.shape)} in chunks of {list(array.chunks)}"
                raise self._corrupt(name, f"its description cannot be: {came}")
            self._arrays[name] = array
        return self._arrays[name]

    def _is_sound(self, name: str, array: Any) -> bool:
        """Whether an array is as large as its traces and its files say; zarr takes any size."""
        chunks, shape = tuple(array.chunks), tuple(array.shape)
        if min(chunks, default=0) < 1 or min(shape, default=-1) < 0:
            return False
        n_stored = sum(file.startswith(f"{name}/c/") for file in self.commit.files)
        n_chunks = math.prod(-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True))
        if name not in ARRAYS:
            return n_chunks <= n_stored and len(shape) == 1
        spec = ARRAYS[name]
        expected = tuple(
            int(self.offsets[axis][-1]) if axis in RAGGED_AXES else self.shape.axis_size(axis)
            for axis in spec.axes
        )
        return n_chunks <= n_stored and shape == expected and array.dtype == np.dtype(spec.dtype)

    def _require_whole(self, name: str, file: str | None) -> None:
        """Refuse an array of which a chunk is missing: it would be read as zeros."""
        prefix = f"{name}/c/"
        chunks = [file] if file else [f for f in self.commit.files if f.startswith(prefix)]
        self.backend.fetch(self.folder, self.commit, chunks)
        for chunk in chunks:
            self._require_file(name, chunk)

    def _require_file(self, name: str, file: str) -> Path:
        if file not in self.commit.files:
            raise self._corrupt(name, f"the commit record does not list {file}")
        path, expected = self.folder / file, self.commit.files[file]["bytes"]
        size = path.stat().st_size if path.is_file() else None
        if size != expected:
            found = "missing" if size is None else f"{size} bytes long"
            raise self._corrupt(name, f"{file} is {found}, expected {expected} bytes")
        return path

    def _corrupt(self, name: str, reason: str) -> CorruptStoreError:
        store = self.backend.name
        return CorruptStoreError(
            f"array {name!r} of part {self.folder.name} in {store} "
            f"is damaged: {' '.join(reason.split())}\n"
            f"  See all damage:  graphhalu verify {store}\n"
            f"  Then remove {self.backend.record_of(self.folder)} and run the extraction again: "
            f"it does the part anew"
        )


class ChunkCache:
    """LRU cache of decoded chunks.

    Traces that lie side by side share chunks, so a walk over all traces decodes each chunk once.

    Args:
        limit_bytes: How much is kept; the last chunk stays even if it alone is larger.
    """

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.n_bytes = 0
        self._kept: OrderedDict[tuple[Path, str, int, int], np.ndarray] = OrderedDict()

    def get(self, part: Part, name: str, first: int, ragged: int) -> np.ndarray:
        """A chunk by its number along the first and along the ragged axis."""
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
    """An array of one trace of a store; slices along its first axis are read when asked for.

    Args:
        part: The part that holds the trace.
        name: Name of the array.
        place: Position of the trace within the part.
        cache: Decoded chunks of the store.
    """

    def __init__(self, part: Part, name: str, place: int, cache: ChunkCache) -> None:
        self.part, self.place = part, place
        self._name, self._cache = name, cache
        self._spec = array_spec(name)

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
        return int(offsets[self.place]), int(offsets[self.place + 1])

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


def _stamp(folder: Path) -> tuple[int, int]:
    """Inode and time of the commit record; they change when another one replaces it."""
    try:
        found = (folder / COMMIT).stat()
    except OSError:
        return (0, 0)
    return found.st_ino, found.st_mtime_ns


def _record(plain: dict[str, Any]) -> TraceRecord:
    return TraceRecord(**{k: v if k in ("metadata", "asked") else _tuples(v) for k, v in plain.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
