"""Metrics of scores against labels; hallucinated (1) is the positive class everywhere.

All of them are arithmetic on one table of counts: how many hallucinated and correct traces
score at or above each distinct score. The counts take one row of weights a resample, so that a
bootstrap evaluates all its resamples in one pass. No metric ever flips a score.
"""

from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num

from graphhalu.axes import LABEL_CORRECT, LABEL_HALLUCINATED
from graphhalu.errors import NotEnoughDataError


class RocCounts(NamedTuple):
    """Weighted counts at or above each distinct score, from the highest score down."""

    true_positives: Float[np.ndarray, "resample threshold"]
    false_positives: Float[np.ndarray, "resample threshold"]


class AveragePrecision(NamedTuple):
    """Area under the precision-recall curve and what a detector at chance would reach."""

    value: float
    prevalence: float


class RocCurve(NamedTuple):
    """The achievable points of a ROC, from (0, 0) to (1, 1); one more than distinct scores."""

    false_positive_rate: Float[np.ndarray, "point"]
    true_positive_rate: Float[np.ndarray, "point"]
    thresholds: Float[np.ndarray, "point"]


class PrCurve(NamedTuple):
    """Recall and precision when everything at or above a threshold is called hallucinated."""

    recall: Float[np.ndarray, "threshold"]
    precision: Float[np.ndarray, "threshold"]
    thresholds: Float[np.ndarray, "threshold"]


def auroc(scores: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "trace"]) -> float:
    """Chance that a hallucinated trace scores above a correct one; a tie counts one half.

    Raises:
        ValueError: If a score is not finite, or a label is neither 0 nor 1.
        NotEnoughDataError: If one class is missing.
    """
    return float(counted_auroc(_checked_counts(scores, labels))[0])


def auprc(scores: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "trace"]) -> AveragePrecision:
    """Average precision: precision at each distinct score, weighted by the recall gained there.

    Raises:
        ValueError: If a score is not finite, or a label is neither 0 nor 1.
        NotEnoughDataError: If one class is missing.

    Source:
        As ``sklearn.metrics.average_precision_score``: no interpolation between points, which
        would be optimistic (Davis and Goadrich 2006).
    """
    value = counted_auprc(_checked_counts(scores, labels))[0]
    return AveragePrecision(float(value), float(labels.mean()))


def tpr_at_fpr(
    scores: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "trace"], *, max_fpr: float = 0.05
) -> float:
    """Largest true-positive rate at a threshold whose false-positive rate is within the bound.

    Only the achievable points of the ROC count: tied scores are called together, and nothing
    is interpolated between points, since no threshold reaches a point in between.

    Args:
        scores: Higher means more likely hallucinated.
        labels: 1 = hallucinated, 0 = correct.
        max_fpr: Bound on the false-positive rate, in [0, 1]; a point on the bound counts.

    Raises:
        ValueError: If a score is not finite, a label is neither 0 nor 1, or the bound is not
            in [0, 1].
        NotEnoughDataError: If one class is missing.
    """
    if not 0 <= max_fpr <= 1:
        message = f"max_fpr must be in [0, 1], got {max_fpr}"
        raise ValueError(message)
    return float(counted_tpr_at_fpr(_checked_counts(scores, labels), max_fpr=max_fpr)[0])


def roc_curve(scores: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "trace"]) -> RocCurve:
    """All achievable points; the trapezoids under them sum to :func:`auroc`.

    Raises:
        ValueError: If a score is not finite, or a label is neither 0 nor 1.
        NotEnoughDataError: If one class is missing.
    """
    counts = _checked_counts(scores, labels)
    hits, alarms = counts.true_positives[0], counts.false_positives[0]
    return RocCurve(
        np.concatenate([[0.0], alarms / alarms[-1]]),
        np.concatenate([[0.0], hits / hits[-1]]),
        np.concatenate([[np.inf], np.unique(scores)[::-1]]),
    )


def pr_curve(scores: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "trace"]) -> PrCurve:
    """Recall and precision at each distinct score, from the highest down.

    Raises:
        ValueError: If a score is not finite, or a label is neither 0 nor 1.
        NotEnoughDataError: If one class is missing.
    """
    counts = _checked_counts(scores, labels)
    hits, alarms = counts.true_positives[0], counts.false_positives[0]
    return PrCurve(hits / hits[-1], hits / (hits + alarms), np.unique(scores)[::-1])


