"""Intervals, contrasts and false-discovery control over many heads at once.

Whole groups of trials are drawn, since answers to one question are alike. A missing score (NaN)
is left out of every mean; a head without any score has no interval.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.special import ndtr

from graphhalu.core.errors import NotEnoughDataError, UsageError
from graphhalu.core.numerics import benjamini_hochberg, group_multiplicities

N_RESAMPLES: Final = 2000
LEVEL: Final = 0.95


class Interval(NamedTuple):
    """Percentile interval of each cell; NaN where fewer than half of the resamples have one."""

    low: Float[np.ndarray, "*cell"]
    high: Float[np.ndarray, "*cell"]


class Contrast(NamedTuple):
    """Mean of one set of trials minus that of another, for each head.

    Attributes:
        difference: First mean minus second.
        low: Lower end of its interval.
        high: Upper end of its interval.
        p_value: Two-sided, from the difference over its bootstrap standard error.
        q_value: The p-value after Benjamini and Hochberg over all heads.
    """

    difference: Float[np.ndarray, "*cell"]
    low: Float[np.ndarray, "*cell"]
    high: Float[np.ndarray, "*cell"]
    p_value: Float[np.ndarray, "*cell"]
    q_value: Float[np.ndarray, "*cell"]


def mean_of_present(values: Float[np.ndarray, "trial *cell"]) -> Float[np.ndarray, "*cell"]:
    """Mean over trials of the values that are there; NaN where there is none."""
    is_there = ~np.isnan(values)
    count = is_there.sum(0)
    total = np.where(is_there, values, 0.0).sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def resampled_means(
    values: Float[np.ndarray, "trial *cell"],
    groups: Sequence[str] | Shaped[np.ndarray, "trial"],
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Float[np.ndarray, "resample *cell"]:
    """Mean over trials on each resample of whole groups.

    Args:
        values: One value for each trial; NaN = missing.
        groups: Group of each trial.
        n_resamples: How many resamples.
        seed: Seed of the resamples; two calls with the same groups see the same ones.

    Returns:
        NaN where a resample holds no value.

    Raises:
        NotEnoughDataError: If there is no trial.
        UsageError: If there is no resample.
    """
    if n_resamples < 1:
        raise UsageError(f"a bootstrap needs at least one resample, got {n_resamples}")
    if not len(values):
        raise NotEnoughDataError("there is no trial to resample: none was accepted")
    names, group_index = np.unique(np.asarray(groups), return_inverse=True)
    generator = np.random.default_rng(seed)
    draws = group_multiplicities(len(names), n_resamples, generator).astype(np.float64)
    flat = values.reshape(len(values), -1)
    is_there = ~np.isnan(flat)
    totals = _group_sums(np.where(is_there, flat, 0.0), group_index, len(names))
    counts = draws @ _group_sums(is_there.astype(np.float64), group_index, len(names))
    means = np.where(counts > 0, draws @ totals / np.maximum(counts, 1), np.nan)
    return means.reshape(n_resamples, *values.shape[1:])


def percentile_interval(means: Float[np.ndarray, "resample *cell"], level: float = LEVEL) -> Interval:
    """The middle ``level`` share of the resamples of each cell.

    Raises:
        UsageError: If the level is not in (0, 1).
    """
    if not 0 < level < 1:
        raise UsageError(f"the level of an interval lies between 0 and 1, got {level}")
    tails = [(1 - level) / 2, (1 + level) / 2]
    flat = means.reshape(len(means), -1)
    ends = np.full((2, flat.shape[1]), np.nan)
    is_there = np.isfinite(flat)
    is_whole = is_there.all(0)
    if is_whole.any():
        ends[:, is_whole] = np.quantile(flat[:, is_whole], tails, axis=0)
    for cell in np.flatnonzero(~is_whole & (2 * is_there.sum(0) >= len(flat))):
        ends[:, cell] = np.quantile(flat[is_there[:, cell], cell], tails)
    low, high = ends.reshape(2, *means.shape[1:])
    return Interval(low, high)


def contrast(
    first: Float[np.ndarray, "first *cell"],
    second: Float[np.ndarray, "second *cell"],
    groups: tuple[Sequence[str], Sequence[str]],
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Contrast:
    """Mean of the first trials minus that of the second, with interval and p-value a head.

    Questions are drawn among all trials together, so a question with trials on both sides stays
    whole.

    Args:
        first: Values of the first set, such as correct answers; NaN = missing.
        second: Values of the second set.
        groups: Group of each trial of the first and of the second set.
        n_resamples: How many resamples.
        seed: Seed of the resamples.

    Raises:
        NotEnoughDataError: If a set is empty.

    Source:
        The p-value is that of a normal with the bootstrap's standard error: one from shares of
        resamples cannot be below 1 / n_resamples, which over hundreds of heads is too coarse.
    """
    if not len(first) or not len(second):
        raise NotEnoughDataError(f"a contrast needs trials on both sides, got {len(first)} and {len(second)}")
    nothing = (np.full_like(first, np.nan), np.full_like(second, np.nan))
    names = np.array([*groups[0], *groups[1]], dtype=np.str_)
    means = [
        resampled_means(np.concatenate(both), names, n_resamples=n_resamples, seed=seed)
        for both in ((first, nothing[1]), (nothing[0], second))
    ]
    resampled = means[0] - means[1]
    difference = mean_of_present(first) - mean_of_present(second)
    low, high = percentile_interval(resampled)
    p_value = normal_p_value(difference, resampled)
    return Contrast(difference, low, high, p_value, benjamini_hochberg(p_value))


def normal_p_value(
    difference: Float[np.ndarray, "*cell"], resampled: Float[np.ndarray, "resample *cell"]
) -> Float[np.ndarray, "*cell"]:
    """Two-sided p-value of a difference over its bootstrap standard error; NaN where that is 0."""
    centred = resampled - mean_of_present(resampled)
    error = np.sqrt(mean_of_present(centred**2))
    is_certain = error == 0
    z = np.abs(difference) / np.where(is_certain, 1.0, error)
    return np.where(is_certain, np.nan, 2 * ndtr(-z))


def _group_sums(
    values: Float[np.ndarray, "trial cell"], group_index: Int[np.ndarray, "trial"], n_groups: int
) -> Float[np.ndarray, "group cell"]:
    sums = np.zeros((n_groups, values.shape[1]))
    np.add.at(sums, group_index, values)
    return sums
