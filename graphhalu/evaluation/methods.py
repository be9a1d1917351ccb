"""Statements about methods: would a detector be better on other training answers, too?

The grouped bootstrap and DeLong's test of :mod:`graphhalu.evaluation.significance` hold the fitted
scorers fixed. Here every fold of every seed is one fit, and the spread between fits counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
from scipy.stats import t as student
from sklearn.metrics import average_precision_score

from graphhalu.core.documents import FileFormat
from graphhalu.core.errors import NotEnoughDataError
from graphhalu.core.numerics import auroc
from graphhalu.evaluation.metrics import Floats
from graphhalu.evaluation.result import MethodTest, Result
from graphhalu.evaluation.settings import MARGIN
from graphhalu.evaluation.significance import holm
from graphhalu.labels.labels import Level

Fits = Mapping[tuple[int, int], float]
"""Metric of each fit, by seed and fold."""
Metric = Literal["auroc", "auprc"]
METRIC_OF: Final[Mapping[Level, Metric]] = {"answer": "auroc", "token": "auprc"}
"""What methods are compared by: hallucinated tokens are few."""
LEVEL: Final = 0.95
_LEAST_FITS: Final = 2
CLAIMS: Final = FileFormat("graphhalu-claims", 1, "Run:  graphhalu report RUN RUN --together")
CLAIMS_FILE: Final = "claims.json"


def fit_metrics(samples: pa.Table, metric: Metric = "auroc") -> dict[str, dict[tuple[int, int], float]]:
    """A metric of every detector within each tested fold of each seed.

    A sample without a valid score has the median of the others of its fold. Folds without both
    classes are left out.

    Args:
        samples: Scores as in ``scores.parquet``; see :data:`graphhalu.evaluation.result.SAMPLE_SCHEMA`.
        metric: AUROC, or average precision.
    """
    frame = samples.select(["detector", "seed", "fold", "label", "score"]).to_pandas()
    found: dict[str, dict[tuple[int, int], float]] = {}
    for (detector, seed, fold), rows in frame.groupby(["detector", "seed", "fold"], sort=False):
        scores, labels = rows.score.to_numpy(np.float64), rows.label.to_numpy(np.int64)
        is_valid = np.isfinite(scores)
        if not is_valid.any() or len(np.unique(labels)) < 2:  # noqa: PLR2004
            continue
        filled = np.where(is_valid, scores, np.median(scores[is_valid]))
        value = auroc(filled, labels) if metric == "auroc" else average_precision_score(labels, filled)
        found.setdefault(str(detector), {})[int(seed), int(fold)] = float(value)
    return found


def compare_methods(
    fits: Mapping[str, Fits], baseline: str, *, test_ratio: float, **how: float
) -> list[MethodTest]:
    """Test every method against the baseline, with Holm's correction over all of them.

    Args:
        fits: Metric of each fit by detector; see :func:`fit_metrics`.
        baseline: One of the detectors.
        test_ratio: Tested answers of a fit over those that it was trained on: 1/3 for five folds of which
            one tests and one validates.
        how: ``level`` and ``margin`` of :func:`corrected_test`.

    Returns:
        One test a detector but the baseline; none of those with fewer than two fits in common.
    """
    found = []
    for detector in fits:
        shared = [key for key in fits[detector] if key in fits.get(baseline, {})]
        if detector != baseline and len(shared) >= _LEAST_FITS:
            differences = np.array([fits[detector][key] - fits[baseline][key] for key in shared])
            test = corrected_test(differences, test_ratio, **how)
            found.append(replace(test, detector=detector, baseline=baseline))
    return one_family(found)


def one_family(tests: Sequence[MethodTest]) -> list[MethodTest]:
    """The tests with Holm's correction over all of them, of each of the two claims that they may make."""
    different, not_worse = (holm([getattr(t, p) for t in tests]) for p in ("p_value", "p_not_worse"))
    return [
        replace(test, p_holm=p_holm, p_not_worse_holm=p_not_worse)
        for test, p_holm, p_not_worse in zip(tests, different, not_worse, strict=True)
    ]


def corrected_test(
    differences: Floats, test_ratio: float, *, level: float = LEVEL, margin: float = MARGIN
) -> MethodTest:
    """The corrected resampled t-test of a mean difference; it names no detectors.

    Args:
        differences: One a fit.
        test_ratio: Tested answers of a fit over those that it was trained on.
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
    p_value, p_equivalent = min(1.0, 2 * p_above(abs(mean))), max(p_not_worse, p_not_better)
    estimate = (mean, mean - half, mean + half, error)
    return MethodTest("", "", *estimate, p_value, None, p_equivalent, p_not_worse, margin, n_fits)


def overlap_ratio(config: Mapping[str, Any]) -> float:
    """Tested over training answers of a fit, of the settings of a comparison."""
    # a quick comparison has one split, 60 / 20 / 20
    return 1 / 3 if config.get("quick") else 1 / (int(config.get("n_folds", 5)) - 2)


def method_tests(
    samples: pa.Table, baseline: str, config: Mapping[str, Any], metric: Metric = "auroc"
) -> tuple[MethodTest, ...]:
    """Every detector of a comparison against its baseline, as methods.

    Args:
        samples: Scores of every sample; see :func:`fit_metrics`.
        baseline: One of the detectors.
        config: Settings of the comparison.
        metric: What they are compared by.
    """
    how = {name: config[name] for name in ("level", "margin") if name in config}
    fits = fit_metrics(samples, metric)
    tests = compare_methods(fits, baseline, test_ratio=overlap_ratio(config), **how)
    return tuple(replace(test, metric=metric) for test in tests)


def with_methods(result: Result) -> Result:
    """A result with tests of methods, made from its scores where an earlier version left them out."""
    if result.methods and result.methods[0].p_not_worse_holm is None:
        return replace(result, methods=tuple(one_family(result.methods)))
    if result.methods or result.baseline is None:
        return result
    metric = METRIC_OF["answer" if result.counts is None else "token"]
    tests = method_tests(result.samples, result.baseline.detector, result.config, metric)
    return replace(result, methods=tests)


def claims_together(results: Mapping[str, Result], level: float = 0.05) -> list[dict[str, Any]]:
    """The tests of methods of several comparisons, corrected as one family.

    Args:
        results: Comparisons by a name each; those without a baseline add nothing.
        level: Below it, a corrected p-value is a finding.

    Returns:
        A row a test, the smallest p-value first: ``comparison``, the fields of the test with ``p_holm``
        and ``p_not_worse_holm`` corrected over all rows, and the ``verdict``; ``p_holm`` and verdict also
        ``_within`` its own comparison.
    """
    tests = [(name, test) for name, result in results.items() for test in with_methods(result).methods]
    rows = []
    for (name, test), found in zip(tests, one_family([test for _, test in tests]), strict=True):
        within = {"p_holm_within": test.p_holm, "verdict_within": test.verdict(level)}
        rows.append({"comparison": name, **vars(found), **within, "verdict": found.verdict(level)})
    return sorted(rows, key=lambda row: row["p_value"])
