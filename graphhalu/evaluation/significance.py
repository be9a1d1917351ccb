"""Tests of AUROCs and of their differences: bootstrap, DeLong, Holm, equivalence.

Four statements are made of each difference from the baseline. The interval and the first p-value
come from the question-level bootstrap, the second p-value from DeLong's test with questions as
groups. Holm's correction over all detectors is applied to the second, since the first cannot
be smaller than 2 / (resamples + 1). Equivalence is tested by two one-sided tests (TOST).

A trace without a valid score gets the median of the detector's other scores, so that both
detectors of a pair are judged on the same traces; this is also what a comparison ranks by.

All of them hold the fitted detectors fixed: they are statements about these scorers. Statements about
methods follow: would a detector be better on other training answers, too? There every fold of every
seed is one fit, and the spread between fits counts.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Float
from scipy.special import ndtr
from scipy.stats import rankdata
from scipy.stats import t as student
from sklearn.metrics import average_precision_score

from graphhalu.core.documents import FileFormat
from graphhalu.core.errors import NotEnoughDataError, UsageError
from graphhalu.detectors.registry import POSITION_CONTROL
from graphhalu.evaluation.bootstrap import Columns, EvaluationSet, percentile_interval, two_sided_p
from graphhalu.evaluation.metrics import Floats, Groups, Ints, Resampled, auroc, check_classes, check_scores
from graphhalu.evaluation.result import TEXTS, Baseline, Comparison, DetectorRow, MethodTest, Result
from graphhalu.evaluation.settings import MARGIN
from graphhalu.labels.labels import Level

ByColumn = Float[np.ndarray, "column"]
LEAST_OF_CLASS: Final = 5
"""Answers of a class below which single features are not tested."""


def choose_baseline(
    rows: Sequence[DetectorRow], against: str | None = None, *, level: Level = "answer"
) -> Baseline | None:
    """The named detector, or the strongest control or detector that is not a graph network.

    Of token detectors it is the position control, where that was run.
    """
    rules = TEXTS["rules"]
    if against is not None:
        return Baseline(against, rules["named"])
    if level == "token" and any(row.detector == POSITION_CONTROL for row in rows):
        return Baseline(POSITION_CONTROL, rules["position"])
    candidates = [row for row in rows if row.failure is None and (row.is_control or not row.is_graph)]
    best = max(candidates, key=lambda row: row.auroc_invalid_at_median or 0.0, default=None)
    return None if best is None else Baseline(best.detector, rules["strongest"])


def compare_to_baseline(
    scores: Mapping[str, Sequence[Floats]], baseline: str, tested: EvaluationSet, *, margin: float = MARGIN
) -> list[Comparison]:
    """Test every detector against the baseline, with Holm's correction over all of them.

    Args:
        scores: Scores of all items in each seed, by detector; NaN where an item was not tested.
            The seeds come in the same order everywhere.
        baseline: One of the detectors.
        tested: Labels, groups and settings.
        margin: Margin of the test of equivalence.

    Raises:
        UsageError: If the baseline is none of the detectors.
        NotEnoughDataError: If a class has fewer than two traces.
    """
    if baseline not in scores:
        raise UsageError(f"the baseline {baseline!r} is none of {', '.join(scores)}, or it failed")
    pooled = {name: pooled_auroc(seeds, tested) for name, seeds in scores.items()}
    other, found = pooled.pop(baseline), []
    for name, own in pooled.items():
        difference, influence, resampled = own[0] - other[0], own[1] - other[1], own[2] - other[2]
        low, high, _ = percentile_interval(resampled, tested.level)
        error = p_delong = None
        with suppress(NotEnoughDataError):  # there may be no spread to test against
            error, p_delong = grouped_delong_test(difference, influence, tested.groups)
        one_sided = tost(difference, error, margin) if error else ()
        equivalence = (max(one_sided, default=None), next(iter(one_sided), None))
        p_values = (two_sided_p(resampled), p_delong, None, *equivalence)
        found.append(Comparison(name, baseline, difference, low, high, error, *p_values, margin))
    adjusted = iter(holm([c.p_delong for c in found if c.p_delong is not None]))
    return [c if c.p_delong is None else replace(c, p_holm=next(adjusted)) for c in found]


def pooled_auroc(seeds: Sequence[Floats], tested: EvaluationSet) -> tuple[float, Floats, Resampled]:
    """AUROC of a detector over all tested items, its influences, and its resamples; means over seeds.

    Args:
        seeds: Scores of all items in each seed; NaN where an item was not tested.
        tested: Labels, groups and settings.

    Raises:
        NotEnoughDataError: If a class has fewer than two traces.
    """
    influence, aurocs, resampled = np.zeros(len(tested.labels)), [], []
    for scores in seeds:
        is_tested = np.isfinite(scores)
        known, labels = scores[is_tested], tested.labels[is_tested]
        aurocs.append(auroc(known, labels))
        influence[is_tested] += auroc_influence(known, labels) / len(seeds)
        resampled.append(tested.resample(["auroc"], scores, is_tested)["auroc"])
    return float(np.mean(aurocs)), influence, np.mean(resampled, axis=0)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values after Holm's step-down correction, in the order given.

    Source:
        Holm 1979: the smallest times their number, the next times one less, never falling.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order, adjusted = np.argsort(values, kind="stable"), np.empty(len(values))
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.tolist()


def tost(difference: float, standard_error: float, margin: float = MARGIN) -> tuple[float, float]:
    """Two one-sided normal tests that a difference lies within ``±margin``.

    Returns:
        p-value of a difference of ``-margin`` or less, and of ``margin`` or more. The larger of
        both is that of equivalence: it is small only if both are refused.

    Raises:
        ValueError: If the margin or the standard error is not positive.

    Source:
        Schuirmann 1987.
    """
    if margin <= 0 or standard_error <= 0:
        raise ValueError(f"margin and error must be positive, got {margin:g} and {standard_error:g}")
    distances = np.array([-(difference + margin), difference - margin])
    below, above = ndtr(distances / standard_error).tolist()
    return below, above


def auroc_influence(scores: Floats, labels: Ints) -> Floats:
    """What each trace adds to the error of the AUROC; the squares sum to DeLong's variance.

    Raises:
        ValueError: If a score is not finite.
        NotEnoughDataError: If a class has fewer than two traces.
    """
    check_scores(scores, labels)
    check_classes(labels, "a variance needs two traces of each class", least=2)
    return column_influence(scores[:, None], labels)[1][:, 0]


def column_influence(columns: Columns, labels: Ints) -> tuple[ByColumn, Columns]:
    """AUROC of each column, and what each trace adds to its error; two of each class or more.

    Source:
        DeLong et al. 1988; mid-ranks as in Sun and Xu 2014, so the cost is that of a sort.
    """
    ranks, influence, is_positive = rankdata(columns, axis=0), np.empty(columns.shape), labels == 1
    # the share of the other class below each trace
    below = [
        (ranks[here] - rankdata(columns[here], axis=0)) / int((~here).sum())
        for here in (is_positive, ~is_positive)
    ]
    auroc = below[0].mean(axis=0)
    for here, share in ((is_positive, below[0]), (~is_positive, 1 - below[1])):
        influence[here] = (share - auroc) / np.sqrt(len(share) * (len(share) - 1))
    return auroc, influence


def grouped_delong_test(difference: float, influence: Floats, groups: Groups) -> tuple[float, float]:
    """Test a difference of AUROCs whose traces come in independent groups.

    Args:
        difference: AUROC of the first detector minus that of the second.
        influence: :func:`auroc_influence` of the first minus that of the second; over several
            seeds the means of both, with 0 for a trace that a seed did not test.
        groups: Question group of each trace.

    Returns:
        Standard error of the difference, and the two-sided p-value.

    Raises:
        NotEnoughDataError: If the detectors differ without any spread to test against.

    Source:
        DeLong et al. 1988; influences summed within each group as by Obuchowski 1997 for
        clustered data. With one trace a group it is DeLong's test exactly.
    """
    of_group = np.bincount(np.unique(groups, return_inverse=True)[1], weights=influence)
    error = float(np.sqrt(of_group @ of_group))
    if error > 0:
        return error, float(2 * ndtr(-abs(difference) / error))
    if difference == 0:
        return 0.0, 1.0
    same = f"AUROCs that differ by {difference:g}, and by the same on each of {len(influence)} traces"
    raise NotEnoughDataError(f"{same}: there is no spread to test against")


def column_tests(columns: Columns, labels: Ints, groups: Ints) -> tuple[ByColumn, ByColumn]:
    """AUROC of each column and its p-value of being 0.5, with questions as groups.

    Missing values do not count; a column with fewer than 5 answers of a class has neither.

    Args:
        columns: One value a trace; NaN where it is missing.
        labels: 1 = hallucinated.
        groups: Number of the question of each trace.

    Source:
        DeLong et al. 1988 against the constant 0.5, influences summed by group (Obuchowski
        1997), all columns that miss the same traces at once.
    """
    auroc, p_value = np.full((2, columns.shape[1]), np.nan)
    patterns, members = np.unique(np.isfinite(columns), axis=1, return_inverse=True)
    for number, is_there in enumerate(patterns.T):
        here = np.flatnonzero(members.ravel() == number)
        n_positive = int(labels[is_there].sum())
        if min(n_positive, int(is_there.sum()) - n_positive) < LEAST_OF_CLASS:
            continue
        auroc[here], influence = column_influence(columns[np.ix_(is_there, here)], labels[is_there])
        of_group = np.zeros((int(groups.max()) + 1, len(here)))
        np.add.at(of_group, groups[is_there], influence)
        error = np.sqrt(np.square(of_group).sum(axis=0))
        # without spread there is nothing to test: all values are equal, or the classes are apart
        distance = np.abs(auroc[here] - 0.5)
        z = np.divide(distance, error, out=np.where(distance > 0, np.inf, 0.0), where=error > 0)
        p_value[here] = 2 * ndtr(-z)
    return auroc, p_value


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
