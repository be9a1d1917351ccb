"""Shift of sink mass between the classes (H1), what it predicts (H2), and heads that differ (H4).

Intervals resample questions; the first row of every array of resamples is the sample itself.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import hypergeom, spearmanr
from sklearn.metrics import auc, brier_score_loss, precision_recall_curve

from graphhalu.core.numerics import length_adjusted
from graphhalu.evaluation.bootstrap import (
    Estimate,
    EvaluationSet,
    bootstrap_interval,
    drawn_blocks,
    group_codes,
    mean_rows,
)
from graphhalu.evaluation.metrics import (
    Floats,
    Resampled,
    ece,
    equal_bins,
    evaluate,
    ratio,
    reliability_curve,
)
from graphhalu.evaluation.univariate import FALSE_DISCOVERIES
from graphhalu.heads.table import HeadTable, contrast, mean_of_present, ranked_places, resampled_means
from graphhalu.studies.rows import Row
from graphhalu.studies.sinks.records import SinkTable
from graphhalu.studies.sinks.settings import AnalyzeConfig

TraceCells = Float[np.ndarray, "trace *cell"]
PerHead = Float[np.ndarray, "layer head"]

N_QUANTILES: Final = 5
N_RELIABILITY_BINS: Final = 10
_BLOCK: Final = 256
_MIXED: Final = 0.5


def drawn_from(table: SinkTable, how: AnalyzeConfig) -> EvaluationSet:
    """Ints and questions of records, with number and seed of the resamples."""
    return EvaluationSet(table.labels, table.groups, how.n_resamples, how.seed)


def mean(sample: EvaluationSet, values: Floats) -> Resampled:
    """Mean over the sample, then over each resample of questions."""
    return mean_rows(values, sample.groups, n_resamples=sample.n_resamples, seed=sample.seed)


def class_effects(sample: EvaluationSet, values: Floats) -> tuple[Resampled, Resampled]:
    """Mean of label 1 minus that of label 0, and Cohen's d; NaN where a row lacks a class.

    Source:
        Cohen 1988: difference over the pooled standard deviation, n - 1 in both variances.
    """
    # far from zero the squares would lose the digits that the variance is made of
    centred = values - values.mean()
    powers = np.stack([np.ones(len(values)), centred, centred**2], axis=1)
    of_class = [powers * (sample.labels == label)[:, None] for label in (1, 0)]
    parts = np.split(sample.sums(np.concatenate(of_class, axis=1)), 2, axis=1)
    means = [ratio(part[:, 1], part[:, 0]) for part in parts]
    squares = [part[:, 2] - part[:, 0] * m**2 for part, m in zip(parts, means, strict=True)]
    freedom = parts[0][:, 0] + parts[1][:, 0] - 2
    difference, spread = means[0] - means[1], squares[0] + squares[1]
    # rounding leaves a little where all values are equal
    is_spread = np.isfinite(difference) & (freedom > 0) & (spread > 1e-12)  # noqa: PLR2004
    pooled = np.sqrt(np.where(is_spread, spread / np.maximum(freedom, 1), 1.0))
    return difference, np.where(is_spread, difference / pooled, np.nan)


def cohens_d(sample: EvaluationSet, values: Floats) -> Estimate:
    """Cohen's d with its interval; 0 where the values have no spread."""
    found = class_effects(sample, values)[1]
    return Estimate(0.0, 0.0, 0.0) if np.isnan(found[0]) else Estimate.of(found)


def median_differences(sample: EvaluationSet, values: Floats) -> Resampled:
    """Median of label 1 minus that of label 0 in the sample, then in each resample."""
    codes, n_groups = group_codes(sample.groups)
    sides = [(values[is_in], codes[is_in]) for is_in in (sample.labels == 1, sample.labels == 0)]
    blocks = drawn_blocks(n_groups, sample.n_resamples, sample.seed)
    rows = chain([np.ones(n_groups, dtype=np.int64)], *blocks)
    drawn = ([np.repeat(v, counts[of]) for v, of in sides] for counts in rows)
    medians = [[np.median(side) if side.size else np.nan for side in both] for both in drawn]
    positive, negative = np.array(medians).T
    return positive - negative


