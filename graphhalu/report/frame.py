"""What stands around every report: what was compared, by which protocol, with what."""

import json
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, Final

import pyarrow.compute as pc

from graphhalu.core.numerics import json_ready
from graphhalu.datasets.base import DatasetCard
from graphhalu.datasets.registry import DATASETS
from graphhalu.evaluation.result import Result, TokenCounts
from graphhalu.labels.labels import MEANINGS
from graphhalu.report.labels import few
from graphhalu.report.page import ABSENT, Column, PageTable, Section, text_rows

_PROTOCOL_WORDS: Final = {
    "n_folds": "folds of the cross-fit (one tests, one validates, the rest train)",
    "seeds": "seeds",
    "quick": "one 60 / 20 / 20 split in place of folds",
    "beams": "beams that are compared",
    "n_resamples": "resamples of the bootstrap over questions",
    "level": "coverage of intervals",
    "bootstrap_seed": "seed of the resamples",
    "against": "baseline named before",
    "margin": "margin of equivalence (AUROC)",
    "subgroups": "field of the subgroups",
    "settings": "settings that differ from defaults",
    "detectors": "detectors",
}

_SMALL_CLASS: Final = 30
"""Tested answers of a class below which a report warns."""


def page_title(store: Mapping[str, Any], what: str) -> str:
    """Model and data set, as far as the store says them."""
    configuration = store.get("configuration", {})
    model = _named(configuration, "model")
    dataset = _named(configuration, "dataset")
    if model and dataset:
        return f"{model} on {dataset}: {what}"
    return f"Comparison of {what}"


def facts(result: Result) -> tuple[tuple[str, str], ...]:
    """The numbers that frame a comparison."""
    labeller = result.labeller
    meaning = labeller.get("meaning", "hallucinated")
    ones = "hallucinated" if meaning == "hallucinated" else "labelled 1"
    left_out = f"{result.n_left_out:,} without a valid label"
    if result.n_siblings:
        left_out += f", {result.n_siblings:,} other beams"
    n_failed = sum(row.failure is not None for row in result.rows)
    failed = f" ({n_failed} failed)" if n_failed else ""
    return (
        ("answers", f"{result.n_traces:,} to {result.n_groups:,} questions"),
        *([("tokens", _token_words(result.counts))] if result.counts is not None else []),
        *([("tested in a seed", _class_words(*counts))] if (counts := class_counts(result)) else []),
        ("left out", left_out),
        ("prevalence", f"{result.prevalence:.1%} {ones}"),
        ("labels", f"{labeller.get('name', ABSENT)}; 1 means: {MEANINGS.get(meaning, ABSENT)}"),
        ("detectors", f"{len(result.rows)}{failed}"),
        ("protocol", protocol_text(result.config)),
    )


def _token_words(counts: TokenCounts) -> str:
    return f"{counts.n_tokens:,}, of them {counts.n_hallucinated_tokens:,} in {counts.n_spans:,} marked spans"


def class_counts(result: Result) -> tuple[int, int] | None:
    """Hallucinated and correct items that one seed tests; ``None`` if all detectors failed."""
    samples = result.samples
    if not len(samples):
        return None
    first = samples.filter(
        (pc.field("detector") == samples["detector"][0]) & (pc.field("seed") == samples["seed"][0])
    )
    n_hallucinated = int(pc.sum(first["label"]).as_py())
    return n_hallucinated, len(first) - n_hallucinated


def small_class_warning(result: Result) -> str | None:
    """What to say where one class is so small that single answers move everything."""
    counts = class_counts(result)
    if counts is None or min(counts) >= _SMALL_CLASS:
        return None
    kind = "hallucinated" if counts[0] < counts[1] else "correct"
    return (
        f"Only {min(counts)} {kind} {result.level}s are tested in a seed: each of them moves every "
        f"curve by {1 / max(1, min(counts)):.0%} of its height or width, and small differences "
        "mean nothing."
    )


def _class_words(n_hallucinated: int, n_correct: int) -> str:
    return f"{n_hallucinated:,} hallucinated, {n_correct:,} correct"


