"""Features of traces as one matrix, computed once for each part of a store.

Detectors are fitted on fold after fold of the same traces. What a feature gave for a part of a
store is remembered, so that folds, seeds and detectors share it.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np

from graphhalu.core.errors import NotEnoughDataError, UsageError
from graphhalu.features.base import Level
from graphhalu.features.block import PartArrays, TraceBlock, blocks
from graphhalu.features.registry import FeatureMatrix, FeatureSpec, as_specs, reads_beams
from graphhalu.traces.part import Part
from graphhalu.traces.store import as_traces
from graphhalu.traces.trace import Trace

LEAST_BYTES: Final = 512 * 2**20
MOST_BYTES: Final = 4 * 2**30
"""What :data:`REMEMBERED` keeps: a quarter of the free memory, within these bounds. All columns
that the registered detectors read take some 3 MB a trace of 30 layers with 9 heads."""


class FeatureCache:
    """Columns by where they come from; those used the longest ago are let go first.

    Args:
        limit_bytes: How much is kept; by default what the memory allows at the first use.
    """

    def __init__(self, limit_bytes: int | None = None) -> None:
        self._limit_bytes = limit_bytes
        self.n_bytes = 0
        self._kept: OrderedDict[tuple[str, ...], Any] = OrderedDict()
        self._lock = Lock()

    @cached_property
    def limit_bytes(self) -> int:
        """How much is kept."""
        if self._limit_bytes is not None:
            return self._limit_bytes
        # torch takes seconds to import, and only detectors come here

        from graphhalu.models.load import free_memory

        return min(MOST_BYTES, max(LEAST_BYTES, free_memory() // 4))

    def get(self, key: tuple[str, ...], compute: Callable[[], Any]) -> Any:
        """What is kept under a key, else what ``compute`` gives; nothing is kept under an empty key.

        Args:
            key: Where the columns come from.
            compute: Gives a record with an array ``values``, which is made read-only.
        """
        if not key:
            return compute()
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        columns = compute()
        columns.values.flags.writeable = False
        with self._lock:
            before = self._kept.pop(key, None)
            self._kept[key] = columns
            self.n_bytes += columns.values.nbytes - (before.values.nbytes if before else 0)
            while self.n_bytes > self.limit_bytes:
                _, dropped = self._kept.popitem(last=False)
                self.n_bytes -= dropped.values.nbytes
        return columns


REMEMBERED: Final = FeatureCache()


def feature_matrix(
    traces: Sequence[Trace] | Path | str,
    features: Sequence[str | FeatureSpec],
    *,
    cache: FeatureCache = REMEMBERED,
) -> FeatureMatrix:
    """Features of traces, side by side.

    Args:
        traces: A store, its path, a view of one, or traces in memory, which are computed each time.
        features: Names, ``name[k=25,head=mean]``, or specifications; of trace level.
        cache: Where the columns of the parts of a store are remembered.

    Raises:
        NotEnoughDataError: If there is no trace.
        UsageError: If a feature is unknown, of token level, or given twice, or if the traces
            come from different models.
        TraceNotFoundError: If the traces do not keep what a feature reads.
    """
    traces, specs = checked(traces, features, "trace")
    columns: tuple[str, ...] = ()
    values = np.empty((len(traces), 0), dtype=np.float32)
    for placed in blocks(traces, with_beams=reads_beams(specs)):
        found = block_columns(placed.block, specs, cache)
        if not columns:
            columns = found.columns
            values = np.empty((len(traces), len(columns)), dtype=np.float32)
        require_same(columns, found.columns)
        values[placed.indices] = found.values[placed.within]
    return FeatureMatrix(values, columns)


def block_columns(
    block: TraceBlock, specs: Sequence[FeatureSpec], cache: FeatureCache | None = None
) -> FeatureMatrix:
    """The columns of several features for one block, remembered if it belongs to a store."""
    place = _place(block) if cache is not None else ()
    found = []
    for spec in specs:
        compute = partial(spec.compute, block)
        found.append(cache.get((*place, str(spec)), compute) if cache and place else compute())
    columns = tuple(name for each in found for name in each.columns)
    return FeatureMatrix(np.concatenate([each.values for each in found], axis=1), columns)


def checked(
    traces: Sequence[Trace] | Path | str, features: Sequence[str | FeatureSpec], level: Level
) -> tuple[Sequence[Trace], tuple[FeatureSpec, ...]]:
    """Traces, and features as specifications, if there are traces and all are of this level.

    Args:
        traces: A store, its path, a view of one, or traces in memory.
        features: Names or specifications.
        level: What each feature must have one value for.

    Raises:
        NotEnoughDataError: If there is no trace.
        UsageError: If a feature is unknown, of the other level, or given twice.
    """
    specs = require_level(as_specs(features), level)
    traces = as_traces(traces)
    if len(traces) == 0:
        raise NotEnoughDataError("there is no trace to compute features of\n  Extract some first")
    return traces, specs


def require_level(specs: tuple[FeatureSpec, ...], level: Level) -> tuple[FeatureSpec, ...]:
    """Refuse features of the other level.

    Raises:
        UsageError: If there is one.
    """
    for spec in specs:
        if spec.feature.level != level:
            raise UsageError(
                f"feature {spec.name!r} has one value a {_ITEM[spec.feature.level]}, expected one "
                f"a {_ITEM[level]}"
            )
    return specs


_ITEM: Final[dict[Level, str]] = {"trace": "trace", "token": "stored row"}


def require_same(expected: tuple[str, ...], got: tuple[str, ...]) -> None:
    """Refuse traces of models with other columns.

    Raises:
        UsageError: If they differ.
    """
    if expected != got:
        raise UsageError(
            f"the traces come from different models: {len(expected)} columns of features for some "
            f"and {len(got)} for others\n  Give the traces of one model"
        )


def _place(block: TraceBlock) -> tuple[str, ...]:
    """Identity of a block of a store: its folder, what was committed there, and which traces."""
    if not isinstance(block.arrays, PartArrays):
        return ()
    arrays = block.arrays
    chosen = "all" if arrays.is_member is None else "best"
    range_ = f"{arrays.first}-{arrays.last} {chosen}"
    return (str(arrays.part.folder), part_digest(arrays.part), range_)


def part_digest(part: Part) -> str:
    """Digest of what was committed to a part of a store."""
    digests = (f"{name} {file['sha256']}\n" for name, file in sorted(part.commit.files.items()))
    return sha256("".join(digests).encode()).hexdigest()
