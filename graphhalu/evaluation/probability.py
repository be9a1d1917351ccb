"""Metrics of probabilities: calibration error, Brier score, log-loss."""

from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from graphhalu.core.errors import NotEnoughDataError

N_BINS: Final = 15


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
    bins = _bins(probability, n_bins)
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


def brier(probability: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "trace"]) -> float:
    """Mean squared distance of probability and label; ``p (1 - p)`` for a constant prevalence.

    Raises:
        ValueError: If a probability is not in [0, 1].
        NotEnoughDataError: If there is no trace.

    Source:
        Brier 1950, for two classes counted once.
    """
    _check(probability)
    return float(np.mean((probability - labels) ** 2))


def log_losses(
    probability: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "trace"]
) -> Float[np.ndarray, "trace"]:
    """Negative log-probability (nat) that was given to each label; infinite for a sure mistake.

    Raises:
        ValueError: If a probability is not in [0, 1].
        NotEnoughDataError: If there is no trace.
    """
    _check(probability)
    given = np.where(labels == 1, probability, 1 - probability)
    with np.errstate(divide="ignore"):
        losses: Float[np.ndarray, "trace"] = -np.log(given)
    return losses


def _bins(probability: Float[np.ndarray, "trace"], n_bins: int) -> Int[np.ndarray, "trace"]:
    """Bin of each trace by the mean rank of its probability; empty bins are dropped."""
    _check(probability)
    if n_bins < 1:
        message = f"n_bins must be 1 or more, got {n_bins}"
        raise ValueError(message)
    _, value_index, counts = np.unique(probability, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts + 1) / 2
    bin_of_value = np.floor(middle * n_bins / len(probability)).astype(np.int64)
    return np.unique(bin_of_value, return_inverse=True)[1][value_index]


def _check(probability: Float[np.ndarray, "trace"]) -> None:
    if not len(probability):
        message = "no trace has a probability"
        raise NotEnoughDataError(message)
    if not ((probability >= 0) & (probability <= 1)).all():
        message = (
            f"probabilities must be in [0, 1], got {np.nanmin(probability):g} to {np.nanmax(probability):g}"
        )
        raise ValueError(message)
