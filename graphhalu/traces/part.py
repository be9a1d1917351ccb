"""One part of a store: a fixed block of questions, written whole and committed by one rename."""

import contextlib
import errno
import json
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
from jaxtyping import Int

from graphhalu.errors import CorruptStoreError, NonFiniteError, StoreFullError
from graphhalu.numerics import ragged_offsets
from graphhalu.provenance import file_sha256
from graphhalu.traces.codecs import chunk_shape, compressors
from graphhalu.traces.schema import (
    ARRAYS,
    FORMAT,
    FORMAT_VERSION,
    RAGGED_AXES,
    ArraySpec,
    TraceRecord,
    TraceShape,
    array_spec,
    ragged_length,
    stored_shape,
)
from graphhalu.traces.trace import Trace

COMMIT: Final = "commit.json"
RECORDS: Final = "records"
_BYTES: Final = ArraySpec(RECORDS, ("token",), "uint8", "JSON Lines")
_DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Commit:
    """The commit record of a part: without it the part does not exist.

    Attributes:
        part: Index of the part.
        question_ids: Questions that are done, with or without a trace.
        trace_ids: Traces in the order of the arrays.
        failures: ``question_id`` and ``reason`` of the questions without a trace.
        files: Size and SHA-256 of every file of the part, by relative path.
    """

    part: int
    question_ids: tuple[str, ...]
    trace_ids: tuple[str, ...]
    failures: tuple[dict[str, str], ...]
    files: dict[str, dict[str, Any]]

    def to_json(self) -> str:
        """The record with a digest of itself."""
        plain = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        return json.dumps({**plain, "digest": _digest(plain)}, indent=1, ensure_ascii=False)


