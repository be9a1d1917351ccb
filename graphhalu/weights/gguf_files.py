"""GGUF files: the library ``gguf`` reads their header and dequantises their tensors."""

import struct
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUFReader, GGUFValueType
from gguf.quants import dequantize
from jaxtyping import Float32

from graphhalu.core.errors import DataFileError
from graphhalu.core.files import reading
from graphhalu.weights.storage import StoredTensor, file_bytes

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_MOST_ENTRIES: Final = 4096
"""Longest array of the header that is kept; a vocabulary is longer, and not needed."""


class GgufFile(NamedTuple):
    """Tensors of a GGUF file by name, and what its header says of the model."""

    tensors: dict[str, StoredTensor]
    metadata: dict[str, Any]


def open_gguf(path: Path) -> GgufFile:
    """The tensors and metadata of a GGUF file; long arrays of the metadata are left out.

    Raises:
        DataFileError: If the file is no GGUF, of another version, damaged or cut off.
    """
    with reading(f"{path} is damaged or cut off"):
        start, version = struct.unpack("<4sI", file_bytes(path, 0, 8).tobytes())
    if start != _MAGIC:
        raise DataFileError(f"{path} is no GGUF file: it starts with {start!r}, expected {_MAGIC!r}")
    if version not in _VERSIONS:
        raise DataFileError(f"{path} is GGUF of version {version}; versions {_VERSIONS} are read")
    # sums of sizes that a damaged header makes too large must not start again at 0
    with reading(f"{path} is damaged or cut off"), np.errstate(over="raise"):
        reader = _Header(path)
        fields = reader.fields.values()
        metadata = {field.name: field.contents() for field in fields if field.data}
        tensors = {tensor.name: _tensor(path, tensor) for tensor in reader.tensors}
    _check_apart(path, tensors.values())
    return GgufFile(tensors, metadata)


class _Header(GGUFReader):
    """Reader that skips long arrays.

    An object for every word of a vocabulary of 49,152 takes 8 s and 170 MiB; 0.3 s without.
    """

    def _get_field_parts(self, orig_offs: Any, raw_type: Any) -> Any:
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind, length = struct.unpack_from("<IQ", self.data, orig_offs)
        scalar = self.gguf_scalar_to_np.get(kind)
        if length <= _MOST_ENTRIES or (scalar is None and kind != GGUFValueType.STRING):
            return super()._get_field_parts(orig_offs, raw_type)
        size = 12
        if scalar is not None:
            size += length * np.dtype(scalar).itemsize
        else:
            for _ in range(length):
                size += 8 + struct.unpack_from("<Q", self.data, orig_offs + size)[0]
        return size, [], [], [GGUFValueType.ARRAY]


def _tensor(path: Path, found: Any) -> StoredTensor:
    name, kind = found.name, found.tensor_type
    shape = tuple(int(size) for size in found.shape[::-1])
    n_block, block_bytes = GGML_QUANT_SIZES[kind]
    if not shape or not min(shape) or shape[-1] % n_block:
        raise ValueError(f"tensor {name[:60]!r} has the shape {str(shape)[:80]}")
    line_bytes = shape[-1] // n_block * block_bytes
    # a vector is one line, and read whole
    row_bytes = found.n_bytes // shape[0] if len(shape) > 1 else 0

    def load(first: int, last: int) -> Float32[np.ndarray, "..."]:
        ends = (first * row_bytes, last * row_bytes) if row_bytes else (0, found.n_bytes)
        raw = file_bytes(path, found.data_offset + ends[0], found.data_offset + ends[1])
        with reading(f"{path}: {name[:60]!r} ({kind.name}) cannot be read"):
            values = dequantize(raw.reshape(-1, line_bytes), kind)
        rows = last - first if row_bytes else shape[0]
        return np.ascontiguousarray(values, dtype=np.float32).reshape((rows, *shape[1:]))

    return StoredTensor(name, shape, kind.name, found.n_bytes, load, path, found.data_offset)


def _check_apart(path: Path, tensors: Iterable[StoredTensor]) -> None:
    """Refuse tensors that share bytes: the file says two things of them."""
    ordered = sorted(tensors, key=lambda tensor: (tensor.offset, tensor.n_bytes))
    for first, second in pairwise(ordered):
        if second.offset < first.offset + first.n_bytes:
            raise DataFileError(
                f"{path} is damaged: the tensors {first.name[:60]!r} and {second.name[:60]!r} overlap"
            )
