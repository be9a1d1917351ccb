"""Static against measured quantities: rank correlations of grids, such as layers of heads, and verdicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from graphhalu.core.config import read_yaml
from graphhalu.core.errors import NotEnoughDataError
from graphhalu.core.numerics import benjamini_hochberg, group_multiplicities
from graphhalu.evaluation.bootstrap import OrNan
from graphhalu.evaluation.univariate import FALSE_DISCOVERIES
from graphhalu.heads.table import percentile_interval
from graphhalu.studies.rows import Row

Verdict = Literal["supported", "unsupported", "contradicted", "not tested"]
VERDICTS: Final[tuple[Verdict, ...]] = get_args(Verdict)
LEAST_CELLS: Final = 5
_LEAST_WITHIN: Final = 3

Grid = Float[np.ndarray, "group member"]
Rows = Float[np.ndarray, "row cell"]
OfLayers = Float[np.ndarray, "layer *head"]


@dataclass(frozen=True)
class Agreement:
    """One static quantity against one measured one.

    Attributes:
        static: Quantity of the profile, or of the risk curve.
        measured: Quantity of the traces.
        level: ``head``, ``kv_head`` or ``layer``.
        sign: The direction that was expected.
        n: Cells with both values.
        rho: Spearman's correlation; NaN where it could not be tested.
        low: Low end of its 95 % interval over layers.
        high: High end.
        p_value: Two-sided, by permutation.
        q_value: After Benjamini and Hochberg over all that was tested.
        beyond_depth: Correlation without a trend over depth: the mean within layers, or for layers
            the partial correlation given their place.
        verdict: ``supported`` where q < 0.05 with the expected sign, ``contradicted`` where it
            has the other one, ``unsupported`` else.
        is_control: Whether it is a published quantity that theory does not back.
        is_mixed: Whether it reads parts stored in more than one way.
        reason: Why it was not tested.
    """

    static: str
    measured: str
    level: str
    sign: int
    n: int = 0
    rho: OrNan = float("nan")
    low: OrNan = float("nan")
    high: OrNan = float("nan")
    p_value: OrNan = float("nan")
    q_value: OrNan = float("nan")
    beyond_depth: OrNan = float("nan")
    verdict: Verdict = "not tested"
    is_control: bool = False
    is_mixed: bool = False
    reason: str = ""


_FILE: Final = read_yaml(Path(__file__).with_name("pairs.yaml"))
_NAMES: Final = ("static", "measured", "level", "sign", "is_control")
PAIRS: Final = tuple(Agreement(**dict(zip(_NAMES, pair, strict=True))) for pair in _FILE["pairs"])
"""Pairs that are validated against a store, not tested yet."""
UNTESTED: Final[dict[str, str]] = _FILE["untested"]
HEAD_QUANTITIES: Final[tuple[str, ...]] = tuple(_FILE["heads"])
"""Quantities that are handed on as tables of heads by default."""


def agreement(pair: Agreement, static: OfLayers, measured: OfLayers, **drawing: int) -> Agreement:
    """Correlate one pair; the verdict comes with the others, from :func:`with_verdicts`.

    Args:
        pair: What is compared.
        static: From the weights.
        measured: From the traces.
        **drawing: Resamples, permutations and seed of :func:`rank_correlation`.
    """
    first, second = (values.reshape(len(values), -1).astype(np.float64) for values in (static, measured))
    try:
        found = rank_correlation(first, second, **drawing)
    except NotEnoughDataError as error:
        n_there = int((np.isfinite(first) & np.isfinite(second)).sum())
        return replace(pair, n=n_there, reason=str(error))
    return replace(pair, **found.model_dump())


def with_verdicts(rows: Sequence[Agreement]) -> tuple[Agreement, ...]:
    """The same with false discoveries controlled over all of them, and a verdict each."""
    q_values = benjamini_hochberg(np.array([row.p_value for row in rows], dtype=np.float64)).tolist()
    found = []
    for row, q_value in zip(rows, q_values, strict=True):
        verdict: Verdict = "supported" if row.rho * row.sign > 0 else "contradicted"
        if not q_value < FALSE_DISCOVERIES:
            verdict = "unsupported" if np.isfinite(row.rho) else "not tested"
        found.append(replace(row, q_value=q_value, verdict=verdict))
    return tuple(found)


def counts(rows: Sequence[Agreement]) -> Mapping[str, int]:
    """How often each verdict was given."""
    return {name: sum(row.verdict == name for row in rows) for name in VERDICTS}


def rank_correlation(
    first: Grid, second: Grid, *, n_resamples: int = 2000, n_permutations: int = 2000, seed: int = 0
) -> Row:
    """Spearman's correlation of two grids, such as layers of heads.

    Members of a group are alike, so the bootstrap draws whole groups, and a permutation moves
    whole groups and the members within them, never a member from one group to another. A trend
    over ordered groups, such as depth, can make a correlation by itself; ``beyond_depth`` is
    free of it.

    Args:
        first: One value a cell; NaN where there is none.
        second: The other one.
        n_resamples: Resamples of groups.
        n_permutations: Permutations of groups and members.
        seed: Seed of both.

    Returns:
        ``n`` cells with both values; ``rho``; ``low`` and ``high``, its 95 % bootstrap interval over
        groups, NaN where half of the resamples have no correlation; a two-sided ``p_value``; and
        ``beyond_depth``, the mean correlation within groups, or for groups of one the partial
        correlation given their order.

    Raises:
        NotEnoughDataError: If fewer than 5 cells have both values, or one side is constant.
    """
    is_there = np.isfinite(first) & np.isfinite(second)
    kept = is_there.any(axis=1)
    # a cell needs both values; the others can be permuted
    first, second = (np.where(is_there, grid, np.nan)[kept] for grid in (first, second))
    rho = float(_spearman(first.reshape(1, -1), second.reshape(1, -1))[0])
    n = int(is_there.sum())
    if not np.isfinite(rho) or n < LEAST_CELLS:
        raise NotEnoughDataError(f"a rank correlation needs {LEAST_CELLS} cells that differ, got {n}")
    generator = np.random.default_rng(seed)
    counts = group_multiplicities(len(first), n_resamples, generator)
    drawn = np.stack([np.repeat(np.arange(len(first)), each) for each in counts])
    resampled = _spearman(*(grid[drawn].reshape(n_resamples, -1) for grid in (first, second)))
    low, high = percentile_interval(resampled[:, None])[:, 0].tolist()
    permuted = _permuted(first, n_permutations, generator)
    values = _spearman(permuted, np.broadcast_to(second.reshape(1, -1), permuted.shape))
    # a permutation that leaves no correlation counts against the finding
    n_extreme = int((~(np.abs(values) < abs(rho) - 1e-12)).sum())
    p_value, beyond_depth = (n_extreme + 1) / (n_permutations + 1), _beyond_depth(first, second, rho)
    return Row(n=n, rho=rho, low=low, high=high, p_value=p_value, beyond_depth=beyond_depth)


def _spearman(first: Rows, second: Rows) -> Float[np.ndarray, "row"]:
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


def _permuted(values: Grid, n_permutations: int, generator: np.random.Generator) -> Rows:
    n_groups, n_members = values.shape
    groups = np.argsort(generator.random((n_permutations, n_groups)), axis=1)
    members = np.argsort(generator.random((n_permutations, n_groups, n_members)), axis=2)
    return np.take_along_axis(values[groups], members, axis=2).reshape(n_permutations, -1)


def _beyond_depth(first: Grid, second: Grid, rho: float) -> float:
    if first.shape[1] > 1:
        is_enough = (np.isfinite(first) & np.isfinite(second)).sum(axis=1) >= _LEAST_WITHIN
        within = _spearman(first[is_enough], second[is_enough])
        there = within[np.isfinite(within)]
        return float(there.mean()) if there.size else float("nan")
    order = np.arange(len(first), dtype=np.float64)[None]
    one, other = (float(_spearman(grid.reshape(1, -1), order)[0]) for grid in (first, second))
    left = (1 - one**2) * (1 - other**2)
    return (rho - one * other) / left**0.5 if left > 0 else float("nan")
