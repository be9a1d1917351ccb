"""One table of counts from which every rank metric is computed, one row a resample.

It holds how many hallucinated and correct traces score at or above each distinct score. A
bootstrap gives one row of weights a resample, so all its resamples are evaluated in one pass.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num

from graphhalu.core.axes import LABEL_CORRECT, LABEL_HALLUCINATED
from graphhalu.core.errors import NotEnoughDataError


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
