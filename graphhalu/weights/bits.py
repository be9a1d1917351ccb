"""Checkpoints of bitsandbytes: packed integers with their scales, joined into weights."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float32

from graphhalu.safe_read import parse_json, reading
from graphhalu.weights.storage import StoredTensor

_STATE: Final = ".quant_state.bitsandbytes__"
_SCALES: Final = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
_BYTE_FORMATS: Final = (".SCB", ".weight_format")
_INT8: Final = 127.0
_N_CODES: Final = 16


def join_quantized(
    tensors: Mapping[str, StoredTensor],
    raw: Mapping[str, Callable[[], np.ndarray]],
    folder: Path,
) -> dict[str, StoredTensor]:
    """Tensors in which a packed weight and its scales have become one.

    Args:
        tensors: As the files hold them.
        raw: How the bytes of each are read.
        folder: Named in errors.

    Raises:
        DataFileError: If scales of a packed weight are missing or damaged.

    Source:
        The layout of ``bitsandbytes.functional.QuantState.as_dict`` and of ``Linear8bitLt``:
        high half of a byte first, ``value = quant_map[code] * absmax[block]``; nested scales are
        ``nested_quant_map[code] * nested_absmax[block] + offset``.
    """
    found = dict(tensors)
    for state in [name for name in tensors if _STATE in name]:
        name, _, kind = state.partition(_STATE)
        parts = (name, state, *(f"{name}{part}" for part in _SCALES))
        with reading(f"{folder}: the scales of the packed weight {name[:120]} are damaged"):
            found[name] = _four_bits(name, kind, tensors, raw)
        for part in parts[1:]:
            found.pop(part, None)
    for scale in [name for name in tensors if name.endswith(".SCB")]:
        name = f"{scale.removesuffix('.SCB')}.weight"
        if name in tensors:
            with reading(f"{folder}: the scales of the packed weight {name[:120]} are damaged"):
                found[name] = _eight_bits(tensors[name], tensors[scale])
        for ending in _BYTE_FORMATS:
            found.pop(scale.removesuffix(".SCB") + ending, None)
    return found


def _four_bits(
    name: str,
    kind: str,
    tensors: Mapping[str, StoredTensor],
    raw: Mapping[str, Callable[[], np.ndarray]],
) -> StoredTensor:
    state: dict[str, Any] = parse_json(raw[f"{name}{_STATE}{kind}"]().tobytes())
    shape = tuple(int(size) for size in state["shape"])
    blocksize = int(state["blocksize"])
    row = math.prod(shape[1:])
    _check_sizes(name, state, shape, tensors)
    scales = (name, *(f"{name}{part}" for part in _SCALES if f"{name}{part}" in tensors))
    n_bytes = sum(tensors[part].n_bytes for part in scales)

    def load(first: int, last: int) -> Float32[np.ndarray, "..."]:
        start, stop = first * row, last * row
        # a row may begin in the middle of a byte or of a block
        packed = raw[name]()[start // 2 : -(-stop // 2)]
        codes = np.stack([packed >> 4, packed & 15], axis=1).ravel()
        codes = codes[start % 2 : start % 2 + stop - start]
        absmax = _absmax(name, state, tensors, raw)
        blocks = np.arange(start // blocksize, -(-stop // blocksize))
        repeated = np.repeat(absmax[blocks], blocksize)[start % blocksize :][: stop - start]
        values = tensors[f"{name}.quant_map"].read()[codes] * repeated
        rows: Float32[np.ndarray, "..."] = values.astype(np.float32)
        return rows.reshape(last - first, *shape[1:])

    return StoredTensor(name, shape, kind, n_bytes, load)


def _check_sizes(
    name: str,
    state: Mapping[str, Any],
    shape: tuple[int, ...],
    tensors: Mapping[str, StoredTensor],
) -> None:
    """Refuse sizes that the packed bytes and their scales do not have, before any is allocated."""
    n_values, blocksize = math.prod(shape), int(state["blocksize"])
    nested = tensors.get(f"{name}.nested_absmax")
    n_scales = tensors[f"{name}.absmax"].n_values
    books = [tensors[f"{name}.quant_map"]]
    is_whole = min(shape, default=0) > 0 and n_values <= 2 * tensors[name].n_bytes
    is_whole &= blocksize > 0 and n_scales >= -(-n_values // blocksize)
    if nested is not None:
        n_outer = int(state["nested_blocksize"])
        is_whole &= n_outer > 0 and nested.n_values * n_outer >= n_scales
        float(state["nested_offset"])
        books.append(tensors[f"{name}.nested_quant_map"])
    n_codes = [_N_CODES, 2**8]
    is_whole &= all(book.n_values >= n for book, n in zip(books, n_codes, strict=False))
    if not is_whole:
        message = f"the shape {list(shape)} in blocks of {blocksize} is more than is stored"
        raise ValueError(message)


def _absmax(
    name: str,
    state: Mapping[str, Any],
    tensors: Mapping[str, StoredTensor],
    raw: Mapping[str, Callable[[], np.ndarray]],
) -> Float32[np.ndarray, "block"]:
    if f"{name}.nested_absmax" not in tensors:
        return tensors[f"{name}.absmax"].read().ravel()
    codes = raw[f"{name}.absmax"]()
    outer = tensors[f"{name}.nested_absmax"].read().ravel()
    scale = np.repeat(outer, int(state["nested_blocksize"]))[: len(codes)]
    book = tensors[f"{name}.nested_quant_map"].read()
    values: Float32[np.ndarray, "block"] = (
        book[codes] * scale + np.float32(state["nested_offset"])
    ).astype(np.float32)
    return values


def _eight_bits(weight: StoredTensor, scale: StoredTensor) -> StoredTensor:
    if not weight.shape or scale.n_values != weight.shape[0]:
        message = f"{scale.n_values} scales for the shape {list(weight.shape)}"
        raise ValueError(message)

    def load(first: int, last: int) -> Float32[np.ndarray, "..."]:
        rows = scale.read().ravel()[first:last, None] / np.float32(_INT8)
        values: Float32[np.ndarray, "..."] = weight.load(first, last) * rows
        return values

    n_bytes = weight.n_bytes + scale.n_bytes
    return StoredTensor(weight.name, weight.shape, "int8", n_bytes, load)
