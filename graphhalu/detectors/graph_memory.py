"""Graphs that were built once in this process, for the next fold, seed or detector."""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, Generic, Protocol, TypeVar, final, runtime_checkable

from graphhalu.detectors.graph_pieces import GraphPiece
from graphhalu.traces.lazy import LazyArray
from graphhalu.traces.part import Part
from graphhalu.traces.trace import Trace

LIMIT_BYTES: Final = 2**30
"""Graphs that a process keeps."""


@runtime_checkable
class Sized(Protocol):
    """What can be kept: it says how large it is."""

    @property
    def n_bytes(self) -> int:
        """Bytes of its arrays."""


Kept = TypeVar("Kept", bound=Sized)


@final
class GraphMemory(Generic[Kept]):
    """Pieces by trace and recipe; the one that was used the longest ago is let go first.

    A trace in a store is known by its part (with its commit) and name, one in memory by the
    object itself, as long as it lives.

    Args:
        limit_bytes: How much is kept.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.n_bytes = 0
        self._kept: OrderedDict[Hashable, tuple[Kept, weakref.ref[Trace] | None]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, trace: Trace, recipe: Hashable) -> Kept | None:
        """What was kept, or ``None``."""
        key, is_stored = _identity(trace)
        with self._lock:
            found = self._kept.get((key, recipe))
            if found is None or not (is_stored or (found[1] and found[1]() is trace)):
                return None
            self._kept.move_to_end((key, recipe))
            return found[0]

    def put(self, trace: Trace, recipe: Hashable, piece: Kept) -> None:
        """Keep a piece, and let go what is over the limit."""
        key, is_stored = _identity(trace)
        with self._lock:
            before = self._kept.pop((key, recipe), None)
            self.n_bytes -= before[0].n_bytes if before else 0
            self._kept[key, recipe] = (piece, None if is_stored else weakref.ref(trace))
            self.n_bytes += piece.n_bytes
            while self.n_bytes > self.limit_bytes:
                _, (dropped, _) = self._kept.popitem(last=False)
                self.n_bytes -= dropped.n_bytes

    def clear(self) -> None:
        """Let everything go."""
        with self._lock:
            self._kept.clear()
            self.n_bytes = 0


MEMORY: Final[GraphMemory[GraphPiece]] = GraphMemory()
"""The one of this process."""


_DIGESTS: Final[weakref.WeakKeyDictionary[Part, int]] = weakref.WeakKeyDictionary()


def _identity(trace: Trace) -> tuple[Hashable, bool]:
    array = next(iter(trace.arrays.values()), None)
    if isinstance(array, LazyArray):
        return (array.part.folder, _content(array.part), trace.trace_id), True
    return id(trace), False


def _content(part: Part) -> int:
    if part not in _DIGESTS:
        files = part.commit.files.items()
        _DIGESTS[part] = hash(tuple(sorted((name, meta["sha256"]) for name, meta in files)))
    return _DIGESTS[part]
