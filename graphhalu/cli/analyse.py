"""``graphhalu label``, ``train`` and ``compare``: everything after extraction."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphhalu.cli import spread
from graphhalu.cli.output import print_json, print_table, progress_line, say

if TYPE_CHECKING:
    from graphhalu.evaluation.compare import RunOptions
    from graphhalu.evaluation.result import Result
    from graphhalu.evaluation.settings import CompareConfig
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
    from graphhalu.core.config import read_overrides
    from graphhalu.labels.registry import make_labeller
    from graphhalu.labels.run import label_store

    store = open_store(traces)
    rule = make_labeller(labeller, **read_overrides(set_ or []))
    labels = label_store(store, rule, as_)
    values = label_values(labels)
    if json:
        print_json({"store": store.name, **values})
        return
    print_table(
        ["labeller", "traces", "valid", _ones(labels)],
        [[labels.labeller, str(len(labels.values)), str(values["n_valid"]), _share(values)]],
        title=store.name,
    )
    print(f"1 means: {values['a_1_means']}")
    for reason, count in values["reasons"].items():
        print(f"  {count:>6}  {reason}")


def train(
    detector: Annotated[
        str | None, typer.Argument(help="Name of a detector (graphhalu show detectors), or module:Class.")
    ] = None,
    traces: Traces = None,
    labeller: Labeller = "match",
    seed: Annotated[int, typer.Option(help="Seed of the split and of the training.")] = 0,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings of the detector.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A setting, as hidden_size=64.")] = None,
    runs: Annotated[Path, typer.Option(help="Folder for trained detectors.")] = Path("data/runs"),
    devices: Annotated[
        int | None, typer.Option(min=1, help="GPUs, or processes on the CPU, that share each step.")
    ] = None,
    accelerator: Annotated[
        str | None, typer.Option(help="auto, cpu or gpu: what a network is trained on.")
    ] = None,
    network: Annotated[
        str | None, typer.Option(help="PyG network of your own, module:Class; --set network.KEY=VALUE.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads. [default: the free cores]")] = None,
    json: Json = False,
) -> None:
    """Train a detector, score it beside simpler ones on held-out questions, and save it."""
    from graphhalu.core.config import read_overrides
    from graphhalu.core.errors import UsageError
    from graphhalu.evaluation.training import check_detector, read_settings, train_detector

    if (detector is None) == (network is None):
        message = (
            "name one detector, or one network:\n"
            "  graphhalu train gat   or   graphhalu train --network my_module:MyGNN"
        )
        raise UsageError(message)
    detector = detector or network
    assert detector is not None
    spread.use_threads(threads)
    settings = {"seed": seed, **read_settings(config), **read_overrides(set_ or [])}
    trained_on = {"devices": devices, "accelerator": accelerator}
    settings |= {name: value for name, value in trained_on.items() if value is not None}
    store = open_store(traces)
    check_detector(detector, store, settings)
    labels = _labels(store, labeller)
    with progress_line("fits") as progress:
        run = train_detector(
            detector,
            store,
            labels,
            settings=settings,
            store=store_identity(store),
            runs=runs,
            on_progress=progress.count,
        )
    if json:
        print_json({"run": str(run.folder), **result_values(run.result)})
        return
    _print_result(run.result)
    say(f"saved in {run.folder}")


def compare(
    stores: Annotated[
        list[Path] | None,
        typer.Argument(help="The store, or with --transfer all of them. [default: the newest]"),
    ] = None,
    traces: Traces = None,
    detectors: Annotated[
        str | None, typer.Option(help="Names with commas; name@variant for one with settings of its own.")
    ] = None,
    detector: Annotated[
        list[str] | None,
        typer.Option("--detector", help="One more: a name, or module:Class. Can be repeated."),
    ] = None,
    network: Annotated[
        list[str] | None, typer.Option("--network", help="PyG network of your own, module:Class; repeatable.")
    ] = None,
    controls: Annotated[
        bool, typer.Option("--controls", help="Try graph detectors on signals that only edges hold.")
    ] = False,
    labeller: Labeller = "match",
    quick: Annotated[
        bool, typer.Option("--quick", help="One 60/20/20 split in place of cross-fitting.")
    ] = False,
    transfer: Annotated[
        bool, typer.Option("--transfer", help="Train on each store and test on every other.")
    ] = False,
    seeds: Annotated[str | None, typer.Option(help="Seeds with commas. [default: 0,1,2]")] = None,
    against: Annotated[
        str | None, typer.Option(help="Test all others against this one. [default: the strongest baseline]")
    ] = None,
    beams: Annotated[
        str | None, typer.Option(help="best: the best beam of a question; all: every one.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any field, n_folds=3.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the result. [default: data/runs/compare-<time>]")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on in --out: finished detectors are kept.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes to spread detectors over.")] = 1,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads of a process. [default: the free cores / jobs]")
    ] = None,
    ray: spread.Ray = None,
    ray_actors: spread.Actors = None,
    ray_cpus: spread.Cpus = None,
    ray_gpus: spread.Gpus = None,
    ray_wait: spread.Wait = None,
    json: Json = False,
) -> None:
    """Cross-fit detectors on the same questions and compare them with intervals."""
    from graphhalu.core.config import load_config, read_overrides
    from graphhalu.core.errors import UsageError
    from graphhalu.evaluation.settings import CompareConfig
    from graphhalu.evaluation.training import run_folder

    engine = spread.ray_engine(ray, ray_actors, ray_cpus, ray_gpus, ray_wait)
    spread.use_threads(threads if engine is None else threads or engine.n_threads, jobs)
    given: dict[str, Any] = {**read_overrides(set_ or []), **({"quick": True} if quick else {})}
    named: dict[str, Any] = {"against": against}
    chosen = [*(detectors.split(",") if detectors else []), *(detector or []), *(network or [])]
    named |= {"detectors": chosen or None}
    named |= {"beams": beams, "seeds": None if seeds is None else _seeds(seeds)}
    given |= {name: value for name, value in named.items() if value is not None}
    settings = load_config(CompareConfig, config, given)
    if transfer and engine is not None:
        message = "--ray spreads the comparison of one store; leave it out with --transfer"
        raise UsageError(message)
    paths = _store_paths(stores, traces, is_transfer=transfer)
    kind = "transfer" if transfer else "compare"
    opened = [open_store(path) for path in paths]
    if controls:
        _controls(opened[0], chosen, seed=settings.seeds[0], is_json=json)
        return
    labels = [_labels(store, labeller) for store in opened]
    folder = run_folder(kind, out, is_resumed=resume)
    say(f"the result goes to {folder}")
    if transfer:
        _transfer(opened, labels, settings, folder, is_json=json)
        return
    from graphhalu.evaluation.compare import RunOptions

    options = RunOptions(jobs=jobs, folder=folder, is_resumed=resume, engine=engine)
    _compare(opened[0], labels[0], settings, options, is_json=json)


def _controls(store: "TraceStore", names: list[str], *, seed: int, is_json: bool) -> None:
    from graphhalu.evaluation.controls import DEFAULT_DETECTORS, control_rows
    from graphhalu.evaluation.detector_specs import detector_spec

    specs = [detector_spec(name) for name in names or DEFAULT_DETECTORS]
    with progress_line("controls") as line:
        rows = control_rows(specs, store, seed=seed, on_progress=line.count)
    if is_json:
        print_json({"store": store.name, "controls": [vars(row) for row in rows]})
        return
    cells = [
        [
            row.control,
            row.detector,
            f"{row.auroc:.3f}",
            "-" if row.reference is None else f"{row.reference:.3f}",
            str(row.n_answers),
            "yes" if row.passes else "NO",
        ]
        for row in rows
    ]
    columns = ["control", "detector", "AUROC", "arithmetic", "answers", "passes"]
    print_table(columns, cells, title="signals that only edges hold")


def _compare(
    store: "TraceStore", labels: "Labels", settings: "CompareConfig", options: "RunOptions", *, is_json: bool
) -> None:
    from graphhalu.evaluation.compare import compare as run_comparison
    from graphhalu.evaluation.result_files import clear_checkpoints

    assert options.folder is not None
    with progress_line("fits") as progress:
        result = run_comparison(
            store,
            labels,
            config=settings,
            store=store_identity(store),
            options=options,
            on_progress=progress.count,
        )
    result.write(options.folder)
    clear_checkpoints(options.folder)
    _report(store, labels, options.folder, is_best_beam_only=settings.beams == "best")
    if is_json:
        print_json({"folder": str(options.folder), **result_values(result)})
        return
    _print_result(result)
    _print_tests(result)
    say(f"report.html, table.csv, result.json and scores.parquet are in {options.folder}")


def _report(store: "TraceStore", labels: "Labels", folder: Path, *, is_best_beam_only: bool) -> None:
    """Look at single heads, and write the report beside the result that is already there."""
    from graphhalu.core.errors import GraphhaluError
    from graphhalu.evaluation.maps import head_maps
    from graphhalu.report.write import write_report

    try:
        head_maps(store, labels, is_best_beam_only=is_best_beam_only).write(folder)
    except GraphhaluError as error:  # a report without maps is better than none
        say(f"no maps of single heads: {error}")
    write_report(folder)


def _transfer(
    stores: list["TraceStore"],
    labels: list["Labels"],
    settings: "CompareConfig",
    folder: Path,
    *,
    is_json: bool,
) -> None:
    from dataclasses import asdict

    from graphhalu.evaluation.transfer import Source, source_names
    from graphhalu.evaluation.transfer import transfer as run_transfer
    from graphhalu.report.write import write_report

    names = source_names([store.path for store in stores])
    sources = [
        Source(name, store, of_store, store_identity(store))
        for name, store, of_store in zip(names, stores, labels, strict=True)
    ]
    with progress_line("fits") as progress:
        result = run_transfer(sources, config=settings, on_progress=progress.count)
    result.write(folder)
    write_report(folder)
    if is_json:
        cells = [asdict(cell) for cell in result.cells]
        print_json({"folder": str(folder), "stores": list(names), "cells": cells})
        return
    for detector in result.detectors():
        rows = [[name, *(result.cell_text(detector, name, test) for test in names)] for name in names]
        print_table(["trained on", *names], rows, title=f"AUROC of {detector}, tested on")
    for cell in result.cells:
        if cell.failure is not None:
            say(f"{cell.detector}, {cell.train} to {cell.test}, failed: {cell.failure}")
    say(f"report.html, transfer.json, transfer.csv and transfer.parquet are in {folder}")


def _store_paths(stores: list[Path] | None, traces: Path | None, *, is_transfer: bool) -> list[Path | None]:
    """The stores asked for; one for a comparison, two or more for transfer."""
    from graphhalu.core.errors import UsageError

    paths = [*(stores or []), *([traces] if traces is not None else [])]
    if is_transfer and len(paths) < 2:  # noqa: PLR2004
        message = f"transfer needs two stores or more, got {len(paths)}: --transfer A.zarr B.zarr"
        raise UsageError(message)
    if not is_transfer and len(paths) > 1:
        message = f"one store is compared at a time, got {len(paths)}; or add --transfer"
        raise UsageError(message)
    return [*paths] or [None]


def _print_tests(result: "Result") -> None:
    """Differences from the baseline, largest first; narrow enough for 80 columns."""
    import re

    if result.baseline is None or not result.comparisons:
        return
    ordered = sorted(result.comparisons, key=lambda test: -test.difference)
    rows = [
        [
            test.detector,
            re.sub(r"\b0\.", ".", f"{test.difference:+.3f} [{test.low:+.3f},{test.high:+.3f}]"),
            *(_p_value(p) for p in (test.p_bootstrap, test.p_delong, test.p_holm)),
            _p_value(test.p_equivalent),
        ]
        for test in ordered
    ]
    columns = ["detector", "AUROC difference", "p boot.", "DeLong", "Holm", "equal"]
    print_table(columns, rows, title=f"against {result.baseline.detector}; the last four are p")
    say(f"baseline {result.baseline.detector}: {result.baseline.rule}")


def _p_value(value: float | None) -> str:
    if value is None:
        return "-"
    return "<.001" if value < 0.001 else f"{value:.3f}".removeprefix("0")  # noqa: PLR2004


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
    """A comparison as plain values, one spec a detector."""
    from dataclasses import asdict

    return {
        "labeller": dict(result.labeller),
        "n_traces": result.n_traces,
        "n_left_out": result.n_left_out,
        "n_questions": result.n_groups,
        "prevalence": result.prevalence,
        "coverage": result.coverage,
        "n_siblings": result.n_siblings,
        "detectors": [asdict(row) for row in result.ranked()],
        "baseline": asdict(result.baseline) if result.baseline else None,
        "comparisons": [asdict(test) for test in result.comparisons],
        "subgroups": [asdict(group) for group in result.subgroups],
    }


def _print_result(result: "Result") -> None:
    from rich.console import Console

    from graphhalu.report.tables import terminal_table

    Console().print(terminal_table(result))  # what failed stands below it, with the reason


def open_store(path: Path | None) -> "TraceStore":
    """The store of this path, or the newest finished one."""
    from graphhalu.traces.find import newest_store
    from graphhalu.traces.store import open_traces

    if path is None:
        path = newest_store(Path("data/traces"), say)
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


def store_identity(store: "TraceStore") -> dict[str, Any]:
    """What a result says of the traces that it was made from."""
    return {"path": store.name, "configuration": dict(store.configuration)}


def _seeds(text: str) -> list[int]:
    from graphhalu.core.errors import UsageError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        message = f"seeds are given as numbers with commas (0,1,2), got {text!r}"
        raise UsageError(message) from None
