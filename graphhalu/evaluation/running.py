"""Run the detectors of a comparison: one after another, or spread over workers.

The unit of work is one detector with one seed. Workers open the store themselves and give back
scores; everything else, and the order, is up to the caller, so that the result is the same for
any number of them. Equal figures need an equal number of threads in each worker, since sums in
parallel round differently.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import threadpoolctl  # type: ignore[import-untyped]
import torch

from graphhalu.core.errors import GraphhaluError, UsageError
from graphhalu.core.registry import fault_text
from graphhalu.detectors.base import Detector
from graphhalu.engine.executors import Executor, ProcessExecutor, TaskResult
from graphhalu.evaluation.crossfit import OutOfFold, cross_fit
from graphhalu.evaluation.detector_specs import DetectorSpec
from graphhalu.evaluation.rows import Compared
from graphhalu.features.table import opener
from graphhalu.traces.trace import Trace

FoldHook = Callable[[str, int, int], None]


@dataclass(frozen=True)
class RunOptions:
    """How a comparison is run; nothing here changes a figure.

    Attributes:
        jobs: Processes that detectors and seeds are spread over; 1 = this one.
        folder: Where each detector is kept as soon as it is finished.
        is_resumed: Whether detectors that are finished in the folder are not run again.
        engine: Where the work runs; by default as many processes as there are jobs.
    """

    jobs: int = 1
    folder: Path | None = None
    is_resumed: bool = False
    engine: Executor | None = None

    def spread(self) -> Executor | None:
        """The engine of several workers; ``None`` if this process does everything."""
        return self.engine or (ProcessExecutor(self.jobs) if self.jobs > 1 else None)


@dataclass(frozen=True)
class SeedRun:
    """Scores of one detector with one seed, or why there are none."""

    name: str
    seed: int
    fit: OutOfFold | None
    failure: str | None


def run_seed(
    compared: Compared, spec: DetectorSpec, seed: int, *, on_fold: FoldHook = lambda _name, _seed, _fold: None
) -> SeedRun:
    """Cross-fit one detector with one seed; whatever it raises is its outcome.

    Raises:
        MemoryError: If the machine has no memory left, which concerns all detectors.
    """
    try:
        fit = cross_fit(
            partial(spec.make, seed),
            compared.traces,
            compared.labels,
            compared.folds[seed],
            on_fold=partial(on_fold, spec.name, seed),
        )
    except Exception as error:  # noqa: BLE001 - of another's code that must not stop the rest
        error.add_note(f"of seed {seed}")
        return SeedRun(spec.name, seed, None, failure_text(error))
    return SeedRun(spec.name, seed, fit, None)


def failure_text(error: Exception) -> str:
    """An error in one text: its class, where it happened, what it says.

    Of one that graphhalu did not raise on purpose also the line of the detector's file.

    Raises:
        MemoryError: If it is that: no failure of one detector.
    """
    if isinstance(error, MemoryError):
        raise error
    notes = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
    name = type(error).__name__
    if isinstance(error, GraphhaluError):
        return f"{name}{notes}: {error}"
    return name + notes + fault_text(error, Detector).removeprefix(name)


def run_specs(
    compared: Compared, specs: Sequence[DetectorSpec], options: RunOptions, on_fold: FoldHook
) -> Iterator[tuple[DetectorSpec, list[SeedRun]]]:
    """Each detector with its seeds as soon as all of them are done; after a failure, no more.

    Raises:
        UsageError: If other workers are asked for and a detector is not registered.
        ProcessLostError: If the workers cannot go on.
    """
    engine = options.spread()
    if engine is not None and specs:
        yield from _spread(compared, specs, engine, on_fold)
        return
    for spec in specs:
        runs: list[SeedRun] = []
        for seed in compared.folds:
            runs.append(run_seed(compared, spec, seed, on_fold=on_fold))
            if runs[-1].failure is not None:
                break
        yield spec, runs


def _spread(
    compared: Compared, specs: Sequence[DetectorSpec], engine: Executor, on_fold: FoldHook
) -> Iterator[tuple[DetectorSpec, list[SeedRun]]]:
    for spec in specs:
        if spec.factory is not None:
            message = (
                f"{spec.name} is not registered and cannot run in another process; use 1 job, "
                f"or name its class as module:Class"
            )
            raise UsageError(message)
    seeds = list(compared.folds)
    items = [(spec, seed) for spec in specs for seed in seeds]
    shared = {name: value for name, value in vars(compared).items() if name in _SENT}
    start = partial(_start, opener(compared.traces, engine), shared, torch.get_num_threads())
    done: dict[str, list[SeedRun]] = {spec.name: [] for spec in specs}
    with engine.workers(start, len(items)) as workers, closing(workers.map(_work, items)) as found:
        for each in found:
            run, spec = _seed_run(each, items), items[each.place][0]
            for fold in range(len(compared.folds[run.seed])):
                on_fold(run.name, run.seed, fold)
            done[spec.name].append(run)
            if len(done[spec.name]) == len(seeds):
                yield spec, sorted(done[spec.name], key=lambda run: seeds.index(run.seed))


_SENT = ("labels", "groups", "folds", "config")


def _start(opened: Callable[[], Sequence[Trace]], shared: Mapping[str, Any], n_threads: int) -> Compared:
    """Open the traces in a new worker, with as many threads as the caller has."""
    torch.set_num_threads(n_threads)
    threadpoolctl.threadpool_limits(n_threads)
    return Compared(traces=opened(), **shared)


def _work(compared: Compared, item: tuple[DetectorSpec, int]) -> SeedRun:
    return run_seed(compared, *item)


def _seed_run(done: TaskResult, items: Sequence[tuple[DetectorSpec, int]]) -> SeedRun:
    """The outcome of a seed; workers that died of it are a failure of the detector."""
    if done.failure is None:
        run: SeedRun = done.value
        return run
    spec, seed = items[done.place]
    return SeedRun(spec.name, seed, None, f"of seed {seed}: {done.failure}")
