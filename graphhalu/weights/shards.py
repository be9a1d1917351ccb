"""Safetensors, one file or several: headers are checked, tensors are read when asked for."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, UInt8

from graphhalu.errors import DataFileError
from graphhalu.numerics import from_bfloat16_bits
from graphhalu.safe_read import parse_json, read_json, reading
from graphhalu.weights.bits import join_quantized
from graphhalu.weights.storage import MappedFile, StoredTensor, check_apart

_INDEX: Final = "model.safetensors.index.json"
_MOST_HEADER: Final = 100 * 2**20
_READERS: Final[dict[str, Callable[[np.ndarray], np.ndarray]]] = {
    "F64": lambda raw: raw.view("<f8").astype(np.float32),
    "F32": lambda raw: raw.view("<f4"),
    "F16": lambda raw: raw.view("<f2").astype(np.float32),
    "BF16": lambda raw: from_bfloat16_bits(raw.view("<u2")),
    "I8": lambda raw: raw.view(np.int8).astype(np.float32),
    "U8": lambda raw: raw.astype(np.float32),
    "I32": lambda raw: raw.view("<i4").astype(np.float32),
    "I64": lambda raw: raw.view("<i8").astype(np.float32),
    "BOOL": lambda raw: raw.astype(np.float32),
}
_WIDTHS: Final = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "I32": 4, "I64": 8,
                  "BOOL": 1}  # fmt: skip


def open_shards(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a folder of safetensors; those of a 4-bit or 8-bit checkpoint as weights.

    Raises:
        DataFileError: If there is no such file, a part is missing, or one is damaged or cut off.
    """
    tensors: dict[str, StoredTensor] = {}
    raw: dict[str, RawRead] = {}
    for path in _shard_paths(folder):
        found, bytes_of = open_safetensors(path)
        tensors |= found
        raw |= bytes_of
    return join_quantized(tensors, raw, folder)


RawRead = Callable[[], np.ndarray]
"""All bytes of a tensor, as they are stored."""


def open_safetensors(path: Path) -> tuple[dict[str, StoredTensor], dict[str, RawRead]]:
    """The tensors of one file, and how their bytes are read.

    Raises:
        DataFileError: If the file is damaged or cut off.
    """
    mapped = MappedFile(path)
    header, start = _header(mapped)
    tensors: dict[str, StoredTensor] = {}
    raw: dict[str, RawRead] = {}
    with reading(f"{path} is no safetensors file: its header says what cannot be"):
        for name, entry in header.items():
            tensors[name], raw[name] = _tensor(mapped, name, entry, start)
    return tensors, raw


def _shard_paths(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if not index.is_file():
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            hint = " (*.bin files are pickles and not read)" if any(folder.glob("*.bin")) else ""
            message = f"{folder} holds no *.safetensors file{hint}"
            raise DataFileError(message)
        return paths
    with reading(f"{index} is damaged: it names no weight_map"):
        # only the last part of a name: a part lies in the folder, and nowhere else
        names = sorted({Path(name).name for name in read_json(index)["weight_map"].values()})
    # looked up among what is there: a system refuses to look for a name that is too long
    there = {path.name for path in folder.iterdir() if path.is_file()}
    missing = [name for name in names if name not in there]
    if missing:
        message = (
            f"{folder} lacks {len(missing)} of {len(names)} parts, {missing[0][:80]} among them"
        )
        raise DataFileError(message)
    return [folder / name for name in names]


def _size(value: Any) -> int:
    if type(value) is not int or value < 0:
        message = f"{str(value)[:40]!r} is no size"
        raise ValueError(message)
    return value


def _header(mapped: MappedFile) -> tuple[dict[str, Any], int]:
    path = mapped.path
    n_header = int.from_bytes(mapped.bytes_of(0, 8).tobytes(), "little")
    if n_header > min(_MOST_HEADER, mapped.size - 8):
        message = f"{path} is no safetensors file or cut off: its header would have {n_header} B"
        raise DataFileError(message)
    with reading(f"{path} is no safetensors file: its header is not readable"):
        header = parse_json(mapped.bytes_of(8, 8 + n_header).tobytes())
        header.pop("__metadata__", None)
        ranges = [(name, *map(_size, entry["data_offsets"])) for name, entry in header.items()]
        check_apart(path, ranges)
        end = max((stop for *_, stop in ranges), default=0)
    if 8 + n_header + end != mapped.size:
        message = f"{path} is cut off: expected {8 + n_header + end} bytes, it has {mapped.size}"
        raise DataFileError(message)
    return header, 8 + n_header


def _tensor(
    mapped: MappedFile, name: str, entry: Mapping[str, Any], base: int
) -> tuple[StoredTensor, RawRead]:
    kind, shape = str(entry["dtype"]), tuple(map(_size, entry["shape"]))
    start, stop = (base + _size(offset) for offset in entry["data_offsets"])
    width, n_values = _WIDTHS.get(kind, 0), math.prod(shape)
    # of an unknown type: no value is smaller than half a byte
    is_fit = stop - start == n_values * width if width else n_values <= 2 * (stop - start)
    if not is_fit:
        message = (
            f"{mapped.path}: {name[:80]!r} has {stop - start} bytes, {kind[:20]} "
            f"{str(list(shape))[:80]} needs another number"
        )
        raise DataFileError(message)
    row_bytes = (stop - start) // max(1, shape[0] if shape else 1)

    def load(first: int, last: int) -> Float32[np.ndarray, "..."]:
        if kind not in _READERS:
            message = f"{mapped.path}: {name} is stored as {kind}, which is not known here"
            raise DataFileError(message)
        raw = mapped.bytes_of(start + first * row_bytes, start + last * row_bytes)
        values: Float32[np.ndarray, "..."] = _READERS[kind](raw).reshape(
            (last - first, *shape[1:]) if shape else ()
        )
        return values

    def read_raw() -> UInt8[np.ndarray, "byte"]:
        return mapped.bytes_of(start, stop)

    return StoredTensor(name, shape, kind, stop - start, load), read_raw
