"""Statements about methods: would a detector be better on other training answers, too?

The grouped bootstrap and DeLong's test of :mod:`graphhalu.evaluation.significance` hold the fitted
scorers fixed. Here every fold of every seed is one fit, and the spread between fits counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pyarrow as pa
from jaxtyping import Float
from scipy.stats import t as student

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.core.numerics import auroc
from graphhalu.evaluation.significance import MARGIN, holm

Fits = Mapping[tuple[int, int], float]
"""AUROC of each fit, by seed and fold."""
_LEAST_FITS: Final = 2


@dataclass(frozen=True)
class MethodTest:
    """AUROC of a detector minus that of another, as methods: over repeated training.

    Attributes:
        detector: The detector.
        baseline: What it is compared with.
        difference: Mean over all fits of the difference within a tested fold.
        low: Lower end of the interval.
        high: Upper end.
        standard_error: Corrected for the training answers that fits share.
        p_value: Two-sided, of no difference.
        p_holm: After Holm's correction over the compared detectors.
        p_equivalent: Of a difference of ``margin`` or more in either direction (TOST).
        p_not_worse: Of being worse by ``margin`` or more.
        margin: The difference that would matter.
        n_fits: Fits of each of both.
    """

    detector: str
    baseline: str
    difference: float
    low: float
    high: float
    standard_error: float
    p_value: float
    p_holm: float | None
    p_equivalent: float
    p_not_worse: float
    margin: float
    n_fits: int

    def verdict(self, level: float = 0.05) -> str:
        """What may be said of both methods: ``better``, ``worse``, ``no worse``, or ``not decided``."""
        if self.p_holm is not None and self.p_holm < level:
            return "better" if self.difference > 0 else "worse"
        return "no worse" if self.p_not_worse < level else "not decided"


def fit_aurocs(samples: pa.Table) -> dict[str, dict[tuple[int, int], float]]:
    """AUROC of every detector within each tested fold of each seed.

    A sample without a valid score has the median of the others of its fold. Folds without both
    classes are left out.

    Args:
        samples: Scores as in ``scores.parquet``; see :data:`graphhalu.evaluation.result.SAMPLE_SCHEMA`.
    """
    frame = samples.select(["detector", "seed", "fold", "label", "score"]).to_pandas()
    found: dict[str, dict[tuple[int, int], float]] = {}
    for (detector, seed, fold), rows in frame.groupby(["detector", "seed", "fold"], sort=False):
        scores, labels = rows.score.to_numpy(np.float64), rows.label.to_numpy(np.int64)
        is_valid = np.isfinite(scores)
        if not is_valid.any() or len(np.unique(labels)) < 2:  # noqa: PLR2004
            continue
        filled = np.where(is_valid, scores, np.median(scores[is_valid]))
        found.setdefault(str(detector), {})[int(seed), int(fold)] = auroc(filled, labels)
    return found


def compare_methods(
    fits: Mapping[str, Fits], baseline: str, *, test_ratio: float, level: float = 0.95, margin: float = MARGIN
) -> list[MethodTest]:
    """Test every method against the baseline, with Holm's correction over all of them.

    Args:
        fits: AUROC of each fit by detector; see :func:`fit_aurocs`.
        baseline: One of the detectors.
        test_ratio: Tested answers of a fit over those that it was trained on: 1/3 for five folds of which
            one tests and one validates.
        level: Coverage of the intervals.
        margin: Margin of the test of equivalence.

    Returns:
        One test a detector but the baseline; none of those with fewer than two fits in common.
    """
    found = []
    for detector in fits:
        shared = [key for key in fits[detector] if key in fits.get(baseline, {})]
        if detector == baseline or len(shared) < _LEAST_FITS:
            continue
        differences = np.array([fits[detector][key] - fits[baseline][key] for key in shared])
        found.append(
            corrected_test(differences, test_ratio, names=(detector, baseline), level=level, margin=margin)
        )
    corrected = holm([each.p_value for each in found])
    return [replace(each, p_holm=p_holm) for each, p_holm in zip(found, corrected, strict=True)]


def corrected_test(
    differences: Float[np.ndarray, "fit"],
    test_ratio: float,
    *,
    names: tuple[str, str] = ("", ""),
    level: float = 0.95,
    margin: float = MARGIN,
) -> MethodTest:
    """The corrected resampled t-test of a mean difference.

    Args:
        differences: One a fit.
        test_ratio: Tested answers of a fit over those that it was trained on.
        names: Detector and baseline.
        level: Coverage of the interval.
        margin: Margin of the test of equivalence.

    Raises:
        NotEnoughDataError: If there are fewer than two fits.

    Source:
        Nadeau and Bengio 2003: the variance of the mean of ``J`` fits is ``(1 / J + n_test / n_train)``
        times that of one fit, since their training answers overlap; a t-test with ``J - 1`` degrees of
        freedom. Without it two learners of equal quality differ in 27 to 31 % of simulations at a level
        of .05.
    """
    n_fits = len(differences)
    if n_fits < _LEAST_FITS:
        raise NotEnoughDataError(f"a statement about methods needs 2 fits or more, got {n_fits}")
    mean = float(differences.mean())
    error = float(np.sqrt(differences.var(ddof=1) * (1 / n_fits + test_ratio)))
    freedom = n_fits - 1
    half = float(student.ppf(1 - (1 - level) / 2, freedom)) * error

    def p_above(distance: float) -> float:
        """Of a value this far above what is assumed; equal differences leave no doubt."""
        if error == 0:
            return 0.5 if distance == 0 else float(distance < 0)
        return float(student.sf(distance / error, freedom))

    p_not_worse, p_not_better = p_above(mean + margin), p_above(margin - mean)
    return MethodTest(
        *names,
        difference=mean,
        low=mean - half,
        high=mean + half,
        standard_error=error,
        p_value=min(1.0, 2 * p_above(abs(mean))),
        p_holm=None,
        p_equivalent=max(p_not_worse, p_not_better),
        p_not_worse=p_not_worse,
        margin=margin,
        n_fits=n_fits,
    )


def overlap_ratio(config: Mapping[str, object]) -> float:
    """Tested over training answers of a fit, of the settings of a comparison."""
    if config.get("quick"):
        return 1 / 3  # 60 / 20 / 20
    n_folds = int(str(config.get("n_folds", 5)))
    return 1 / (n_folds - 2)