def read_commit(folder: Path) -> Commit:
    """The commit record of a part.

    Raises:
        CorruptStoreError: If it is missing, unreadable, or differs from its digest.
    """
    try:
        plain = json.loads((folder / COMMIT).read_text(encoding="utf-8"))
        digest = plain.pop("digest")
        is_whole = digest == _digest(plain)
        commit = Commit(
            part=plain["part"],
            question_ids=tuple(plain["question_ids"]),
            trace_ids=tuple(plain["trace_ids"]),
            failures=tuple(plain["failures"]),
            files=plain["files"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"{folder} has no readable commit record ({type(error).__name__})"
        raise CorruptStoreError(message) from None
    if not is_whole:
        message = f"the commit record of {folder} differs from what was written"
        raise CorruptStoreError(message)
    return commit


def write_part(
    aside: Path,
    target: Path,
    traces: Sequence[Trace],
    *,
    arrays: Sequence[str],
    question_ids: Sequence[str],
    failures: Sequence[Mapping[str, str]],
) -> None:
    """Write a part aside and move it into place; that move is the commit.

    Args:
        aside: Folder on the same file system; must not exist.
        target: Final place. If it exists already the new part is dropped: it is the same one.
        traces: Traces of the part with in-memory arrays in the stored number format.
        arrays: Arrays that the store keeps.
        question_ids: Questions that are done with this part.
        failures: Questions without a trace, and why.

    Raises:
        StoreFullError: If the disk is full; nothing is left behind.
        NonFiniteError: If attention holds NaN or infinity.
    """
    try:
        aside.mkdir(parents=True)
        _write_arrays(aside, traces, arrays)
        files = {
            str(path.relative_to(aside)): {
                "bytes": path.stat().st_size,
                "sha256": file_sha256(path),
            }
            for path in sorted(aside.rglob("*"))
            if path.is_file()
        }
        commit = Commit(
            part=int(target.name),
            question_ids=tuple(question_ids),
            trace_ids=tuple(trace.trace_id for trace in traces),
            failures=tuple(dict(failure) for failure in failures),
            files=files,
        )
        (aside / COMMIT).write_text(commit.to_json(), encoding="utf-8")
        sync_tree(aside)
        _move(aside, target)
    except OSError as error:
        if error.errno in _DISK_FULL:
            message = (
                f"the disk is full: part {target.name} of {target.parent.parent} was not written\n"
                f"  The store is intact. Make room and run the same command again to go on"
            )
            raise StoreFullError(message) from None
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


class Part:
    """A committed part, read when asked for.

    Args:
        folder: Its folder.
        shape: What the axes mean.
    """

    def __init__(self, folder: Path, shape: TraceShape) -> None:
        self.folder = folder
        self.shape = shape
        self.commit = read_commit(folder)
        self._arrays: dict[str, Any] = {}

    @cached_property
    def records(self) -> list[TraceRecord]:
        """What is known of each trace."""
        text = bytes(self._read(RECORDS, ...)).decode()
        return [_record(json.loads(line)) for line in text.splitlines()]

    @cached_property
    def offsets(self) -> dict[str, Int[np.ndarray, "offset"]]:
        """Where each trace starts on each ragged axis, and where the last one ends."""
        return {axis: self._read(f"{axis}_offsets", ...) for axis in RAGGED_AXES}

    def read(self, name: str, first: int | slice | None = None) -> np.ndarray:
        """A whole array in the stored number format, or one entry of its first axis."""
        array_spec(name)
        return self._read(name, ... if first is None else first)

    def read_slice(self, name: str, first: int | slice, start: int, stop: int) -> np.ndarray:
        """Entries of the first axis, cut to ``start … stop`` of the ragged axis."""
        spec = array_spec(name)
        index: list[Any] = [slice(None)] * len(spec.axes)
        index[0] = first
        index[spec.ragged_dim] = slice(start, stop)
        return self._read(name, tuple(index))

    def size(self, name: str) -> tuple[int, ...]:
        """Shape of an array of the part."""
        return tuple(self._open(name).shape)

    def _read(self, name: str, index: Any) -> np.ndarray:
        try:
            return np.asarray(self._open(name)[index])
        except (ValueError, RuntimeError, OSError, TypeError) as error:
            raise self._corrupt(name, str(error)) from error

    def _open(self, name: str) -> Any:
        if name not in self._arrays:
            self._require_files(name)
            try:
                self._arrays[name] = zarr.open_array(self.folder / name, mode="r", zarr_format=3)
            except (ValueError, KeyError, TypeError, OSError) as error:
                raise self._corrupt(name, str(error)) from error
        return self._arrays[name]

    def _require_files(self, name: str) -> None:
        """Refuse an array of which a chunk is missing: it would be read as zeros."""
        listed = {file: meta for file, meta in self.commit.files.items()
                  if file.startswith(f"{name}/")}  # fmt: skip
        if not listed:
            raise self._corrupt(name, "the commit record does not list it")
        for file, meta in listed.items():
            path = self.folder / file
            size = path.stat().st_size if path.is_file() else None
            if size != meta["bytes"]:
                found = "missing" if size is None else f"{size} bytes long"
                raise self._corrupt(name, f"{file} is {found}, expected {meta['bytes']} bytes")

    def _corrupt(self, name: str, reason: str) -> CorruptStoreError:
        message = (
            f"array {name!r} of part {self.folder.name} in {self.folder.parent.parent} "
            f"is damaged: {' '.join(reason.split())}\n"
            f"  See all damage:  graphhalu verify {self.folder.parent.parent}"
        )
        return CorruptStoreError(message)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder to the disk, so that a commit survives a power cut."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _move(aside: Path, target: Path) -> None:
    try:
        aside.rename(target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_arrays(folder: Path, traces: Sequence[Trace], arrays: Sequence[str]) -> None:
    records = [trace.record for trace in traces]
    group = zarr.create_group(store=folder, zarr_format=3)
    lines = "".join(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records)
    _write(group, _BYTES, np.frombuffer(lines.encode(), dtype=np.uint8))
    for axis in RAGGED_AXES:
        lengths = np.array([ragged_length(axis, record) for record in records], dtype=np.int64)
        spec = ArraySpec(f"{axis}_offsets", ("token",), "int64", "offsets")
        _write(group, spec, ragged_offsets(lengths))
    for name in arrays if traces else ():
        spec = ARRAYS[name]
        _write(group, spec, _concatenated(spec, traces))


def _concatenated(spec: ArraySpec, traces: Sequence[Trace]) -> np.ndarray:
    pieces = [np.asarray(trace.arrays[spec.name][:]) for trace in traces]
    for trace, piece in zip(traces, pieces, strict=True):
        expected = stored_shape(spec, trace.shape, trace.record)
        if piece.shape != expected or piece.dtype != np.dtype(spec.dtype):
            message = (
                f"{spec.name} of trace {trace.trace_id!r} must be {spec.dtype} of shape "
                f"{expected}, got {piece.dtype} of shape {piece.shape}"
            )
            raise ValueError(message)
        if spec.name == "attention" and not np.isfinite(piece).all():
            message = f"the attention of trace {trace.trace_id!r} holds NaN or infinity"
            raise NonFiniteError(message)
    return np.concatenate(pieces, axis=spec.ragged_dim)


def _write(group: Any, spec: ArraySpec, values: np.ndarray) -> None:
    with warnings.catch_warnings():
        # the checksum codec after a compressor is what is wanted here
        warnings.simplefilter("ignore", UserWarning)
        array = group.create_array(
            name=spec.name,
            shape=values.shape,
            chunks=chunk_shape(spec, values.shape),
            dtype=values.dtype,
            compressors=compressors(spec),
            dimension_names=spec.axes,
            attributes={"meaning": spec.meaning, "encoding": spec.encoding},
            config={"write_empty_chunks": True},
        )
        if values.size:
            array[...] = values


def _record(plain: dict[str, Any]) -> TraceRecord:
    for name in ("answers", "incorrect_answers"):
        plain[name] = tuple(plain[name])
    return TraceRecord(**plain)


def _digest(plain: Mapping[str, Any]) -> str:
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False)
    return sha256(text.encode()).hexdigest()


def remove_quietly(path: Path) -> None:
    """Remove a file that may be gone already."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
