"""Features of traces as one matrix, computed once for each part of a store.

Detectors are fitted on fold after fold of the same traces. What a feature gave for a part of a
store is remembered, so that folds, seeds and detectors share it.
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int

from graphhalu.errors import NotEnoughDataError, UsageError
from graphhalu.features.base import Level
from graphhalu.features.block import PlacedBlock, TraceBlock, blocks
from graphhalu.features.sources import PartArrays
from graphhalu.features.spec import (
    Columns,
    FeatureSpec,
    as_specs,
    reads_beams,
    side_by_side,
)
from graphhalu.traces.part import Part
from graphhalu.traces.store import as_traces
from graphhalu.traces.trace import Trace

LEAST_BYTES: Final = 512 * 2**20
MOST_BYTES: Final = 4 * 2**30
"""What :data:`REMEMBERED` keeps: a quarter of the free memory, within these bounds. All columns
that the registered detectors read take some 3 MB a trace of 30 layers with 9 heads."""


class FeatureMatrix(NamedTuple):
    """Features of traces, one row a trace in the order of the traces.

    Attributes:
        values: Missing values are NaN.
        columns: Name of each column, as ``sink_mass_k4.l03.h05``.
    """

    values: Float32[np.ndarray, "trace column"]
    columns: tuple[str, ...]


class RowMatrix(NamedTuple):
    """Features of the stored rows of traces, trace after trace.

    Attributes:
        values: Missing values are NaN.
        columns: Name of each column, as ``token_sink_mass.l03.h05``.
        trace: Place of each row's trace among the given traces.
        token: Position of each row's own token; it predicts the next one.
        is_answer: Whether the row produces a token of the answer.
    """

    values: Float32[np.ndarray, "row column"]
    columns: tuple[str, ...]
    trace: Int[np.ndarray, "row"]
    token: Int[np.ndarray, "row"]
    is_answer: Bool[np.ndarray, "row"]


class FeatureCache:
    """Columns by where they come from; those used the longest ago are let go first.

    Args:
        limit_bytes: How much is kept; by default what the memory allows at the first use.
    """

    def __init__(self, limit_bytes: int | None = None) -> None:
        self._limit_bytes = limit_bytes
        self.n_bytes = 0
        self._kept: OrderedDict[tuple[str, ...], Columns] = OrderedDict()

    @cached_property
    def limit_bytes(self) -> int:
        """How much is kept."""
        if self._limit_bytes is not None:
            return self._limit_bytes
        # torch takes seconds to import, and only detectors come here
        import torch

        from graphhalu.models.resources import free_memory

        return min(MOST_BYTES, max(LEAST_BYTES, free_memory(torch.device("cpu")) // 2))

    def columns(self, spec: FeatureSpec, block: TraceBlock, place: tuple[str, ...]) -> Columns:
        """What a feature gives for a block; an empty place is never remembered."""
        if not place:
            return spec.compute(block)
        key = (*place, str(spec))
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        columns = spec.compute(block)
        columns.values.flags.writeable = False
        self._kept[key] = columns
        self.n_bytes += columns.values.nbytes
        while self.n_bytes > self.limit_bytes:
            _, dropped = self._kept.popitem(last=False)
            self.n_bytes -= dropped.values.nbytes
        return columns

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self.n_bytes = 0


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
    specs = require_level(as_specs(features), "trace")
    traces = _require_any(as_traces(traces))
    columns: tuple[str, ...] = ()
    values = np.empty((len(traces), 0), dtype=np.float32)
    for placed in blocks(traces, with_beams=reads_beams(specs)):
        found = block_columns(placed.block, specs, cache)
        if not columns:
            columns = found.names
            values = np.empty((len(traces), len(columns)), dtype=np.float32)
        _require_same(columns, found.names)
        values[placed.indices] = found.values[placed.within]
    return FeatureMatrix(values, columns)


def row_matrix(
    traces: Sequence[Trace] | Path | str,
    features: Sequence[str | FeatureSpec],
    *,
    cache: FeatureCache = REMEMBERED,
) -> RowMatrix:
    """Features of the stored rows of traces, side by side.

    Args:
        traces: As for :func:`feature_matrix`.
        features: As for :func:`feature_matrix`, of token level.
        cache: As for :func:`feature_matrix`.

    Raises:
        NotEnoughDataError: If there is no trace.
        UsageError: As :func:`feature_matrix`.
        TraceNotFoundError: If the traces do not keep what a feature reads.
    """
    specs = require_level(as_specs(features), "token")
    traces = _require_any(as_traces(traces))
    pieces = [
        _rows(placed, specs, cache) for placed in blocks(traces, with_beams=reads_beams(specs))
    ]
    for piece in pieces:
        _require_same(pieces[0].columns, piece.columns)
    trace = np.concatenate([piece.trace for piece in pieces])
    order = np.argsort(trace, kind="stable")
    return RowMatrix(
        values=np.concatenate([piece.values for piece in pieces])[order],
        columns=pieces[0].columns,
        trace=trace[order],
        token=np.concatenate([piece.token for piece in pieces])[order],
        is_answer=np.concatenate([piece.is_answer for piece in pieces])[order],
    )


def block_columns(
    block: TraceBlock, specs: Sequence[FeatureSpec], cache: FeatureCache | None = None
) -> Columns:
    """The columns of several features for one block, remembered if it belongs to a store."""
    if cache is None:
        return side_by_side([spec.compute(block) for spec in specs])
    place = _place(block)
    return side_by_side([cache.columns(spec, block, place) for spec in specs])


def require_level(specs: tuple[FeatureSpec, ...], level: Level) -> tuple[FeatureSpec, ...]:
    """Refuse features of the other level.

    Raises:
        UsageError: If there is one.
    """
    for spec in specs:
        if spec.feature.level != level:
            message = (
                f"feature {spec.name!r} has one value a {_ITEM[spec.feature.level]}, expected one "
                f"a {_ITEM[level]}"
            )
            raise UsageError(message)
    return specs


_ITEM: Final[dict[Level, str]] = {"trace": "trace", "token": "stored row"}


def rows_of(block: TraceBlock, within: Int[np.ndarray, "member"]) -> Int[np.ndarray, "row"]:
    """Places of the stored rows of some traces of a block, trace after trace."""
    starts, lengths = block.rows.offsets[within], block.rows.lengths[within]
    skipped = np.repeat(starts - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
    rows: Int[np.ndarray, "row"] = skipped + np.arange(int(lengths.sum()))
    return rows


def _rows(placed: PlacedBlock, specs: Sequence[FeatureSpec], cache: FeatureCache) -> RowMatrix:
    block = placed.block
    rows = rows_of(block, placed.within)
    found = block_columns(block, specs, cache)
    return RowMatrix(
        values=found.values[rows],
        columns=found.names,
        trace=np.repeat(placed.indices, block.rows.lengths[placed.within]),
        token=block.row_token[rows],
        is_answer=block.is_answer_row[rows],
    )


def _place(block: TraceBlock) -> tuple[str, ...]:
    """Identity of a block of a store: its folder, what was committed there, and which traces."""
    if not isinstance(block.arrays, PartArrays):
        return ()
    arrays = block.arrays
    chosen = "all" if arrays.is_member is None else "best"
    range_ = f"{arrays.first}-{arrays.last} {chosen}"
    return (str(arrays.part.folder), _digest(arrays.part), range_)


def _digest(part: Part) -> str:
    digests = (f"{name} {file['sha256']}\n" for name, file in sorted(part.commit.files.items()))
    return sha256("".join(digests).encode()).hexdigest()


def _require_any(traces: Sequence[Trace]) -> Sequence[Trace]:
    if len(traces) == 0:
        message = "there is no trace to compute features of\n  Extract some first"
        raise NotEnoughDataError(message)
    return traces


def _require_same(expected: tuple[str, ...], got: tuple[str, ...]) -> None:
    if expected != got:
        message = (
            f"the traces come from different models: {len(expected)} columns of features for some "
            f"and {len(got)} for others\n  Give the traces of one model"
        )
        raise UsageError(message)
