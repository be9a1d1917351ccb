"""The trace store: parts under one root, read lazily, written one part at a time.

``FORMAT.md`` beside this file is the specification.
"""

import json
import os
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, overload

import numpy as np
import zarr
from jaxtyping import Shaped

from graphhalu.axes import EDGE_CONVENTION, ROW_CONVENTION, SPAN_NAMES
from graphhalu.config import differing_fields
from graphhalu.errors import (
    CorruptStoreError,
    StoreError,
    StoreFullError,
    StoreMismatchError,
    StoreNotFoundError,
    TraceNotFoundError,
    UsageError,
)
from graphhalu.provenance import provenance as current_provenance
from graphhalu.traces.lock import writer_lock
from graphhalu.traces.part import Part, sync_tree, write_part
from graphhalu.traces.schema import (
    ARRAYS,
    FORMAT,
    FORMAT_VERSION,
    RAGGED_AXES,
    ArraySpec,
    TraceRecord,
    TraceShape,
    array_spec,
)
from graphhalu.traces.trace import StoredArray, Trace

CACHE_BYTES: Final = 384 * 2**20
"""Decoded chunks that an open store keeps."""

UNIT_BYTES: Final = 64 * 2**20
"""Largest piece that is decoded whole because neighbours will be asked for."""

COMPRESSED: Final = {"attention": 0.85, "hidden": 0.85}
"""Typical compressed share of an array, for estimates; streams count in full."""

_ERROR_BOUNDS: Final = {
    "float16": "relative 2**-11 above 6.1e-5, absolute 3.0e-8 below",
    "bfloat16": "relative 2**-8",
}
_ASIDE: Final = ".writing"


