"""Tensors of safetensors and GGUF files, read when asked for.

Packed bitsandbytes checkpoints are read as weights; the library ``gguf`` dequantises GGUF tensors.
"""

import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUFReader, GGUFValueType
from gguf.quants import dequantize
from jaxtyping import Float32, UInt8
from safetensors import SafetensorError, safe_open

from graphhalu.core.errors import DataFileError
from graphhalu.core.files import parse_json, read_json, reading
from graphhalu.traces.schema import from_bfloat16_bits

CHUNK_BYTES: Final = 2**24
"""Float32 bytes that a chunk of rows has, about."""
_INDEX: Final = "model.safetensors.index.json"
_TYPES: Final = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I8": "i1",
    "U8": "u1",
    "I32": "<i4",
    "I64": "<i8",
    "BOOL": "u1",
}
_STATE: Final = ".quant_state.bitsandbytes__"
_SCALES: Final = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
_INT8: Final = 127.0
_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_MOST_ENTRIES: Final = 4096
"""Longest array of the header that is kept; a vocabulary is longer, and not needed."""


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
        raise DataFileError(
            f"{path} is cut off: bytes {start} … {stop} are wanted, it has {path.stat().st_size}"
        )
    return found


def open_shards(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a folder of safetensors; those of a 4-bit or 8-bit checkpoint as weights.

    Raises:
        DataFileError: If there is no such file, a part is missing, or one is damaged or cut off.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in _shard_paths(folder):
        tensors |= _open_file(path)
    return join_quantized(tensors, folder)


def _shard_paths(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if not index.is_file():
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            hint = " (*.bin files are pickles and not read)" if any(folder.glob("*.bin")) else ""
            raise DataFileError(f"{folder} holds no *.safetensors file{hint}")
        return paths
    with reading(f"{index} is damaged: it names no weight_map"):
        # only the last part of a name: a part lies in the folder, and nowhere else
        names = sorted({Path(name).name for name in read_json(index)["weight_map"].values()})
    # looked up among what is there: a system refuses to look for a name that is too long
    there = {path.name for path in folder.iterdir() if path.is_file()}
    missing = [name for name in names if name not in there]
    if missing:
        raise DataFileError(
            f"{folder} lacks {len(missing)} of {len(names)} parts, {missing[0][:80]} among them"
        )
    return [folder / name for name in names]


def _open_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, whose header the library checks against its size."""
    fault = f"{path} is not a safetensors file, or cut off"
    with reading(fault, also=(SafetensorError,)), safe_open(path, framework="np") as file:
        slices = {name: file.get_slice(name) for name in file.offset_keys()}
        entries = {name: (each.get_dtype(), tuple(each.get_shape())) for name, each in slices.items()}
        sizes = {name: _n_bytes(*entry) for name, entry in entries.items()}
        # the tensors lie one behind the other, up to the end of the file
        offset = path.stat().st_size - sum(sizes.values())
    tensors = {}
    for name, (kind, shape) in entries.items():
        tensors[name] = _tensor(path, name, kind, shape, offset)
        offset += sizes[name]
    return tensors


def _n_bytes(kind: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor: every type but ``BOOL`` starts with its bits, as in ``F8_E4M3``."""
    bits = re.search(r"\d+", kind)
    return math.prod(shape) * (int(bits[0]) if bits else 8) // 8


def _tensor(path: Path, name: str, kind: str, shape: tuple[int, ...], offset: int) -> StoredTensor:
    n_bytes = _n_bytes(kind, shape)
    row_bytes = n_bytes // max(1, shape[0] if shape else 1)

    def load(first: int, last: int) -> Float32[np.ndarray, "..."]:
        if kind not in _TYPES:
            raise DataFileError(f"{path}: {name} is stored as {kind}, which is not known here")
        raw = file_bytes(path, offset + first * row_bytes, offset + last * row_bytes)
        values = raw.view(_TYPES[kind])
        exact = from_bfloat16_bits(values) if kind == "BF16" else values.astype(np.float32)
        return exact.reshape((last - first, *shape[1:]) if shape else ())

    return StoredTensor(name, shape, kind, n_bytes, load, path, offset)


def join_quantized(tensors: Mapping[str, StoredTensor], folder: Path) -> dict[str, StoredTensor]:
    """Tensors in which a packed weight and its scales have become one.

    Args:
        tensors: As the files hold them.
        folder: Named in errors.

    Raises:
        DataFileError: If scales of a packed weight are missing or damaged.

    Source:
        The layout of ``bitsandbytes.functional.QuantState.as_dict`` and of ``Linear8bitLt``:
        high half of a byte first, ``value = quant_map[code] * absmax[block]``; nested scales are
        ``nested_quant_map[code] * nested_absmax[block] + offset``.
    """
    found = dict(tensors)
    for key in tensors:
        stem = key.removesuffix(".SCB")
        name, _, kind = key.partition(_STATE)
        with reading(f"{folder}: the scales of the packed weight {name[:120]} are damaged"):
            if kind:
                found[name] = _four_bits(name, kind, tensors)
                used = [key, *(f"{name}{part}" for part in _SCALES)]
            elif stem != key:
                name, used = f"{stem}.weight", [key, f"{stem}.weight_format"]
                if name in tensors:
                    found[name] = _eight_bits(tensors[name], tensors[key])
            else:
                continue
        for part in used:
            found.pop(part, None)
    return found


def _four_bits(name: str, kind: str, tensors: Mapping[str, StoredTensor]) -> StoredTensor:
    packed, codebook = tensors[name], tensors[f"{name}.quant_map"]
    encoded = tensors[f"{name}{_STATE}{kind}"]
    state: dict[str, Any] = parse_json(encoded.raw(0, encoded.n_bytes).tobytes())
    shape = tuple(int(size) for size in state["shape"])
    blocksize, row = int(state["blocksize"]), math.prod(shape[1:])
    _check_sizes(name, state, shape, tensors)
    scales = [tensors[f"{name}{part}"] for part in _SCALES if f"{name}{part}" in tensors]

    def load(first: int, last: int) -> Float32[np.ndarray, "..."]:
        start, stop = first * row, last * row
        # a row may begin in the middle of a byte or of a block
        pairs = packed.raw(start // 2, -(-stop // 2))
        codes = np.stack([pairs >> 4, pairs & 15], axis=1).ravel()[start % 2 :][: stop - start]
        blocks = _absmax(name, state, tensors)[start // blocksize : -(-stop // blocksize)]
        repeated = np.repeat(blocks, blocksize)[start % blocksize :][: stop - start]
        values = (codebook.read()[codes] * repeated).astype(np.float32)
        return values.reshape(last - first, *shape[1:])

    n_bytes = packed.n_bytes + sum(scale.n_bytes for scale in scales)
    return replace(packed, shape=shape, storage=kind, n_bytes=n_bytes, load=load)


def _check_sizes(
    name: str, state: Mapping[str, Any], shape: tuple[int, ...], tensors: Mapping[str, StoredTensor]
) -> None:
    """Refuse sizes that the packed bytes and their scales do not have, before any is allocated."""
    n_values, blocksize = math.prod(shape), int(state["blocksize"])
    nested = tensors.get(f"{name}.nested_absmax")
    n_scales = tensors[f"{name}.absmax"].n_values
    is_whole = min(shape, default=0) > 0 and n_values <= 2 * tensors[name].n_bytes
    is_whole &= blocksize > 0 and n_scales >= -(-n_values // blocksize)
    is_whole &= tensors[f"{name}.quant_map"].n_values >= 2**4
    if nested is not None:
        n_outer = int(state["nested_blocksize"])
        is_whole &= n_outer > 0 and nested.n_values * n_outer >= n_scales
        float(state["nested_offset"])
        is_whole &= tensors[f"{name}.nested_quant_map"].n_values >= 2**8
    if not is_whole:
        raise ValueError(f"the shape {list(shape)} in blocks of {blocksize} is more than is stored")


def _absmax(
    name: str, state: Mapping[str, Any], tensors: Mapping[str, StoredTensor]
) -> Float32[np.ndarray, "block"]:
    stored = tensors[f"{name}.absmax"]
    if f"{name}.nested_absmax" not in tensors:
        return stored.read().ravel()
    codes = stored.raw(0, stored.n_bytes)
    outer = tensors[f"{name}.nested_absmax"].read().ravel()
    scale = np.repeat(outer, int(state["nested_blocksize"]))[: len(codes)]
    book = tensors[f"{name}.nested_quant_map"].read()
    return (book[codes] * scale + np.float32(state["nested_offset"])).astype(np.float32)


def _eight_bits(weight: StoredTensor, scale: StoredTensor) -> StoredTensor:
    if not weight.shape or scale.n_values != weight.shape[0]:
        raise ValueError(f"{scale.n_values} scales for the shape {list(weight.shape)}")

    def load(first: int, last: int) -> Float32[np.ndarray, "..."]:
        rows = scale.read().ravel()[first:last, None] / np.float32(_INT8)
        return weight.load(first, last) * rows

    n_bytes = weight.n_bytes + scale.n_bytes
    return replace(weight, storage="int8", n_bytes=n_bytes, load=load)


def open_gguf(path: Path) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """The tensors of a GGUF file by name, and the metadata of its header without long arrays.

    Raises:
        DataFileError: If the file is not GGUF, of another version, damaged or cut off.
    """
    with reading(f"{path} is damaged or cut off"):
        start, version = struct.unpack("<4sI", file_bytes(path, 0, 8).tobytes())
    if start != _MAGIC:
        raise DataFileError(f"{path} is not a GGUF file: it starts with {start!r}, expected {_MAGIC!r}")
    if version not in _VERSIONS:
        raise DataFileError(f"{path} is GGUF of version {version}; versions {_VERSIONS} are read")
    # sums of sizes that a damaged header makes too large must not start again at 0
    with reading(f"{path} is damaged or cut off"), np.errstate(over="raise"):
        reader = _Header(path)
        fields = reader.fields.values()
        metadata = {field.name: field.contents() for field in fields if field.data}
        tensors = {tensor.name: _gguf_tensor(path, tensor) for tensor in reader.tensors}
    _check_apart(path, tensors.values())
    return tensors, metadata


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


def _gguf_tensor(path: Path, found: Any) -> StoredTensor:
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