def permutation_p(sample: EvaluationSet, values: Floats, n_permutations: int) -> float:
    """Two-sided p-value of the difference of means under exchanged labels.

    One is added to both counts, so it is never 0. Where most records stand in questions with
    both classes, labels are exchanged within questions only.
    """
    generator, labels = np.random.default_rng(sample.seed), sample.labels
    observed, n_extreme = abs(_difference(values, labels[None])[0]), 0
    within = group_codes(sample.groups)[0]
    by_group = labels[np.argsort(within, kind="stable")]
    for start in range(0, n_permutations, _BLOCK):
        keys = generator.random((min(_BLOCK, n_permutations - start), len(values)))
        drawn = labels[np.argsort(keys, axis=1)]
        if is_mixed(sample):
            # sorted by question and then at random: each question keeps its own labels
            np.put_along_axis(drawn, np.argsort(within + keys, axis=1), by_group[None], axis=1)
        n_extreme += int((np.abs(_difference(values, drawn)) >= observed - 1e-12).sum())
    return (n_extreme + 1) / (n_permutations + 1)


def is_mixed(sample: EvaluationSet) -> bool:
    """Whether most records stand in questions with both classes."""
    codes = group_codes(sample.groups)[0]
    share = np.bincount(codes, weights=sample.labels) / np.bincount(codes)
    return bool(((share > 0) & (share < 1))[codes].mean() > _MIXED)


def correlation(sample: EvaluationSet, first: Floats, second: Floats) -> Estimate | None:
    """Pearson's correlation with its interval; ``None`` where one of them has no spread."""
    if np.isnan(pearson(first, second)):
        return None
    x, y = first - first.mean(), second - second.mean()
    columns = np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1)
    n, sx, sy, sxx, syy, sxy = sample.sums(columns).T
    spread = (n * sxx - sx**2) * (n * syy - sy**2)
    is_spread = spread > 0
    found = (n * sxy - sx * sy) / np.sqrt(np.where(is_spread, spread, 1))
    return Estimate.of(np.where(is_spread, found, np.nan))


def shift(table: SinkTable, how: AnalyzeConfig) -> Row:
    """H1: is the sink mass of positive records another than that of negative ones?

    Returns:
        ``mean_positive`` and ``mean_negative``; ``mean_difference`` and ``median_difference``,
        positive minus negative; ``cohens_d`` over the pooled standard deviation (n - 1);
        ``p_permutation``, two-sided, of the difference of means, with ``permutation`` ``free`` or
        ``within questions`` (most questions have both classes); ``adjusted_d`` and ``adjusted_p``
        of what a fit on the length leaves, and ``length_d`` of the length itself, which it has to
        take away; ``length_pearson`` and ``entropy_pearson``, correlations of sink mass; and
        ``partial_correlation`` of sink mass and label, length held fixed.
    """
    sample, mass = drawn_from(table, how), table.mass
    lengths = table.length[:, None]
    adjusted = length_adjusted(mass, lengths)
    residual = length_adjusted(table.labels.astype(np.float64), lengths)
    differences, effects = class_effects(sample, mass)
    return Row(
        mean_positive=float(mass[table.labels == 1].mean()),
        mean_negative=float(mass[table.labels == 0].mean()),
        mean_difference=Estimate.of(differences),
        median_difference=Estimate.of(median_differences(sample, mass)),
        cohens_d=Estimate.of(effects),
        p_permutation=permutation_p(sample, mass, how.n_permutations),
        permutation="within questions" if is_mixed(sample) else "free",
        adjusted_d=cohens_d(sample, adjusted),
        adjusted_p=permutation_p(sample, adjusted, how.n_permutations),
        length_d=cohens_d(sample, table.length),
        length_pearson=pearson(mass, table.length),
        entropy_pearson=pearson(mass, table.entropy),
        partial_correlation=correlation(sample, adjusted, residual),
    )


def pearson(first: Floats, second: Floats) -> float:
    """Pearson's correlation; NaN where one of them has no spread."""
    if len(first) < 3 or not first.std() > 0 or not second.std() > 0:  # noqa: PLR2004
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


