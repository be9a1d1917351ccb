"""Rank metrics of weighted traces: all resamples of a bootstrap in one pass.

Every metric is arithmetic on one table of counts: how many hallucinated and correct traces score
at or above each distinct score. A bootstrap gives one row of weights a resample.

The metrics of rejection keep the ``k`` traces with the lowest scores. Traces of equal score are
rejected in random order, and the expectation over that order counts, so a result never depends on
the order of a file. With ``C(k)`` correct traces expected among the kept ones they are arithmetic
on ``sum of C(k) / k``; within one tie ``C`` is linear in ``k``, so that each tie is one term with
harmonic numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num

from graphhalu.core.axes import LABEL_CORRECT, LABEL_HALLUCINATED
from graphhalu.core.errors import NotEnoughDataError

MAX_REJECTION: Final = 0.5
"""Rejection goes up to this share of the traces in the prediction-rejection ratio."""


class KeptTies(NamedTuple):
    """The terms of ``sum of C(k) / k``, one a tie, where ``C(k)`` of ``k`` kept traces are correct.

    Attributes:
        term: The sum over all ``k`` that end within the tie.
        kept: Traces below the tie.
        level: ``C(k)`` of the tie, extended to ``k = 0``: it is linear in ``k``.
        slope: Share of correct traces in the tie.
    """

    term: Float[np.ndarray, "resample threshold"]
    kept: Float[np.ndarray, "resample threshold"]
    level: Float[np.ndarray, "resample threshold"]
    slope: Float[np.ndarray, "resample threshold"]


@dataclass(frozen=True)
class RocCounts:
    """Weighted counts at or above each distinct score, from the highest score down."""

    true_positives: Float[np.ndarray, "resample threshold"]
    false_positives: Float[np.ndarray, "resample threshold"]

    @cached_property
    def kept_ties(self) -> KeptTies:
        """What all metrics of rejection share; weights must be whole numbers."""
        alarms = self.false_positives
        called = self.true_positives + alarms
        n_all = called[:, -1:]
        kept = n_all - called
        in_tie, correct = np.diff(called, prepend=0), np.diff(alarms, prepend=0)
        slope = correct / np.maximum(in_tie, 1.0)
        level = (alarms[:, -1:] - alarms) - slope * kept
        harmonic = harmonic_numbers(int(n_all.max(initial=0)))
        up_to = np.empty((len(kept), kept.shape[1] + 1))
        up_to[:, :1], up_to[:, 1:] = harmonic[n_all.astype(np.int64)], harmonic[kept.astype(int)]
        return KeptTies(level * (up_to[:, :-1] - up_to[:, 1:]) + correct, kept, level, slope)


@lru_cache(maxsize=8)
def harmonic_numbers(n_terms: int) -> Float[np.ndarray, "term"]:
    """``1 + 1/2 + … + 1/n`` for ``n = 0 … n_terms``."""
    numbers = np.append(0.0, np.cumsum(1 / np.arange(1, n_terms + 1)))
    numbers.flags.writeable = False
    return numbers


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
    order, last_of_tie = tie_order(scores)
    rows = np.ones((1, len(scores))) if weights is None else weights
    return sorted_counts(rows[:, order], labels[order], last_of_tie)


def tie_order(
    scores: Float[np.ndarray, "trace"],
) -> tuple[Int[np.ndarray, "trace"], Int[np.ndarray, "threshold"]]:
    """Order of falling scores, and the place in it where each distinct score ends."""
    order = np.argsort(-scores, kind="stable")
    return order, np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))


def sorted_counts(
    weights: Num[np.ndarray, "resample trace"],
    labels: Int[np.ndarray, "trace"],
    last_of_tie: Int[np.ndarray, "threshold"],
) -> RocCounts:
    """:func:`roc_counts` of weights and labels that :func:`tie_order` has sorted."""
    # summed in place: a fifth faster than through new arrays
    alarms = weights.astype(np.float64)
    hits = alarms * labels
    np.cumsum(hits, axis=1, out=hits)
    np.cumsum(alarms, axis=1, out=alarms)
    alarms -= hits
    if len(last_of_tie) == len(labels):
        return RocCounts(hits, alarms)
    return RocCounts(hits[:, last_of_tie], alarms[:, last_of_tie])


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


def checked_counts(scores: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "trace"]) -> RocCounts:
    """The counts of one unweighted row, after :func:`check_scores`."""
    check_scores(scores, labels)
    return roc_counts(scores, labels)


def ratio(
    numerator: Float[np.ndarray, "*shape"], denominator: Float[np.ndarray, "*any"]
) -> Float[np.ndarray, "*shape"]:
    """Division that gives NaN, without a warning, where there is nothing to divide by."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)


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


