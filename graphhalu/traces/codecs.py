"""How arrays are compressed and cut into chunks.

Attention is a packed float16 triangle whose bits are transposed before zstd; hidden states hardly
compress. Every array ends in CRC32C: without it a flipped bit is read back in silence.
"""

from typing import Any, Final

from zarr.codecs import BloscCodec, Crc32cCodec

from graphhalu.traces.schema import ArraySpec

CHUNK_ELEMENTS: Final = 2**21
"""Most elements of one chunk."""

_BY_LAYER: Final = ("attention", "hidden")
"""Arrays of which one layer is often read alone: a chunk never holds two layers of them."""


def compressors(spec: ArraySpec) -> list[Any]:
    """Codecs of an array after its bytes, the checksum last."""
    shuffle = "bitshuffle" if spec.dtype in ("float16", "uint16") else "shuffle"
    return [BloscCodec(cname="zstd", clevel=1, shuffle=shuffle), Crc32cCodec()]


def chunk_shape(spec: ArraySpec, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Chunk of an array of a part: at most ``CHUNK_ELEMENTS``, layers apart where it pays.

    The ragged axis is cut only when a single layer is too large, so that a reader of one layer
    of one trace decodes a few megabytes.
    """
    sizes = [max(1, size) for size in shape]
    ragged = spec.ragged_dim
    inner = 1
    for size in sizes[1:]:
        inner *= size
    if spec.axes[0] != spec.ragged_axis:
        sizes[0] = 1 if spec.name in _BY_LAYER else max(1, min(sizes[0], CHUNK_ELEMENTS // inner))
    others = 1
    for dim, size in enumerate(sizes):
        others *= size if dim != ragged else 1
    sizes[ragged] = max(1, min(sizes[ragged], CHUNK_ELEMENTS // others))
    return tuple(sizes)