def prediction(table: SinkTable, probabilities: Float[np.ndarray, "seed trace"], how: AnalyzeConfig) -> Row:
    """H2: what sink mass as it is predicts; no sign is learnt and none is flipped.

    Args:
        table: Records with both classes.
        probabilities: Of the cross-fitted model on sink mass alone, for the calibration.
        how: Resamples.

    Returns:
        ``auroc`` of sink mass as the score of the positive class; ``auprc``, average precision, beside
        the published area ``auprc_trapezoid`` and the ``prevalence``, which is that of chance;
        ``adjusted_auroc`` of what a fit on the length leaves; ``bins``, see :func:`quantile_bins`; of
        the cross-fitted probability ``ece``, ``brier`` beside ``brier_of_prevalence``, and
        ``reliability``: mean probability, share positive and number of each bin.
    """
    mass, labels = table.mass, table.labels
    adjusted = length_adjusted(mass, table.length[:, None])
    curve = zip(*reliability_curve(probabilities[0], labels, n_bins=N_RELIABILITY_BINS), strict=True)
    prevalence, (precision, recall, _) = float(labels.mean()), precision_recall_curve(labels, mass)

    def estimate(metric: str, scores: Floats) -> Estimate:
        drawing = {"n_resamples": how.n_resamples, "seed": how.seed}
        interval = bootstrap_interval(metric, scores, labels, table.groups, **drawing)
        return Estimate(evaluate(scores, labels)[metric], *interval)

    return Row(
        auroc=estimate("auroc", mass),
        auprc=estimate("auprc", mass),
        auprc_trapezoid=float(auc(recall, precision)),
        prevalence=prevalence,
        adjusted_auroc=estimate("auroc", adjusted),
        bins=quantile_bins(table, how),
        ece=float(np.mean([ece(row, labels) for row in probabilities])),
        brier=float(np.mean([brier_score_loss(labels, row) for row in probabilities])),
        brier_of_prevalence=prevalence * (1 - prevalence),
        reliability=[(float(p), float(share), int(n)) for p, share, n in curve],
    )


def quantile_bins(table: SinkTable, how: AnalyzeConfig) -> tuple[Row, ...]:
    """Share of label 0 in bins of equal size by rising sink mass; equal values are not parted.

    Returns:
        Of each bin ``mean_mass``, the number of records ``n``, and ``share_negative``: the accuracy
        where the label is the model's own output.
    """
    bins = equal_bins(table.mass, N_QUANTILES)
    is_in = bins[:, None] == np.unique(bins)[None]
    columns = np.concatenate([is_in, is_in & (table.labels == 0)[:, None]], axis=1).astype(float)
    sizes, hits = np.split(drawn_from(table, how).sums(columns), 2, axis=1)
    return Row.table(
        mean_mass=[float(table.mass[of].mean()) for of in is_in.T],
        n=sizes[0].astype(int).tolist(),
        share_negative=[Estimate.of(rows) for rows in ratio(hits, sizes).T],
    )


