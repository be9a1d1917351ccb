"""Safetensors, one file or several: headers are checked, tensors are read when asked for."""

import math
import re
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open

from graphhalu.core.errors import DataFileError
from graphhalu.core.files import read_json, reading
from graphhalu.core.numerics import from_bfloat16_bits
from graphhalu.weights.quantized import join_quantized
from graphhalu.weights.storage import StoredTensor, file_bytes

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
        message = f"{folder} lacks {len(missing)} of {len(names)} parts, {missing[0][:80]} among them"
        raise DataFileError(message)
    return [folder / name for name in names]


def _open_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, whose header the library checks against its size."""
    fault = f"{path} is no safetensors file, or cut off"
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
            message = f"{path}: {name} is stored as {kind}, which is not known here"
            raise DataFileError(message)
        raw = file_bytes(path, offset + first * row_bytes, offset + last * row_bytes)
        values = raw.view(_TYPES[kind])
        exact = from_bfloat16_bits(values) if kind == "BF16" else values.astype(np.float32)
        return exact.reshape((last - first, *shape[1:]) if shape else ())

    return StoredTensor(name, shape, kind, n_bytes, load, path, offset)
