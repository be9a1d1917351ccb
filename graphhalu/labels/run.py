"""Labels of a store: one Parquet file a labeller, beside the traces that it never touches."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from graphhalu.core.errors import (
    CorruptStoreError,
    GraphhaluError,
    NotEnoughDataError,
    StoreMismatchError,
    TraceNotFoundError,
    UsageError,
)
from graphhalu.core.files import (
    atomic_path,
    parse_json,
    read_parquet,
    reading,
    shown,
    told_format,
    write_parquet,
)
from graphhalu.core.registry import fault_text
from graphhalu.labels.labels import MEANINGS, Labels
from graphhalu.labels.registry import LABELLERS, Labeller, make_labeller
from graphhalu.traces.disk import writing
from graphhalu.traces.schema import TraceRecord
from graphhalu.traces.store import TraceStore, open_traces

FORMAT: Final = "graphhalu-labels"
FORMAT_VERSION: Final = 1

_COLUMNS: Final = {"trace_id": pa.string(), "value": pa.int8(), "is_valid": pa.bool_(), "reason": pa.string()}
_SCHEMA: Final = pa.schema([pa.field(name, kind, nullable=False) for name, kind in _COLUMNS.items()])


def label_store(store: TraceStore, labeller: Labeller, name: str | None = None) -> Labels:
    """Label every answer of a store and write the labels beside the traces.

    Give it the whole store: the file holds the traces that it is given and no others. An earlier
    file of the same name is replaced in one step; a killed run leaves it whole.

    Args:
        store: The traces.
        labeller: The rule.
        name: Name to store the labels under; by default the labeller's own. One rule with two
            settings lies side by side under two names; the settings then name the rule.

    Raises:
        NotEnoughDataError: If the store holds no trace.
        UsageError: If the name is that of another rule, or could lead out of the folder.
        StoreFullError: If the disk is full.
    """
    path = labels_path(store, name or labeller.name)
    if path.stem != labeller.name and path.stem in LABELLERS:
        raise UsageError(f"labels by {labeller.name!r} cannot be stored as {name!r}: another rule's name")
    labels = label_records(store.records, labeller)
    if path.stem != labeller.name:
        labels = replace(labels, labeller=path.stem, settings={"labeller": labeller.name, **labels.settings})
    _write(labels, path)
    store.publish(path)
    return labels


def label_records(records: Sequence[TraceRecord], labeller: Labeller) -> Labels:
    """Label answers without writing anything.

    Raises:
        NotEnoughDataError: If there is no answer.
        GraphhaluError: If the rule raises something else; says where.
    """
    if not records:
        raise NotEnoughDataError("no trace to label: the store is empty; extract some first")
    try:
        decisions = labeller.label_all(records)
    except (GraphhaluError, MemoryError):
        raise
    except Exception as error:
        raise GraphhaluError(
            f"the labeller {labeller.name!r} failed: {fault_text(error, Labeller)}"
        ) from error
    return Labels(
        trace_ids=tuple(record.trace_id for record in records),
        values=np.array([decision.value for decision in decisions], dtype=np.int8),
        is_valid=np.array([decision.is_valid for decision in decisions], dtype=np.bool_),
        reasons=tuple(decision.reason for decision in decisions),
        labeller=labeller.name,
        settings=labeller.settings(),
        meaning=labeller.meaning,
    )


def stored_labellers(store: TraceStore) -> list[str]:
    """Names under which labels of a store are kept, in alphabetical order."""
    return sorted(path.stem for path in store.labels_folder.glob("[!.]*.parquet"))


def read_labels(store: TraceStore | Path | str, labeller: str) -> Labels:
    """The labels that a labeller gave the traces of a store, or of a view of it.

    They come in the order of the traces; rows are found by identity, never by place.

    Args:
        store: The store, a view of it, or where it lies.
        labeller: Name under which the labels were stored.

    Raises:
        UsageError: If it is not a store; traces in memory have no labels beside them.
        TraceNotFoundError: If there are none; names the command that makes them.
        StoreMismatchError: If a trace has none, as after the store has grown.
        CorruptStoreError: If the file is damaged, or of a newer format.
    """
    if isinstance(store, (str, Path)):
        store = open_traces(store)
    elif not isinstance(store, TraceStore):
        raise UsageError(
            f"expected a TraceStore or its path, got {type(store).__name__}\n"
            f"  Open a store:  open_traces('data/traces/NAME.zarr')"
        )
    path = labels_path(store, labeller)
    if not path.is_file():
        there = ", ".join(stored_labellers(store)) or "none"
        raise TraceNotFoundError(
            f"no labels by {labeller!r} in {path.parent.parent} (there: {there})\n{_way_out(path)}"
        )
    labels = _read(path)
    place = {trace_id: index for index, trace_id in enumerate(labels.trace_ids)}
    n_missing = sum(trace_id not in place for trace_id in store.trace_ids)
    if n_missing:
        raise StoreMismatchError(
            f"the labels by {labeller!r} belong to other traces than {path.parent.parent} holds: "
            f"{n_missing} of {len(store.trace_ids)} traces have no label\n{_way_out(path)}"
        )
    return labels.select([place[trace_id] for trace_id in store.trace_ids])


def named_labels(store: TraceStore, name: str) -> Labels:
    """The labels of this name: those of a registered labeller are made where there are none.

    A labeller of the user's own can be named as ``module:Class``. Stored labels are taken with
    the settings that they were made with. If the store has changed since, it is labelled again,
    provided that the settings are the same.

    Raises:
        UnknownNameError: If there are none, and no labeller has this name.
        StoreMismatchError: If the labels belong to other traces, and had other settings.
    """
    if name not in LABELLERS and ":" not in name and labels_path(store, name).is_file():
        return read_labels(store, name)
    labeller = make_labeller(name)
    path = labels_path(store, labeller.name)
    if path.is_file():
        try:
            return read_labels(store, labeller.name)
        except StoreMismatchError:
            if _read(path).settings != labeller.settings():
                raise
    return label_store(store, labeller)


def labels_path(store: TraceStore, labeller: str) -> Path:
    """Where the labels of a labeller lie, whether or not they exist.

    Raises:
        UsageError: If the name could lead out of the folder.
    """
    if not re.fullmatch(r"\w[\w.-]*", labeller):
        raise UsageError(f"a labeller's name holds letters, digits, '_', '-' and '.', got {labeller!r}")
    return store.labels_folder / f"{labeller}.parquet"


def _write(labels: Labels, path: Path) -> None:
    values = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "labeller": labels.labeller,
        "settings": dict(labels.settings),
        "meaning": labels.meaning,
        "coverage": labels.coverage,
        "prevalence": labels.prevalence if labels.is_valid.any() else None,
    }
    metadata = {name: json.dumps(value) for name, value in values.items()}
    table = pa.table(
        [labels.trace_ids, labels.values, labels.is_valid, labels.reasons],
        schema=_SCHEMA.with_metadata(metadata),
    )
    with writing(str(path)), atomic_path(path) as temporary:
        write_parquet(table, temporary)


def _read(path: Path) -> Labels:
    what = f"{path} is damaged or no label file"
    with reading(what, error=CorruptStoreError, also=(pa.ArrowException,), way_out=_way_out(path).strip()):
        table = read_parquet(path)
        metadata = {k.decode(): v for k, v in (table.schema.metadata or {}).items()}
        values = {name: parse_json(metadata[name]) for name in ("format", "format_version")}
        if values["format"] != FORMAT or values["format_version"] > FORMAT_VERSION:
            raise CorruptStoreError(
                f"{path} has {told_format(values)}; this graphhalu reads {FORMAT!r} up to version "
                f"{FORMAT_VERSION}\n{_way_out(path)}"
            )
        columns = table.select(_SCHEMA.names).cast(_SCHEMA).to_pydict()
        if not set(columns["value"]) <= {0, 1}:
            raise ValueError("a label is neither 0 nor 1")
        # files from before there were two meanings do not say theirs
        meaning = parse_json(metadata.get("meaning", b'"hallucinated"'))
        if meaning not in MEANINGS:
            raise CorruptStoreError(
                f"{path}: labels mean {shown(meaning)}, expected {' or '.join(MEANINGS)}\n{_way_out(path)}"
            )
        return Labels(
            trace_ids=tuple(columns["trace_id"]),
            values=np.array(columns["value"], dtype=np.int8),
            is_valid=np.array(columns["is_valid"], dtype=np.bool_),
            reasons=tuple(columns["reason"]),
            labeller=str(parse_json(metadata["labeller"])),
            settings=dict(parse_json(metadata["settings"])),
            meaning=meaning,
        )


def _way_out(path: Path) -> str:
    rule = path.stem if path.stem in LABELLERS else f"RULE --as {path.stem}"
    return f"  Label it:  graphhalu label {path.parent.parent} --labeller {rule}"