def protocol_text(config: Mapping[str, Any]) -> str:
    """Folds and seeds in a few words."""
    seeds = config.get("seeds", [])
    words = f"{len(seeds)} seed{'' if len(seeds) == 1 else 's'}"
    if config.get("quick"):
        return f"one 60 / 20 / 20 split by question, {words}; a fifth of the answers is tested"
    return f"{config.get('n_folds', '?')} grouped folds, {words}"


def frame_sections(
    config: Mapping[str, Any], provenance: Mapping[str, Any], store: Mapping[str, Any], reading: Section
) -> list[Section]:
    """Protocol, data, how to read, provenance."""
    return [protocol(config), data(store), reading, provenance_section(provenance, store)]


def protocol(config: Mapping[str, Any]) -> Section:
    """Every setting of the comparison."""
    rows = [
        [name, words]
        for field, value in config.items()
        for name, words in _flat(_PROTOCOL_WORDS.get(field, field), value)
    ]
    columns = (Column("setting"), Column("value"))
    tables = (PageTable("settings", "Settings", columns, text_rows(rows)),) if rows else ()
    return Section("protocol", "Protocol", tables=tables)


def data(store: Mapping[str, Any], name: str = "data") -> Section:
    """The data set that the questions come from, with its licence and its known faults."""
    dataset = _named(store.get("configuration", {}), "dataset")
    card = dataset_card(dataset)
    if card is None:
        said = f"{dataset!r} is none of the known data sets" if dataset else "The store names none"
        return Section(name, "Data set", (f"{said}: its licence is not known here.",))
    rows = [
        ["name", card.name],
        ["task", card.task],
        ["licence", card.licence],
        ["source", card.source],
        ["citation", card.citation],
        ["label rule that suits it", card.label_rule],
        *(["known fault", fault] for fault in card.artefacts),
    ]
    table = PageTable(f"{name}-card", card.name, (Column("what"), Column("value")), text_rows(rows))
    return Section(name, "Data set and licence", tables=(table,))


def dataset_card(name: str) -> DatasetCard | None:
    """The card of a data set of the registry."""
    return DATASETS.get(name).card if name and name in DATASETS else None


def provenance_section(provenance: Mapping[str, Any], store: Mapping[str, Any]) -> Section:
    """Versions, machine, code state, and what the traces are; paths lose their folders."""
    said = {name: value for name, value in provenance.items() if value not in ({}, [], None)}
    said |= {"packages": _versions(said["packages"])} if "packages" in said else {}
    whole_store: dict[str, Any] = {
        name: file_name(str(value)) if name == "path" else value for name, value in store.items()
    }
    made_from: dict[str, Any] = dict(whole_store)
    made_from |= made_from.pop("configuration", None) or {}
    tables = tuple(
        PageTable(name, title, (Column("what"), Column("value")), text_rows(rows))
        for name, title, values in (("made-with", "Made with", said), ("made-from", "Made from", made_from))
        if (rows := [row for field, value in values.items() for row in _flat(field, value)])
    )
    whole = json_ready({"provenance": provenance, "store": whole_store})
    text = json.dumps(whole, ensure_ascii=False, indent=1)
    folded = (("The same as JSON", text),) if tables else ()
    return Section("provenance", "Provenance", tables=tables, folded=folded)


def _versions(packages: Any) -> str:
    is_table = isinstance(packages, Mapping)
    return ", ".join(f"{n} {v}" for n, v in packages.items()) if is_table else _plain(packages)


def _flat(name: str, value: Any) -> list[list[str]]:
    """A value as rows of a table: one for each of its fields, whose names stand side by side."""
    if not isinstance(value, Mapping) or not value:
        return [[name, _plain(value)]]
    return [row for field, below in value.items() for row in _flat(f"{name} · {field}", below)]


def file_name(path: str) -> str:
    """The last part of a path; a report that is passed on need not tell somebody's folders."""
    return PureWindowsPath(PurePosixPath(path).name).name


def _named(configuration: Mapping[str, Any], what: str) -> str:
    part = configuration.get(what)
    name = part.get("name") if isinstance(part, Mapping) else None
    return str(name) if name else ""


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(item, str | int) for item in value):
        return few([str(item) for item in value], most=60) or "none"
    return json.dumps(value, ensure_ascii=False) if value != {} else "none"
