"""Features of a store as a table: one pass over its parts, Parquet out and in."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int

from graphhalu.core.errors import CorruptStoreError, StoreNotFoundError, UsageError
from graphhalu.core.files import atomic_path, parquet_writer, parse_json, read_parquet, reading, told_format
from graphhalu.engine.executors import Executor, SerialExecutor, in_order
from graphhalu.features.block import PlacedBlock, blocks
from graphhalu.features.matrix import block_columns, checked, require_same
from graphhalu.features.registry import FeatureSpec, reads_beams
from graphhalu.traces.disk import writing
from graphhalu.traces.store import TraceStore, open_traces
from graphhalu.traces.trace import Trace

FORMAT: Final = "graphhalu-features"
FORMAT_VERSION: Final = 1

_OF_ROW: Final = ("token", "is_answer")
_FEATURE: Final = re.compile(r"([^.\[]*(?:\[[^\]]*\])?).*")
"""A column, which begins with its feature; a parameter may hold a dot."""


@dataclass(frozen=True)
class FeatureTable:
    """Features of traces, or of their stored rows.

    Attributes:
        trace_ids: Trace of each row of the table.
        values: Missing values are NaN.
        columns: Name of each column, as ``sink_mass_k4.l03.h05``.
        token: Per row of attention: position of its own token. ``None`` in a table of traces.
        is_answer: Per row of attention: whether it produces a token of the answer.
        metadata: Features with formula and source, configuration and provenance of the store.
    """

    trace_ids: tuple[str, ...]
    values: Float32[np.ndarray, "item column"]
    columns: tuple[str, ...]
    token: Int[np.ndarray, "item"] | None = None
    is_answer: Bool[np.ndarray, "item"] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of rows of the table."""
        return len(self.trace_ids)

    def column(self, name: str) -> Float32[np.ndarray, "item"]:
        """One column by name.

        Raises:
            UsageError: If there is none of this name.
        """
        if name not in self.columns:
            raise UsageError(f"no column {name!r} among {len(self.columns)}, as {self.columns[0]!r}")
        return self.values[:, self.columns.index(name)]

    def write(self, path: Path) -> None:
        """Write the table as Parquet, in one step.

        Raises:
            StoreFullError: If the disk is full.
            UsageError: If the file cannot be written.
        """
        _write([self], path)


def feature_table(
    traces: Sequence[Trace] | Path | str,
    features: Sequence[str | FeatureSpec],
    *,
    per_token: bool = False,
    engine: Executor | None = None,
) -> FeatureTable:
    """Features of traces in one pass, in the order of the traces.

    Args:
        traces: A store, its path, a view of one, or traces in memory.
        features: Names, ``name[k=25,head=mean]``, or specifications, all of one level.
        per_token: Whether there is one row for each stored row of attention.
        engine: Where the parts of a store are worked on; by default here.

    Raises:
        NotEnoughDataError: If there is no trace.
        UsageError: If a feature is unknown, of the other level, or given twice, or if the traces
            come from different models.
        TraceNotFoundError: If the traces do not keep what a feature reads.
    """
    traces, specs = checked(traces, features, "token" if per_token else "trace")
    placed = list(_pieces(traces, specs, engine))
    pieces = [piece for piece, _ in placed]
    order = np.argsort(np.concatenate([place for _, place in placed]), kind="stable")
    for piece in pieces:
        require_same(pieces[0].columns, piece.columns)

    def joined(field: str) -> np.ndarray:
        return np.concatenate([getattr(piece, field) for piece in pieces])[order]

    of_rows = {name: joined(name) for name in _OF_ROW} if per_token else {}
    ids = tuple(joined("trace_ids").tolist())
    return FeatureTable(ids, joined("values"), pieces[0].columns, **of_rows, metadata=pieces[0].metadata)


def write_features(
    traces: Sequence[Trace] | Path | str,
    features: Sequence[str | FeatureSpec],
    path: Path,
    *,
    per_token: bool = False,
    engine: Executor | None = None,
) -> tuple[int, int]:
    """Write features of traces as Parquet, never holding more than one block of them.

    The rows come part by part; a killed run leaves no file.

    Args:
        traces: As for :func:`feature_table`.
        features: As for :func:`feature_table`.
        path: The file; an earlier one is replaced in one step.
        per_token: As for :func:`feature_table`.
        engine: As for :func:`feature_table`.

    Returns:
        Rows and columns of the table.

    Raises:
        StoreFullError: If the disk is full.
        UsageError: As :func:`feature_table`, and if the file cannot be written.
        NotEnoughDataError: If there is no trace.
        TraceNotFoundError: If the traces do not keep what a feature reads.
    """
    traces, specs = checked(traces, features, "token" if per_token else "trace")
    return _write((piece for piece, _ in _pieces(traces, specs, engine)), path)


