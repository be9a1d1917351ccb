"""Trace stores: opening, reading, resuming and extending.

``FORMAT.md`` beside this file is the specification.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, overload
from urllib.parse import unquote, urlparse

import numpy as np
from jaxtyping import Shaped

from graphhalu.core.config import differing_fields
from graphhalu.core.errors import StoreMismatchError, StoreNotFoundError, TraceNotFoundError, UsageError
from graphhalu.core.provenance import provenance as current_provenance
from graphhalu.traces.metadata import read_attributes, store_attributes
from graphhalu.traces.part import ChunkCache, LazyArray, Part
from graphhalu.traces.schema import TraceRecord, TraceShape, array_spec
from graphhalu.traces.storage import MAIN, LocalBackend, StorageBackend
from graphhalu.traces.trace import Trace
from graphhalu.traces.write import TraceWriter

if TYPE_CHECKING:
    TraceSequence = Sequence[Trace]
else:  # what checks types at run time takes an item of a Sequence[Trace], so it would read the disk
    TraceSequence = Sequence


LEAST_ANSWERS: Final = 50
"""A store with fewer answers is taken for a trial: too few to train on and to compare with."""

_SCHEME: Final = re.compile(r"(s3|gs|az|file):(?:/+|$)(.*)", re.DOTALL)


class TraceStore(TraceSequence):
    """Traces of one extraction; a sequence whose arrays are read when asked for.

    Open one with :func:`open_traces`.
    """

    def __init__(
        self,
        backend: StorageBackend,
        attributes: Mapping[str, Any],
        places: list[tuple[int, int]] | None = None,
    ) -> None:
        self.backend = backend
        self._attributes = attributes
        self._places = places
        self.cache = ChunkCache()

    @classmethod
    def open(cls, path: Path | str) -> "TraceStore":
        """Open a store for reading.

        Args:
            path: Folder, or address in an object store as ``s3://bucket/name.zarr``.

        Raises:
            StoreNotFoundError: If there is none; names the stores nearby.
            StoreError: If it is of a newer version, or is none of ours.
        """
        backend = storage_backend(path)
        backend.require()
        backend.refresh()
        return cls(backend, read_attributes(backend.path))

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
            shape: Sizes and meaning of the axes.
            arrays: Arrays that are kept.
            provenance: What the store is made with; by default what runs now.

        Raises:
            UsageError: If there is something at ``path``, or its folder cannot be written.
            UnknownNameError: If no array has one of the names.
        """
        for name in arrays:
            array_spec(name)
        made_with = current_provenance() if provenance is None else provenance
        storage_backend(path).create(store_attributes(configuration, shape, arrays, made_with))
        return cls.open(path)

    def __repr__(self) -> str:
        """Name, number of traces, and size of the model."""
        shape = f"{self.shape.n_layers} layers of {self.shape.n_heads} heads"
        return f"TraceStore({self.name!r}, {len(self)} traces, {shape})"

    @property
    def configuration(self) -> dict[str, Any]:
        """Settings that decide the content of the traces."""
        return dict(self._attributes["configuration"])

    @property
    def provenance(self) -> dict[str, Any]:
        """Versions, time and configuration of the run that made the store."""
        return dict(self._attributes["provenance"])

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays that every trace has."""
        return tuple(self._attributes["arrays"])

    @cached_property
    def shape(self) -> TraceShape:
        """Sizes and meaning of the axes."""
        plain: dict[str, Any] = self._attributes["shape"]
        axes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
        return TraceShape(**axes)

    @property
    def name(self) -> str:
        """Its path or its address, for messages."""
        return self.backend.name

    @property
    def path(self) -> Path:
        """Folder from which its files are read: its own, or its mirror in the cache."""
        return self.backend.path

    @property
    def labels_folder(self) -> Path:
        """Folder of the labels."""
        return self.path / "labels"

    def publish(self, file: Path) -> None:
        """Store a file that was written beside the parts, where the store is remote.

        Raises:
            StoreError: If an object store does not take it.
        """
        self.backend.publish(file)

    @cached_property
    def parts(self) -> list[Part]:
        """Committed parts in order.

        Raises:
            CorruptStoreError: If the commit record of a part is damaged.
        """
        return [Part(f, self.shape, self.backend) for f in self.backend.part_folders()]

    def next_part_index(self, start: int = 0) -> int:
        """The first index from ``start`` on without a committed part."""
        taken = {part.commit.part for part in self.parts}
        return next(index for index in count(start) if index not in taken)

    @property
    def failures(self) -> list[dict[str, str]]:
        """Questions without a trace, and why."""
        return [dict(failure) for part in self.parts for failure in part.commit.failures]

    def done_question_ids(self) -> set[str]:
        """Questions that are done, with or without a trace."""
        return {name for part in self.parts for name in part.commit.question_ids}

    def n_bytes(self) -> dict[str, int]:
        """Bytes on disk of each array; ``records`` counts all other files."""
        total: dict[str, int] = dict.fromkeys(self.arrays, 0)
        total["records"] = 0
        for part in self.parts:
            for file, meta in part.commit.files.items():
                name = file.split("/")[0]
                total[name if name in total else "records"] += meta["bytes"]
        return total

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
        """Record of every trace; no array is read."""
        return [self.parts[index].records[place] for index, place in self.places]

    @cached_property
    def trace_ids(self) -> tuple[str, ...]:
        """Identity of every trace."""
        return tuple(self.parts[index].commit.trace_ids[place] for index, place in self.places)

    @property
    def groups(self) -> Shaped[np.ndarray, "trace"]:
        """Group of every trace; a split never divides a group."""
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
        arrays = {name: LazyArray(part, name, place, self.cache) for name in self.arrays}
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
            TraceNotFoundError: If there is none; says why, where the run knew.
        """
        for wanted in (trace_id, f"{trace_id}#0"):
            if wanted in self._index:
                return self[self._index[wanted]]
        question = trace_id.rpartition("#")[0] or trace_id
        reasons = [f["reason"] for f in self.failures if f["question_id"] in (trace_id, question)]
        way = (
            f"  The extraction gave none: {reasons[0]}"
            if reasons
            else f"  Extract it:  graphhalu extract --out {self.name} …"
        )
        message = f"no trace for question {trace_id!r} in {self.name} ({len(self)} traces there)"
        raise TraceNotFoundError(f"{message}\n{way}")

    @contextmanager
    def writer(self, name: str = MAIN) -> Iterator["TraceWriter"]:
        """Hold the store for writing; what a killed writer left half done is removed.

        Args:
            name: ``main`` holds the store alone; writers of other names (``shard-3-of-10``) hold
                it beside one another.

        Raises:
            StoreError: If another process is writing.
            UsageError: If the store cannot be written to.
        """
        with self.backend.lock(name):
            self.backend.clean_up(name)
            try:
                yield TraceWriter(self, name)
            finally:
                self.backend.clean_up(name)

    def member(self, name: str) -> "TraceWriter":
        """A writer without a lock, for a worker of a process that holds the store.

        Args:
            name: Unlike that of every other worker.
        """
        return TraceWriter(self, name)

    def refresh(self) -> None:
        """Read again which parts there are; views keep theirs."""
        self.backend.refresh()
        self.cache = ChunkCache()
        self.refresh_parts()

    def refresh_parts(self) -> None:
        """Read again which parts there are, without root and labels."""
        self.backend.refresh_parts()
        known = {part.folder: part for part in self.parts}
        self.parts = [
            known[f] if f in known and known[f].is_current() else Part(f, self.shape, self.backend)
            for f in self.backend.part_folders()
        ]
        for name in ("places", "records", "trace_ids", "_index"):
            self.__dict__.pop(name, None)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {trace_id: index for index, trace_id in enumerate(self.trace_ids)}

    def _view(self, places: list[tuple[int, int]]) -> "TraceStore":
        view = TraceStore(self.backend, self._attributes, places)
        view.parts = self.parts
        view.cache = self.cache
        return view


