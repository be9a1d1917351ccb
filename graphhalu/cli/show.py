"""``graphhalu show``, ``verify`` and ``doctor``: registries, stores and labels, and their soundness."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from graphhalu.cli.options import Size, command
from graphhalu.cli.output import Shown, clean, megabytes, print_rows, print_table
from graphhalu.cli.store import open_store

if TYPE_CHECKING:
    from collections.abc import Iterable

app = typer.Typer(
    help="Show models, data sets, detectors, features, a trace store or its labels.", no_args_is_help=True
)
checks = typer.Typer()


@command(app)
def models() -> Shown:
    """Known model aliases; any hub id, folder or GGUF file works too."""
    from graphhalu.models.cards import MODEL_CARDS, MODEL_PLUGINS

    plugins = MODEL_PLUGINS.load_all()
    columns = {
        "alias": "{alias}",
        "model": lambda card: card.hub_id or "",
        "size": "{n_parameters}",
        "licence": "{licence}",
        "chat": "{chat}",
        "gated": "{gated}",
    }
    return _cards("models", [*MODEL_CARDS.values(), *plugins.objects.values()], columns, plugins.failures)


@command(app)
def datasets() -> Shown:
    """Data sets with task, size, licence and label rule."""
    from graphhalu.datasets.registry import DATASETS

    loaded = DATASETS.load_all()
    columns = {
        name.replace("_", " "): f"{{{name}}}" for name in ("name", "task", "size", "licence", "label_rule")
    }
    return _cards("datasets", [each.card for each in loaded.objects.values()], columns, loaded.failures)


@command(app)
def detectors() -> Shown:
    """Detectors with what they read and where they come from."""
    from graphhalu.detectors.registry import DETECTORS

    loaded = DETECTORS.load_all()
    columns = {
        "name": "{name}",
        "level": "{level}",
        "reads": lambda card: ", ".join(card.inputs),
        "trained": "{is_supervised}",
        "control": "{is_control}",
        "what it is": "{summary}",
    }
    return _cards("detectors", [each.card for each in loaded.objects.values()], columns, loaded.failures)


@command(app)
def features(*, markdown: bool = False) -> Shown:
    """Features with formula, shape, what they read and where they come from.

    Args:
        markdown: Print as Markdown.
    """
    from graphhalu.features.registry import FEATURE_COLUMNS, FEATURES, feature_cells, markdown_table

    loaded = FEATURES.load_all()
    rows = [dict(zip(FEATURE_COLUMNS, feature_cells(each), strict=True)) for each in loaded.objects.values()]
    name, what, shape = (FEATURE_COLUMNS[index] for index in (0, 1, 4))
    columns = {"name": f"{{{name}}}", "what it is": f"{{{what}}}", "shape": f"{{{shape}}}"}

    def print_features() -> None:
        if markdown:
            print(markdown_table(), end="")
            return
        print_rows(rows, columns)
        _print_failures(loaded.failures)

    return Shown({"features": rows, "failed": loaded.failures}, print_features)


@command(app)
def traces(path: str) -> Shown:
    """Shapes, sizes, counts and configuration of a trace store.

    Args:
        path: A trace store.
    """
    from graphhalu.traces.verify import describe_store

    values = describe_store(path)

    def print_store() -> None:
        print(f"{values['path']}: {values['n_traces']} traces, {values['n_questions']} questions")
        rows = [
            [name, " x ".join(array["axes"]), array["dtype"], megabytes(array["n_bytes"])]
            for name, array in values["arrays"].items()
        ]
        print_table(["array", "axes", "format", "on disk"], rows)
        _print_nested(values["configuration"])
        for reason, count in values["failures"].items():
            print(f"without a trace: {count} x {reason}")

    return Shown(values, print_store)


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
    from graphhalu.labels.report import label_report
    from graphhalu.report.labels import example_text, tables

    store = open_store(traces)
    names = [name.strip() for name in labellers.split(",")] if labellers else []
    report = label_report(store, names, n_examples=examples, seed=seed)

    def print_report() -> None:
        for table in tables(report):
            print_table(table.heads, table.texts, title=table.title)
        for example in report.examples:
            print(clean(f"{example_text(example)}\n"))

    return Shown({"store": store.name, **report.values()}, print_report)


@command(checks)
def verify(path: str) -> Shown:
    """Read every stored byte and compare it with what was committed.

    Args:
        path: A trace store.
    """
    from graphhalu.traces.verify import verify_store

    problems = [
        {"part": each.part, "file": each.file, "what": each.what} for each in verify_store(path).problems
    ]

    def print_problems() -> None:
        if not problems:
            print(f"{path} is sound")
            return
        columns = {name: f"{{{name}}}" for name in ("part", "file", "what")}
        print_rows(problems, columns, title=f"{len(problems)} problems in {path}")

    then = typer.Exit(1) if problems else None
    return Shown(
        {"path": str(path), "is_sound": not problems, "problems": problems}, print_problems, then=then
    )


@command(checks)
def doctor(*, model: str | None = None) -> Shown:
    """Versions, devices, cache, and a self-check of the embedded model.

    Args:
        model: Also load this model and check its attention.
    """
    from graphhalu.models.check import examine

    report: dict[str, Any] = examine(model or "smollm2")
    then = None if report["is_healthy"] else typer.Exit(1)
    return Shown(report, lambda: _print_nested(report), then=then)


def _cards(
    kind: str, cards: "Iterable[Any]", columns: Mapping[str, Any], failures: Mapping[str, str]
) -> Shown:
    """Cards of a registry as a table, and what of it cannot be used."""
    cards = list(cards)

    def print_cards() -> None:
        print_rows(cards, columns)
        _print_failures(failures)

    return Shown({kind: [asdict(card) for card in cards], "failed": failures}, print_cards)


def _print_failures(failures: Mapping[str, str]) -> None:
    """One line for each plug-in that cannot be used."""
    for name, reason in failures.items():
        print(clean(f"failed: {name}: {reason}"))


def _print_nested(values: dict[str, Any], indent: int = 0) -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            print(f"{' ' * indent}{name}:")
            _print_nested(value, indent + 2)
        else:
            print(f"{' ' * indent}{name}: {value}")
