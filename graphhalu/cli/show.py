"""Show models, data sets, detectors, features, a trace store or its labels."""

from collections.abc import Iterable
from typing import Any

import typer

from graphhalu.cli import library
from graphhalu.cli.options import Place, Size, command
from graphhalu.cli.output import Shown
from graphhalu.cli.store import open_store


@command("show models")
def models() -> Shown:
    """Known model aliases; any hub id, folder or GGUF file works too."""
    return _cards("models", library.MODEL_PLUGINS, library.MODEL_CARDS.values())


@command("show datasets")
def datasets() -> Shown:
    """Data sets with task, size, licence and label rule."""
    return _cards("datasets", library.DATASETS)


@command("show detectors")
def detectors(*, ready: bool = False) -> Shown:
    """Detectors with what they read and where they come from.

    Args:
        ready: Only those that ship trained, with what they were trained on and how well they do.
    """
    if ready:
        cards = {name: library.read_card(library.ready_folder(name)) or {} for name in library.ready_names()}
        return Shown({"ready": cards}, "ready")
    return _cards("detectors", library.DETECTORS)


def _cards(kind: str, registry: Any, known: Iterable[Any] = ()) -> Shown:
    """Known cards and those of a registry as a table, and the plug-ins that cannot be used."""
    loaded, failures = registry.load_all()
    cards = [*known, *(getattr(each, "card", each) for each in loaded.values())]
    return Shown({kind: cards, "failed": failures}, "cards", {"kind": kind})


@command("show features")
def features(*, markdown: bool = False) -> Shown:
    """Features with formula, shape, what they read and where they come from.

    Args:
        markdown: Print as Markdown.
    """
    loaded, failures = library.FEATURES.load_all()
    cells = map(library.feature_cells, loaded.values())
    rows = [dict(zip(library.FEATURE_COLUMNS, each, strict=True)) for each in cells]
    values = {"features": rows, "failed": failures}
    return Shown(values, "show_features", {"text": library.markdown_table() if markdown else None})


@command("show traces")
def traces(path: str) -> Shown:
    """Shapes, sizes, counts and configuration of a trace store.

    Args:
        path: A trace store.
    """
    return Shown(library.describe_store(path), "show_traces")


@command("labels", hidden=True)  # the name of 0.1
@command("show labels")
def labels(
    traces: Place = None, *, labellers: str | None = None, examples: Size = 20, seed: int = 0
) -> Shown:
    """Prevalence, coverage, agreement and thresholds of the labels of a store, with examples.

    Args:
        labellers: Names with commas; missing labels are made; by default all there are.
        examples: Answers to read of each class of the first labeller.
        seed: Seed of the examples.
    """
    store = open_store(traces)
    names = [name.strip() for name in labellers.split(",")] if labellers else []
    report = library.label_report(store, names, n_examples=examples, seed=seed)
    texts = [library.example_text(each) for each in report["examples"]]
    more = {"tables": library.label_tables(report), "texts": texts}
    return Shown({"store": store.name, **report}, "show_labels", more)


@command("verify")
def verify(path: str) -> Shown:
    """Read every stored byte and compare it with what was committed.

    Args:
        path: A trace store.
    """
    problems = library.verify_store(path)
    values = {"path": path, "is_sound": not problems, "problems": problems}
    return Shown(values, "verify", then=typer.Exit(1) if problems else None)


@command("doctor")
def doctor(*, model: str | None = None) -> Shown:
    """Versions, devices, cache, and a self-check of the embedded model.

    Args:
        model: Also load this model and check its attention.
    """
    report = library.examine(model or "smollm2")
    then = None if report["is_healthy"] else typer.Exit(1)
    return Shown(report, "doctor", then=then)