def storage_backend(path: Path | str) -> StorageBackend:
    """The storage backend of a path or an address.

    A path keeps one slash of ``s3://`` only; it means the same.

    Raises:
        MissingExtraError: If it is in an object store and obstore is not installed.
        UsageError: If it is not an address that can be used.
    """
    text = os.fspath(path)
    match = _SCHEME.match(text)
    if match is None:
        return LocalBackend(Path(text))
    scheme, rest = match.groups()
    if scheme == "file":
        return LocalBackend(Path(unquote(urlparse(f"file:///{rest}").path)))
    from graphhalu.traces.remote import RemoteBackend

    return RemoteBackend(f"{scheme}://{rest.rstrip('/')}")


def open_traces(path: Path | str) -> TraceStore:
    """Open a trace store for reading.

    Raises:
        StoreNotFoundError: If there is none; names the stores nearby.
    """
    return TraceStore.open(path)


def as_traces(given: object) -> Sequence[Trace]:
    """Traces as they are, or the store at a path.

    Args:
        given: A store, a view of one, a sequence of traces, or where a store lies.

    Raises:
        UsageError: If it is none of these.
        StoreNotFoundError: If there is no store at the path.
    """
    if isinstance(given, (str, Path)):
        return open_traces(given)
    came = type(given).__name__
    if isinstance(given, (list, tuple)) and len(given) and not isinstance(given[0], Trace):
        came = f"{came} of {type(given[0]).__name__}"
    elif isinstance(given, Sequence):
        return given
    raise UsageError(
        f"expected traces (a TraceStore, its path, or a list of Trace), got {came}\n"
        f"  Open a store:  open_traces('data/traces/NAME.zarr')"
    )


