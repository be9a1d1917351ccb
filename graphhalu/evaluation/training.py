"""Train one detector for use: fit it on a grouped split, score it beside simpler ones, save it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from graphhalu.config import read_yaml
from graphhalu.detectors.base import Detector
from graphhalu.detectors.registry import DETECTORS
from graphhalu.evaluation.compare import DetectorFactory, compare
from graphhalu.evaluation.compare import Progress as CompareProgress
from graphhalu.evaluation.result import Result
from graphhalu.evaluation.rows import CompareConfig
from graphhalu.labels.labels import Labels
from graphhalu.traces.trace import Trace

RIVALS: Final = ("sink-mass", "head-std", "perplexity", "length")
"""Simple detectors that every training is scored beside, on the same test questions."""


@dataclass(frozen=True)
class TrainedRun:
    """A trained detector and what it was worth.

    Attributes:
        folder: Holds ``detector/`` (weights and settings) and the result of the comparison.
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
    runs: Path = Path("data/runs"),
    on_progress: Callable[[CompareProgress], None] = lambda _: None,
) -> TrainedRun:
    """Fit a detector on a 60 / 20 / 20 split by question and save it.

    Args:
        name: Registered name of the detector.
        traces: Traces in the order of the labels.
        labels: Their labels.
        settings: Fields of the detector's configuration that differ from its defaults; its
            ``seed`` is that of the split too.
        store: Identity of the traces, for the record.
        runs: Folder of all runs; this one gets a folder of its own.
        on_progress: Called after each fit.

    Raises:
        UnknownNameError: If no detector has this name.
        NotEnoughDataError: If there are too few questions, or one class only.
    """
    detector_class: Any = DETECTORS.get(name)
    fitted: list[Detector] = []
    make = _remembering(detector_class, settings or {}, fitted)
    seed = int((settings or {}).get("seed", 0))
    rivals: dict[str, DetectorFactory] = {
        rival: DETECTORS.get(rival) for rival in RIVALS if rival != name
    }
    result = compare(
        traces, labels, {name: make, **rivals},
        config=CompareConfig(quick=True, seeds=(seed,)), store=store, on_progress=on_progress,
    )  # fmt: skip
    folder = new_run_folder(runs, name)
    result.write(folder)
    if result.rows[0].failure is None:
        (folder / "detector").mkdir()
        fitted[-1].save(folder / "detector")
    return TrainedRun(folder, result)


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


def _remembering(
    detector_class: Any, settings: Mapping[str, Any], fitted: list[Detector]
) -> DetectorFactory:
    def make(seed: int = 0) -> Detector:
        detector: Detector = detector_class(**detector_class.settings(**{**settings, "seed": seed}))
        fitted.append(detector)
        return detector

    make.card = detector_class.card  # type: ignore[attr-defined]
    return make
