"""Curves of detectors from their per-sample scores; over several seeds the mean curve."""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int
from sklearn.metrics import precision_recall_curve, roc_curve

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.evaluation.metrics import N_BINS, check_scores, reliability_curve, risk_coverage_curve

_GRID: Final = np.linspace(0, 1, 501)


class Curve(NamedTuple):
    """Points of a line, from left to right."""

    x: Float[np.ndarray, "point"]
    y: Float[np.ndarray, "point"]


def mean_curve(samples: pa.Table, detector: str, kind: str) -> Curve:
    """A curve of a detector, over several seeds the mean; exact for one seed.

    Args:
        samples: Scores as in a result.
        detector: Its name.
        kind: ``roc`` (hallucinations found against false alarms), ``precision-recall`` (as steps:
            the precision of the first threshold that reaches a recall), ``risk-coverage`` (share of
            hallucinated answers among the kept ones against the share that is kept), or
            ``calibration`` (share of hallucinated answers against probability in 15 bins of equal
            mass, seeds pooled).

    Raises:
        NotEnoughDataError: If there is no valid score or probability, or those of one class only.
    """
    needed = "probability" if kind == "calibration" else "score"
    mine = samples.filter((pc.field("detector") == detector) & pc.field("is_valid"))
    mine = mine.filter(pc.field(needed).is_valid())
    seeds = [mine] if kind == "calibration" and len(mine) else _by_seed(mine)
    curves = [_KINDS[kind](*(_column(seed, name) for name in (needed, "label"))) for seed in seeds]
    if not curves:
        raise NotEnoughDataError(f"{detector} has no valid {needed} to draw")
    if len(curves) == 1:
        return curves[0]
    # before the first point of a curve there is nothing, so the grid starts where all have begun
    start = max(float(curve.x[0]) for curve in curves)
    grid = np.append(start, _GRID[start < _GRID])
    heights = np.mean([np.interp(grid, *curve) for curve in curves], axis=0)
    if all(curve.x[0] == curve.y[0] == 0 for curve in curves):
        return Curve(np.append(0.0, grid), np.append(0.0, heights))
    return Curve(grid, heights)


def calibration_band(samples: pa.Table) -> tuple[Float[np.ndarray, "end point"], Float[np.ndarray, "point"]]:
    """Ends between which 95 % of the bins lie by chance if the probabilities are right, and where."""
    n_tested = len(pc.unique(samples["trace_id"]))
    share = np.linspace(0, 1, 101)
    reach = 1.96 * np.sqrt(share * (1 - share) * N_BINS / max(n_tested, N_BINS))
    return np.stack([np.maximum(share - reach, 0), np.minimum(share + reach, 1)]), share


def _by_seed(samples: pa.Table) -> list[pa.Table]:
    return [samples.filter(pc.field("seed") == seed) for seed in pc.unique(samples["seed"]).to_pylist()]


def _column(samples: pa.Table, name: str) -> Float[np.ndarray, "trace"] | Int[np.ndarray, "trace"]:
    return samples[name].to_numpy().astype(np.int64 if name == "label" else np.float64)


def _roc(scores: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "trace"]) -> Curve:
    check_scores(scores, labels)
    false_alarms, hits, _ = roc_curve(labels, scores, drop_intermediate=False)
    return Curve(false_alarms, hits)


def _precision_recall(scores: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "trace"]) -> Curve:
    """On a grid of recall, since nothing lies on the straight line between two thresholds."""
    check_scores(scores, labels)
    precision, recall, _ = precision_recall_curve(labels, scores)
    # from the highest threshold down, without the point (0, 1) that no threshold has
    precision, recall = precision[-2::-1], recall[-2::-1]
    grid = _GRID[1:]
    # rounding must not make the last threshold miss a recall of 1
    return Curve(grid, precision[np.searchsorted(recall, grid - 1e-12)])


def _risk_coverage(scores: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "trace"]) -> Curve:
    return Curve(*risk_coverage_curve(scores, labels))


def _reliability(probability: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "trace"]) -> Curve:
    found = reliability_curve(probability, labels)
    return Curve(found.probability, found.share)


_KINDS: Final[Mapping[str, Callable[..., Curve]]] = {
    "roc": _roc,
    "precision-recall": _precision_recall,
    "risk-coverage": _risk_coverage,
    "calibration": _reliability,
}
