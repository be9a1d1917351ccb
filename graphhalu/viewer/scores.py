"""Labels of the answers, and the scores of detectors: of a saved one, and out-of-fold ones of tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Float32

from graphhalu.core.errors import DetectorMismatchError, StoreMismatchError, UsageError
from graphhalu.core.files import read_parquet, reading
from graphhalu.detectors.base import checked_scores
from graphhalu.detectors.saved import DESCRIPTION_FILE, DETECTOR_FOLDER, load_detector, read_description
from graphhalu.evaluation.calibration import CALIBRATION_FILE, read_calibration
from graphhalu.evaluation.result import SCORES_FILE, Result, read_result
from graphhalu.labels.labels import Labels
from graphhalu.labels.registry import LABELLERS, make_labeller
from graphhalu.labels.run import label_records, labels_path, read_labels
from graphhalu.traces.store import TraceStore
from graphhalu.traces.trace import Trace

_EDGES: Final = (1, 99)
"""Percentiles of the scores of all answers between which colours rise."""

StoredLabels = tuple[Labels, bool]
"""Labels in the order of the store, and whether they are stored beside the traces."""


DetectorScores = tuple[dict[str, Any], list[dict[str, Any]]]
"""What a page says of a detector (its name, its run, and the score from which an answer is called
hallucinated), and of each answer: score, probability, and whether the run only tested it."""


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
            return read_labels(store, labeller), True
        except StoreMismatchError:
            if not is_registered:
                raise
    return label_records(store.records, make_labeller(labeller)), False


def detector_scores(run: Path, traces: TraceStore, detector_class: str | None = None) -> DetectorScores:
    """Score traces with the detector of a run; of a detector of tokens that of the highest token.

    A probability needs a calibration, and is none of a detector of tokens.

    Args:
        run: Folder that ``graphhalu train`` wrote, or the folder of the detector in it.
        traces: What it shall score.
        detector_class: ``module:Class`` of a detector that is not registered.

    Raises:
        UsageError: If there is no saved detector.
        DetectorMismatchError: If it belongs to another model, quantisation or prompt.
        DataFileError: If a file of the run cannot be read.
    """
    folder = _detector_folder(run)
    detector = load_detector(folder, traces, detector_class=detector_class)
    scores = checked_scores(detector, detector.score(traces), traces).highest()
    calibration = read_calibration(folder / CALIBRATION_FILE)
    name, chances = detector.card.name, [None] * len(traces)
    if calibration is not None and detector.card.level == "answer":
        chances = calibration.probability(scores.values).tolist()
    tested = _tested(folder.parent / SCORES_FILE, name)
    columns = (scores.values.tolist(), chances, scores.is_valid.tolist(), traces.trace_ids)
    threshold = None if calibration is None else calibration.threshold
    return {"name": name, "run": folder.parent.resolve().name, "threshold": threshold}, [
        {
            "score": score if is_valid else None,
            "probability": chance if is_valid else None,
            "is_tested": None if tested is None else trace_id in tested,
        }
        for score, chance, is_valid, trace_id in zip(*columns, strict=True)
    ]


def held_out_traces(run: Path) -> frozenset[str] | None:
    """Traces that a run tested and did not train on; ``None`` if it does not say.

    Args:
        run: As of :func:`detector_scores`.

    Raises:
        UsageError: If there is no saved detector.
        DataFileError: If a file of the run cannot be read.
    """
    folder = _detector_folder(run)
    return _tested(folder.parent / SCORES_FILE, read_description(folder)["name"])


def _detector_folder(run: Path) -> Path:
    is_run = not (run / DESCRIPTION_FILE).exists() and (run / DETECTOR_FOLDER).is_dir()
    return run / DETECTOR_FOLDER if is_run else run


def _tested(path: Path, detector: str) -> frozenset[str] | None:
    """Traces that a run scored without having trained on them."""
    if not path.is_file():
        return None
    with reading(f"{path} cannot be read"):
        table = read_parquet(path, ["detector", "trace_id"])
    pairs = zip(table["detector"].to_pylist(), table["trace_id"].to_pylist(), strict=True)
    return frozenset(trace for name, trace in pairs if name == detector)


@dataclass(frozen=True)
class ShownTokenScores:
    """What token detectors say of answers that none of their models has seen.

    Attributes:
        run: Name of the folder of the result.
        scores: For each detector, the best first, the scores of the answer tokens of each trace
            that was tested; NaN where not valid.
        scales: For each detector, the scores where its colours begin and end.
    """

    run: str
    scores: Mapping[str, Mapping[str, Float[np.ndarray, "_"]]]
    scales: Mapping[str, tuple[float, float]]

    def of(self, trace: Trace) -> dict[str, Float32[np.ndarray, "token"]]:
        """Scores of all tokens of a trace by detector; NaN in the prompt.

        Raises:
            DetectorMismatchError: If the result is of an answer of another length.
        """
        found = {}
        for name, traces in self.scores.items():
            known = traces.get(trace.trace_id)
            if known is None:
                continue
            if len(known) != trace.answer_length:
                raise DetectorMismatchError(
                    f"{self.run} has scores of {len(known)} tokens of trace {trace.trace_id!r}, "
                    f"which has {trace.answer_length}\n  They are of another store"
                )
            values = np.full(trace.length, np.nan, dtype=np.float32)
            values[trace.prompt_length :] = known
            found[name] = values
        return found


def shown_token_scores(folder: Path, store: TraceStore) -> ShownTokenScores:
    """Read the scores of a result; of several seeds those of the first.

    Args:
        folder: What ``graphhalu tokens`` wrote.
        store: The answers that are shown.

    Raises:
        DataFileError: If there is no result, or it cannot be read.
        UsageError: If it says nothing of the tokens of these answers.
    """
    result = read_result(folder)
    if result.level != "token":
        raise UsageError(f"{folder} holds scores of answers, not of tokens\n  Run:  graphhalu tokens")
    samples = result.samples
    first = samples.filter(pc.equal(samples["seed"], pc.min(samples["seed"])))
    by_detector = {
        name: _of_detector(first.filter(pc.equal(first["detector"], name))) for name in _best_first(result)
    }
    shown = set(store.trace_ids)
    if not any(shown & traces.keys() for traces in by_detector.values()):
        raise UsageError(
            f"{folder} has no score of the answers shown\n"
            f"  Name the store that it was made from:  {result.store.get('path', 'unknown')}"
        )
    scales = {name: _scale(traces) for name, traces in by_detector.items()}
    return ShownTokenScores(folder.resolve().name, by_detector, scales)


def _best_first(result: Result) -> list[str]:
    """Detectors with scores: controls last, by falling AUROC."""
    rows = [row for row in result.rows if row.failure is None and "auroc" in row.metrics]
    rows.sort(key=lambda row: (row.is_control, -row.metrics["auroc"].value))
    return [row.detector for row in rows]


def _of_detector(samples: pa.Table) -> dict[str, Float[np.ndarray, "_"]]:
    """Scores by trace; tokens of a trace stand together and in order."""
    if not len(samples):
        return {}
    names = np.array(samples["trace_id"].to_pylist())
    scores = samples["score"].to_numpy(zero_copy_only=False).astype(np.float64)
    starts = np.flatnonzero(np.append(True, names[1:] != names[:-1]))
    return dict(zip(names[starts].tolist(), np.split(scores, starts[1:]), strict=True))


def _scale(traces: Mapping[str, Float[np.ndarray, "_"]]) -> tuple[float, float]:
    values = np.concatenate([np.zeros(0), *traces.values()])
    known = values[np.isfinite(values)]
    if not len(known):
        return 0.0, 1.0
    low, high = np.percentile(known, _EDGES)
    return float(low), float(high)