def read_features(path: Path | str) -> FeatureTable:
    """Read a table of features.

    Raises:
        StoreNotFoundError: If there is no file.
        CorruptStoreError: If it is damaged, none of ours, or of a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise StoreNotFoundError(
            f"there is no table of features at {path}\n  Make one:  graphhalu features --out"
        )
    with reading(f"{path} is damaged or no table of features", error=CorruptStoreError):
        table = read_parquet(path)
        said: Mapping[bytes, bytes] = table.schema.metadata or {}
        stored = {k.decode(): parse_json(v) for k, v in said.items()}
        _check_format(stored, path)
        is_of_rows = stored["level"] == "token"
        columns = tuple(n for n in table.column_names if n not in {"trace_id", *_OF_ROW})
        values = [table[name].to_numpy() for name in columns]
        return FeatureTable(
            trace_ids=tuple(table["trace_id"].cast(pa.string()).to_pylist()),
            values=np.stack(values, axis=1).astype(np.float32, casting="same_kind"),
            columns=columns,
            token=table["token"].cast(pa.int32()).to_numpy() if is_of_rows else None,
            is_answer=table["is_answer"].cast(pa.bool_()).to_numpy() if is_of_rows else None,
            metadata={k: v for k, v in stored.items() if k not in {"format", "format_version"}},
        )


class FeatureSummary(NamedTuple):
    """All columns of one feature; NaN where every value is missing.

    Attributes:
        feature: Its name with parameters.
        n_columns: How many columns it has.
        mean: Mean of all values that are there.
        std: Their standard deviation.
        smallest: The smallest.
        largest: The largest.
        missing: Share of values that are missing.
    """

    feature: str
    n_columns: int
    mean: float
    std: float
    smallest: float
    largest: float
    missing: float

    def cells(self) -> list[str]:
        """Name, columns, mean, std and missing share as text; what does not exist is a dash."""
        numbers = (self.mean, self.std)
        shown = ["-" if np.isnan(number) else f"{number:.4g}" for number in numbers]
        return [self.feature, str(self.n_columns), *shown, f"{self.missing:.1%}"]


def summarise(table: FeatureTable) -> list[FeatureSummary]:
    """One line for each feature of a table, in the order of its columns."""
    places: dict[str, list[int]] = {}
    for place, column in enumerate(table.columns):
        places.setdefault(_FEATURE.sub(r"\1", column), []).append(place)
    return [_summary(name, table.values[:, chosen]) for name, chosen in places.items()]


def _summary(name: str, values: np.ndarray) -> FeatureSummary:
    there = values[~np.isnan(values)].astype(np.float64)
    statistics = (np.mean, np.std, np.min, np.max)
    mean, std, least, most = (float(of(there)) if there.size else float("nan") for of in statistics)
    return FeatureSummary(name, values.shape[1], mean, std, least, most, 1 - there.size / values.size)


def opener(traces: Sequence[Trace], engine: Executor) -> Callable[[], Sequence[Trace]]:
    """Gives the same traces in a worker of this engine.

    Traces of a store are opened there, so every worker must reach it at the same path or address;
    traces in memory are sent.
    """
    if isinstance(engine, SerialExecutor):
        return lambda: traces
    if isinstance(traces, TraceStore):
        return partial(_opened, traces.name, traces.trace_ids)
    return partial(list, list(traces))


def _opened(name: str, trace_ids: tuple[str, ...]) -> Sequence[Trace]:
    """The traces with these identities; the store may have grown since."""
    store = open_traces(name)
    place = {trace_id: index for index, trace_id in enumerate(store.trace_ids)}
    return store.select([place[trace_id] for trace_id in trace_ids])


_Piece = tuple[FeatureTable, Int[np.ndarray, "item"]]
"""The table of a block, and the place of each row's trace among all traces."""


