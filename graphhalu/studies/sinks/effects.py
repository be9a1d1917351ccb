"""H1: differences between the classes, with intervals over questions and a permutation test."""

from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from graphhalu.evaluation.bootstrap import (
    drawn_blocks,
    group_codes,
    percentile_interval,
    resample_sums,
)
from graphhalu.graphs.effects import length_adjusted
from graphhalu.studies.sinks.findings import Estimate, Shift
from graphhalu.studies.sinks.records import SinkTable

LEVEL: Final = 0.95
_BLOCK: Final = 256
_MIXED: Final = 0.5


class Resampling(NamedTuple):
    """How intervals and permutations are drawn."""

    n_resamples: int = 2000
    n_permutations: int = 10_000
    seed: int = 0


def shift(table: SinkTable, how: Resampling) -> Shift:
    """Compare the sink mass of both classes; see :class:`Shift`."""
    labels, groups, mass = table.labels, table.groups, table.mass
    lengths = table.length[:, None]
    adjusted = length_adjusted(mass, lengths)
    positive, negative = mass[labels == 1], mass[labels == 0]
    moments = class_moments(mass, labels, groups, how)
    residual = length_adjusted(labels.astype(np.float64), lengths)
    return Shift(
        mean_positive=float(positive.mean()),
        mean_negative=float(negative.mean()),
        mean_difference=_estimate(moments.mean_difference()),
        median_difference=_estimate(_median_differences(mass, labels, groups, how)),
        cohens_d=_estimate(moments.cohens_d()),
        p_permutation=permutation_p(mass, labels, groups, how),
        permutation="within questions" if _is_mixed(labels, groups) else "free",
        adjusted_d=cohens_d(adjusted, labels, groups, how),
        adjusted_p=permutation_p(adjusted, labels, groups, how),
        length_d=cohens_d(table.length, labels, groups, how),
        length_pearson=pearson(mass, table.length),
        entropy_pearson=pearson(mass, table.entropy),
        partial_correlation=correlation(adjusted, residual, groups, how),
    )


class Moments(NamedTuple):
    """Number, sum and sum of squares of both classes; the first row is the sample itself."""

    positive: Float[np.ndarray, "row moment"]
    negative: Float[np.ndarray, "row moment"]

    def mean_difference(self) -> Float[np.ndarray, "row"]:
        """Mean of the positive class minus that of the negative."""
        found: Float[np.ndarray, row] = _mean(self.positive) - _mean(self.negative)
        return found

    def cohens_d(self) -> Float[np.ndarray, "row"]:
        """Difference of means over the pooled standard deviation; NaN where there is no spread.

        Source:
            Cohen 1988, with n - 1 in both variances.
        """
        squares = sum(part[:, 2] - part[:, 0] * _mean(part) ** 2 for part in self)
        freedom = self.positive[:, 0] + self.negative[:, 0] - 2
        has_both = (self.positive[:, 0] > 0) & (self.negative[:, 0] > 0) & (freedom > 0)
        # rounding leaves a little where all values are equal
        is_spread = has_both & (squares > 1e-12)  # noqa: PLR2004
        pooled = np.sqrt(np.where(is_spread, squares / np.maximum(freedom, 1), 1.0))
        found: Float[np.ndarray, row] = np.where(is_spread, self.mean_difference() / pooled, np.nan)
        return found


def class_moments(
    values: Float[np.ndarray, "trace"],
    labels: Int[np.ndarray, "trace"],
    groups: Shaped[np.ndarray, "trace"],
    how: Resampling,
) -> Moments:
    """Moments of both classes in the sample and in each resample of questions."""
    # far from zero the squares would lose the digits that the variance is made of
    centred = values - values.mean()
    powers = np.stack([np.ones(len(values)), centred, centred**2], axis=1)
    columns = np.concatenate([powers * (labels == 1)[:, None], powers * (labels == 0)[:, None]], 1)
    sums = resample_sums(columns, groups, n_resamples=how.n_resamples, seed=how.seed)
    whole = np.concatenate([columns.sum(axis=0, keepdims=True), sums])
    return Moments(whole[:, :3], whole[:, 3:])


def cohens_d(
    values: Float[np.ndarray, "trace"],
    labels: Int[np.ndarray, "trace"],
    groups: Shaped[np.ndarray, "trace"],
    how: Resampling,
) -> Estimate:
    """Cohen's d with its interval; 0 where the values have no spread."""
    found = class_moments(values, labels, groups, how).cohens_d()
    return Estimate(0.0, 0.0, 0.0) if np.isnan(found[0]) else _estimate(found)


def permutation_p(
    values: Float[np.ndarray, "trace"],
    labels: Int[np.ndarray, "trace"],
    groups: Shaped[np.ndarray, "trace"],
    how: Resampling,
) -> float:
    """Two-sided p-value of the difference of means under exchanged labels.

    One is added to both counts, so it is never 0. Where most records stand in questions with both
    classes, labels are exchanged within questions only.
    """
    generator = np.random.default_rng(how.seed)
    observed = abs(_difference(values, labels[None])[0])
    within = group_codes(groups)[0] if _is_mixed(labels, groups) else None
    n_extreme = 0
    for start in range(0, how.n_permutations, _BLOCK):
        n_rows = min(_BLOCK, how.n_permutations - start)
        drawn = _permuted(labels, within, n_rows, generator)
        n_extreme += int((np.abs(_difference(values, drawn)) >= observed - 1e-12).sum())
    return (n_extreme + 1) / (how.n_permutations + 1)


