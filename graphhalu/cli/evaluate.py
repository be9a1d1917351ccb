"""Commands ``train``, ``compare`` and ``tokens``: detectors, fitted and measured on a store."""

from pathlib import Path
from typing import Any, Literal

from graphhalu.cli import library
from graphhalu.cli.options import RAY, Count, Options, Place, command
from graphhalu.cli.output import ProgressLine, Shown, say
from graphhalu.cli.store import identity_of, labels_of, open_store
from graphhalu.core.errors import GraphhaluError, UsageError

_COMPARE = Options(
    "CompareConfig",
    "detector=detectors network=detectors detectors quick seeds against beams categories",
    file=True,
)
_TOKENS = Options("CompareConfig", "detectors seeds quick", file=True)


@command("train", given=Options(file=True))
def train(
    given: dict[str, Any],
    detector: str | None = None,
    *,
    traces: Place = None,
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
    name, fits = detector or network, ProgressLine("fits")
    if name is None or (detector is not None and network is not None):
        examples = "graphhalu train gat   or   graphhalu train --network my_module:MyGNN"
        raise UsageError(f"name one detector, or one network:\n  {examples}")
    _use_threads(threads)
    trained_on = {"devices": devices, "accelerator": accelerator}
    settings = {"seed": seed, **given, **{key: value for key, value in trained_on.items() if value}}
    store = open_store(traces)
    library.check_detector(name, store, settings)
    labels = labels_of(store, labeller)
    where: dict[str, Any] = {"store": identity_of(store), "runs": runs}
    folder, result = library.train_detector(name, store, labels, settings=settings, **where, on_progress=fits)
    more = {"result_table": library.terminal_table(result)}
    return Shown({"run": folder, **_values(result)}, "train", more)


@command("compare", settings=_COMPARE, ray=RAY)
def compare(
    settings: "library.CompareConfig",
    ray: "library.RayExecutor",
    stores: list[Path] | None = None,
    *,
    traces: Place = None,
    controls: bool = False,
    labeller: str = "match",
    transfer: bool = False,
    out: Place = None,
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
    engine = ray.if_asked()
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
        specs = [library.detector_spec(name) for name in settings.detectors or library.DEFAULT_DETECTORS]
        shown, seed = ProgressLine("controls"), settings.seeds[0]
        rows = library.control_rows(specs, opened[0], seed=seed, on_progress=shown)
        return Shown({"store": opened[0].name, "controls": rows}, "controls")
    labels = [labels_of(store, labeller) for store in opened]
    folder = library.run_folder("transfer" if transfer else "compare", out, is_resumed=resume)
    say(f"the result goes to {folder}")
    if transfer:
        return _transfer(opened, labels, settings, folder)
    store = opened[0]
    how = {"jobs": jobs, "is_resumed": resume, "engine": engine}
    result = _compared(store, labels[0], settings, folder, **how)
    try:
        library.head_maps(store, labels[0], is_best_beam_only=settings.beams == "best").write(folder)
    except GraphhaluError as error:  # a report without maps is better than none
        say(f"no maps of single heads: {error}")
    library.write_report(folder)
    more = {"result_table": library.terminal_table(result)}
    return Shown({"folder": folder, **_values(result)}, "compare", more)


def _transfer(stores: list[Any], labels: list[Any], settings: Any, folder: Path) -> Shown:
    names = library.source_names([store.path for store in stores])
    sources = zip(names, stores, labels, map(identity_of, stores), strict=True)
    result = library.run_transfer(list(sources), config=settings, on_progress=ProgressLine("fits"))
    result.write(folder)
    library.write_report(folder)
    values = {"folder": folder, "stores": list(names), "cells": result.cells}
    return Shown(values, "transfer", {"result": result})


def _compared(
    store: "library.TraceStore", labels: "library.Labels", settings: Any, folder: Path, **how: Any
) -> "library.Result":
    """The comparison, written to its folder, in which finished detectors are kept until then."""
    options = library.RunOptions(folder=folder, **how)
    about, fits = identity_of(store), ProgressLine("fits")
    result = library.run_comparison(
        store, labels, config=settings, store=about, options=options, on_progress=fits
    )
    result.write(folder)
    library.clear_checkpoints(folder)
    return result


def _values(result: "library.Result") -> dict[str, Any]:
    """A comparison, with one entry a detector."""
    names = ("labeller", "n_traces", "n_left_out", "prevalence", "coverage", "n_siblings", "baseline")
    values = {name: getattr(result, name) for name in (*names, "comparisons", "subgroups")}
    methods = [vars(test) | {"verdict": test.verdict()} for test in result.methods]
    return {**values, "n_questions": result.n_groups, "detectors": result.ranked(), "methods": methods}


def _use_threads(threads: int | None, jobs: int = 1) -> None:
    """Use so many CPU threads in this process; by default its share of the free cores."""
    library.set_num_threads(threads or max(1, library.default_threads() // jobs))


@command("tokens", settings=_TOKENS)
def tokens(
    settings: "library.CompareConfig",
    traces: Place = None,
    *,
    save: str | None = None,
    out: Place = None,
    resume: bool = False,
    jobs: Count = 1,
    threads: int | None = None,
) -> Shown:
    """Find hallucinated tokens in given answers with marked spans, and measure how well.

    Args:
        save: Also fit this detector for use; it goes to OUT/detector.
        out: Folder of the result; by default data/runs/tokens-<time>.
        resume: Go on in --out: finished detectors are kept.
        jobs: Processes to spread detectors over.
    """
    if save is not None:  # refused before anything is run
        library.detector_specs([save], library.CompareConfig(), "token")
    _use_threads(threads, jobs)
    store = open_store(traces)
    labels = library.label_tokens(store.records)
    folder = library.run_folder("tokens", out, is_resumed=resume)
    say(f"the result goes to {folder}")
    result = _compared(store, labels, settings, folder, jobs=jobs, is_resumed=resume)
    if save is not None:
        library.fit_for_use(save, store, labels, settings, folder / "detector")
    more = {"result": result, "counts": result.counts, "path": store.path}
    return Shown({"folder": folder, **result.plain()}, "tokens", more)
