"""Out-of-fold scores of token detectors, for the tokens of the answers that are shown."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Float32

from graphhalu.core.errors import DetectorMismatchError, UsageError
from graphhalu.evaluation.result import Result, read_result
from graphhalu.traces.store import TraceStore
from graphhalu.traces.trace import Trace

_EDGES: Final = (1, 99)
"""Percentiles of the scores of all answers between which colours rise."""


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
                message = (
                    f"{self.run} has scores of {len(known)} tokens of trace {trace.trace_id!r}, "
                    f"which has {trace.answer_length}\n  They are of another store"
                )
                raise DetectorMismatchError(message)
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
        message = f"{folder} holds scores of answers, not of tokens\n  Run:  graphhalu tokens"
        raise UsageError(message)
    samples = result.samples
    first = samples.filter(pc.equal(samples["seed"], pc.min(samples["seed"])))
    by_detector = {
        name: _of_detector(first.filter(pc.equal(first["detector"], name))) for name in _best_first(result)
    }
    shown = set(store.trace_ids)
    if not any(shown & traces.keys() for traces in by_detector.values()):
        message = (
            f"{folder} has no score of the answers shown\n"
            f"  Name the store that it was made from:  {result.store.get('path', 'unknown')}"
        )
        raise UsageError(message)
    scales = {name: _scale(traces) for name, traces in by_detector.items()}
    return ShownTokenScores(folder.resolve().name, by_detector, scales)


def _best_first(result: Result) -> list[str]:
    """Detectors with scores: those that are no control before controls, by falling AUROC."""
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
