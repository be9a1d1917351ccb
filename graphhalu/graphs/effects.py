"""How far two classes of answers differ in a measure: effect sizes that weights can resample."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int


class Ranked(NamedTuple):
    """Values of a measure, sorted once for many resamples.

    Attributes:
        order: Answers by their value, lowest first.
        starts: Where each run of equal values starts.
        is_positive: Class of each answer, in that order.
    """

    order: Int[np.ndarray, "answer"]
    starts: Int[np.ndarray, "value"]
    is_positive: Bool[np.ndarray, "answer"]


def ranked(values: Float[np.ndarray, "answer"], is_positive: Bool[np.ndarray, "answer"]) -> Ranked:
    """Sort the values of a measure; equal ones share a rank."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    return Ranked(order, starts, is_positive[order])


def cliffs_delta(
    measure: Ranked, weights: Float[np.ndarray, "resample answer"]
) -> Float[np.ndarray, "resample"]:
    """``P(positive > negative) − P(positive < negative)``, in [−1, 1]; NaN without both classes.

    Args:
        measure: Sorted values.
        weights: How often each answer counts, in the order of the values as they were given.

    Source:
        Cliff 1993, doi:10.1037/0033-2909.114.3.494; it is ``2 AUROC − 1``.
    """
    drawn = weights[:, measure.order]
    positive = np.add.reduceat(drawn * measure.is_positive, measure.starts, axis=1)
    negative = np.add.reduceat(drawn * ~measure.is_positive, measure.starts, axis=1)
    n_positive, n_negative = positive.sum(1), negative.sum(1)
    below = np.cumsum(negative, axis=1) - negative / 2
    possible = n_positive * n_negative
    won = np.einsum("rv,rv->r", positive, below)
    share = np.divide(won, possible, out=np.full(len(won), np.nan), where=possible > 0)
    delta: Float[np.ndarray, "resample"] = 2 * share - 1
    return delta


def length_adjusted(
    values: Float[np.ndarray, "answer"], lengths: Float[np.ndarray, "answer length"]
) -> Float[np.ndarray, "answer"]:
    """What is left of a measure after a least-squares fit on the logarithms of some lengths.

    The fit sees no label. It has a constant, each logarithm and its square.

    Args:
        values: Finite values of a measure.
        lengths: Lengths of each answer in tokens, at least 1.
    """
    logs = np.log(lengths)
    design = np.concatenate([np.ones((len(values), 1)), logs, logs**2], axis=1)
    fitted, *_ = np.linalg.lstsq(design, values, rcond=None)
    left: Float[np.ndarray, "answer"] = values - design @ fitted
    # what the fit explains up to rounding has no order left in it
    left[np.abs(left) < 1e-9 * max(1.0, float(np.abs(values).max()))] = 0.0
    return left