class TraceStore(Sequence[Trace]):
    """Traces of one extraction; a sequence whose arrays are read when asked for.

    Open one with :func:`open_traces`.
    """

    def __init__(
        self, path: Path, attributes: Mapping[str, Any], places: list[tuple[int, int]] | None = None
    ) -> None:
        self.path = path
        self._attributes = attributes
        self._places = places
        self.cache = _Cache()

    @classmethod
    def open(cls, path: Path | str) -> "TraceStore":
        """Open a store for reading.

        Raises:
            StoreNotFoundError: If there is none; names the stores nearby.
            StoreError: If it is of a newer version, or is none of ours.
        """
        path = Path(path)
        return cls(path, _read_attributes(path))

    @classmethod
    def create(
        cls,
        path: Path | str,
        *,
        configuration: Mapping[str, Any],
        shape: TraceShape,
        arrays: Sequence[str],
        provenance: Mapping[str, Any] | None = None,
    ) -> "TraceStore":
        """Create an empty store.

        Args:
            path: Must not exist.
            configuration: What decides the content of the traces; plain JSON values.
            shape: What the axes mean.
            arrays: Arrays that are kept.
            provenance: What the store is made with; by default what runs now.

        Raises:
            UsageError: If there is something at ``path``, or its folder cannot be written.
        """
        path = Path(path)
        for name in arrays:
            array_spec(name)
        attributes = _attributes(configuration, shape, arrays, provenance or current_provenance())
        _create_root(path, attributes)
        return cls.open(path)

    # -- what the store says of itself

    @property
    def configuration(self) -> dict[str, Any]:
        """What decides the content of the traces."""
        return dict(self._attributes["configuration"])

    @property
    def provenance(self) -> dict[str, Any]:
        """What the store was made with."""
        return dict(self._attributes["provenance"])

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays that every trace has."""
        return tuple(self._attributes["arrays"])

    @cached_property
    def shape(self) -> TraceShape:
        """What the axes mean."""
        plain: dict[str, Any] = self._attributes["shape"]
        axes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
        return TraceShape(**axes)

    @property
    def labels_folder(self) -> Path:
        """Where labellers keep their results."""
        return self.path / "labels"

    @cached_property
    def parts(self) -> list[Part]:
        """Committed parts in order."""
        return [Part(folder, self.shape) for folder in part_folders(self.path)]

    @property
    def failures(self) -> list[dict[str, str]]:
        """Questions without a trace, and why."""
        return [dict(failure) for part in self.parts for failure in part.commit.failures]

    def done_question_ids(self) -> set[str]:
        """Questions that need not be asked again."""
        return {name for part in self.parts for name in part.commit.question_ids}

    def n_bytes(self) -> dict[str, int]:
        """Bytes on disk of each array; ``records`` holds all that is no trace array."""
        total: dict[str, int] = dict.fromkeys(self.arrays, 0)
        total["records"] = 0
        for part in self.parts:
            for file, meta in part.commit.files.items():
                name = file.split("/")[0]
                total[name if name in ARRAYS else "records"] += meta["bytes"]
        return total

    # -- the sequence of traces

    @cached_property
    def places(self) -> list[tuple[int, int]]:
        """Part and place within it of every trace of this view."""
        if self._places is not None:
            return self._places
        return [
            (index, place)
            for index, part in enumerate(self.parts)
            for place in range(len(part.commit.trace_ids))
        ]

    @cached_property
    def records(self) -> list[TraceRecord]:
        """What is known of every trace; no array is touched."""
        return [self.parts[index].records[place] for index, place in self.places]

    @cached_property
    def trace_ids(self) -> tuple[str, ...]:
        """Identity of every trace."""
        return tuple(self.parts[index].commit.trace_ids[place] for index, place in self.places)

    @property
    def groups(self) -> Shaped[np.ndarray, "trace"]:
        """Group of every trace; traces of one group never part in a split."""
        return np.array([record.group_id for record in self.records], dtype=np.str_)

    def __len__(self) -> int:
        """Number of traces of this view."""
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Trace: ...
    @overload
    def __getitem__(self, index: slice) -> "TraceStore": ...
    def __getitem__(self, index: int | slice) -> "Trace | TraceStore":
        """One trace, or a view of some."""
        if isinstance(index, slice):
            return self._view(self.places[index])
        part_index, place = self.places[index]
        part = self.parts[part_index]
        arrays = {name: _Slice(part, name, place, self.cache) for name in self.arrays}
        return Trace(part.records[place], self.shape, arrays)

    def __iter__(self) -> Iterator[Trace]:
        """All traces in order; each chunk is decoded once."""
        return (self[index] for index in range(len(self)))

    def select(self, indices: Sequence[int] | np.ndarray) -> "TraceStore":
        """A view of some traces, in the order asked for."""
        return self._view([self.places[int(index)] for index in indices])

    def trace(self, trace_id: str) -> Trace:
        """The trace with this identity, or the best beam of this question.

        Raises:
            TraceNotFoundError: If there is none.
        """
        for wanted in (trace_id, f"{trace_id}#0"):
            if wanted in self.trace_ids:
                return self[self.trace_ids.index(wanted)]
        message = (
            f"no trace for question {trace_id!r} in {self.path} ({len(self)} traces there)\n"
            f"  Extract it:  graphhalu extract --out {self.path} …"
        )
        raise TraceNotFoundError(message)

    @contextmanager
    def writer(self) -> Iterator["TraceWriter"]:
        """Hold the store for writing; what a killed writer left half done is swept away.

        Raises:
            StoreLockedError: If another process is writing.
        """
        with writer_lock(self.path):
            shutil.rmtree(self.path / _ASIDE, ignore_errors=True)
            try:
                yield TraceWriter(self)
            finally:
                shutil.rmtree(self.path / _ASIDE, ignore_errors=True)

    def _view(self, places: list[tuple[int, int]]) -> "TraceStore":
        view = TraceStore(self.path, self._attributes, places)
        view.parts = self.parts
        view.cache = self.cache
        return view


class TraceWriter:
    """Writes parts to a store that it holds; see :meth:`TraceStore.writer`."""

    def __init__(self, store: TraceStore) -> None:
        self.store = store
        folders = part_folders(store.path)
        self._next = 1 + max((int(folder.name) for folder in folders), default=-1)

    def next_part_index(self) -> int:
        """The first free index."""
        return self._next

    def write_part(
        self,
        index: int,
        traces: Sequence[Trace],
        question_ids: Sequence[str],
        failures: Sequence[Mapping[str, str]] = (),
    ) -> None:
        """Commit one part; a part that is there already stays as it is.

        Raises:
            StoreFullError: If the disk is full; the store stays as it was.
        """
        name = f"{index:06d}"
        write_part(
            self.store.path / _ASIDE / f"{name}-{os.getpid()}",
            self.store.path / "parts" / name,
            traces,
            arrays=self.store.arrays,
            question_ids=question_ids,
            failures=failures,
        )
        self._next = max(self._next, index + 1)


def open_traces(path: Path | str) -> TraceStore:
    """Open a trace store for reading.

    Raises:
        StoreNotFoundError: If there is none; names the stores nearby.
    """
    return TraceStore.open(path)


def open_or_create(
    path: Path | str,
    *,
    configuration: Mapping[str, Any],
    shape: TraceShape,
    arrays: Sequence[str],
) -> TraceStore:
    """Open the store if it has this configuration, create it if there is none.

    Raises:
        StoreMismatchError: If it has another one; names the fields that differ.
    """
    path = Path(path)
    if not path.exists():
        return TraceStore.create(path, configuration=configuration, shape=shape, arrays=arrays)
    store = TraceStore.open(path)
    asked = json.loads(json.dumps({"configuration": configuration, "arrays": list(arrays)}))
    stored = {"configuration": store.configuration, "arrays": list(store.arrays)}
    differences = differing_fields(stored, asked)
    if differences:
        listed = "\n".join(f"  {line.removeprefix('configuration.')}" for line in differences)
        message = (
            f"{path} was extracted with another configuration:\n{listed}\n"
            f"  Ask for the same one, or give another store with --out"
        )
        raise StoreMismatchError(message)
    return store


def estimate_bytes(
    shape: TraceShape, arrays: Sequence[str], lengths: Sequence[int] | np.ndarray
) -> int:
    """Typical bytes on disk of traces with these lengths, all rows kept."""
    tokens = np.asarray(lengths, dtype=np.float64)
    n_entries = {"token": tokens, "row": tokens, "pair": tokens * (tokens + 1) / 2}
    total = 0.0
    for name in arrays:
        spec = ARRAYS[name]
        fixed = np.prod([shape.axis_size(axis) for axis in spec.axes if axis not in RAGGED_AXES])
        size = float(fixed * np.dtype(spec.dtype).itemsize * n_entries[spec.ragged_axis].sum())
        total += size * COMPRESSED.get(name, 1.0)
    return int(total)


def check_fits(path: Path, n_bytes: int) -> None:
    """Refuse a run that would fill the disk.

    Raises:
        StoreFullError: Says what is needed, what is free, and how to need less.
    """
    folder = path if path.exists() else path.parent
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        message = (
            f"the traces need about {n_bytes / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are "
            f"free at {folder}\n"
            f"  Use --num-samples, --keep streams, --hidden-layers, or another disk with --out"
        )
        raise StoreFullError(message)


def part_folders(store: Path) -> list[Path]:
    """Folders of the committed parts, in order."""
    parts = store / "parts"
    found = (
        [folder for folder in parts.iterdir() if folder.name.isdigit()] if parts.is_dir() else []
    )
    return sorted((folder for folder in found if folder.is_dir()), key=lambda f: int(f.name))


class _Slice:
    """One trace's share of an array of its part; satisfies ``StoredArray``."""

    def __init__(self, part: Part, name: str, place: int, cache: "_Cache") -> None:
        self._part, self._name, self._place, self._cache = part, name, place, cache

    @cached_property
    def _spec(self) -> ArraySpec:
        return ARRAYS[self._name]

    @cached_property
    def _range(self) -> tuple[int, int]:
        offsets = self._part.offsets[self._spec.ragged_axis]
        return int(offsets[self._place]), int(offsets[self._place + 1])

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes of this trace."""
        sizes = list(self._part.size(self._name))
        sizes[self._spec.ragged_dim] = self._range[1] - self._range[0]
        return tuple(sizes)

    def __getitem__(self, index: int | slice) -> np.ndarray:
        """Entries along the first axis."""
        start, stop = self._range
        if self._spec.ragged_dim == 0:
            return self._cache.get(self._part, self._name, None)[start:stop][index]
        if isinstance(index, slice):
            picked = [self[i] for i in range(*index.indices(self.shape[0]))]
            return np.stack(picked) if picked else np.empty((0, *self.shape[1:]), self._spec.dtype)
        index = range(self.shape[0])[index]
        sizes = self._part.size(self._name)
        unit = int(np.prod(sizes[1:])) * np.dtype(self._spec.dtype).itemsize
        if unit > UNIT_BYTES:
            return self._part.read_slice(self._name, index, start, stop)
        if unit * sizes[0] <= UNIT_BYTES and self._name not in ("attention", "hidden"):
            layer = self._cache.get(self._part, self._name, None)[index]
        else:
            layer = self._cache.get(self._part, self._name, index)
        return layer[(slice(None),) * (self._spec.ragged_dim - 1) + (slice(start, stop),)]


class _Cache:
    """Decoded arrays or layers of them, the least recently used let go first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Path, str, int | None], np.ndarray] = OrderedDict()
        self._n_bytes = 0

    def get(self, part: Part, name: str, first: int | None) -> np.ndarray:
        """An array of a part, or one entry of its first axis."""
        key = (part.folder, name, first)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        values = part.read(name, first)
        self._kept[key] = values
        self._n_bytes += values.nbytes
        while self._n_bytes > CACHE_BYTES and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._n_bytes -= dropped.nbytes
        return values