def correlation(
    first: Float[np.ndarray, "trace"],
    second: Float[np.ndarray, "trace"],
    groups: Shaped[np.ndarray, "trace"],
    how: Resampling,
) -> Estimate | None:
    """Pearson's correlation with its interval; ``None`` where one of them has no spread."""
    if pearson(first, second) is None:
        return None
    x, y = first - first.mean(), second - second.mean()
    columns = np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1)
    sums = resample_sums(columns, groups, n_resamples=how.n_resamples, seed=how.seed)
    n, sx, sy, sxx, syy, sxy = np.concatenate([columns.sum(0, keepdims=True), sums]).T
    spread = (n * sxx - sx**2) * (n * syy - sy**2)
    found = np.where(
        spread > 0, (n * sxy - sx * sy) / np.sqrt(np.where(spread > 0, spread, 1)), np.nan
    )
    return _estimate(found)


def pearson(first: Float[np.ndarray, "trace"], second: Float[np.ndarray, "trace"]) -> float | None:
    """Pearson's correlation; ``None`` where one of them has no spread."""
    if len(first) < 3 or not first.std() > 0 or not second.std() > 0:  # noqa: PLR2004
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _estimate(rows: Float[np.ndarray, "row"]) -> Estimate:
    """The first row with the interval of the others."""
    low, high, _ = percentile_interval(rows[1:], LEVEL)
    return Estimate(float(rows[0]), low, high)


def _mean(moments: Float[np.ndarray, "row moment"]) -> Float[np.ndarray, "row"]:
    count = moments[:, 0]
    return np.where(count > 0, moments[:, 1] / np.maximum(count, 1), np.nan)


def _median_differences(
    values: Float[np.ndarray, "trace"],
    labels: Int[np.ndarray, "trace"],
    groups: Shaped[np.ndarray, "trace"],
    how: Resampling,
) -> Float[np.ndarray, "row"]:
    """Difference of medians in the sample, then in each resample of questions."""
    codes, n_groups = group_codes(groups)
    order = np.argsort(values, kind="stable")
    ordered, of_class, column = values[order], labels[order], codes[order]
    rows = [np.ones((1, len(values)))]
    rows += [
        np.take(drawn[start : start + _BLOCK], column, axis=1).astype(np.float64)
        for drawn in drawn_blocks(n_groups, how.n_resamples, how.seed)
        for start in range(0, len(drawn), _BLOCK)
    ]
    return np.concatenate(
        [
            weighted_medians(ordered[of_class == 1], weights[:, of_class == 1])
            - weighted_medians(ordered[of_class == 0], weights[:, of_class == 0])
            for weights in rows
        ]
    )


def weighted_medians(
    ordered: Float[np.ndarray, "member"], weights: Float[np.ndarray, "row member"]
) -> Float[np.ndarray, "row"]:
    """Median of rising values, each as often as its weight says; NaN where none counts."""
    cumulative = np.cumsum(weights, axis=1)
    half = cumulative[:, -1:] / 2
    last = len(ordered) - 1
    low = np.minimum((cumulative < half).sum(axis=1), last)
    high = np.minimum((cumulative <= half).sum(axis=1), last)
    middle = (ordered[low] + ordered[high]) / 2
    found: Float[np.ndarray, row] = np.where(half[:, 0] > 0, middle, np.nan)
    return found


def _difference(
    values: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "row trace"]
) -> Float[np.ndarray, "row"]:
    n_positive = labels.sum(axis=1)
    total = labels @ values
    found: Float[np.ndarray, row] = total / n_positive - (values.sum() - total) / (
        len(values) - n_positive
    )
    return found


def _permuted(
    labels: Int[np.ndarray, "trace"],
    within: Int[np.ndarray, "trace"] | None,
    n_rows: int,
    generator: np.random.Generator,
) -> Int[np.ndarray, "row trace"]:
    keys = generator.random((n_rows, len(labels)))
    if within is None:
        return labels[np.argsort(keys, axis=1)]
    # sorted by question and then at random: each question keeps its own labels
    by_group = np.argsort(within, kind="stable")
    shuffled = np.argsort(within[None] + keys, axis=1)
    drawn = np.empty((n_rows, len(labels)), dtype=labels.dtype)
    np.put_along_axis(drawn, shuffled, np.broadcast_to(labels[by_group], drawn.shape), axis=1)
    return drawn


def _is_mixed(labels: Int[np.ndarray, "trace"], groups: Shaped[np.ndarray, "trace"]) -> bool:
    codes, n_groups = group_codes(groups)
    share = np.bincount(codes, weights=labels, minlength=n_groups) / np.bincount(codes)
    is_mixed = (share > 0) & (share < 1)
    return bool(is_mixed[codes].mean() > _MIXED)
