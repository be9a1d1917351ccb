"""Heads that differ between the classes (H4), how surely, and their overlap with other roles."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Float
from scipy.stats import hypergeom, spearmanr

from graphhalu.core.numerics import benjamini_hochberg, length_adjusted
from graphhalu.evaluation.bootstrap import Estimate
from graphhalu.heads.table import (
    HeadTable,
    mean_of_present,
    normal_p_value,
    percentile_interval,
    resampled_means,
)
from graphhalu.studies.sinks.records import SinkTable
from graphhalu.studies.sinks.result import Localisation, RoleOverlap, TopHead
from graphhalu.studies.sinks.settings import AnalyzeConfig

FALSE_DISCOVERIES: Final = 0.05


def localise(table: SinkTable, how: AnalyzeConfig, *, roles: Sequence[HeadTable] = ()) -> Localisation:
    """Difference of every head between the classes; see :class:`Localisation`.

    Args:
        table: Records with both classes.
        how: Resamples of questions, and how many heads are named.
        roles: Tables of the same model's heads, to compare the heads that differ with.
    """
    by_head = table.by_head
    difference, resampled = _difference(table, by_head), _resampled(table, by_head, how)
    q_value = benjamini_hochberg(normal_p_value(difference, resampled))
    adjusted = np.full_like(by_head, np.nan)
    for layer, head in np.argwhere(np.isfinite(by_head).all(axis=0)):
        adjusted[:, layer, head] = length_adjusted(by_head[:, layer, head], table.length[:, None])
    adjusted_p = normal_p_value(_difference(table, adjusted), _resampled(table, adjusted, how))
    adjusted_q = benjamini_hochberg(adjusted_p)
    estimates = _estimates(difference, resampled, how)
    error = resampled.std(axis=0)
    z = np.divide(difference, error, out=np.full_like(error, np.nan), where=error > 0)
    stability = _top_share(resampled, z, error, how.n_top)
    top = tuple(
        TopHead(
            layer=cell // z.shape[1],
            head=cell % z.shape[1],
            difference=estimates[cell],
            z=float(z.flat[cell]),
            q_value=float(q_value.flat[cell]),
            adjusted_q_value=float(adjusted_q.flat[cell]),
            stability=float(stability.flat[cell]),
        )
        for cell in _largest(z, min(how.n_top, int(np.isfinite(z).sum())))
    )
    by_layer = by_head.mean(axis=2)
    is_known = np.isfinite(by_layer).all(axis=0)
    positive, negative = (
        np.where(is_known, mean_of_present(each), np.nan) for each in _by_class(table, by_layer)
    )
    of_layers = _estimates(positive - negative, _resampled(table, by_layer, how), how)
    return Localisation(
        difference=difference,
        q_value=q_value,
        adjusted_q_value=adjusted_q,
        n_heads=int(np.isfinite(q_value).sum()),
        n_significant=int((q_value < FALSE_DISCOVERIES).sum()),
        n_significant_adjusted=int((adjusted_q < FALSE_DISCOVERIES).sum()),
        top=top,
        profile_positive=positive,
        profile_negative=negative,
        profile_difference=tuple(
            each if known else None for each, known in zip(of_layers, is_known, strict=True)
        ),
        overlaps=tuple(role_overlap(z, role, how.n_top) for role in roles),
    )


def role_overlap(z: Float[np.ndarray, "layer head"], role: HeadTable, k: int) -> RoleOverlap:
    """Whether the heads that differ most are those with the highest score in a role.

    Args:
        z: Difference of each head over its standard error; NaN if unknown.
        role: Scores of the same model's heads.
        k: Heads of each kind.
    """
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


def _by_class(
    table: SinkTable, values: Float[np.ndarray, "trace *cell"]
) -> list[Float[np.ndarray, "trace *cell"]]:
    """Values of label 1 and those of label 0, each with NaN for the others."""
    labels = table.labels.reshape(-1, *(1 for _ in values.shape[1:]))
    return [np.where(labels == label, values, np.nan) for label in (1, 0)]


def _difference(table: SinkTable, values: Float[np.ndarray, "trace *cell"]) -> Float[np.ndarray, "*cell"]:
    """Mean of label 1 minus that of label 0."""
    positive, negative = map(mean_of_present, _by_class(table, values))
    return positive - negative


def _resampled(
    table: SinkTable, values: Float[np.ndarray, "trace *cell"], how: AnalyzeConfig
) -> Float[np.ndarray, "resample *cell"]:
    """The same difference on each resample of questions."""
    positive, negative = (
        resampled_means(each, table.groups, n_resamples=how.n_resamples, seed=how.seed)
        for each in _by_class(table, values)
    )
    return positive - negative


def _estimates(
    difference: Float[np.ndarray, "*cell"], resampled: Float[np.ndarray, "resample *cell"], how: AnalyzeConfig
) -> list[Estimate]:
    """The difference of each cell with its interval."""
    flat = (values.ravel().tolist() for values in (difference, *percentile_interval(resampled)))
    rows = zip(*flat, strict=True)
    return [Estimate(value, low, high, how.n_resamples) for value, low, high in rows]


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
