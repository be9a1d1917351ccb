"""DeLong's variance of an AUROC, and the paired test of two detectors on the same traces.

The test takes questions for independent, not traces, and several seeds into account.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.special import ndtr
from scipy.stats import rankdata

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.evaluation.weighted_metrics import check_scores


class DelongTest(NamedTuple):
    """AUROC of the first detector minus that of the second, with a two-sided p-value."""

    difference: float
    standard_error: float
    p_value: float


def auroc_influence(
    scores: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "trace"]
) -> Float[np.ndarray, "trace"]:
    """What each trace adds to the error of the AUROC; the squares sum to DeLong's variance.

    Raises:
        ValueError: If a score is not finite.
        NotEnoughDataError: If a class has fewer than two traces.
    """
    check_scores(scores, labels)
    n_positive, n_negative = int(labels.sum()), int((1 - labels).sum())
    if min(n_positive, n_negative) < 2:  # noqa: PLR2004
        message = (
            f"a variance needs two traces of each class, got {n_positive} hallucinated "
            f"and {n_negative} correct"
        )
        raise NotEnoughDataError(message)
    return column_influence(scores[:, None], labels)[1][:, 0]


def column_influence(
    columns: Float[np.ndarray, "trace column"], labels: Int[np.ndarray, "trace"]
) -> tuple[Float[np.ndarray, "column"], Float[np.ndarray, "trace column"]]:
    """AUROC of each column, and what each trace adds to its error; two of each class or more.

    Source:
        DeLong et al. 1988; mid-ranks as in Sun and Xu 2014, so the cost is that of a sort.
    """
    ranks = rankdata(columns, axis=0)
    influence = np.empty(columns.shape)
    for label in (1, 0):
        here = labels == label
        n_here = int(here.sum())
        # the share of the other class below each trace
        below = (ranks[here] - rankdata(columns[here], axis=0)) / (len(labels) - n_here)
        if label:
            auroc, share = below.mean(axis=0), below
        else:
            share = 1 - below
        influence[here] = (share - auroc) / np.sqrt(n_here * (n_here - 1))
    return auroc, influence


def grouped_delong_test(
    difference: float, influence: Float[np.ndarray, "trace"], groups: Shaped[np.ndarray, "trace"]
) -> DelongTest:
    """Test a difference of AUROCs whose traces come in independent groups.

    Args:
        difference: AUROC of the first detector minus that of the second.
        influence: :func:`auroc_influence` of the first minus that of the second; over several
            seeds the means of both, with 0 for a trace that a seed did not test.
        groups: Question group of each trace.

    Raises:
        NotEnoughDataError: If the detectors differ without any spread to test against.

    Source:
        DeLong et al. 1988; influences summed within each group as by Obuchowski 1997 for
        clustered data. With one trace a group it is DeLong's test exactly.
    """
    of_group = np.bincount(np.unique(groups, return_inverse=True)[1], weights=influence)
    error = float(np.sqrt(of_group @ of_group))
    if error > 0:
        return DelongTest(difference, error, float(2 * ndtr(-abs(difference) / error)))
    if difference == 0:
        return DelongTest(0.0, 0.0, 1.0)
    message = (
        f"the AUROCs differ by {difference:g} with the same difference on every one of "
        f"{len(influence)} traces: there is no spread to test against"
    )
    raise NotEnoughDataError(message)
