"""Rank correlation of cells that come in groups, with interval and permutation test."""

from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.core.numerics import group_multiplicities
from graphhalu.evaluation.bootstrap import percentile_interval

LEAST_CELLS: Final = 5
_LEAST_WITHIN: Final = 3


class RankCorrelation(NamedTuple):
    """Spearman's correlation over the cells of a grid.

    Attributes:
        rho: The correlation.
        low: Low end of its 95 % bootstrap interval over groups; NaN where half of the resamples
            have no correlation.
        high: High end.
        p_value: Two-sided, by permutation of groups and of members within them.
        beyond_order: What is left without a trend over the groups: the mean correlation within
            groups, or for groups of one the partial correlation given their order.
        n_cells: Cells with both values.
    """

    rho: float
    low: float
    high: float
    p_value: float
    beyond_order: float
    n_cells: int


Grid = Float[np.ndarray, "group member"]


def rank_correlation(
    first: Grid, second: Grid, *, n_resamples: int = 2000, n_permutations: int = 2000, seed: int = 0
) -> RankCorrelation:
    """Spearman's correlation of two grids, such as layers of heads.

    Members of a group are alike, so the bootstrap draws whole groups, and a permutation moves
    whole groups and the members within them, never a member from one group to another. A trend
    over ordered groups, such as depth, can make a correlation by itself; ``beyond_order`` is
    free of it.

    Args:
        first: One value a cell; NaN where there is none.
        second: The other one.
        n_resamples: Resamples of groups.
        n_permutations: Permutations of groups and members.
        seed: Seed of both.

    Raises:
        NotEnoughDataError: If fewer than 5 cells have both values, or one side is constant.
    """
    is_there = np.isfinite(first) & np.isfinite(second)
    kept = is_there.any(axis=1)
    # a cell without the other value is no cell; what is left can be permuted
    first, second = (np.where(is_there, grid, np.nan)[kept] for grid in (first, second))
    rho = float(_spearman(first.reshape(1, -1), second.reshape(1, -1))[0])
    if not np.isfinite(rho) or is_there.sum() < LEAST_CELLS:
        message = f"a rank correlation needs {LEAST_CELLS} cells that differ, got {int(is_there.sum())}"
        raise NotEnoughDataError(message)
    generator = np.random.default_rng(seed)
    low, high = _interval(first, second, n_resamples, generator)
    permuted = _permuted(first, n_permutations, generator)
    values = _spearman(permuted, np.broadcast_to(second.reshape(1, -1), permuted.shape))
    # a permutation that leaves no correlation counts against the finding
    n_extreme = int((~(np.abs(values) < abs(rho) - 1e-12)).sum())
    return RankCorrelation(
        rho,
        low,
        high,
        p_value=(n_extreme + 1) / (n_permutations + 1),
        beyond_order=_beyond_order(first, second, rho),
        n_cells=int(is_there.sum()),
    )


def _spearman(
    first: Float[np.ndarray, "row cell"], second: Float[np.ndarray, "row cell"]
) -> Float[np.ndarray, "row"]:
    """Correlation of each row over the cells that both sides have; NaN where there is none."""
    is_there = np.isfinite(first) & np.isfinite(second)
    ranks = []
    for values in (first, second):
        # what is missing ranks last, and is then left out
        rank = rankdata(np.where(is_there, values, np.inf), axis=1)
        mean = np.where(is_there, rank, 0.0).sum(axis=1) / np.maximum(is_there.sum(axis=1), 1)
        ranks.append(np.where(is_there, rank - mean[:, None], 0.0))
    product = (ranks[0] * ranks[1]).sum(axis=1)
    norm = np.sqrt(np.square(ranks[0]).sum(axis=1) * np.square(ranks[1]).sum(axis=1))
    return np.divide(product, norm, out=np.full(len(first), np.nan), where=norm > 0)


def _interval(
    first: Grid, second: Grid, n_resamples: int, generator: np.random.Generator
) -> tuple[float, float]:
    counts = group_multiplicities(len(first), n_resamples, generator)
    rows = np.stack([np.repeat(np.arange(len(first)), drawn) for drawn in counts])
    values = _spearman(first[rows].reshape(n_resamples, -1), second[rows].reshape(n_resamples, -1))
    try:
        low, high, _ = percentile_interval(values, 0.95)
    except NotEnoughDataError:
        return float("nan"), float("nan")
    return low, high


def _permuted(
    values: Grid, n_permutations: int, generator: np.random.Generator
) -> Float[np.ndarray, "permutation cell"]:
    n_groups, n_members = values.shape
    groups = np.argsort(generator.random((n_permutations, n_groups)), axis=1)
    members = np.argsort(generator.random((n_permutations, n_groups, n_members)), axis=2)
    return np.take_along_axis(values[groups], members, axis=2).reshape(n_permutations, -1)


def _beyond_order(first: Grid, second: Grid, rho: float) -> float:
    if first.shape[1] > 1:
        is_enough = (np.isfinite(first) & np.isfinite(second)).sum(axis=1) >= _LEAST_WITHIN
        within = _spearman(first[is_enough], second[is_enough])
        there = within[np.isfinite(within)]
        return float(there.mean()) if there.size else float("nan")
    order = np.arange(len(first), dtype=np.float64)[None]
    one, other = (float(_spearman(grid.reshape(1, -1), order)[0]) for grid in (first, second))
    left = (1 - one**2) * (1 - other**2)
    return (rho - one * other) / left**0.5 if left > 0 else float("nan")
