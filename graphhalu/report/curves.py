"""Curves of detectors from their per-sample scores; over several seeds the mean curve."""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int
from sklearn.metrics import precision_recall_curve, roc_curve

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.evaluation.metrics import check_scores, reliability_curve, risk_coverage_curve

_GRID: Final = np.linspace(0, 1, 501)


class Curve(NamedTuple):
    """Points of a line, from left to right."""

    x: Float[np.ndarray, "point"]
    y: Float[np.ndarray, "point"]


class _Seed(NamedTuple):
    scores: Float[np.ndarray, "trace"]
    labels: Int[np.ndarray, "trace"]


def roc(samples: pa.Table, detector: str) -> Curve:
    """Hallucinations found against false alarms; exact for one seed.

    Raises:
        NotEnoughDataError: If the detector has no valid score, or those of one class only.
    """
    return _mean(samples, detector, _roc)


def precision_recall(samples: pa.Table, detector: str) -> Curve:
    """Precision against recall, as steps: the precision of the first threshold that reaches it.

    Raises:
        NotEnoughDataError: If the detector has no valid score, or those of one class only.
    """
    return _mean(samples, detector, _precision_recall)


def risk_coverage(samples: pa.Table, detector: str) -> Curve:
    """Share of hallucinated answers among the kept ones, against the share that is kept.

    Raises:
        NotEnoughDataError: If the detector has no valid score, or those of one class only.
    """
    return _mean(samples, detector, _risk_coverage)


def reliability(samples: pa.Table, detector: str) -> Curve | None:
    """Share of hallucinated answers against probability in 15 bins of equal mass.

    Seeds are pooled. ``None`` where the detector has no probabilities, as in old results.
    """
    mine = samples.filter((pc.field("detector") == detector) & pc.field("probability").is_valid())
    if not len(mine):
        return None
    found = reliability_curve(
        mine["probability"].to_numpy().astype(np.float64), mine["label"].to_numpy().astype(np.int64)
    )
    return Curve(found.probability, found.share)


def _mean(samples: pa.Table, detector: str, draw: Callable[[_Seed], Curve]) -> Curve:
    mine = samples.filter((pc.field("detector") == detector) & pc.field("is_valid"))
    curves = [
        draw(
            _Seed(chosen["score"].to_numpy().astype(np.float64), chosen["label"].to_numpy().astype(np.int64))
        )
        for seed in pc.unique(mine["seed"]).to_pylist()
        for chosen in [mine.filter(pc.field("seed") == seed)]
    ]
    if not curves:
        message = f"{detector} has no valid score to draw"
        raise NotEnoughDataError(message)
    if len(curves) == 1:
        return curves[0]
    # before the first point of a curve there is nothing, so the grid starts where all have begun
    start = max(float(curve.x[0]) for curve in curves)
    grid = np.append(start, _GRID[start < _GRID])
    heights = np.mean([np.interp(grid, *curve) for curve in curves], axis=0)
    if all(curve.x[0] == curve.y[0] == 0 for curve in curves):
        return Curve(np.append(0.0, grid), np.append(0.0, heights))
    return Curve(grid, heights)


def _roc(seed: _Seed) -> Curve:
    check_scores(*seed)
    false_alarms, hits, _ = roc_curve(seed.labels, seed.scores, drop_intermediate=False)
    return Curve(false_alarms, hits)


def _precision_recall(seed: _Seed) -> Curve:
    """On a grid of recall, since nothing lies on the straight line between two thresholds."""
    check_scores(*seed)
    precision, recall, _ = precision_recall_curve(seed.labels, seed.scores)
    # from the highest threshold down, without the point (0, 1) that no threshold has
    precision, recall = precision[-2::-1], recall[-2::-1]
    grid = _GRID[1:]
    # rounding must not make the last threshold miss a recall of 1
    return Curve(grid, precision[np.searchsorted(recall, grid - 1e-12)])


def _risk_coverage(seed: _Seed) -> Curve:
    return Curve(*risk_coverage_curve(seed.scores, seed.labels))
