"""Metrics of scores and probabilities; hallucinated (1) is the positive class everywhere.

No metric ever flips a score.
"""

from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from graphhalu.core import numerics
from graphhalu.core.errors import NotEnoughDataError
from graphhalu.evaluation.weighted_metrics import METRICS, check_scores, checked_counts

N_BINS: Final = 15
LOWER_IS_BETTER: Final = frozenset({"aurc", "e_aurc", "ece", "brier"})
"""Metrics that measure an error; of all others more is better."""


def auroc(scores: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "trace"]) -> float:
    """Chance that a hallucinated trace scores above a correct one; a tie counts one half.

    Raises:
        ValueError: If a score is not finite, or a label is neither 0 nor 1.
        NotEnoughDataError: If one class is missing.
    """
    check_scores(scores, labels)
    return numerics.auroc(scores, labels)


def evaluate(scores: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "trace"]) -> dict[str, float]:
    """Every metric of :data:`METRICS`.

    Raises:
        ValueError: If a score is not finite, or a label is neither 0 nor 1.
        NotEnoughDataError: If one class is missing.
    """
    counts = checked_counts(scores, labels)
    return {name: float(metric(counts)[0]) for name, metric in METRICS.items()}


def risk_coverage_curve(
    scores: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "trace"]
) -> tuple[Float[np.ndarray, "kept"], Float[np.ndarray, "kept"]]:
    """Coverage ``1/n … 1``, the lowest scores kept first, and the risk at each: its mean is the AURC.

    The risk is the share of hallucinated traces among the kept ones.

    Raises:
        ValueError: If a score is not finite, or a label is neither 0 nor 1.
        NotEnoughDataError: If one class is missing.
    """
    counts = checked_counts(scores, labels)
    hits, alarms = counts.true_positives[0], counts.false_positives[0]
    kept = np.arange(1, len(scores) + 1)
    # all hallucinated traces are kept but those of the rejected ones
    rejected_hits = np.interp(len(scores) - kept, np.append(0.0, hits + alarms), np.append(0.0, hits))
    return kept / len(scores), (hits[-1] - rejected_hits) / kept


class Reliability(NamedTuple):
    """Bins of about equal size by rising probability, for a calibration figure.

    Attributes:
        probability: Mean probability in each bin.
        share: Share of hallucinated traces in each bin.
        n_traces: Traces in each bin.
    """

    probability: Float[np.ndarray, "bin"]
    share: Float[np.ndarray, "bin"]
    n_traces: Int[np.ndarray, "bin"]


def reliability_curve(
    probability: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "trace"], *, n_bins: int = N_BINS
) -> Reliability:
    """Mean probability and share of hallucinated traces in bins of equal mass.

    Equal probabilities are never parted, so that the order of a file changes nothing: a bin
    takes all traces of the probability at its edge, and there may be fewer bins than asked for.

    Raises:
        ValueError: If a probability is not in [0, 1] or no bin is asked for.
        NotEnoughDataError: If there is no trace.
    """
    bins = _bins_of_equal_mass(probability, n_bins)
    n_traces = np.bincount(bins)
    return Reliability(
        np.bincount(bins, weights=probability) / n_traces,
        np.bincount(bins, weights=labels) / n_traces,
        n_traces,
    )


def ece(
    probability: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "trace"], *, n_bins: int = N_BINS
) -> float:
    """Expected calibration error: mean distance of probability and share over the bins' traces.

    Raises:
        ValueError: If a probability is not in [0, 1] or no bin is asked for.
        NotEnoughDataError: If there is no trace.

    Source:
        Naeini et al. 2015, with bins of equal mass in place of equal width.
    """
    curve = reliability_curve(probability, labels, n_bins=n_bins)
    return float(np.average(np.abs(curve.probability - curve.share), weights=curve.n_traces))


def log_losses(
    probability: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "trace"]
) -> Float[np.ndarray, "trace"]:
    """Negative log-probability (nat) that was given to each label; infinite for a sure mistake.

    Raises:
        ValueError: If a probability is not in [0, 1].
        NotEnoughDataError: If there is no trace.
    """
    _check_probabilities(probability)
    given = np.where(labels == 1, probability, 1 - probability)
    with np.errstate(divide="ignore"):
        losses: Float[np.ndarray, "trace"] = -np.log(given)
    return losses


def _bins_of_equal_mass(probability: Float[np.ndarray, "trace"], n_bins: int) -> Int[np.ndarray, "trace"]:
    """Bin of each trace by the mean rank of its probability; empty bins are dropped."""
    _check_probabilities(probability)
    if n_bins < 1:
        message = f"n_bins must be 1 or more, got {n_bins}"
        raise ValueError(message)
    _, value_index, counts = np.unique(probability, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts + 1) / 2
    bin_of_value = np.floor(middle * n_bins / len(probability)).astype(np.int64)
    return np.unique(bin_of_value, return_inverse=True)[1][value_index]


def _check_probabilities(probability: Float[np.ndarray, "trace"]) -> None:
    if not len(probability):
        message = "no trace has a probability"
        raise NotEnoughDataError(message)
    if not ((probability >= 0) & (probability <= 1)).all():
        message = (
            f"probabilities must be in [0, 1], got {np.nanmin(probability):g} to {np.nanmax(probability):g}"
        )
        raise ValueError(message)
