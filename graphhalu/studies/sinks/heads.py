"""H4: which heads differ between the classes, how surely, and what else these heads do."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Float
from scipy.stats import hypergeom, spearmanr

from graphhalu.errors import UsageError
from graphhalu.graphs.effects import length_adjusted
from graphhalu.heads.statistics import contrast, percentile_interval, resampled_means
from graphhalu.heads.table import HeadTable
from graphhalu.studies.sinks.effects import Resampling
from graphhalu.studies.sinks.findings import Estimate, Localisation, Matrix, RoleOverlap, TopHead
from graphhalu.studies.sinks.records import SinkTable

FALSE_DISCOVERIES: Final = 0.05
N_TOP: Final = 10


def localise(
    table: SinkTable,
    how: Resampling,
    *,
    roles: Sequence[HeadTable] = (),
    n_top: int = N_TOP,
) -> Localisation:
    """Difference of every head between the classes; see :class:`Localisation`.

    Args:
        table: Records with both classes.
        how: Resamples of questions.
        roles: Tables of the same model's heads, to compare the heads that differ with.
        n_top: How many heads are named.
    """
    is_positive = table.labels == 1
    groups = (table.groups[is_positive].tolist(), table.groups[~is_positive].tolist())
    found = contrast(
        table.by_head[is_positive], table.by_head[~is_positive], groups,
        n_resamples=how.n_resamples, seed=how.seed,
    )  # fmt: skip
    adjusted = _adjusted(table)
    controlled = contrast(
        adjusted[is_positive], adjusted[~is_positive], groups,
        n_resamples=how.n_resamples, seed=how.seed,
    )  # fmt: skip
    resampled = _resampled_differences(table, how)
    z = _z(found.difference, resampled)
    top = _top(z, n_top)
    stability = _top_share(resampled, z, n_top)
    heads = tuple(
        TopHead(
            layer=layer, head=head,
            difference=_estimate(found.difference, found.low, found.high, (layer, head)),
            z=float(z[layer, head]),
            q_value=float(found.q_value[layer, head]),
            adjusted_q_value=_plain(controlled.q_value[layer, head]),
            stability=float(stability[layer, head]),
        )
        for layer, head in top
    )  # fmt: skip
    positive, negative, difference = _profile(table, how)
    return Localisation(
        difference=_matrix(found.difference),
        q_value=_matrix(found.q_value),
        adjusted_q_value=_matrix(controlled.q_value),
        n_heads=int(np.isfinite(found.q_value).sum()),
        n_significant=int((found.q_value < FALSE_DISCOVERIES).sum()),
        n_significant_adjusted=int((controlled.q_value < FALSE_DISCOVERIES).sum()),
        top=heads,
        profile_positive=positive,
        profile_negative=negative,
        profile_difference=difference,
        overlaps=tuple(role_overlap(z, role, n_top) for role in roles),
    )


def role_overlap(z: Float[np.ndarray, "layer head"], role: HeadTable, k: int) -> RoleOverlap:
    """Whether the heads that differ most are those with the highest score in a role.

    Args:
        z: Difference of each head over its standard error; NaN where there is none.
        role: Scores of the same model's heads.
        k: Heads of each kind.

    Raises:
        UsageError: If the table belongs to a model of another shape.
    """
    if role.mean.shape != z.shape:
        message = (
            f"the {role.role} table has {role.mean.shape[0]} layers of {role.mean.shape[1]} heads, "
            f"the records {z.shape[0]} of {z.shape[1]}\n  Give the table of the same model"
        )
        raise UsageError(message)
    is_known = np.isfinite(z) & np.isfinite(role.mean)
    size, score = np.where(is_known, np.abs(z), -np.inf), np.where(is_known, role.mean, -np.inf)
    n_known = int(is_known.sum())
    k = min(k, n_known)
    shared = set(_largest(size, k)) & set(_largest(score, k))
    tested = (
        spearmanr(size[is_known], score[is_known])
        if n_known > 2 and np.ptp(score[is_known]) > 0  # noqa: PLR2004
        else (np.nan, np.nan)
    )
    return RoleOverlap(
        role=role.role, k=k, n_shared=len(shared), n_expected=k * k / max(n_known, 1),
        p_value=float(hypergeom.sf(len(shared) - 1, n_known, k, k)),
        spearman=_plain(tested[0]), p_spearman=_plain(tested[1]),
    )  # fmt: skip


def _adjusted(table: SinkTable) -> Float[np.ndarray, "trace layer head"]:
    """What a fit on the length leaves of each head; NaN for a head that some records lack."""
    found = np.full_like(table.by_head, np.nan)
    lengths = table.length[:, None]
    for layer, head in np.argwhere(np.isfinite(table.by_head).all(axis=0)):
        found[:, layer, head] = length_adjusted(table.by_head[:, layer, head], lengths)
    return found


def _resampled_differences(
    table: SinkTable, how: Resampling
) -> Float[np.ndarray, "resample layer head"]:
    is_positive = (table.labels == 1)[:, None, None]
    means = [
        resampled_means(
            np.where(chosen, table.by_head, np.nan), table.groups,
            n_resamples=how.n_resamples, seed=how.seed,
        )
        for chosen in (is_positive, ~is_positive)
    ]  # fmt: skip
    difference: Float[np.ndarray, "resample layer head"] = means[0] - means[1]
    return difference


def _z(
    difference: Float[np.ndarray, "layer head"],
    resampled: Float[np.ndarray, "resample layer head"],
) -> Float[np.ndarray, "layer head"]:
    error = np.sqrt(np.mean((resampled - resampled.mean(axis=0)) ** 2, axis=0))
    z: Float[np.ndarray, "layer head"] = np.divide(
        difference, error, out=np.full_like(difference, np.nan), where=error > 0
    )
    return z


def _top_share(
    resampled: Float[np.ndarray, "resample layer head"], z: Float[np.ndarray, "layer head"], k: int
) -> Float[np.ndarray, "layer head"]:
    """Share of resamples in which a head is among the ``k`` that differ most for their spread."""
    centre = resampled.mean(axis=0)
    error = np.sqrt(np.mean((resampled - centre) ** 2, axis=0))
    is_known = np.isfinite(z) & (error > 0)
    size = np.where(is_known, np.abs(resampled) / np.where(error > 0, error, 1.0), -np.inf)
    flat = np.nan_to_num(size.reshape(len(size), -1), nan=-np.inf)
    k = min(k, int(is_known.sum()))
    is_among = np.zeros(flat.shape, dtype=np.bool_)
    if k:
        order = np.argpartition(-flat, k - 1, axis=1)[:, :k]
        np.put_along_axis(is_among, order, values=True, axis=1)
    share: Float[np.ndarray, head] = is_among.mean(axis=0)
    return share.reshape(z.shape)


def _top(z: Float[np.ndarray, "layer head"], k: int) -> list[tuple[int, int]]:
    size = np.where(np.isfinite(z), np.abs(z), -np.inf)
    k = min(k, int(np.isfinite(z).sum()))
    return [(int(cell // z.shape[1]), int(cell % z.shape[1])) for cell in _largest(size, k)]


def _largest(values: Float[np.ndarray, "layer head"], k: int) -> list[int]:
    order: list[int] = np.argsort(-values.ravel(), kind="stable")[:k].tolist()
    return order


def _profile(
    table: SinkTable, how: Resampling
) -> tuple[tuple[float | None, ...], tuple[float | None, ...], tuple[Estimate | None, ...]]:
    """Mean of each layer in both classes, and the difference with its interval."""
    by_layer = table.by_head.mean(axis=2)
    is_positive = (table.labels == 1)[:, None]
    classes = [np.where(chosen, by_layer, np.nan) for chosen in (is_positive, ~is_positive)]
    is_known = np.isfinite(by_layer).all(axis=0)
    means = [
        np.where(is_known, np.nansum(each, axis=0) / np.isfinite(each).sum(axis=0).clip(1), np.nan)
        for each in classes
    ]
    drawn = [
        resampled_means(each, table.groups, n_resamples=how.n_resamples, seed=how.seed)
        for each in classes
    ]
    low, high = percentile_interval(drawn[0] - drawn[1])
    difference = means[0] - means[1]
    found = tuple(
        _estimate(difference, low, high, (layer,)) if is_known[layer] else None
        for layer in range(len(difference))
    )
    positive, negative = (tuple(_plain(v) for v in each) for each in means)
    return positive, negative, found


def _estimate(
    value: Float[np.ndarray, "*cell"],
    low: Float[np.ndarray, "*cell"],
    high: Float[np.ndarray, "*cell"],
    at: tuple[int, ...],
) -> Estimate:
    return Estimate(float(value[at]), float(low[at]), float(high[at]))


def _matrix(values: Float[np.ndarray, "layer head"]) -> Matrix:
    return tuple(tuple(_plain(value) for value in row) for row in values)


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
