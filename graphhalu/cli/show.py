"""``graphhalu show``, ``verify`` and ``doctor``: what there is, and whether it is sound."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from graphhalu.cli.output import clean, megabytes, print_json, print_table

app = typer.Typer(help="Show models, data sets, detectors, or a trace store.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


@app.command()
def models(json: Json = False) -> None:
    """Known model aliases; any hub id, folder or GGUF file works too."""
    from dataclasses import asdict

    from graphhalu.models.cards import MODEL_CARDS, MODEL_PLUGINS

    plugins = MODEL_PLUGINS.load_all()
    cards = [*MODEL_CARDS.values(), *plugins.objects.values()]
    if json:
        print_json({"models": [asdict(card) for card in cards], "failed": plugins.failures})
        return
    print_table(
        ["alias", "model", "size", "licence", "chat", "gated"],
        [
            [
                card.alias,
                card.hub_id or "",
                card.n_parameters,
                card.licence,
                "yes" if card.chat else "no",
                "yes" if card.gated else "no",
            ]
            for card in cards
        ],
    )
    _print_failures(plugins.failures)


@app.command()
def datasets(json: Json = False) -> None:
    """Data sets with task, size, licence and label rule."""
    from dataclasses import asdict

    from graphhalu.datasets.registry import DATASETS

    loaded = DATASETS.load_all()
    cards = [dataset.card for dataset in loaded.objects.values()]
    if json:
        print_json({"datasets": [asdict(card) for card in cards], "failed": loaded.failures})
        return
    print_table(
        ["name", "task", "size", "licence", "label rule"],
        [[c.name, c.task, str(c.size), c.licence, c.label_rule] for c in cards],
    )
    _print_failures(loaded.failures)


@app.command()
def detectors(json: Json = False) -> None:
    """Detectors with what they read and where they come from."""
    from dataclasses import asdict

    from graphhalu.detectors.registry import DETECTORS

    loaded = DETECTORS.load_all()
    cards = [detector.card for detector in loaded.objects.values()]
    if json:
        print_json({"detectors": [asdict(card) for card in cards], "failed": loaded.failures})
        return
    print_table(
        ["name", "level", "reads", "trained", "control", "what it is"],
        [
            [
                c.name,
                c.level,
                ", ".join(c.inputs),
                "yes" if c.is_supervised else "no",
                "yes" if c.is_control else "no",
                c.summary,
            ]
            for c in cards
        ],
    )
    _print_failures(loaded.failures)


@app.command()
def features(
    json: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print as Markdown.")] = False,
) -> None:
    """Features with formula, shape, what they read and where they come from."""
    from graphhalu.features.registry import FEATURE_COLUMNS, FEATURES, feature_cells, markdown_table

    loaded = FEATURES.load_all()
    rows = [list(feature_cells(feature)) for feature in loaded.objects.values()]
    if json:
        values = [dict(zip(FEATURE_COLUMNS, row, strict=True)) for row in rows]
        print_json({"features": values, "failed": loaded.failures})
    elif markdown:
        print(markdown_table(), end="")
    else:
        print_table(["name", "what it is", "shape"], [[row[0], row[1], row[4]] for row in rows])
        _print_failures(loaded.failures)


@app.command()
def traces(path: Annotated[str, typer.Argument(help="A trace store.")], json: Json = False) -> None:
    """Shapes, sizes, counts and configuration of a trace store."""
    from graphhalu.traces.verify import describe_store

    values = describe_store(path)
    if json:
        print_json(values)
        return
    print(f"{values['path']}: {values['n_traces']} traces, {values['n_questions']} questions")
    print_table(
        ["array", "axes", "format", "on disk"],
        [
            [name, " x ".join(array["axes"]), array["dtype"], megabytes(array["n_bytes"])]
            for name, array in values["arrays"].items()
        ],
    )
    _print_nested(values["configuration"])
    for reason, count in values["failures"].items():
        print(f"without a trace: {count} x {reason}")


def verify(path: Annotated[str, typer.Argument(help="A trace store.")], json: Json = False) -> None:
    """Read every stored byte and compare it with what was committed."""
    from graphhalu.traces.verify import verify_store

    report = verify_store(path)
    problems = [
        {"part": problem.part, "file": problem.file, "what": problem.what} for problem in report.problems
    ]
    if json:
        print_json({"path": str(path), "is_sound": not problems, "problems": problems})
    elif not problems:
        print(f"{path} is sound")
    else:
        print_table(
            ["part", "file", "what"],
            [[str(p["part"]), str(p["file"]), str(p["what"])] for p in problems],
            title=f"{len(problems)} problems in {path}",
        )
    if problems:
        raise typer.Exit(1)


def doctor(
    json: Json = False,
    model: Annotated[str | None, typer.Option(help="Also load this model and check its attention.")] = None,
) -> None:
    """Versions, devices, cache, and a self-check of the embedded model."""
    from graphhalu.models.check import examine

    report: dict[str, Any] = examine(model or "smollm2")
    if json:
        print_json(report)
    else:
        _print_nested(report)
    if not report["is_healthy"]:
        raise typer.Exit(1)


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
