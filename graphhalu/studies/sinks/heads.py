"""Heads that differ between the classes (H4), how surely, and their overlap with other roles."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Float
from scipy.stats import hypergeom, spearmanr

from graphhalu.core.numerics import length_adjusted
from graphhalu.evaluation.bootstrap import Estimate
from graphhalu.heads.statistics import Contrast, contrast, mean_of_present, resampled_means
from graphhalu.heads.table import HeadTable
from graphhalu.studies.rows import Row
from graphhalu.studies.sinks.records import SinkTable
from graphhalu.studies.sinks.result import Localisation
from graphhalu.studies.sinks.settings import AnalyzeConfig

TraceCells = Float[np.ndarray, "trace *cell"]
Resampled = Float[np.ndarray, "resample layer head"]
PerHead = Float[np.ndarray, "layer head"]

FALSE_DISCOVERIES: Final = 0.05


def localise(table: SinkTable, how: AnalyzeConfig, *, roles: Sequence[HeadTable] = ()) -> Localisation:
    """Difference of every head between the classes; see :class:`Localisation`.

    Args:
        table: Records with both classes.
        how: Resamples of questions, and how many heads are named.
        roles: Tables of the same model's heads, to compare the heads that differ with.

    Returns:
        ``top`` has ``layer`` and ``head``, the ``difference``, its ``z`` (over the bootstrap standard
        error), ``q_value``, ``adjusted_q_value``, and ``stability``: the share of resamples in which
        the head is among as many that differ most.
    """
    by_head = table.by_head
    found, resampled = _contrast(table, by_head, how), _resampled(table, by_head, how)
    adjusted = np.full_like(by_head, np.nan)
    for layer, head in np.argwhere(np.isfinite(by_head).all(axis=0)):
        adjusted[:, layer, head] = length_adjusted(by_head[:, layer, head], table.length[:, None])
    adjusted_q = _contrast(table, adjusted, how).q_value
    estimates = _estimates(found, how)
    error = resampled.std(axis=0)
    z = np.divide(found.difference, error, out=np.full_like(error, np.nan), where=error > 0)
    stability = _top_share(resampled, z, error, how.n_top)
    top = tuple(
        Row(
            layer=cell // z.shape[1],
            head=cell % z.shape[1],
            difference=estimates[cell],
            z=float(z.flat[cell]),
            q_value=float(found.q_value.flat[cell]),
            adjusted_q_value=float(adjusted_q.flat[cell]),
            stability=float(stability.flat[cell]),
        )
        for cell in _largest(z, min(how.n_top, int(np.isfinite(z).sum())))
    )
    by_layer = by_head.mean(axis=2)
    is_known = np.isfinite(by_layer).all(axis=0)
    profiles = [np.where(is_known, mean_of_present(by_layer[table.labels == c]), np.nan) for c in (1, 0)]
    of_layers = _estimates(_contrast(table, by_layer, how), how)
    return Localisation(
        difference=found.difference,
        q_value=found.q_value,
        adjusted_q_value=adjusted_q,
        n_heads=int(np.isfinite(found.q_value).sum()),
        n_significant=int((found.q_value < FALSE_DISCOVERIES).sum()),
        n_significant_adjusted=int((adjusted_q < FALSE_DISCOVERIES).sum()),
        top=top,
        profile_positive=profiles[0],
        profile_negative=profiles[1],
        profile_difference=tuple(
            each if known else None for each, known in zip(of_layers, is_known, strict=True)
        ),
        overlaps=tuple(role_overlap(z, role, how.n_top) for role in roles),
    )


def role_overlap(z: PerHead, role: HeadTable, k: int) -> Row:
    """Whether the heads that differ most are those with the highest score in a role.

    Args:
        z: Difference of each head over its standard error; NaN if unknown.
        role: Scores of the same model's heads.
        k: Heads of each kind.

    Returns:
        ``role`` and ``k``; ``n_shared`` heads of both kinds and ``n_expected`` by chance;
        ``p_value`` of so many or more, hypergeometric; ``spearman`` of the size of a head's
        difference with its score in the role, and ``p_spearman``, two-sided.
    """
    is_known = np.isfinite(z) & np.isfinite(role.mean)
    size, score = (np.where(is_known, each, np.nan) for each in (np.abs(z), role.mean))
    n_known = int(is_known.sum())
    k = min(k, n_known)
    n_shared = len(set(_largest(size, k)) & set(_largest(score, k, is_signed=True)))
    has_order = n_known > 2 and np.ptp(score[is_known]) > 0  # noqa: PLR2004
    tested = spearmanr(size[is_known], score[is_known]) if has_order else (np.nan, np.nan)
    return Row(
        role=role.role,
        k=k,
        n_shared=n_shared,
        n_expected=k * k / max(n_known, 1),
        p_value=float(hypergeom.sf(n_shared - 1, n_known, k, k)),
        spearman=float(tested[0]),
        p_spearman=float(tested[1]),
    )


def _contrast(table: SinkTable, values: TraceCells, how: AnalyzeConfig) -> Contrast:
    """Label 1 minus label 0."""
    sides = [table.labels == label for label in (1, 0)]
    first, second = (values[is_in] for is_in in sides)
    groups = (table.groups[sides[0]].tolist(), table.groups[sides[1]].tolist())
    return contrast(first, second, groups, n_resamples=how.n_resamples, seed=how.seed)


def _resampled(table: SinkTable, values: TraceCells, how: AnalyzeConfig) -> Resampled:
    """The difference of the classes on each resample of questions."""
    labels = table.labels[:, None, None]
    drawing = {"n_resamples": how.n_resamples, "seed": how.seed}
    means = [resampled_means(np.where(labels == c, values, np.nan), table.groups, **drawing) for c in (1, 0)]
    return means[0] - means[1]


def _estimates(found: Contrast, how: AnalyzeConfig) -> list[Estimate]:
    """The difference of each cell with its interval."""
    flat = (values.ravel().tolist() for values in (found.difference, found.low, found.high))
    return [Estimate(*row, how.n_resamples) for row in zip(*flat, strict=True)]


def _top_share(resampled: Resampled, z: PerHead, error: PerHead, k: int) -> PerHead:
    """Share of resamples in which a head is among the ``k`` that differ most for their spread."""
    is_known = np.isfinite(z)
    size = np.where(is_known, np.abs(resampled) / np.where(is_known, error, 1.0), -np.inf)
    flat = np.nan_to_num(size.reshape(len(size), -1), nan=-np.inf)
    named = np.argsort(-flat, axis=1)[:, : min(k, int(is_known.sum()))]
    return np.bincount(named.ravel(), minlength=z.size).reshape(z.shape) / len(flat)


def _largest(values: PerHead, k: int, *, is_signed: bool = False) -> list[int]:
    """The ``k`` cells with the largest values, or sizes of values; NaN comes last."""
    keys = np.nan_to_num(values if is_signed else np.abs(values), nan=-np.inf)
    return np.argsort(-keys.ravel(), kind="stable")[:k].tolist()
