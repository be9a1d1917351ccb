"""Metrics of scores against labels; hallucinated (1) is the positive class everywhere.

All of them are arithmetic on one table of counts (:mod:`graphhalu.evaluation.counts`). Metrics of
rejection stand in :mod:`graphhalu.evaluation.rejection`, those of probabilities in
:mod:`graphhalu.evaluation.probability`. No metric ever flips a score.
"""

from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from graphhalu.detectors import sides
from graphhalu.evaluation.counts import RocCounts, check_scores, checked_counts, ratio
from graphhalu.evaluation.rejection import counted_aurc, counted_excess_aurc, counted_prr


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
    check_scores(scores, labels)
    return sides.auroc(scores, labels)


def auprc(scores: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "trace"]) -> AveragePrecision:
    """Average precision: precision at each distinct score, weighted by the recall gained there.

    Raises:
        ValueError: If a score is not finite, or a label is neither 0 nor 1.
        NotEnoughDataError: If one class is missing.

    Source:
        As ``sklearn.metrics.average_precision_score``: no interpolation between points, which
        would be optimistic (Davis and Goadrich 2006).
    """
    value = counted_auprc(checked_counts(scores, labels))[0]
    return AveragePrecision(float(value), float(labels.mean()))


def auprc_trapezoid(scores: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "trace"]) -> float:
    """Area under straight lines between the points of the precision-recall curve.

    It interpolates between points, which average precision does not, and comes out a little
    lower or higher; it is here to reproduce published figures.

    Raises:
        ValueError: If a score is not finite, or a label is neither 0 nor 1.
        NotEnoughDataError: If one class is missing.

    Source:
        As ``auc(recall, precision)`` of scikit-learn, whose curve begins at recall 0 with
        precision 1 (Davis and Goadrich 2006 on why not to).
    """
    curve = pr_curve(scores, labels)
    recall = np.concatenate([[0.0], curve.recall])
    precision = np.concatenate([[1.0], curve.precision])
    return float(np.trapezoid(precision, recall))


def roc_curve(scores: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "trace"]) -> RocCurve:
    """All achievable points; the trapezoids under them sum to :func:`auroc`.

    Raises:
        ValueError: If a score is not finite, or a label is neither 0 nor 1.
        NotEnoughDataError: If one class is missing.
    """
    counts = checked_counts(scores, labels)
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
    counts = checked_counts(scores, labels)
    hits, alarms = counts.true_positives[0], counts.false_positives[0]
    return PrCurve(hits / hits[-1], hits / (hits + alarms), np.unique(scores)[::-1])


def counted_auroc(counts: RocCounts) -> Float[np.ndarray, "resample"]:
    """AUROC of each resample; NaN where a resample lacks a class."""
    hits, alarms = counts.true_positives, counts.false_positives
    # trapezoids: twice the mean height times the width, the first one from the origin
    twice = np.einsum("rt,rt->r", alarms[:, 1:] - alarms[:, :-1], hits[:, 1:] + hits[:, :-1])
    area = (twice + alarms[:, 0] * hits[:, 0]) / 2
    return ratio(area, hits[:, -1] * alarms[:, -1])


def counted_auprc(counts: RocCounts) -> Float[np.ndarray, "resample"]:
    """Average precision of each resample; NaN where a resample lacks a class."""
    hits, alarms = counts.true_positives, counts.false_positives
    called = hits + alarms
    # nothing called means no hits either, and 0 / 1 is the 0 that is wanted there
    precision = hits / np.maximum(called, 1.0, out=called)
    gained = np.einsum("rt,rt->r", hits[:, 1:] - hits[:, :-1], precision[:, 1:])
    value = ratio(gained + hits[:, 0] * precision[:, 0], hits[:, -1])
    return np.where(alarms[:, -1] > 0, value, np.nan)


def counted_tpr_at_fpr(counts: RocCounts, *, max_fpr: float) -> Float[np.ndarray, "resample"]:
    """Largest true-positive rate of a threshold whose false-positive rate is within the bound.

    One value for each resample; NaN where it lacks a class. Only the achievable points of the ROC
    count: tied scores are called together, and nothing is interpolated between points, since no
    threshold reaches a point in between. A point on the bound counts.
    """
    hits, alarms = counts.true_positives, counts.false_positives
    # the counts only rise, so the last threshold within the bound is found by counting
    n_within = (alarms <= _largest_within(alarms[:, -1], max_fpr)[:, None]).sum(axis=1)
    last = np.take_along_axis(hits, np.maximum(n_within - 1, 0)[:, None], axis=1)[:, 0]
    value = ratio(np.where(n_within > 0, last, 0.0), hits[:, -1])
    return np.where(alarms[:, -1] > 0, value, np.nan)


def _largest_within(
    n_correct: Float[np.ndarray, "resample"], max_fpr: float
) -> Float[np.ndarray, "resample"]:
    """The largest whole number of false alarms whose rate is within the bound."""
    guess = np.floor(max_fpr * n_correct) + 1
    return np.where(ratio(guess, n_correct) <= max_fpr, guess, guess - 1)


METRICS: Final[dict[str, Callable[[RocCounts], Float[np.ndarray, "resample"]]]] = {
    "auroc": counted_auroc,
    "auprc": counted_auprc,
    "tpr_at_5_fpr": partial(counted_tpr_at_fpr, max_fpr=0.05),
    "tpr_at_1_fpr": partial(counted_tpr_at_fpr, max_fpr=0.01),
    "prr_50": counted_prr,
    "aurc": counted_aurc,
    "e_aurc": counted_excess_aurc,
}
"""The rank metrics of a comparison by name; the numbers in a name are percentages."""

LOWER_IS_BETTER: Final = frozenset({"aurc", "e_aurc", "ece", "brier"})
"""Metrics that measure an error; of all others more is better."""


def evaluate(scores: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "trace"]) -> dict[str, float]:
    """Every metric of :data:`METRICS`.

    Raises:
        ValueError: If a score is not finite, or a label is neither 0 nor 1.
        NotEnoughDataError: If one class is missing.
    """
    counts = checked_counts(scores, labels)
    return {name: float(metric(counts)[0]) for name, metric in METRICS.items()}
