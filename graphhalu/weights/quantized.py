"""Checkpoints of bitsandbytes: packed integers with their scales, joined into weights."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float32

from graphhalu.core.files import parse_json, reading
from graphhalu.weights.storage import StoredTensor

_STATE: Final = ".quant_state.bitsandbytes__"
_SCALES: Final = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
_INT8: Final = 127.0


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
        message = f"the shape {list(shape)} in blocks of {blocksize} is more than is stored"
        raise ValueError(message)


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
        message = f"{scale.n_values} scales for the shape {list(weight.shape)}"
        raise ValueError(message)

    def load(first: int, last: int) -> Float32[np.ndarray, "..."]:
        rows = scale.read().ravel()[first:last, None] / np.float32(_INT8)
        return weight.load(first, last) * rows

    n_bytes = weight.n_bytes + scale.n_bytes
    return replace(weight, storage="int8", n_bytes=n_bytes, load=load)
