"""Bootstrap intervals that resample questions, not traces.

Answers to one question are alike, so resampling them one by one would promise too narrow an
interval. Each resample is a row of multiplicities, and the metrics evaluate blocks of rows at
once; a loop runs over blocks only.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from graphhalu.errors import NotEnoughDataError
from graphhalu.evaluation.metrics import METRICS, RocCounts, check_scores, roc_counts
from graphhalu.registry import unknown_name

_BLOCK_ELEMENTS: Final = 2_000_000
"""Weights held at a time: 16 MB for each temporary array."""


class Interval(NamedTuple):
    """Percentile interval; a resample that lost a class has no metric and is not used."""

    low: float
    high: float
    n_resamples_used: int


class Difference(NamedTuple):
    """Metric of the first detector minus that of the second, on the same traces."""

    value: float
    low: float
    high: float
    p_value: float
    n_resamples_used: int


def bootstrap_interval(
    metric: str,
    scores: Float[np.ndarray, "trace"],
    labels: Int[np.ndarray, "trace"],
    groups: Shaped[np.ndarray, "trace"],
    *,
    n_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of a metric over resampled groups.

    Args:
        metric: Name in :data:`graphhalu.evaluation.metrics.METRICS`.
        scores: Higher means more likely hallucinated.
        labels: 1 = hallucinated, 0 = correct.
        groups: Question group of each trace; groups are drawn with replacement, whole.
        n_resamples: How many resamples; 2,000 or more for a published interval.
        seed: Seed of the resamples.
        level: Coverage of the interval, in (0, 1).

    Raises:
        UnknownNameError: If no metric has this name.
        ValueError: If a score is not finite.
        NotEnoughDataError: If a class is missing, or more than half of the resamples lack one.
    """
    check_scores(scores, labels)
    values = resample_metrics([metric], scores, labels, groups, n_resamples=n_resamples, seed=seed)
    return percentile_interval(values[metric], level)


def bootstrap_difference(
    metric: str,
    first: Float[np.ndarray, "trace"],
    second: Float[np.ndarray, "trace"],
    labels: Int[np.ndarray, "trace"],
    groups: Shaped[np.ndarray, "trace"],
    *,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    """Paired difference of two detectors with its 95 % interval and two-sided p-value.

    Both are evaluated on the same resamples. The p-value is twice the smaller share of
    resamples on either side of zero, with one added to both counts: it is never 0.

    Raises:
        UnknownNameError: If no metric has this name.
        ValueError: If a score is not finite.
        NotEnoughDataError: If a class is missing, or more than half of the resamples lack one.
    """
    check_scores(first, labels)
    check_scores(second, labels)
    of_first, of_second = (
        resample_metrics([metric], scores, labels, groups, n_resamples=n_resamples, seed=seed)
        for scores in (first, second)
    )
    values = of_first[metric] - of_second[metric]
    low, high, n_used = percentile_interval(values, 0.95)
    used = values[np.isfinite(values)]
    smaller = min(int((used <= 0).sum()), int((used >= 0).sum()))
    found = [float(_metric(metric)(roc_counts(s, labels))[0]) for s in (first, second)]
    p_value = min(1.0, 2 * (smaller + 1) / (n_used + 1))
    return Difference(found[0] - found[1], low, high, p_value, n_used)


def resample_metrics(
    metrics: Sequence[str],
    scores: Float[np.ndarray, "trace"],
    labels: Int[np.ndarray, "trace"],
    groups: Shaped[np.ndarray, "trace"],
    *,
    is_valid: Bool[np.ndarray, "trace"] | None = None,
    n_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Float[np.ndarray, "resample"]]:
    """Each metric on each resample; NaN where a resample lacks a class.

    Groups are drawn among all traces, also those without a valid score: two calls with the
    same groups and seed see the same resamples and can be subtracted or averaged.

    Args:
        metrics: Names in :data:`graphhalu.evaluation.metrics.METRICS`.
        scores: Higher means more likely hallucinated; finite where ``is_valid`` is true.
        labels: 1 = hallucinated, 0 = correct.
        groups: Question group of each trace.
        n_resamples: How many resamples.
        seed: Seed of the resamples.
        is_valid: Which traces count in the metrics; all by default.
    """
    functions = {name: _metric(name) for name in metrics}
    kept = np.flatnonzero(np.ones(len(scores), dtype=bool) if is_valid is None else is_valid)
    group_index = np.unique(groups, return_inverse=True)[1]
    n_groups = int(group_index.max()) + 1
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK_ELEMENTS // len(scores))
    values: dict[str, list[Float[np.ndarray, "block"]]] = {name: [] for name in functions}
    for start in range(0, n_resamples, block):
        drawn = group_multiplicities(n_groups, min(block, n_resamples - start), generator)
        counts = roc_counts(scores[kept], labels[kept], drawn[:, group_index[kept]])
        for name, function in functions.items():
            values[name].append(function(counts))
    return {name: np.concatenate(blocks) for name, blocks in values.items()}


def group_multiplicities(
    n_groups: int, n_resamples: int, generator: np.random.Generator
) -> Int[np.ndarray, "resample group"]:
    """How often each group is drawn when ``n_groups`` are drawn with replacement."""
    drawn = generator.integers(n_groups, size=(n_resamples, n_groups))
    cells = drawn + n_groups * np.arange(n_resamples)[:, None]
    counts = np.bincount(cells.ravel(), minlength=n_resamples * n_groups)
    return counts.reshape(n_resamples, n_groups)


def percentile_interval(values: Float[np.ndarray, "resample"], level: float) -> Interval:
    """The middle ``level`` share of the resamples that have a value.

    Raises:
        ValueError: If the level is not in (0, 1).
        NotEnoughDataError: If more than half of the resamples lack a class.
    """
    if not 0 < level < 1:
        message = f"level must be in (0, 1), got {level}"
        raise ValueError(message)
    used = values[np.isfinite(values)]
    if 2 * len(used) < len(values) or not len(used):
        message = (
            f"only {len(used)} of {len(values)} resamples hold both classes: "
            f"an interval needs more questions of the rarer class"
        )
        raise NotEnoughDataError(message)
    tail = (1 - level) / 2
    low, high = np.quantile(used, [tail, 1 - tail])
    return Interval(float(low), float(high), len(used))


def _metric(name: str) -> Callable[[RocCounts], Float[np.ndarray, "resample"]]:
    if name not in METRICS:
        raise unknown_name("metric", name, METRICS)
    return METRICS[name]
