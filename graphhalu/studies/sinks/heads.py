"""Heads that differ between the classes (H4), how surely, and what else these heads do."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Float
from scipy.stats import hypergeom, spearmanr

from graphhalu.core.errors import UsageError
from graphhalu.core.numerics import length_adjusted
from graphhalu.evaluation.bootstrap import Estimate
from graphhalu.heads.statistics import (
    Contrast,
    contrast,
    mean_of_present,
    percentile_interval,
    resampled_means,
)
from graphhalu.heads.table import HeadTable
from graphhalu.studies.sinks.effects import Resampling
from graphhalu.studies.sinks.records import SinkTable
from graphhalu.studies.sinks.result import Localisation, RoleOverlap, TopHead

FALSE_DISCOVERIES: Final = 0.05
N_TOP: Final = 10


def localise(
    table: SinkTable, how: Resampling, *, roles: Sequence[HeadTable] = (), n_top: int = N_TOP
) -> Localisation:
    """Difference of every head between the classes; see :class:`Localisation`.

    Args:
        table: Records with both classes.
        how: Resamples of questions.
        roles: Tables of the same model's heads, to compare the heads that differ with.
        n_top: How many heads are named.
    """
    found = _contrast(table, table.by_head, how)
    adjusted_q = _contrast(table, _length_adjusted_heads(table), how).q_value
    resampled = _resampled_differences(table, table.by_head, how)
    error = resampled.std(axis=0)
    z = np.divide(found.difference, error, out=np.full_like(error, np.nan), where=error > 0)
    stability = _top_share(resampled, z, error, n_top)
    n_named = min(n_top, int(np.isfinite(z).sum()))
    top = tuple(
        TopHead(
            layer=layer,
            head=head,
            difference=_estimate(found, (layer, head), how),
            z=float(z[layer, head]),
            q_value=float(found.q_value[layer, head]),
            adjusted_q_value=float(adjusted_q[layer, head]),
            stability=float(stability[layer, head]),
        )
        for layer, head in (divmod(cell, z.shape[1]) for cell in _largest(z, n_named))
    )
    positive, negative, difference = _layer_profiles(table, how)
    return Localisation(
        difference=found.difference,
        q_value=found.q_value,
        adjusted_q_value=adjusted_q,
        n_heads=int(np.isfinite(found.q_value).sum()),
        n_significant=int((found.q_value < FALSE_DISCOVERIES).sum()),
        n_significant_adjusted=int((adjusted_q < FALSE_DISCOVERIES).sum()),
        top=top,
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
    size, score = (np.where(is_known, each, np.nan) for each in (np.abs(z), role.mean))
    n_known = int(is_known.sum())
    k = min(k, n_known)
    n_shared = len(set(_largest(size, k)) & set(_largest(score, k, is_signed=True)))
    has_order = n_known > 2 and np.ptp(score[is_known]) > 0  # noqa: PLR2004
    tested = spearmanr(size[is_known], score[is_known]) if has_order else (np.nan, np.nan)
    return RoleOverlap(
        role=role.role,
        k=k,
        n_shared=n_shared,
        n_expected=k * k / max(n_known, 1),
        p_value=float(hypergeom.sf(n_shared - 1, n_known, k, k)),
        spearman=float(tested[0]),
        p_spearman=float(tested[1]),
    )


def _estimate(found: Contrast, at: tuple[int, int], how: Resampling) -> Estimate:
    ends = float(found.low[at]), float(found.high[at])
    return Estimate(float(found.difference[at]), *ends, how.n_resamples)


def _contrast(table: SinkTable, values: Float[np.ndarray, "trace layer head"], how: Resampling) -> Contrast:
    classes = [table.labels == 1, table.labels == 0]
    positive, negative = (values[members] for members in classes)
    first, second = (table.groups[members].tolist() for members in classes)
    return contrast(positive, negative, (first, second), n_resamples=how.n_resamples, seed=how.seed)


def _length_adjusted_heads(table: SinkTable) -> Float[np.ndarray, "trace layer head"]:
    """What a fit on the length leaves of each head; NaN for a head that some records lack."""
    found = np.full_like(table.by_head, np.nan)
    lengths = table.length[:, None]
    for layer, head in np.argwhere(np.isfinite(table.by_head).all(axis=0)):
        found[:, layer, head] = length_adjusted(table.by_head[:, layer, head], lengths)
    return found


def _by_class(
    table: SinkTable, values: Float[np.ndarray, "trace *cell"]
) -> list[Float[np.ndarray, "trace *cell"]]:
    """Values of label 1 and those of label 0, each with NaN for the others."""
    labels = table.labels.reshape(-1, *(1 for _ in values.shape[1:]))
    return [np.where(labels == label, values, np.nan) for label in (1, 0)]


def _resampled_differences(
    table: SinkTable, values: Float[np.ndarray, "trace *cell"], how: Resampling
) -> Float[np.ndarray, "resample *cell"]:
    """Mean of label 1 minus that of label 0 on each resample of questions."""
    positive, negative = (
        resampled_means(each, table.groups, n_resamples=how.n_resamples, seed=how.seed)
        for each in _by_class(table, values)
    )
    return positive - negative


def _top_share(
    resampled: Float[np.ndarray, "resample layer head"],
    z: Float[np.ndarray, "layer head"],
    error: Float[np.ndarray, "layer head"],
    k: int,
) -> Float[np.ndarray, "layer head"]:
    """Share of resamples in which a head is among the ``k`` that differ most for their spread."""
    is_known = np.isfinite(z)
    size = np.where(is_known, np.abs(resampled) / np.where(is_known, error, 1.0), -np.inf)
    flat = np.nan_to_num(size.reshape(len(size), -1), nan=-np.inf)
    named = np.argsort(-flat, axis=1)[:, : min(k, int(is_known.sum()))]
    return np.bincount(named.ravel(), minlength=z.size).reshape(z.shape) / len(flat)


def _largest(values: Float[np.ndarray, "layer head"], k: int, *, is_signed: bool = False) -> list[int]:
    """The ``k`` cells with the largest values, or sizes of values; NaN comes last."""
    keys = np.nan_to_num(values if is_signed else np.abs(values), nan=-np.inf)
    return np.argsort(-keys.ravel(), kind="stable")[:k].tolist()


def _layer_profiles(
    table: SinkTable, how: Resampling
) -> tuple[Float[np.ndarray, "layer"], Float[np.ndarray, "layer"], tuple[Estimate | None, ...]]:
    """Mean of each layer in both classes, and the difference with its interval."""
    by_layer = table.by_head.mean(axis=2)
    is_known = np.isfinite(by_layer).all(axis=0)
    positive, negative = (
        np.where(is_known, mean_of_present(each), np.nan) for each in _by_class(table, by_layer)
    )
    low, high = percentile_interval(_resampled_differences(table, by_layer, how))
    rows = zip((positive - negative).tolist(), low.tolist(), high.tolist(), strict=True)
    differences = tuple(
        Estimate(*row, how.n_resamples) if known else None for row, known in zip(rows, is_known, strict=True)
    )
    return positive, negative, differences
