"""How good what is left becomes when the answers with the highest scores are rejected.

Kept are the ``k`` traces with the lowest scores. Traces of equal score are rejected in random
order, and the expectation over that order is what counts here, so a result never depends on
the order of a file. With ``C(k)`` correct traces expected among the kept ones, all of it is
arithmetic on ``sum of C(k) / k``; within one tie ``C`` is linear in ``k``, so that each tie is
one term with harmonic numbers, and all resamples are summed in one pass.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from graphhalu.evaluation.counts import RocCounts, checked_counts, harmonic_numbers, ratio

MAX_REJECTION = 0.5
"""Rejection goes up to this share of the traces in the prediction-rejection ratio."""


class RiskCoverage(NamedTuple):
    """Share of hallucinated traces among the kept ones, for every number of kept traces."""

    coverage: Float[np.ndarray, "kept"]
    risk: Float[np.ndarray, "kept"]


def risk_coverage_curve(scores: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "trace"]) -> RiskCoverage:
    """Risk at each coverage ``1/n … 1``, the lowest scores kept first; its mean is the AURC.

    Raises:
        ValueError: If a score is not finite, or a label is neither 0 nor 1.
        NotEnoughDataError: If one class is missing.
    """
    counts = checked_counts(scores, labels)
    hits, alarms = counts.true_positives[0], counts.false_positives[0]
    called = np.append(0.0, hits + alarms)
    kept = np.arange(1, len(scores) + 1)
    # among the kept are all hallucinated traces but those of the rejected ones
    rejected_hits = np.interp(len(scores) - kept, called, np.append(0.0, hits))
    return RiskCoverage(kept / len(scores), (hits[-1] - rejected_hits) / kept)


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