def _pieces(
    traces: Sequence[Trace], specs: Sequence[FeatureSpec], engine: Executor | None
) -> Iterator[_Piece]:
    metadata = _metadata(traces, specs)
    if engine is None:
        for placed in blocks(traces, with_beams=reads_beams(specs)):
            yield _piece(placed, specs, metadata)
        return
    of_part: dict[int, list[int]] = {}
    for index in range(len(traces)):
        part = traces.places[index][0] if isinstance(traces, TraceStore) else 0
        of_part.setdefault(part, []).append(index)
    items = [(tuple(specs), chosen) for chosen in of_part.values()]
    with (
        engine.workers(opener(traces, engine), len(items)) as workers,
        closing(workers(_pieces_of_part, items)) as found,
    ):
        for done in in_order(found):
            chosen = np.array(items[done.place][1])
            for piece, place in done.result():
                yield replace(piece, metadata=metadata), chosen[place]


def _pieces_of_part(traces: Sequence[Trace], item: tuple[tuple[FeatureSpec, ...], list[int]]) -> list[_Piece]:
    """The same of some traces, in a worker."""
    specs, chosen = item
    own = traces.select(chosen) if isinstance(traces, TraceStore) else traces
    return [_piece(placed, specs, {}) for placed in blocks(own, with_beams=reads_beams(specs))]


def _piece(placed: PlacedBlock, specs: Sequence[FeatureSpec], metadata: Mapping[str, Any]) -> _Piece:
    block, within = placed.block, placed.within
    found = block_columns(block, specs)
    ids = np.array([record.trace_id for record in block.records], dtype=object)
    if specs[0].feature.level == "trace":
        table = FeatureTable(tuple(ids[within]), found.values[within], found.columns, metadata=metadata)
        return table, placed.indices
    starts, stops = block.rows.offsets[within], block.rows.offsets[within + 1]
    rows = np.concatenate([np.arange(*ends) for ends in zip(starts, stops, strict=True)])
    table = FeatureTable(
        trace_ids=tuple(ids[block.rows.trace[rows]]),
        values=found.values[rows],
        columns=found.columns,
        token=block.row_token[rows],
        is_answer=block.is_answer_row[rows],
        metadata=metadata,
    )
    return table, np.repeat(placed.indices, block.rows.lengths[within])


def _metadata(traces: Sequence[Trace], specs: Sequence[FeatureSpec]) -> dict[str, Any]:
    """What a table says of itself; a store says with what model its traces were made."""
    return {
        "level": specs[0].feature.level,
        "features": {
            str(spec): {
                "formula": spec.feature.formula,
                "source": spec.feature.source,
                "parameters": spec.feature.settings(spec.parameters),
                "reduction": dict(spec.reduction),
            }
            for spec in specs
        },
        "configuration": getattr(traces, "configuration", None),
        "provenance": getattr(traces, "provenance", None),
    }


def _write(pieces: Sequence[FeatureTable] | Iterator[FeatureTable], path: Path) -> tuple[int, int]:
    n_rows, n_columns = 0, 0
    with writing(str(path)), atomic_path(path) as temporary, ExitStack() as stack:
        writer: Any = None
        for piece in pieces:
            table = _arrow(piece)
            if writer is None:
                made = parquet_writer(temporary, table.schema, use_dictionary=["trace_id"])
                writer = stack.enter_context(made)
            writer.write_table(table)
            n_rows, n_columns = n_rows + len(piece), len(piece.columns)
    return n_rows, n_columns


def _arrow(table: FeatureTable) -> pa.Table:
    columns: dict[str, Any] = {"trace_id": pa.array(table.trace_ids, type=pa.string())}
    if table.token is not None and table.is_answer is not None:
        columns |= {"token": table.token.astype(np.int32), "is_answer": table.is_answer}
    columns |= dict(zip(table.columns, np.ascontiguousarray(table.values.T), strict=True))
    described = {"format": FORMAT, "format_version": FORMAT_VERSION, **table.metadata}
    return pa.table(columns).replace_schema_metadata(
        {name: json.dumps(value) for name, value in described.items()}
    )


def _check_format(stored: Mapping[str, Any], path: Path) -> None:
    if stored.get("format") != FORMAT or stored.get("format_version", 0) > FORMAT_VERSION:
        raise CorruptStoreError(
            f"{path} has {told_format(stored)}; "
            f"this graphhalu reads {FORMAT!r} up to version {FORMAT_VERSION}"
        )
