"""GGUF files, whose tensors ``gguf`` dequantises.

The header is parsed here: the usual reader makes an object of every word of the vocabulary, which
takes 20 s and hundreds of megabytes.
"""

import math
import struct
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from jaxtyping import Float32

from graphhalu.errors import DataFileError
from graphhalu.safe_read import reading
from graphhalu.weights.storage import MappedFile, StoredTensor, WeightFiles, check_apart

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_SCALARS: Final = {
    0: "B", 1: "b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
_TEXT: Final = 8
_ARRAY: Final = 9
_ALIGNMENT: Final = 32
_MOST_ALIGNMENT: Final = 2**20
_MOST_ENTRIES: Final = 4096
"""Longest array of the header that is kept; a vocabulary is longer, and not needed."""
_MOST_COUNT: Final = 10**6
_BLOCK: Final = 2**20


def open_gguf(path: Path) -> WeightFiles:
    """The tensors and metadata of a GGUF file.

    Raises:
        DataFileError: If the file is no GGUF, of another version, damaged or cut off.
    """
    mapped = MappedFile(path)
    cursor = _Cursor(mapped)
    start = cursor.take(4)
    if start != _MAGIC:
        message = f"{path} is no GGUF file: it starts with {start!r}, expected {_MAGIC!r}"
        raise DataFileError(message)
    version = cursor.number("<I")
    if version not in _VERSIONS:
        message = f"{path} is GGUF of version {version}; versions {_VERSIONS} are read"
        raise DataFileError(message)
    with reading(f"{path} is damaged: its header cannot be"):
        n_tensors, n_fields = cursor.count(), cursor.count()
        metadata = dict(_field(cursor) for _ in range(n_fields))
        entries = [_entry(cursor) for _ in range(n_tensors)]
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= _MOST_ALIGNMENT:
            raise cursor.damaged(f"its alignment is {str(alignment)[:40]}")
        base = -(-cursor.place // alignment) * alignment
        tensors = {entry.name: _tensor(mapped, base, entry) for entry in entries}
    if len(tensors) < len(entries):
        raise cursor.damaged("two tensors have one name")
    check_apart(path, ((e.name, e.offset, e.offset + tensors[e.name].n_bytes) for e in entries))
    return WeightFiles(path, "gguf", tensors, metadata)


class _Entry(NamedTuple):
    """A tensor as the header lists it, sizes rows first."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


class _Cursor:
    """Reads a header from front to back, a block of the file at a time."""

    def __init__(self, mapped: MappedFile) -> None:
        self.mapped = mapped
        self.place = 0
        self._block = b""
        self._start = 0

    def take(self, n_bytes: int) -> bytes:
        inside = self.place - self._start
        if inside + n_bytes > len(self._block):
            stop = min(self.place + max(_BLOCK, n_bytes), self.mapped.size)
            if self.place + n_bytes > stop:
                raise self.damaged("its header is cut off")
            self._block = self.mapped.bytes_of(self.place, stop).tobytes()
            self._start, inside = self.place, 0
        self.place += n_bytes
        return self._block[inside : inside + n_bytes]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def count(self) -> int:
        found = int(self.number("<Q"))
        if found > _MOST_COUNT:
            raise self.damaged(f"it counts {found} entries")
        return found

    def text(self) -> str:
        length = int(self.number("<Q"))
        if length > self.mapped.size:
            raise self.damaged("a text of its header is longer than the file")
        return self.take(length).decode("utf-8", errors="replace")

    def damaged(self, reason: str) -> DataFileError:
        return DataFileError(f"{self.mapped.path} is damaged: {reason}")


def _field(cursor: _Cursor) -> tuple[str, Any]:
    name = cursor.text()
    return name, _value(cursor, int(cursor.number("<I")))


def _value(cursor: _Cursor, kind: int, *, is_inner: bool = False) -> Any:
    """A value; ``None`` for an array that is too long to be of use here."""
    if kind in _SCALARS:
        return cursor.number(_SCALARS[kind])
    if kind == _TEXT:
        return cursor.text()
    if kind != _ARRAY or is_inner:
        raise cursor.damaged(f"its header has a value of the unknown kind {kind}")
    entry_kind, length = int(cursor.number("<I")), int(cursor.number("<Q"))
    if entry_kind in _SCALARS and length > _MOST_ENTRIES:
        n_bytes = length * struct.calcsize(_SCALARS[entry_kind])
        if cursor.place + n_bytes > cursor.mapped.size:
            raise cursor.damaged("an array of its header is longer than the file")
        cursor.place += n_bytes
        return None
    if length > cursor.mapped.size:
        raise cursor.damaged("an array of its header is longer than the file")
    values = [_value(cursor, entry_kind, is_inner=True) for _ in range(min(length, _MOST_ENTRIES))]
    if length <= _MOST_ENTRIES:
        return values
    for _ in range(length - _MOST_ENTRIES):
        _value(cursor, entry_kind, is_inner=True)
    return None


def _entry(cursor: _Cursor) -> _Entry:
    name, n_axes = cursor.text(), int(cursor.number("<I"))
    if not 1 <= n_axes <= 4:  # noqa: PLR2004
        raise cursor.damaged(f"tensor {name[:60]!r} has {n_axes} axes")
    sizes = tuple(int(cursor.number("<Q")) for _ in range(n_axes))[::-1]
    if not min(sizes):
        raise cursor.damaged(f"tensor {name[:60]!r} has an axis of no length")
    return _Entry(name, sizes, int(cursor.number("<I")), int(cursor.number("<Q")))


def _tensor(mapped: MappedFile, base: int, entry: _Entry) -> StoredTensor:
    name, shape, kind, offset = entry
    try:
        quantisation = GGMLQuantizationType(kind)
    except ValueError:
        message = f"{mapped.path}: tensor {name[:60]!r} is of the unknown type {kind}"
        raise DataFileError(message) from None
    n_block, block_bytes = GGML_QUANT_SIZES[quantisation]
    line_bytes = shape[-1] // n_block * block_bytes
    n_lines = math.prod(shape[:-1])
    start, n_bytes = base + offset, n_lines * line_bytes
    if shape[-1] % n_block or start + n_bytes > mapped.size:
        message = (
            f"{mapped.path} is cut off: tensor {name[:60]!r} ends at byte {start + n_bytes}, "
            f"the file has {mapped.size}"
        )
        raise DataFileError(message)
    row_bytes = n_bytes // shape[0] if len(shape) > 1 else 0

    def load(first: int, last: int) -> Float32[np.ndarray, "..."]:
        # a vector is one line, and read whole
        ends = (first * row_bytes, last * row_bytes) if row_bytes else (0, n_bytes)
        raw = mapped.bytes_of(start + ends[0], start + ends[1]).reshape(-1, line_bytes)
        try:
            values = dequantize(raw, quantisation)
        except (NotImplementedError, ValueError) as error:
            message = f"{mapped.path}: {name[:60]!r} ({quantisation.name}) cannot be read: {error}"
            raise DataFileError(message) from None
        rows = last - first if row_bytes else shape[0]
        found: Float32[np.ndarray, "..."] = np.ascontiguousarray(values, dtype=np.float32)
        return found.reshape((rows, *shape[1:]))

    return StoredTensor(name, shape, quantisation.name, n_bytes, load)
