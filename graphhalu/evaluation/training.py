"""Train one detector for use: fit it on a grouped split, score it beside simpler ones, save it."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from graphhalu.core.config import read_yaml
from graphhalu.core.errors import GraphhaluError, UsageError
from graphhalu.core.files import replace_file
from graphhalu.core.splits import Split
from graphhalu.detectors.base import Detector
from graphhalu.detectors.identity import Identity
from graphhalu.detectors.saved import save_detector
from graphhalu.evaluation.compare import Progress as CompareProgress
from graphhalu.evaluation.compare import (
    RunOptions,
    finish_detector,
    fold_reporter,
    make_compared,
    make_result,
    run_detectors,
)
from graphhalu.evaluation.crossfit import FoldModel, OutOfFold, fit_fold
from graphhalu.evaluation.detector_specs import detector_spec
from graphhalu.evaluation.result import Result
from graphhalu.evaluation.rows import Compared
from graphhalu.evaluation.running import failure_text
from graphhalu.evaluation.settings import CompareConfig
from graphhalu.evaluation.splits import cross_fit_folds
from graphhalu.labels.groups import question_groups
from graphhalu.labels.labels import Labels
from graphhalu.traces.trace import Trace

RUNS: Final = Path("data/runs")
CALIBRATION_FILE: Final = "calibration.json"
RIVALS: Final = ("sink-mass", "head-std", "perplexity", "length")
"""Simple detectors that every training is scored beside, on the same test questions."""


@dataclass(frozen=True)
class TrainedRun:
    """A trained detector and what it was worth.

    Attributes:
        folder: Holds ``detector/`` (weights, settings, and ``calibration.json`` with the
            threshold of a call) and the result of the comparison.
        result: The detector and its rivals on the test side of the split.
    """

    folder: Path
    result: Result


def train_detector(
    name: str,
    traces: Sequence[Trace],
    labels: Labels,
    *,
    settings: Mapping[str, Any] | None = None,
    store: Mapping[str, Any] | None = None,
    runs: Path = RUNS,
    on_progress: Callable[[CompareProgress], None] = lambda _: None,
) -> TrainedRun:
    """Fit a detector on a 60 / 20 / 20 split by question and save it.

    If the fit fails, no run is made; a simple detector beside it that fails is a row of the result.

    Args:
        name: Registered name of the detector, or ``module:Class``.
        traces: Traces in the order of the labels.
        labels: Their labels.
        settings: Fields of the detector's configuration that differ from its defaults; its
            ``seed`` is that of the split too. ``devices`` and ``accelerator`` of a network say
            how many processes train it, and on what.
        store: Identity of the traces, for the record.
        runs: Folder of all runs; this one gets a folder of its own.
        on_progress: Called after each fit.

    Raises:
        UnknownNameError: If no detector has this name.
        ConfigError: If a setting does not validate.
        UsageError: If this machine lacks the devices.
        NotEnoughDataError: If there are too few questions, or one class only.
        GraphhaluError: What the detector raised.
    """
    check_detector(name, traces, settings)
    given = dict(settings or {})
    seed = int(given.pop("seed", 0))
    asked = replace(detector_spec(name), settings=given)
    rivals = [detector_spec(rival) for rival in RIVALS if rival != asked.name]
    config = CompareConfig(quick=True, seeds=(seed,), settings={asked.name: given})
    compared = make_compared(traces, labels, config)
    names = [asked.name, *(spec.name for spec in rivals)]
    on_fold = fold_reporter(on_progress, names, compared.folds, is_in_order=True)
    (fold,) = compared.folds[seed]
    with TemporaryDirectory(prefix="graphhalu-logs-") as logs:
        make = partial(_logging, partial(asked.make, seed), Path(logs))
        model = _fitted(make, compared, fold)
        scored = model.score(compared.traces, fold.test)
        fit = OutOfFold.empty(len(compared.labels.items))
        fit = fit.with_fold(0, compared.labels.places(fold.test), model, scored)
        done = [finish_detector(compared, asked, {seed: fit})]
        on_fold(asked.name, seed, 0)
        done += run_detectors(compared, rivals, RunOptions(), on_fold)
        result = make_result(compared, labels, done, store or {})
        folder = _write_run(runs, asked.name, result, model, Identity.of_traces(traces))
        if any(Path(logs).iterdir()):
            shutil.copytree(logs, folder / "logs")
    return TrainedRun(folder, result)


def _logging(make: Callable[[], Detector], folder: Path) -> Detector:
    """A fresh detector; one that trains a network logs into the folder."""
    detector: Any = make()
    if hasattr(detector, "log_folder"):
        detector.log_folder = folder
    trained: Detector = detector
    return trained


def _fitted(make: Callable[[], Detector], compared: Compared, fold: Split) -> FoldModel:
    try:
        return fit_fold(make, compared.traces, compared.labels, fold)
    except (GraphhaluError, MemoryError):
        raise
    except Exception as error:  # of a detector of another package or of the user
        raise GraphhaluError(failure_text(error)) from error


def check_detector(name: str, traces: Sequence[Trace], settings: Mapping[str, Any] | None = None) -> None:
    """Refuse settings, devices and layers that cannot be before anything is built or labelled.

    Raises:
        UnknownNameError: If no detector has this name.
        UsageError: If a setting does not go with the detector, the traces or this machine.
        NotEnoughDataError: If there is no trace.
    """
    given = dict(settings or {})
    seed = int(given.pop("seed", 0))
    replace(detector_spec(name), settings=given).make(seed).check(traces)


def _write_run(runs: Path, name: str, result: Result, model: FoldModel, identity: Identity | None) -> Path:
    """Write result and model in a new folder, which goes again if either cannot be written."""
    folder = new_run_folder(runs, name)
    try:
        result.write(folder)
        save_model(model, folder / "detector", identity)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def save_model(model: FoldModel, folder: Path, identity: Identity | None = None) -> None:
    """Write a fitted detector and, where its validation side had both classes, its calibration.

    Args:
        model: What a fold gave.
        folder: Is made if it is missing.
        identity: Model, quantisation and prompt of the traces; ``None`` for traces in memory.
    """
    save_detector(model.detector, folder, identity)
    if model.calibration is not None:
        text = json.dumps(model.calibration.to_json(), indent=1, allow_nan=False)
        replace_file(folder / CALIBRATION_FILE, text.encode())


def fit_for_use(
    name: str, traces: Sequence[Trace], labels: Labels, config: CompareConfig, folder: Path
) -> FoldModel:
    """Fit a detector on all answers but those that choose its threshold, and save it.

    Nothing is left to test it on; a comparison says what it is worth.

    Args:
        name: Registered name.
        traces: A store, so that the detector knows its model.
        labels: Their labels, of the level of the detector.
        config: Settings of the detector, number of folds, and seed (the first one).
        folder: Where it is saved with its calibration; is made if it is missing.

    Raises:
        UnknownNameError: If no detector has this name.
        NotEnoughDataError: If a class is missing.
    """
    seed, groups = config.seeds[0], question_groups(traces)
    fold = cross_fit_folds(labels.values, groups, labels.is_valid, n_folds=config.n_folds, seed=seed)[0]
    train = np.sort(np.concatenate([fold.train, fold.test]))
    split = Split(train, fold.validation, np.zeros(0, dtype=np.int64), groups)
    spec = replace(detector_spec(name), settings=config.settings.get(name, {}))
    model = fit_fold(partial(spec.make, seed), traces, labels, split)
    save_model(model, folder, Identity.of_traces(traces))
    return model


def read_settings(path: Path | None) -> dict[str, Any]:
    """Settings of a detector from a YAML file; empty without one.

    Raises:
        ConfigError: If the file cannot be read.
    """
    return read_yaml(path) if path is not None else {}


def new_run_folder(runs: Path, name: str) -> Path:
    """A new folder below ``runs``, named after the detector and the time in UTC."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    for attempt in range(1000):
        folder = runs / (f"{name}-{stamp}" + (f"-{attempt}" if attempt else ""))
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    message = f"no free folder name for {name} in {runs}"
    raise FileExistsError(message)


def run_folder(kind: str, out: Path | None, *, is_resumed: bool, runs: Path = RUNS) -> Path:
    """The folder of a comparison: the one given, a new one, or the newest one to go on in.

    Raises:
        UsageError: If there is nothing to go on with.
    """
    if out is not None:
        return out
    if not is_resumed:
        return new_run_folder(runs, kind)
    earlier = sorted(runs.glob(f"{kind}-*"), key=lambda path: path.stat().st_mtime)
    if not earlier:
        message = f"nothing to resume: no {kind}-… in {runs}\n  Name it with --out"
        raise UsageError(message)
    return earlier[-1]
