"""Commands ``train``, ``compare`` and ``tokens``: detectors, fitted and measured on a store."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from graphhalu.cli.options import RAY, Count, Options, command
from graphhalu.cli.output import Shown, progress_line, say
from graphhalu.cli.store import labels_of, open_store, store_identity
from graphhalu.core.errors import GraphhaluError, UsageError

if TYPE_CHECKING:
    from graphhalu.cli.ray import RayOptions
    from graphhalu.evaluation.result import Result
    from graphhalu.evaluation.settings import CompareConfig
    from graphhalu.labels.labels import Labels
    from graphhalu.traces.store import TraceStore

app = typer.Typer()
_COMPARE = Options(
    "graphhalu.evaluation.settings:CompareConfig",
    *("detectors", "quick", "seeds", "against", "beams"),
    file=True,
    detector="detectors",
    network="detectors",
)
_TOKENS = Options("graphhalu.evaluation.settings:CompareConfig", "detectors", "seeds", "quick", file=True)


@command(app, given=Options(file=True))
def train(
    given: dict[str, Any],
    detector: str | None = None,
    *,
    traces: Path | None = None,
    labeller: str = "match",
    seed: int = 0,
    runs: Path = Path("data/runs"),
    devices: Count | None = None,
    accelerator: Literal["auto", "cpu", "gpu"] | None = None,
    network: str | None = None,
    threads: int | None = None,
) -> Shown:
    """Train a detector, score it beside simpler ones on held-out questions, and save it.

    Args:
        detector: Name of a detector (graphhalu show detectors), or module:Class.
        seed: Seed of the split and of the training.
        runs: Folder for trained detectors.
        devices: GPUs, or processes on the CPU, that share each step.
        accelerator: What a network is trained on.
        network: PyG network of your own, module:Class; --set network.KEY=VALUE.
    """
    from graphhalu.evaluation.training import check_detector, train_detector
    from graphhalu.report.comparison import terminal_table

    name = detector or network
    if name is None or (detector is not None and network is not None):
        raise UsageError(
            "name one detector, or one network:\n"
            "  graphhalu train gat   or   graphhalu train --network my_module:MyGNN"
        )
    _use_threads(threads)
    trained_on = {"devices": devices, "accelerator": accelerator}
    settings = {"seed": seed, **given, **{key: value for key, value in trained_on.items() if value}}
    store = open_store(traces)
    check_detector(name, store, settings)
    labels = labels_of(store, labeller)
    about = store_identity(store)
    with progress_line("fits") as progress:
        folder, result = train_detector(
            name, store, labels, settings=settings, store=about, runs=runs, on_progress=progress
        )
    values = {"run": str(folder), **result_values(result)}
    return Shown(values, "train", {"result_table": terminal_table(result)})


@command(app, settings=_COMPARE, ray=RAY)
def compare(
    settings: "CompareConfig",
    ray: "RayOptions",
    stores: list[Path] | None = None,
    *,
    traces: Path | None = None,
    controls: bool = False,
    labeller: str = "match",
    transfer: bool = False,
    out: Path | None = None,
    resume: bool = False,
    jobs: Count = 1,
    threads: int | None = None,
) -> Shown:
    """Cross-fit detectors on the same questions and compare them with intervals.

    Args:
        detector: One more detector: a name, or module:Class; can be repeated.
        network: A PyG network of your own, module:Class; can be repeated.
        stores: The store, or with --transfer all of them; by default the newest.
        controls: Try graph detectors on signals that only edges hold.
        transfer: Train on each store and test on every other.
        out: Folder of the result; by default data/runs/compare-<time>.
        resume: Go on in --out: finished detectors are kept.
        jobs: Processes to spread detectors over.
    """
    from graphhalu.evaluation.compare import RunOptions
    from graphhalu.evaluation.training import run_folder

    engine = ray.engine()
    _use_threads(threads if engine is None else threads or engine.n_threads, jobs)
    if transfer and engine is not None:
        raise UsageError("--ray spreads the comparison of one store; leave it out with --transfer")
    paths = [*(stores or []), *([traces] if traces is not None else [])]
    if transfer and len(paths) < 2:  # noqa: PLR2004
        raise UsageError(f"transfer needs two stores or more, got {len(paths)}: --transfer A.zarr B.zarr")
    if not transfer and len(paths) > 1:
        raise UsageError(f"one store is compared at a time, got {len(paths)}; or add --transfer")
    opened = [open_store(path) for path in paths] or [open_store(None)]
    if controls:
        return _controls(opened[0], settings)
    labels = [labels_of(store, labeller) for store in opened]
    folder = run_folder("transfer" if transfer else "compare", out, is_resumed=resume)
    say(f"the result goes to {folder}")
    if transfer:
        return _transfer(opened, labels, settings, folder)
    options = RunOptions(jobs=jobs, folder=folder, is_resumed=resume, engine=engine)
    return _compare(opened[0], labels[0], settings, options)


def _controls(store: "TraceStore", settings: "CompareConfig") -> Shown:
    from graphhalu.evaluation.controls import DEFAULT_DETECTORS, control_rows
    from graphhalu.evaluation.settings import detector_spec

    specs = [detector_spec(name) for name in settings.detectors or DEFAULT_DETECTORS]
    with progress_line("controls") as progress:
        rows = control_rows(specs, store, seed=settings.seeds[0], on_progress=progress)
    return Shown({"store": store.name, "controls": rows}, "controls")


def _compare(store: "TraceStore", labels: "Labels", settings: "CompareConfig", options: Any) -> Shown:
    from graphhalu.evaluation.compare import clear_checkpoints
    from graphhalu.evaluation.compare import compare as run_comparison
    from graphhalu.evaluation.univariate import head_maps
    from graphhalu.report.comparison import terminal_table
    from graphhalu.report.write import write_report

    folder, about = options.folder, store_identity(store)
    with progress_line("fits") as progress:
        result = run_comparison(
            store, labels, config=settings, store=about, options=options, on_progress=progress
        )
    result.write(folder)
    clear_checkpoints(folder)
    try:
        head_maps(store, labels, is_best_beam_only=settings.beams == "best").write(folder)
    except GraphhaluError as error:  # a report without maps is better than none
        say(f"no maps of single heads: {error}")
    write_report(folder)
    values = {"folder": str(folder), **result_values(result)}
    return Shown(values, "compare", {"result_table": terminal_table(result)})


def _transfer(
    stores: "list[TraceStore]", labels: "list[Labels]", settings: "CompareConfig", folder: Path
) -> Shown:
    from graphhalu.evaluation.transfer import source_names
    from graphhalu.evaluation.transfer import transfer as run_transfer
    from graphhalu.report.write import write_report

    names = source_names([store.path for store in stores])
    sources = [
        (name, store, of_store, store_identity(store))
        for name, store, of_store in zip(names, stores, labels, strict=True)
    ]
    with progress_line("fits") as progress:
        result = run_transfer(sources, config=settings, on_progress=progress)
    result.write(folder)
    write_report(folder)
    tables = {
        detector: [[name, *(result.cell_text(detector, name, test) for test in names)] for name in names]
        for detector in result.detectors()
    }
    values = {
        "folder": str(folder),
        "stores": list(names),
        "cells": [asdict(found) for found in result.cells],
    }
    return Shown(values, "transfer", {"tables": tables})


def result_values(result: "Result") -> dict[str, Any]:
    """A comparison as plain values, one entry a detector."""
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
        "methods": [{**asdict(test), "verdict": test.verdict()} for test in result.methods],
        "subgroups": [asdict(group) for group in result.subgroups],
    }


def _use_threads(threads: int | None, jobs: int = 1) -> None:
    """Use so many CPU threads in this process; by default its share of the free cores."""
    import torch

    from graphhalu.models.load import default_threads

    torch.set_num_threads(threads or max(1, default_threads() // jobs))


@command(app, settings=_TOKENS)
def tokens(
    settings: "CompareConfig",
    traces: Path | None = None,
    *,
    save: str | None = None,
    out: Path | None = None,
    threads: int | None = None,
) -> Shown:
    """Find hallucinated tokens in given answers with marked spans, and measure how well.

    Args:
        save: Also fit this detector for use; it goes to OUT/detector.
        out: Folder of the result; by default data/runs/tokens-<time>.
    """
    from graphhalu.evaluation.compare import compare as run_comparison
    from graphhalu.evaluation.settings import CompareConfig, detector_specs
    from graphhalu.evaluation.training import fit_for_use, run_folder
    from graphhalu.labels.stated import label_tokens

    if save is not None:
        detector_specs([save], CompareConfig(), "token")  # refused before anything is run
    _use_threads(threads)
    store = open_store(traces)
    labels, about = label_tokens(store.records), store_identity(store)
    folder = run_folder("tokens", out, is_resumed=False)
    say(f"the result goes to {folder}")
    with progress_line("fits") as progress:
        result = run_comparison(store, labels, config=settings, store=about, on_progress=progress)
    result.write(folder)
    if save is not None:
        fit_for_use(save, store, labels, settings, folder / "detector")
    scored = [row for row in result.ranked() if row.failure is None]
    rows = [
        {"name": row.detector + "*" * row.is_control, "row": row, "test": result.comparison(row.detector)}
        for row in scored
    ]
    more = {"rows": rows, "result": result, "counts": result.counts, "path": store.path}
    return Shown({"folder": str(folder), **result.plain()}, "tokens", more)