def localise(table: SinkTable, how: AnalyzeConfig, *, roles: Sequence[HeadTable] = ()) -> Row:
    """H4: difference of every head between the classes, positive minus negative.

    Args:
        table: Records with both classes.
        how: Resamples of questions, and how many heads are named.
        roles: Tables of the same model's heads, to compare the heads that differ with.

    Returns:
        By layer and head ``difference``, ``q_value`` (Benjamini and Hochberg over all heads) and
        ``adjusted_q_value`` of what a fit on the length leaves; ``n_heads`` with a test,
        ``n_significant`` with q below 0.05, and ``n_significant_adjusted``; ``overlaps`` with roles,
        see :func:`role_overlap`. By layer the mean sink mass ``profile_positive`` and
        ``profile_negative``, and ``profile_difference``, ``None`` where a layer cannot see the sink.
        ``top``, the heads that differ most, have ``layer`` and ``head``, the ``difference``, its ``z``
        (over the bootstrap standard error), ``q_value``, ``adjusted_q_value``, and ``stability``: the
        share of resamples in which the head is among as many that differ most.
    """
    by_head, labels = table.by_head, table.labels[:, None, None]
    drawing = {"n_resamples": how.n_resamples, "seed": how.seed}
    means = [resampled_means(np.where(labels == c, by_head, np.nan), table.groups, **drawing) for c in (1, 0)]
    resampled, found = means[0] - means[1], _contrast(table, by_head, how)
    adjusted = np.full_like(by_head, np.nan)
    for layer, head in np.argwhere(np.isfinite(by_head).all(axis=0)):
        adjusted[:, layer, head] = length_adjusted(by_head[:, layer, head], table.length[:, None])
    q_values = {"q_value": found["_q"], "adjusted_q_value": _contrast(table, adjusted, how)["_q"]}
    error = resampled.std(axis=0)
    z = np.divide(found[""], error, out=np.full_like(error, np.nan), where=error > 0)
    cells = {"z": z, **q_values, "stability": _top_share(resampled, z, error, how.n_top)}
    largest = tuple(np.array(ranked_places(np.abs(z))[: how.n_top], dtype=np.int64).reshape(-1, 2).T)
    top = dict(zip(("layer", "head"), (place.tolist() for place in largest), strict=True))
    top["difference"] = _estimates({name: values[largest] for name, values in found.items()}, how)
    top |= {name: values[largest].tolist() for name, values in cells.items()}
    by_layer = by_head.mean(axis=2)
    is_known = np.isfinite(by_layer).all(axis=0)
    profiles = [np.where(is_known, mean_of_present(by_layer[table.labels == c]), np.nan) for c in (1, 0)]
    of_layers = zip(_estimates(_contrast(table, by_layer, how), how), is_known, strict=True)
    is_significant = {name: int((values < FALSE_DISCOVERIES).sum()) for name, values in q_values.items()}
    return Row(
        difference=found[""].tolist(),
        **{name: values.tolist() for name, values in q_values.items()},
        n_heads=int(np.isfinite(found["_q"]).sum()),
        n_significant=is_significant["q_value"],
        n_significant_adjusted=is_significant["adjusted_q_value"],
        top=Row.table(**top),
        profile_positive=profiles[0].tolist(),
        profile_negative=profiles[1].tolist(),
        profile_difference=[each if known else None for each, known in of_layers],
        overlaps=[role_overlap(z, role, how.n_top) for role in roles],
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
    n_shared = len({*ranked_places(size)[:k]} & {*ranked_places(score)[:k]})
    shared = {"n_shared": n_shared, "n_expected": k * k / max(n_known, 1)}
    shared["p_value"] = float(hypergeom.sf(n_shared - 1, n_known, k, k))
    has_order = n_known > 2 and np.ptp(score[is_known]) > 0  # noqa: PLR2004
    tested = spearmanr(size[is_known], score[is_known]) if has_order else (np.nan, np.nan)
    return Row(role=role.role, k=k, **shared, spearman=float(tested[0]), p_spearman=float(tested[1]))


def _contrast(table: SinkTable, values: TraceCells, how: AnalyzeConfig) -> dict[str, Any]:
    """Label 1 minus label 0."""
    first, second = (table.labels == label for label in (1, 0))
    groups = table.groups[first].tolist(), table.groups[second].tolist()
    return contrast(values[first], values[second], groups, n_resamples=how.n_resamples, seed=how.seed)


def _estimates(found: Mapping[str, Any], how: AnalyzeConfig) -> list[Estimate]:
    """The difference of each cell with its interval."""
    rows = zip(*(found[name].ravel().tolist() for name in ("", "_low", "_high")), strict=True)
    return [Estimate(value, low, high, how.n_resamples) for value, low, high in rows]


def _top_share(resampled: Float[np.ndarray, "resample *cell"], z: PerHead, error: PerHead, k: int) -> PerHead:
    """Share of resamples in which a head is among the ``k`` that differ most for their spread."""
    is_known = np.isfinite(z)
    size = np.where(is_known, np.abs(resampled) / np.where(is_known, error, 1.0), -np.inf)
    flat = np.nan_to_num(size.reshape(len(size), -1), nan=-np.inf)
    named = np.argsort(-flat, axis=1)[:, : min(k, int(is_known.sum()))]
    return np.bincount(named.ravel(), minlength=z.size).reshape(z.shape) / len(flat)


def _difference(values: Floats, labels: Int[np.ndarray, "row item"]) -> Float[np.ndarray, "row"]:
    """Mean of label 1 minus that of label 0 under each row of labels."""
    n_positive, total = labels.sum(axis=1), labels @ values
    return total / n_positive - (values.sum() - total) / (len(values) - n_positive)
