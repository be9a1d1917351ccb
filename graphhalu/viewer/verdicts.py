"""What is known of the answers: labels, and the scores of a saved detector."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from graphhalu.core.errors import StoreMismatchError
from graphhalu.core.files import read_parquet, reading
from graphhalu.detectors.base import Scores, checked_scores
from graphhalu.detectors.saved import DESCRIPTION_FILE, load_detector
from graphhalu.evaluation.calibration import CALIBRATION_FILE, read_calibration
from graphhalu.labels.labels import Labels
from graphhalu.labels.registry import LABELLERS, make_labeller
from graphhalu.labels.run import label_records, labels_path, read_labels
from graphhalu.traces.store import TraceStore

_MODEL = "detector"
_SAMPLES = "scores.parquet"


@dataclass(frozen=True)
class StoredLabels:
    """Labels of all traces of a store.

    Attributes:
        labels: In the order of the store.
        is_stored: Whether they lie beside the traces; else they were made to be shown.
    """

    labels: Labels
    is_stored: bool


@dataclass(frozen=True)
class DetectorScores:
    """What a saved detector says of traces.

    Attributes:
        name: Registered name of the detector.
        run: Name of the folder that it was read from.
        scores: One a trace; of a detector of tokens that of the highest token.
        probabilities: Calibrated; ``None`` if the run has no calibration, and for a detector of
            tokens.
        threshold: Score from which an answer is called hallucinated.
        tested: Traces that the run tested and did not train on; ``None`` if it does not say.
    """

    name: str
    run: str
    scores: Scores
    probabilities: Float[np.ndarray, "trace"] | None
    threshold: float | None
    tested: frozenset[str] | None


def shown_labels(store: TraceStore, labeller: str) -> StoredLabels:
    """The stored labels of this name, or new ones that are shown and not stored.

    A store that is looked at is not written to. Labels that were made before the store grew
    are made again.

    Raises:
        UnknownNameError: If there are none, and no labeller has this name.
        StoreMismatchError: If they belong to other traces, and no labeller has this name.
    """
    is_registered = labeller in LABELLERS
    if labels_path(store, labeller).is_file() or not is_registered:
        try:
            return StoredLabels(read_labels(store, labeller), is_stored=True)
        except StoreMismatchError:
            if not is_registered:
                raise
    return StoredLabels(label_records(store.records, make_labeller(labeller)), is_stored=False)


def detector_scores(run: Path, traces: TraceStore, detector_class: str | None = None) -> DetectorScores:
    """Score traces with the detector of a run.

    Args:
        run: Folder that ``graphhalu train`` wrote, or the folder of the detector in it.
        traces: What it shall score.
        detector_class: ``module:Class`` of a detector that is not registered.

    Raises:
        UsageError: If there is no saved detector.
        DetectorMismatchError: If it belongs to another model, quantisation or prompt.
        DataFileError: If a file of the run cannot be read.
    """
    is_run = not (run / DESCRIPTION_FILE).exists() and (run / _MODEL).is_dir()
    folder = run / _MODEL if is_run else run
    detector = load_detector(folder, traces, detector_class=detector_class)
    scores = checked_scores(detector, detector.score(traces), traces).highest()
    calibration = read_calibration(folder / CALIBRATION_FILE)
    name = detector.card.name
    probabilities = None
    if calibration is not None and detector.card.level == "answer":
        probabilities = calibration.probability(scores.values)
    return DetectorScores(
        name=name,
        run=(run if is_run else run.parent).resolve().name,
        scores=scores,
        probabilities=probabilities,
        threshold=None if calibration is None else calibration.threshold,
        tested=_tested(folder.parent / _SAMPLES, name),
    )


def _tested(path: Path, detector: str) -> frozenset[str] | None:
    """Traces that a run scored without having trained on them."""
    if not path.is_file():
        return None
    with reading(f"{path} cannot be read"):
        table = read_parquet(path, ["detector", "trace_id"])
    pairs: Sequence[tuple[str, str]] = list(
        zip(table["detector"].to_pylist(), table["trace_id"].to_pylist(), strict=True)
    )
    return frozenset(trace for name, trace in pairs if name == detector)
