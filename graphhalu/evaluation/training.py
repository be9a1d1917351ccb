"""Train one detector for use: fit it on a grouped split, score it beside simpler ones, save it."""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from graphhalu.core.errors import GraphhaluError, UsageError
from graphhalu.core.files import replace_file
from graphhalu.core.splits import Split
from graphhalu.detectors.base import Detector
from graphhalu.detectors.identity import Identity
from graphhalu.detectors.saved import DETECTOR_FOLDER, save_detector
from graphhalu.engine.executors import Progress, no_progress
from graphhalu.evaluation.calibration import CALIBRATION_FILE
from graphhalu.evaluation.compare import failure_text, finished_detector, make_result, run_detectors
from graphhalu.evaluation.crossfit import (
    ComparisonData,
    FoldModel,
    OutOfFold,
    Traces,
    comparison_data,
    cross_fit_folds,
    fit_fold,
)
from graphhalu.evaluation.novelty import Novelty, training_novelty, write_novelty
from graphhalu.evaluation.result import Result
from graphhalu.evaluation.settings import CompareConfig, DetectorSpec, detector_spec
from graphhalu.labels.labels import Labels, question_groups
from graphhalu.traces.trace import Trace

RUNS: Final = Path("data/runs")
BASELINES: Final = ("sink-mass", "head-std", "perplexity", "length")
"""Simple detectors that every training is scored beside, on the same test questions."""


def train_detector(
    name: str,
    traces: Sequence[Trace],
    labels: Labels,
    *,
    settings: Mapping[str, Any] | None = None,
    store: Mapping[str, Any] | None = None,
    runs: Path = RUNS,
    on_progress: Progress = no_progress,
) -> tuple[Path, Result]:
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

    Returns:
        The folder, which holds ``detector/`` and the result, and the result itself: the detector
        and simpler ones on the test side of the split.

    Raises:
        UnknownNameError: If no detector has this name.
        ConfigError: If a setting does not validate.
        UsageError: If this machine lacks the devices.
        NotEnoughDataError: If there are too few questions, or one class only.
        GraphhaluError: What the detector raised.
    """
    spec, seed = check_detector(name, traces, settings)
    baselines = [detector_spec(other) for other in BASELINES if other != spec.name]
    config = CompareConfig(quick=True, seeds=(seed,), settings={spec.name: spec.settings})
    data = comparison_data(traces, labels, config)
    (fold,) = data.splits["question", seed]

    with TemporaryDirectory(prefix="graphhalu-logs-") as logs:
        model = _fitted(spec, data, fold, Path(logs))
        fit = OutOfFold(len(data.labels.items))
        fit.add_fold(0, model, data.traces, data.labels, fold.test)
        finished = [finished_detector(data, spec, {("question", seed): fit}, raises=True)]
        on_progress(1, len(baselines) + 1, f"{spec.name}, seed {seed}, fold 0")
        finished += run_detectors(
            data, baselines, on_progress=lambda done, total, detail: on_progress(done + 1, total + 1, detail)
        )
        result = make_result(data, labels, finished, store or {})
        folder = new_run_folder(runs, spec.name)
        try:
            result.write(folder)
            novelty = training_novelty(data.traces, data.labels, fold)
            save_model(model, folder / DETECTOR_FOLDER, Identity.of_traces(traces), novelty)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if any(Path(logs).iterdir()):
            shutil.copytree(logs, folder / "logs")
    return folder, result


def check_detector(
    name: str, traces: Sequence[Trace], settings: Mapping[str, Any] | None = None
) -> tuple[DetectorSpec, int]:
    """Refuse settings, devices and layers that cannot be before anything is built or labelled.

    Returns:
        The detector with its settings, and the seed that is among them.

    Raises:
        UnknownNameError: If no detector has this name.
        UsageError: If a setting does not go with the detector, the traces or this machine.
        NotEnoughDataError: If there is no trace.
    """
    given = dict(settings or {})
    seed = int(given.pop("seed", 0))
    spec = replace(detector_spec(name), settings=given)
    spec.make(seed).check(traces)
    return spec, seed


def _fitted(spec: DetectorSpec, data: ComparisonData, fold: Split, logs: Path) -> FoldModel:
    """The detector fitted on the split; one that trains a network logs into the folder."""

    def make() -> Detector:
        detector = spec.make(data.config.seeds[0])
        if hasattr(detector, "log_folder"):
            detector.log_folder = logs
        return detector

    try:
        return fit_fold(make, data.traces, data.labels, fold)
    except (GraphhaluError, MemoryError):
        raise
    except Exception as error:  # of a detector of another package or of the user
        raise GraphhaluError(failure_text(error)) from error


def save_model(
    model: FoldModel, folder: Path, identity: Identity | None = None, novelty: Novelty | None = None
) -> None:
    """Write a fitted detector and, where its validation side had both classes, its calibration.

    Args:
        model: What a fold gave.
        folder: Is made if it is missing.
        identity: Model, quantisation and prompt of the traces; ``None`` for traces in memory.
        novelty: Which answers are unlike those that it was trained on, if that is known.
    """
    save_detector(model.detector, folder, identity)
    if novelty is not None:
        write_novelty(folder, novelty)
    if model.calibration is not None:
        replace_file(folder / CALIBRATION_FILE, model.calibration.model_dump_json(indent=1).encode())


def fit_for_use(name: str, traces: Traces, labels: Labels, config: CompareConfig, folder: Path) -> FoldModel:
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
    novelty = training_novelty(traces, labels, split)
    save_model(model, folder, Identity.of_traces(traces), novelty)
    return model


def new_run_folder(runs: Path, name: str) -> Path:
    """A new folder below ``runs``, named after the detector and the time in UTC."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    for number in range(1000):
        folder = runs / (f"{name}-{stamp}-{number}" if number else f"{name}-{stamp}")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise FileExistsError(f"no free folder name for {name} in {runs}")


def run_folder(kind: str, out: Path | None, *, is_resumed: bool, runs: Path = RUNS) -> Path:
    """The folder of a comparison: the one given, a new one, or the newest one if it is resumed.

    Raises:
        UsageError: If there is nothing to resume.
    """
    if out is not None or not is_resumed:
        return out or new_run_folder(runs, kind)
    earlier = max(runs.glob(f"{kind}-*"), key=lambda path: path.stat().st_mtime, default=None)
    if earlier is None:
        raise UsageError(f"nothing to resume: no {kind}-… in {runs}\n  Name it with --out")
    return earlier