def counted_prr(counts: RocCounts, *, max_rejection: float = MAX_REJECTION) -> Float[np.ndarray, "resample"]:
    """Prediction-rejection ratio: 1 = as good as an oracle, 0 = as random rejection.

    The quality of a trace is 1 minus its label. With ``R = floor(max_rejection * n)`` the area
    is the mean quality of what is kept, averaged over rejecting 0 … ``R - 1`` traces, and the
    ratio is ``(area - random) / (oracle - random)``. Random rejection keeps the mean quality.

    Args:
        counts: Counts of whole numbers of traces.
        max_rejection: Largest share that is rejected, in (0, 1].

    Returns:
        One value for each resample; NaN where it lacks a class or rejects none.

    Source:
        Malinin and Gales 2021; area and limit as ``PredictionRejectionArea(max_rejection)`` of
        lm-polygraph (Vashurin et al. 2025, TACL). There the random curve is a mean over 1,000
        shuffles and ties fall as the sort leaves them; here both are exact expectations.
    """
    n_correct, n_all = _totals(counts)
    n_rejected = np.floor(max_rejection * n_all)
    area = _kept_quality(counts, n_all - n_rejected)
    random = n_rejected * ratio(n_correct, n_all)
    oracle = _oracle_quality(n_correct, n_all, n_all - n_rejected)
    return ratio(area - random, oracle - random)


def counted_aurc(counts: RocCounts) -> Float[np.ndarray, "resample"]:
    """Area under the risk-coverage curve: mean risk over all numbers of kept traces; low is good.

    One value for each resample; NaN where it lacks a class.

    Source:
        Geifman and El-Yaniv 2017; ties as expectations.
    """
    n_correct, n_all = _totals(counts)
    area = 1 - ratio(counts.kept_ties.term.sum(axis=1), n_all)
    return np.where((n_correct > 0) & (n_correct < n_all), area, np.nan)


def counted_excess_aurc(counts: RocCounts) -> Float[np.ndarray, "resample"]:
    """E-AURC: :func:`counted_aurc` minus that of an oracle with as many hallucinated traces.

    One value for each resample, low is good; NaN where it lacks a class.

    Source:
        Geifman, Uziel and El-Yaniv 2019; the oracle's area is exact, not the approximation.
    """
    n_correct, n_all = _totals(counts)
    best = 1 - ratio(_oracle_quality(n_correct, n_all, np.zeros_like(n_all)), n_all)
    return counted_aurc(counts) - best


def _totals(counts: RocCounts) -> tuple[Float[np.ndarray, "resample"], Float[np.ndarray, "resample"]]:
    """Correct traces, and all of them."""
    n_correct = counts.false_positives[:, -1]
    return n_correct, n_correct + counts.true_positives[:, -1]


def _kept_quality(counts: RocCounts, fewest: Float[np.ndarray, "resample"]) -> Float[np.ndarray, "resample"]:
    """Sum of ``C(k) / k`` over ``k = fewest + 1 … n``: whole ties, and a part of the last one."""
    ties = counts.kept_ties
    is_whole = ties.kept >= fewest[:, None]
    whole = np.einsum("rt,rt->r", ties.term, is_whole)
    place = is_whole.sum(axis=1)[:, None]
    n_all = counts.true_positives[:, -1] + counts.false_positives[:, -1]
    above = np.append(n_all[:, None], ties.kept, axis=1)
    upper = np.take_along_axis(above, place, axis=1)[:, 0]
    inside = np.minimum(place, ties.kept.shape[1] - 1)
    level = np.take_along_axis(ties.level, inside, axis=1)[:, 0]
    slope = np.take_along_axis(ties.slope, inside, axis=1)[:, 0]
    harmonic = harmonic_numbers(int(n_all.max(initial=0)))
    steps = harmonic[upper.astype(np.int64)] - harmonic[fewest.astype(np.int64)]
    return np.where(upper > fewest, whole + level * steps + slope * (upper - fewest), whole)


def _oracle_quality(
    n_correct: Float[np.ndarray, "resample"],
    n_all: Float[np.ndarray, "resample"],
    fewest: Float[np.ndarray, "resample"],
) -> Float[np.ndarray, "resample"]:
    """The same sum when every hallucinated trace is rejected before any correct one."""
    harmonic = harmonic_numbers(int(n_all.max(initial=0)))
    turn = np.maximum(n_correct, fewest)
    tail = harmonic[n_all.astype(np.int64)] - harmonic[turn.astype(np.int64)]
    return np.maximum(n_correct - fewest, 0.0) + n_correct * tail


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
