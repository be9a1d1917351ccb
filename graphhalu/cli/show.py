"""``graphhalu show``, ``verify`` and ``doctor``: registries, stores and labels, and their soundness."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from graphhalu.cli.options import Size, command
from graphhalu.cli.output import Shown
from graphhalu.cli.store import open_store

app = typer.Typer(
    help="Show models, data sets, detectors, features, a trace store or its labels.", no_args_is_help=True
)
checks = typer.Typer()


_COLUMNS = {
    "models": {"alias": "alias", "model": "hub_id", "size": "n_parameters"}
    | {name: name for name in ("licence", "chat", "gated")},
    "datasets": {name.replace("_", " "): name for name in ("name", "task", "size", "licence", "label_rule")},
    "detectors": {"name": "name", "level": "level", "reads": "inputs", "trained": "is_supervised"}
    | {"control": "is_control", "what it is": "summary"},
}
"""Fields of cards by the columns that show them."""


@command(app)
def models() -> Shown:
    """Known model aliases; any hub id, folder or GGUF file works too."""
    from graphhalu.models.cards import MODEL_CARDS, MODEL_PLUGINS

    plugins, failures = MODEL_PLUGINS.load_all()
    return _cards("models", [*MODEL_CARDS.values(), *plugins.values()], failures)


@command(app)
def datasets() -> Shown:
    """Data sets with task, size, licence and label rule."""
    from graphhalu.datasets.registry import DATASETS

    loaded, failures = DATASETS.load_all()
    return _cards("datasets", [each.card for each in loaded.values()], failures)


@command(app)
def detectors() -> Shown:
    """Detectors with what they read and where they come from."""
    from graphhalu.detectors.registry import DETECTORS

    loaded, failures = DETECTORS.load_all()
    return _cards("detectors", [each.card for each in loaded.values()], failures)


def _cards(kind: str, cards: Iterable[Any], failures: Mapping[str, str]) -> Shown:
    """Cards of a registry as a table, and the plug-ins that cannot be used."""
    listed = [asdict(card) for card in cards]
    columns = {column: f"{{{field}}}" for column, field in _COLUMNS[kind].items()}
    return Shown({kind: listed, "failed": failures}, "cards", {"cards": listed, "columns": columns})


@command(app)
def features(*, markdown: bool = False) -> Shown:
    """Features with formula, shape, what they read and where they come from.

    Args:
        markdown: Print as Markdown.
    """
    from graphhalu.features.registry import FEATURE_COLUMNS, FEATURES, feature_cells, markdown_table

    loaded, failures = FEATURES.load_all()
    rows = [dict(zip(FEATURE_COLUMNS, feature_cells(each), strict=True)) for each in loaded.values()]
    values = {"features": rows, "failed": failures}
    return Shown(values, "show_features", {"text": markdown_table() if markdown else None})


@command(app)
def traces(path: str) -> Shown:
    """Shapes, sizes, counts and configuration of a trace store.

    Args:
        path: A trace store.
    """
    from graphhalu.traces.verify import describe_store

    values = describe_store(path)
    rows = [
        {**array, "name": name, "axes": " x ".join(array["axes"])} for name, array in values["arrays"].items()
    ]
    return Shown(values, "show_traces", {"rows": rows})


@command(app)
def labels(
    traces: Path | None = None, *, labellers: str | None = None, examples: Size = 20, seed: int = 0
) -> Shown:
    """Prevalence, coverage, agreement and thresholds of the labels of a store, with examples.

    Args:
        labellers: Names with commas; missing labels are made; by default all there are.
        examples: Answers to read of each class of the first labeller.
        seed: Seed of the examples.
    """
    from graphhalu.labels.summary import label_report
    from graphhalu.report.labels import example_text, tables

    store = open_store(traces)
    names = [name.strip() for name in labellers.split(",")] if labellers else []
    report = label_report(store, names, n_examples=examples, seed=seed)
    more = {"tables": tables(report), "texts": [example_text(each) for each in report["examples"]]}
    return Shown({"store": store.name, **report}, "show_labels", more)


@command(checks)
def verify(path: str) -> Shown:
    """Read every stored byte and compare it with what was committed.

    Args:
        path: A trace store.
    """
    from graphhalu.traces.verify import verify_store

    problems = verify_store(path)
    values = {"path": str(path), "is_sound": not problems, "problems": problems}
    return Shown(values, "verify", then=typer.Exit(1) if problems else None)


@command(checks)
def doctor(*, model: str | None = None) -> Shown:
    """Versions, devices, cache, and a self-check of the embedded model.

    Args:
        model: Also load this model and check its attention.
    """
    from graphhalu.models.check import examine

    report: dict[str, Any] = examine(model or "smollm2")
    then = None if report["is_healthy"] else typer.Exit(1)
    return Shown(report, "doctor", {"report": report}, then)
