"""DeLong's variance of an AUROC, and the paired test of two detectors on the same traces.

It takes traces for independent: where a question has several answers, use the question-level
bootstrap in :mod:`graphhalu.evaluation.bootstrap` instead.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtr
from scipy.stats import rankdata

from graphhalu.errors import NotEnoughDataError
from graphhalu.evaluation.metrics import check_scores


class AurocVariance(NamedTuple):
    """An AUROC and the variance of its estimate."""

    auroc: float
    variance: float


class DelongTest(NamedTuple):
    """AUROC of the first detector minus that of the second, with a two-sided p-value."""

    difference: float
    standard_error: float
    p_value: float


class _Placements(NamedTuple):
    """For each hallucinated trace the share of correct ones below it, and the reverse."""

    below: Float[np.ndarray, "hallucinated"]
    above: Float[np.ndarray, "correct"]


def delong_variance(
    scores: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "trace"]
) -> AurocVariance:
    """AUROC and its variance without any assumption on the scores' distribution.

    Raises:
        ValueError: If a score is not finite.
        NotEnoughDataError: If a class has fewer than two traces.

    Source:
        DeLong et al. 1988; mid-ranks as in Sun and Xu 2014, so the cost is that of a sort.
    """
    placements = _placements(scores, labels)
    return AurocVariance(float(placements.below.mean()), _variance(placements))


def delong_test(
    first: Float[np.ndarray, "trace"],
    second: Float[np.ndarray, "trace"],
    labels: Int[np.ndarray, "trace"],
) -> DelongTest:
    """Test whether two detectors have the same AUROC on the same traces.

    Two detectors that rank alike have no difference and no error; their p-value is 1.

    Raises:
        ValueError: If a score is not finite.
        NotEnoughDataError: If a class has fewer than two traces, or the detectors differ by
            the same amount on every trace, which leaves no spread to test against.

    Source:
        DeLong et al. 1988; the variance of the difference is taken from the differences
        themselves, which equals the sum of variances minus twice the covariance and cannot
        come out negative.
    """
    a, b = _placements(first, labels), _placements(second, labels)
    change = _Placements(a.below - b.below, a.above - b.above)
    difference = float(change.below.mean())
    error = float(np.sqrt(_variance(change)))
    if error > 0:
        return DelongTest(difference, error, float(2 * ndtr(-abs(difference) / error)))
    if difference == 0:
        return DelongTest(0.0, 0.0, 1.0)
    message = (
        f"the AUROCs differ by {difference:g} with the same difference on every one of "
        f"{len(labels)} traces: there is no spread to test against"
    )
    raise NotEnoughDataError(message)


def _placements(
    scores: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "trace"]
) -> _Placements:
    check_scores(scores, labels)
    positive, negative = scores[labels == 1], scores[labels == 0]
    n_positive, n_negative = len(positive), len(negative)
    if min(n_positive, n_negative) < 2:  # noqa: PLR2004
        message = (
            f"a variance needs two traces of each class, got {n_positive} hallucinated "
            f"and {n_negative} correct"
        )
        raise NotEnoughDataError(message)
    ranks = rankdata(np.concatenate([positive, negative]))
    return _Placements(
        below=(ranks[:n_positive] - rankdata(positive)) / n_negative,
        above=1 - (ranks[n_positive:] - rankdata(negative)) / n_positive,
    )


def _variance(placements: _Placements) -> float:
    below, above = placements
    return float(below.var(ddof=1) / len(below) + above.var(ddof=1) / len(above))