def roc_counts(
    scores: Float[np.ndarray, "trace"],
    labels: Int[np.ndarray, "trace"],
    weights: Num[np.ndarray, "resample trace"] | None = None,
) -> RocCounts:
    """Count both classes at or above each distinct score, once for each row of weights.

    Args:
        scores: Higher means more likely hallucinated; finite.
        labels: 1 = hallucinated, 0 = correct.
        weights: How often each trace counts in each resample; once, in one row, by default.
    """
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    rows = np.ones((1, len(scores))) if weights is None else weights
    sorted_weights = rows[:, order].astype(np.float64)
    hits = np.cumsum(sorted_weights * labels[order], axis=1)
    return RocCounts(
        hits[:, last_of_tie], (np.cumsum(sorted_weights, axis=1) - hits)[:, last_of_tie]
    )


def counted_auroc(counts: RocCounts) -> Float[np.ndarray, "resample"]:
    """AUROC of each resample; NaN where a resample lacks a class."""
    hits = counts.true_positives
    mean_hits = (hits + _shifted(hits)) / 2
    area = (_steps(counts.false_positives) * mean_hits).sum(axis=1)
    return _ratio(area, hits[:, -1] * counts.false_positives[:, -1])


def counted_auprc(counts: RocCounts) -> Float[np.ndarray, "resample"]:
    """Average precision of each resample; NaN where a resample lacks a class."""
    hits, alarms = counts
    called = hits + alarms
    precision = np.divide(hits, called, out=np.zeros_like(hits), where=called > 0)
    value = _ratio((_steps(hits) * precision).sum(axis=1), hits[:, -1])
    return np.where(alarms[:, -1] > 0, value, np.nan)


def counted_tpr_at_fpr(counts: RocCounts, *, max_fpr: float) -> Float[np.ndarray, "resample"]:
    """True-positive rate within the bound, for each resample; NaN where one lacks a class."""
    hits, alarms = counts
    is_within = _ratio(alarms, alarms[:, -1:]) <= max_fpr
    value = _ratio(np.where(is_within, hits, 0.0).max(axis=1), hits[:, -1])
    return np.where(alarms[:, -1] > 0, value, np.nan)


METRICS: Final[dict[str, Callable[[RocCounts], Float[np.ndarray, "resample"]]]] = {
    "auroc": counted_auroc,
    "auprc": counted_auprc,
    "tpr_at_5_fpr": partial(counted_tpr_at_fpr, max_fpr=0.05),
    "tpr_at_1_fpr": partial(counted_tpr_at_fpr, max_fpr=0.01),
}
"""The metrics of a comparison by name; the numbers in a name are percentages."""


def evaluate(
    scores: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "trace"]
) -> dict[str, float]:
    """Every metric of :data:`METRICS`.

    Raises:
        ValueError: If a score is not finite, or a label is neither 0 nor 1.
        NotEnoughDataError: If one class is missing.
    """
    counts = _checked_counts(scores, labels)
    return {name: float(metric(counts)[0]) for name, metric in METRICS.items()}


def check_scores(scores: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "trace"]) -> None:
    """Refuse what has no metric.

    Raises:
        ValueError: If a score is not finite, or a label is neither 0 nor 1.
        NotEnoughDataError: If one class is missing.
    """
    if not np.isfinite(scores).all():
        bad = int((~np.isfinite(scores)).sum())
        message = f"{bad} of {len(scores)} scores are not finite; leave invalid scores out first"
        raise ValueError(message)
    if not np.isin(labels, (LABEL_CORRECT, LABEL_HALLUCINATED)).all():
        message = f"labels must be 0 or 1, got {np.unique(labels)[:5].tolist()}"
        raise ValueError(message)
    n_hallucinated = int(labels.sum())
    if n_hallucinated in (0, len(labels)):
        message = (
            f"a metric needs both classes, got {n_hallucinated} hallucinated "
            f"and {len(labels) - n_hallucinated} correct traces"
        )
        raise NotEnoughDataError(message)


def _checked_counts(
    scores: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "trace"]
) -> RocCounts:
    check_scores(scores, labels)
    return roc_counts(scores, labels)


def _shifted(
    counts: Float[np.ndarray, "resample threshold"],
) -> Float[np.ndarray, "resample threshold"]:
    """The count at the threshold before; 0 before the first."""
    return np.pad(counts[:, :-1], ((0, 0), (1, 0)))


def _steps(
    counts: Float[np.ndarray, "resample threshold"],
) -> Float[np.ndarray, "resample threshold"]:
    return counts - _shifted(counts)


def _ratio(
    numerator: Float[np.ndarray, "*shape"], denominator: Float[np.ndarray, "*any"]
) -> Float[np.ndarray, "*shape"]:
    """Division that gives NaN, without a warning, where there is nothing to divide by."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)
