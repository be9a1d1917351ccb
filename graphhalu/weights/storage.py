"""One stored tensor: what it is, and how its rows are read as float32."""

import math
import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, UInt8

from graphhalu.errors import DataFileError
from graphhalu.safe_read import reading

CHUNK_BYTES: Final = 2**24
"""Float32 bytes that a chunk of rows has, about."""

Load = Callable[[int, int], np.ndarray]
"""Rows ``start … stop - 1`` of the first axis, as float32."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, not yet read.

    Attributes:
        name: As the file calls it.
        shape: Sizes of its axes, rows (outputs) first.
        storage: How its values are stored: ``F16``, ``Q4_K``, ``nf4`` …
        n_bytes: Bytes in the file.
        load: Reads some of its rows.
    """

    name: str
    shape: tuple[int, ...]
    storage: str
    n_bytes: int
    load: Load

    @property
    def n_values(self) -> int:
        """How many numbers it holds."""
        # numpy's product would start again at 0 where 64 bits are too few
        return math.prod(self.shape)

    def read(self) -> Float32[np.ndarray, "..."]:
        """All of it; rows are read chunk by chunk, so that nothing else of its size is held."""
        if len(self.shape) < 2:  # noqa: PLR2004
            return self.load(0, self.shape[0] if self.shape else 1)
        whole = np.empty(self.shape, dtype=np.float32)
        start = 0
        for chunk in self.chunks():
            whole[start : start + len(chunk)] = chunk
            start += len(chunk)
        return whole

    def chunks(self, n_bytes: int = CHUNK_BYTES) -> Iterator[Float32[np.ndarray, "..."]]:
        """Rows in order, about ``n_bytes`` of float32 at a time."""
        n_rows = self.shape[0]
        step = max(1, n_bytes * n_rows // max(1, 4 * self.n_values))
        for start in range(0, n_rows, step):
            yield self.load(start, min(start + step, n_rows))


@dataclass(frozen=True)
class WeightFiles:
    """The tensors of a model on disk.

    Attributes:
        path: Folder or file.
        kind: ``safetensors`` or ``gguf``.
        tensors: By the names of the file.
        metadata: What the file or the folder says of the model.
    """

    path: Path
    kind: str
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, Any]


class MappedFile:
    """Bytes of a file, whose pages are given back once they were read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(f"{path} cannot be read"), path.open("rb") as file:
            self.size = path.stat().st_size
            if not self.size:
                message = f"{path} is empty: it is cut off"
                raise DataFileError(message)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def bytes_of(self, start: int, stop: int) -> UInt8[np.ndarray, "byte"]:
        """A copy of some bytes.

        Raises:
            DataFileError: If the file ends before.
        """
        if not 0 <= start <= stop <= self.size:
            message = (
                f"{self.path} is cut off: bytes {start} … {stop} are wanted, it has {self.size}"
            )
            raise DataFileError(message)
        found = np.frombuffer(self._map, np.uint8, stop - start, start).copy()
        # pages that were touched count as memory of this process until they are given back
        first = start - start % mmap.PAGESIZE
        if stop > first and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, first, stop - first)
        return found


def check_apart(path: Path, ranges: Iterable[tuple[str, int, int]]) -> None:
    """Refuse tensors that share bytes: the file says two things of them.

    Args:
        path: The file.
        ranges: Name, first byte and end of each tensor.

    Raises:
        DataFileError: Names two that do.
    """
    ordered = sorted((entry for entry in ranges if entry[2] > entry[1]), key=lambda e: e[1:])
    for (first, _, stop), (second, start, _) in pairwise(ordered):
        if start < stop:
            message = f"{path} is damaged: the tensors {first[:60]!r} and {second[:60]!r} overlap"
            raise DataFileError(message)
