"""Tensors in files: type and shape of each, and their rows as float32."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float32, UInt8

from graphhalu.core.errors import DataFileError
from graphhalu.core.files import reading

CHUNK_BYTES: Final = 2**24
"""Float32 bytes that a chunk of rows has, about."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, not yet read.

    Attributes:
        name: As the file calls it.
        shape: Sizes of its axes, rows (outputs) first.
        storage: How its values are stored: ``F16``, ``Q4_K``, ``nf4`` …
        n_bytes: Bytes in the file.
        load: Reads rows ``start … stop - 1`` of the first axis, as float32.
        path: The file.
        offset: Where its first byte is.
    """

    name: str
    shape: tuple[int, ...]
    storage: str
    n_bytes: int
    load: Callable[[int, int], np.ndarray]
    path: Path
    offset: int

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

    def raw(self, start: int, stop: int) -> UInt8[np.ndarray, "byte"]:
        """Some of its bytes, as the file has them.

        Raises:
            DataFileError: If the file ends before.
        """
        return file_bytes(self.path, self.offset + start, self.offset + stop)


def file_bytes(path: Path, start: int, stop: int) -> UInt8[np.ndarray, "byte"]:
    """Bytes ``start … stop - 1`` of a file.

    Raises:
        DataFileError: If the file ends before.
    """
    with reading(f"{path} cannot be read"):
        found = np.fromfile(path, np.uint8, stop - start, offset=start)
    if len(found) < stop - start:
        message = f"{path} is cut off: bytes {start} … {stop} are wanted, it has {path.stat().st_size}"
        raise DataFileError(message)
    return found