def _attributes(
    configuration: Mapping[str, Any],
    shape: TraceShape,
    arrays: Sequence[str],
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    plain = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "configuration": configuration,
        "provenance": provenance,
        "shape": asdict(shape),
        "arrays": list(arrays),
        "axes": {name: list(ARRAYS[name].axes) for name in arrays},
        "span_names": list(SPAN_NAMES),
        "row_convention": ROW_CONVENTION,
        "edge_convention": EDGE_CONVENTION,
        "error_bounds": _ERROR_BOUNDS,
    }
    loaded: dict[str, Any] = json.loads(json.dumps(plain))
    return {**loaded, "digest": attributes_digest(loaded)}


def attributes_digest(attributes: Mapping[str, Any]) -> str:
    """Digest of a store's attributes without the digest itself."""
    plain = {key: value for key, value in attributes.items() if key != "digest"}
    return sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _create_root(path: Path, attributes: Mapping[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".creating-", dir=path.parent))
    except OSError as error:
        message = f"{path.parent} cannot be written: {error.strerror}\n  Give another place: --out"
        raise UsageError(message) from None
    try:
        aside.chmod(0o755)
        group = zarr.create_group(store=aside, zarr_format=3, attributes=dict(attributes))
        group.create_group("parts")
        sync_tree(aside)
        if path.exists():
            message = f"there is something at {path} already"
            raise UsageError(message)
        aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _read_attributes(path: Path) -> dict[str, Any]:
    if not path.exists():
        near = sorted(str(found) for found in path.parent.glob("*.zarr"))
        listed = f"  Stores there: {', '.join(near)}" if near else "  Make one:  graphhalu extract"
        message = f"no trace store at {path}\n{listed}"
        raise StoreNotFoundError(message)
    try:
        attributes = dict(zarr.open_group(path, mode="r", zarr_format=3).attrs)
    except (ValueError, KeyError, TypeError, OSError) as error:
        message = f"{path} is no trace store: it has no readable zarr.json"
        raise StoreError(message) from error
    if attributes.get("format") != FORMAT:
        message = (
            f"{path} is no trace store of graphhalu: its format is {attributes.get('format')!r}"
        )
        raise StoreError(message)
    if attributes.get("format_version", 0) > FORMAT_VERSION:
        message = (
            f"{path} has format version {attributes['format_version']}, this graphhalu reads up "
            f"to {FORMAT_VERSION}\n  Update it:  pip install --upgrade graphhalu"
        )
        raise StoreError(message)
    if attributes.get("digest") != attributes_digest(attributes):
        message = f"the attributes of {path} differ from what was written (zarr.json is damaged)"
        raise CorruptStoreError(message)
    return attributes


__all__ = [
    "StoredArray", "TraceStore", "TraceWriter", "check_fits", "estimate_bytes", "open_or_create",
    "open_traces", "part_folders",
]  # fmt: skip
