"""Disks: how much a run needs of one, flushing to it, and the errors of one that is full."""

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from graphhalu.core.errors import StoreError, StoreFullError, UsageError
from graphhalu.traces.schema import ARRAYS, RAGGED_AXES, TraceShape

_DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_READ_ONLY: Final = (errno.EACCES, errno.EPERM, errno.EROFS)

COMPRESSED: Final = {"attention": 0.9, "attention_fixed": 0.75} | dict.fromkeys(
    ("hidden", "hidden_rows", "contrast_hidden"), 0.85
)
"""Compressed share of an array, a little above what was measured; streams count in full."""


def estimate_bytes(
    shape: TraceShape,
    arrays: Sequence[str],
    lengths: Sequence[int] | np.ndarray,
    row_starts: Sequence[int] | None = None,
    *,
    is_compressed: bool = True,
) -> int:
    """Bytes on disk of traces with these lengths.

    Args:
        shape: Sizes and meaning of the axes.
        arrays: Arrays that are kept.
        lengths: Tokens of each trace.
        row_starts: First kept row of each trace; ``None`` keeps all rows.
        is_compressed: Expect the usual compression; otherwise the size in memory, which is a
            bound.
    """
    tokens = np.asarray(lengths, dtype=np.float64)
    starts = np.zeros_like(tokens) if row_starts is None else np.asarray(row_starts, np.float64)
    n_entries = {
        "token": tokens,
        "row": tokens - starts,
        "pair": (tokens * (tokens + 1) - starts * (starts + 1)) / 2,
    }
    total = 0.0
    for name in arrays:
        spec = ARRAYS[name]
        fixed = np.prod([shape.axis_size(axis) for axis in spec.axes if axis not in RAGGED_AXES])
        size = float(fixed * np.dtype(spec.dtype).itemsize * n_entries[spec.ragged_axis].sum())
        total += size * (COMPRESSED.get(name, 1.0) if is_compressed else 1.0)
    return int(total)


def check_fits(path: Path, n_bytes: int) -> None:
    """Refuse a run that would fill the disk.

    Args:
        path: The store; it need not exist yet.
        n_bytes: What the run will write.

    Raises:
        StoreFullError: Says what is needed, what is free, and how to need less.
    """
    folder = next(place for place in (path, *path.absolute().parents) if place.exists())
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise StoreFullError(
            f"the traces need about {n_bytes / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are "
            f"free at {folder}\n"
            f"  Use --num-samples, --keep streams, --hidden-layers, or another disk with --out"
        )


def disk_error(error: OSError, what: str) -> StoreError | UsageError | None:
    """The error for a disk that is full or may not be written; ``None`` for any other fault."""
    if error.errno in _DISK_FULL:
        return StoreFullError(
            f"the disk is full: {what} was not written\n"
            f"  The store is intact. Make room and run the same command again to go on"
        )
    if error.errno in _READ_ONLY:
        return UsageError(
            f"{what} cannot be written: {error.strerror}\n"
            f"  Allow writing there, or give another place with --out"
        )
    return None


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Tell a disk that is full or may not be written from any other fault; see :func:`disk_error`."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, what) or error from None


def sync_tree(folder: Path) -> None:
    """Flush every file and folder to the disk, so that a commit survives a power cut."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def sync(path: Path) -> None:
    """Flush one file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
