"""Sections around every page: protocol, data set, provenance, and the names of metrics."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from graphhalu.core.numerics import json_ready
from graphhalu.datasets.registry import DATASETS
from graphhalu.evaluation.result import DetectorRow
from graphhalu.evaluation.transfer import TransferCell
from graphhalu.report.page import Section, read_text
from graphhalu.report.tables import Cell, Row, Table, cell, make_table

_MOST: int = 60
"""Items of a list that a setting shows."""


def metric_cells(rows: Sequence[DetectorRow | TransferCell]) -> list[dict[str, Cell]]:
    """Metrics of each row by their titles, in the order of a table; a failed one says so first.

    Metrics without a title of their own come last.
    """
    known, names = read_text("frame")["metrics"], {name for row in rows for name in row.metrics}
    titles = {name: title for name, (title, _) in known.items() if name in names}
    titles |= {name: name for name in sorted(names - known.keys())}
    made = [{title: cell(row.metrics.get(name)) for name, title in titles.items()} for row in rows]
    for row, cells in zip(rows, made, strict=True):
        if row.failure is not None and cells:
            cells[next(iter(cells))] = Cell("failed")
    return made


def metric_meanings(found: Iterable[Iterable[str]]) -> list[Row]:
    """What metrics say, a row each.

    Args:
        found: Names of metrics, one collection a detector.
    """
    known, names = read_text("frame")["metrics"], {name for each in found for name in each}
    return [{"title": title, "meaning": said} for name, (title, said) in known.items() if name in names]


def protocol_text(config: Mapping[str, Any]) -> str:
    """Folds and seeds in a few words."""
    seeds = config.get("seeds", [])
    words = f"{len(seeds)} seed{'' if len(seeds) == 1 else 's'}"
    if config.get("quick"):
        return f"one 60 / 20 / 20 split by question, {words}; a fifth of the answers is tested"
    return f"{config.get('n_folds', '?')} grouped folds, {words}"


def frame(
    config: Mapping[str, Any], provenance: Mapping[str, Any], store: Mapping[str, Any]
) -> dict[str, list[Section]]:
    """The finished sections ``protocol`` and ``provenance`` of a page.

    Args:
        config: Every setting.
        provenance: Versions, machine and code state.
        store: Where the traces are from; its path loses its folders.
    """
    names = read_text("frame")["settings"]
    settings = _table("settings", {names.get(field, field): value for field, value in config.items()})
    protocol = [Section("protocol", "Protocol", tables=settings)] if settings else []
    said = {name: value for name, value in provenance.items() if value not in ({}, [], None)}
    if isinstance(packages := said.get("packages"), Mapping):
        said["packages"] = ", ".join(f"{name} {version}" for name, version in packages.items())
    whole: dict[str, Any] = {
        name: file_name(str(value)) if name == "path" else value for name, value in store.items()
    }
    made_from = {name: value for name, value in whole.items() if name != "configuration"}
    made_from |= whole.get("configuration") or {}
    tables = (*_table("made-with", said), *_table("made-from", made_from))
    text = json.dumps(json_ready({"provenance": provenance, "store": whole}), ensure_ascii=False, indent=1)
    made = Section("provenance", "Provenance", tables=tables, folded=(("The same as JSON", text),))
    return {"protocol": protocol, "provenance": [made] if tables else []}


def data(store: Mapping[str, Any], name: str = "data") -> Section:
    """The data set of the questions, with its licence and its known faults."""
    dataset = named(store, "dataset")
    if dataset not in DATASETS:
        said = f"{dataset!r} is none of the known data sets" if dataset else "The store names none"
        return Section(name, "Data set", (f"{said}: its licence is not known here.",))
    card = DATASETS.get(dataset).card
    rows = [(field, getattr(card, field)) for field in ("name", "task", "licence", "source", "citation")]
    rows += [("label rule that suits it", card.label_rule)]
    rows += [("known fault", fault) for fault in card.artefacts]
    described = read_text("frame")["tables"]["card"]
    cells = [{"name": what, "value": value} for what, value in rows]
    table = make_table(f"{name}-card", described, cells, card=card.name)
    return Section(name, "Data set and licence", tables=(table,))


def named(store: Mapping[str, Any], what: str) -> str:
    """The name of the model or the data set of a store; empty where it names none."""
    part = store.get("configuration", {}).get(what)
    name = part.get("name") if isinstance(part, Mapping) else None
    return str(name) if name else ""


def file_name(path: str) -> str:
    """The last part of a path; a report that is passed on need not tell somebody's folders."""
    return PureWindowsPath(PurePosixPath(path).name).name


def _table(name: str, values: Mapping[str, Any]) -> tuple[Table, ...]:
    """Names and values as a table of two columns; nothing where there are none."""
    described = read_text("frame")["tables"][name]
    rows = [row for field, value in values.items() for row in _rows(str(field), value)]
    return (make_table(name, described, rows),) if rows else ()


def _rows(name: str, value: Any) -> list[Row]:
    """A value as rows: one for each of its fields, their names joined by a dot."""
    if isinstance(value, Mapping) and value:
        return [row for field, below in value.items() for row in _rows(f"{name} · {field}", below)]
    return [{"name": name, "value": _plain(value)}]


def _plain(value: Any) -> str:
    if value is None or value in ({}, [], ()):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(item, str | int) for item in value):
        listed = ", ".join(str(item) for item in value[:_MOST])
        return listed + (f" and {len(value) - _MOST} more" if len(value) > _MOST else "")
    return json.dumps(value, ensure_ascii=False)