def open_or_create(
    path: Path | str,
    *,
    configuration: Mapping[str, Any],
    shape: TraceShape,
    arrays: Sequence[str],
    provenance: Mapping[str, Any] | None = None,
) -> TraceStore:
    """Open the store if it has this configuration, create it if there is none.

    Raises:
        StoreMismatchError: If it has another one; names the fields that differ.
        UsageError: If it cannot be created, or there is something else.
    """
    backend = storage_backend(path)
    if not backend.exists():
        try:
            return TraceStore.create(
                path, configuration=configuration, shape=shape, arrays=arrays, provenance=provenance
            )
        except UsageError:
            if not backend.exists():
                raise
            # another shard made it at this moment
    backend.refuse_other_content()
    store = TraceStore.open(path)
    wanted = {"configuration": configuration, "shape": asdict(shape), "arrays": list(arrays)}
    stored = {
        "configuration": store.configuration,
        "shape": asdict(store.shape),
        "arrays": list(store.arrays),
    }
    differences = differing_fields(*(json.loads(json.dumps(plain)) for plain in (stored, wanted)))
    if differences:
        listed = "\n".join(f"  {line.removeprefix('configuration.')}" for line in differences)
        raise StoreMismatchError(
            f"{store.name} was extracted with another configuration:\n{listed}\n"
            f"  Ask for the same one, or give another store with --out"
        )
    return store


def newest_store(folder: Path, on_note: Callable[[str], None] = lambda _: None) -> Path:
    """The store below a folder whose last part is the newest and that nobody is writing.

    Stores with fewer than :data:`LEAST_ANSWERS` answers are passed over, unless there is no
    larger one. All stored answers count, whether or not a labeller could decide them: when a
    store is looked for, no labeller has been chosen yet.

    Args:
        folder: Where stores lie side by side.
        on_note: Told in one line which stores were passed over.

    Raises:
        StoreNotFoundError: If there is none with traces.
    """
    stores = {path: LocalBackend(path) for path in folder.glob("*.zarr")}
    parts = {path: found for path, backend in stores.items() if (found := backend.part_folders())}
    finished = {
        path: found[-1].stat().st_mtime for path, found in parts.items() if not stores[path].is_locked()
    }
    if not finished:
        busy = " (one is being written now)" if parts else ""
        raise StoreNotFoundError(
            f"no finished trace store below {folder}{busy}\n"
            f"  Make one:  graphhalu extract, or name one with --traces"
        )
    small: dict[Path, int] = {}
    for path in sorted(finished, key=lambda path: finished[path], reverse=True):
        n_answers = len(open_traces(path))
        if n_answers >= LEAST_ANSWERS:
            if small:
                listed = ", ".join(f"{each} ({count})" for each, count in small.items())
                on_note(f"passed over with fewer than {LEAST_ANSWERS} answers, unless named: {listed}")
            return path
        small[path] = n_answers
    return next(iter(small))
