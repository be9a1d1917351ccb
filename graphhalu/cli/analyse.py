"""``graphhalu label``, ``train`` and ``compare``: everything after extraction."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphhalu.cli.output import print_json, print_table, progress_line, say

if TYPE_CHECKING:
    from graphhalu.evaluation.result import Result
    from graphhalu.labels.labels import Labels
    from graphhalu.traces.store import TraceStore

Traces = Annotated[
    Path | None, typer.Option("--traces", help="The store. [default: the newest finished one]")
]
Labeller = Annotated[str, typer.Option(help="Rule that decides what is hallucinated.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def label(
    traces: Annotated[
        Path | None, typer.Argument(help="The store. [default: the newest finished one]")
    ] = None,
    labeller: Labeller = "match",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the rule, as threshold=0.5.")
    ] = None,
    as_: Annotated[
        str | None, typer.Option("--as", help="Name to store the labels under, as rouge-strict.")
    ] = None,
    json: Json = False,
) -> None:
    """Label the answers of a store; traces are not touched, labellers live side by side."""
    from graphhalu.config import read_overrides
    from graphhalu.labels.registry import make_labeller
    from graphhalu.labels.run import label_store

    store = open_store(traces)
    rule = make_labeller(labeller, **read_overrides(set_ or []))
    labels = label_store(store, rule, as_)
    values = label_values(labels)
    if json:
        print_json({"store": str(store.path), **values})
        return
    print_table(
        ["labeller", "traces", "valid", _ones(labels)],
        [[labels.labeller, str(len(labels.values)), str(values["n_valid"]), _share(values)]],
        title=str(store.path),
    )
    print(f"1 means: {values['a_1_means']}")
    for reason, count in values["reasons"].items():
        print(f"  {count:>6}  {reason}")


def train(
    detector: Annotated[str, typer.Argument(help="Name of a detector (graphhalu show detectors).")],
    traces: Traces = None,
    labeller: Labeller = "match",
    seed: Annotated[int, typer.Option(help="Seed of the split and of the training.")] = 0,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with settings of the detector.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A setting, as hidden_size=64.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder for trained detectors.")] = Path("data/runs"),
    threads: Annotated[
        int | None, typer.Option(help="CPU threads. [default: the free cores]")
    ] = None,
    json: Json = False,
) -> None:
    """Train a detector, score it beside simpler ones on held-out questions, and save it."""
    from graphhalu.config import read_overrides
    from graphhalu.evaluation.training import read_settings, train_detector

    _use_threads(threads)
    settings = {"seed": seed, **read_settings(config), **read_overrides(set_ or [])}
    store = open_store(traces)
    labels = _labels(store, labeller)
    with progress_line("fits") as progress:
        run = train_detector(
            detector, store, labels,
            settings=settings,
            store=_identity(store), runs=runs, on_progress=progress.step,
        )  # fmt: skip
    if json:
        print_json({"run": str(run.folder), **result_values(run.result)})
        return
    _print_result(run.result)
    say(f"saved in {run.folder}")


def compare(
    traces: Traces = None,
    detectors: Annotated[
        str | None, typer.Option(help="Names with commas. [default: all registered]")
    ] = None,
    labeller: Labeller = "match",
    quick: Annotated[
        bool, typer.Option("--quick", help="One 60/20/20 split in place of cross-fitting.")
    ] = False,
    seeds: Annotated[str | None, typer.Option(help="Seeds with commas. [default: 0,1,2]")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any field, n_folds=3.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the result. [default: data/runs/compare-<time>]")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads. [default: the free cores]")
    ] = None,
    json: Json = False,
) -> None:
    """Cross-fit detectors on the same questions and compare them with intervals."""
    from graphhalu.config import load_config, read_overrides
    from graphhalu.detectors.registry import DETECTORS
    from graphhalu.evaluation.compare import CompareConfig
    from graphhalu.evaluation.compare import compare as run_comparison
    from graphhalu.evaluation.training import new_run_folder
    from graphhalu.report.figures import plot_roc

    _use_threads(threads)
    given: dict[str, Any] = {**read_overrides(set_ or []), **({"quick": True} if quick else {})}
    if seeds is not None:
        given["seeds"] = _seeds(seeds)
    settings = load_config(CompareConfig, config, given)
    names = detectors.split(",") if detectors else DETECTORS.names()
    store = open_store(traces)
    labels = _labels(store, labeller)
    with progress_line("fits") as progress:
        result = run_comparison(
            store, labels, names, config=settings, store=_identity(store),
            on_progress=progress.step,
        )  # fmt: skip
    folder = out or new_run_folder(Path("data/runs"), "compare")
    result.write(folder)
    plot_roc(result, folder / "roc.png")
    if json:
        print_json({"folder": str(folder), **result_values(result)})
        return
    _print_result(result)
    say(f"table.csv, result.json, scores.parquet and roc.png are in {folder}")


def label_values(labels: "Labels") -> dict[str, Any]:
    """Labels in numbers: coverage, prevalence, how often each reason came."""
    from collections import Counter

    from graphhalu.labels.labels import MEANINGS

    n_valid = int(labels.is_valid.sum())
    return {
        "labeller": labels.labeller,
        "meaning": labels.meaning,
        "a_1_means": MEANINGS[labels.meaning],
        "settings": dict(labels.settings),
        "n_traces": len(labels.values),
        "n_valid": n_valid,
        "coverage": labels.coverage,
        "prevalence": labels.prevalence if n_valid else None,
        "reasons": dict(Counter(labels.reasons).most_common()),
    }


def result_values(result: "Result") -> dict[str, Any]:
    """A comparison as plain values, one entry a detector."""
    from dataclasses import asdict

    return {
        "labeller": dict(result.labeller),
        "n_traces": result.n_traces,
        "n_left_out": result.n_left_out,
        "n_questions": result.n_groups,
        "prevalence": result.prevalence,
        "coverage": result.coverage,
        "detectors": [asdict(row) for row in result.ranked()],
    }


def _print_result(result: "Result") -> None:
    from rich.console import Console

    from graphhalu.report.tables import terminal_table

    Console().print(terminal_table(result))
    for row in result.rows:
        if row.failure is not None:
            say(f"{row.detector} failed: {row.failure}")


def open_store(path: Path | None) -> "TraceStore":
    """The store of this path, or the newest finished one."""
    from graphhalu.traces.find import newest_store
    from graphhalu.traces.store import open_traces

    if path is None:
        path = newest_store(Path("data/traces"))
        say(f"using the newest finished store, {path}")
    return open_traces(path)


def _labels(store: "TraceStore", labeller: str) -> "Labels":
    from graphhalu.labels.run import named_labels

    labels = named_labels(store, labeller)
    values = label_values(labels)
    say(
        f"{values['n_valid']} of {values['n_traces']} answers labelled by {labels.labeller!r}, "
        f"{_share(values)} {_ones(labels)}"
    )
    if labels.meaning != "hallucinated":
        say(f"these labels do not judge the model: 1 means {values['a_1_means']}")
    return labels


def _ones(labels: "Labels") -> str:
    """What the traces with label 1 are called."""
    return "hallucinated" if labels.meaning == "hallucinated" else "input bad"


def _share(values: dict[str, Any]) -> str:
    return "none" if values["prevalence"] is None else f"{100 * values['prevalence']:.1f} %"


def _identity(store: "TraceStore") -> dict[str, Any]:
    return {"path": str(store.path), "configuration": dict(store.configuration)}


def _seeds(text: str) -> list[int]:
    from graphhalu.errors import UsageError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        message = f"seeds are given as numbers with commas (0,1,2), got {text!r}"
        raise UsageError(message) from None


def _use_threads(threads: int | None) -> None:
    import torch

    from graphhalu.models.threads import default_threads

    torch.set_num_threads(threads or default_threads())
