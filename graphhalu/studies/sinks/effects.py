"""Shift of sink mass between the classes (H1), and what the scalar predicts (H2).

Intervals resample questions; the first row of every array of resamples is the sample itself.
"""

from itertools import chain
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from sklearn.metrics import auc, brier_score_loss, precision_recall_curve

from graphhalu.core.numerics import length_adjusted
from graphhalu.evaluation.bootstrap import (
    Estimate,
    bootstrap_interval,
    drawn_blocks,
    group_codes,
    mean_rows,
    resample_sums,
)
from graphhalu.evaluation.metrics import auroc, ece, evaluate, reliability_curve
from graphhalu.studies.sinks.records import SinkTable
from graphhalu.studies.sinks.result import Prediction, QuantileBin, Shift
from graphhalu.studies.sinks.settings import AnalyzeConfig

N_QUANTILES: Final = 5
N_RELIABILITY_BINS: Final = 10
_BLOCK: Final = 256
_MIXED: Final = 0.5


class Sample(NamedTuple):
    """Records with a class each, and how they are resampled.

    Attributes:
        labels: 0 or 1.
        groups: Question of each record.
        how: Numbers and seed of resamples.
    """

    labels: Int[np.ndarray, "trace"]
    groups: Shaped[np.ndarray, "trace"]
    how: AnalyzeConfig = AnalyzeConfig()

    def sums(self, columns: Float[np.ndarray, "trace column"]) -> Float[np.ndarray, "row column"]:
        """Sum of each column over the sample, then over each resample of questions."""
        drawing = {"n_resamples": self.how.n_resamples, "seed": self.how.seed}
        return resample_sums(columns, self.groups, **drawing)

    def mean(self, values: Float[np.ndarray, "trace"]) -> Float[np.ndarray, "row"]:
        """Mean over the sample, then over each resample of questions."""
        return mean_rows(values, self.groups, n_resamples=self.how.n_resamples, seed=self.how.seed)

    def class_effects(
        self, values: Float[np.ndarray, "trace"]
    ) -> tuple[Float[np.ndarray, "row"], Float[np.ndarray, "row"]]:
        """Mean of label 1 minus that of label 0, and Cohen's d; NaN where a row lacks a class.

        Source:
            Cohen 1988: difference over the pooled standard deviation, n - 1 in both variances.
        """
        # far from zero the squares would lose the digits that the variance is made of
        centred = values - values.mean()
        powers = np.stack([np.ones(len(values)), centred, centred**2], axis=1)
        of_class = [powers * (self.labels == label)[:, None] for label in (1, 0)]
        parts = np.split(self.sums(np.concatenate(of_class, axis=1)), 2, axis=1)
        means = [_ratio(part[:, 1], part[:, 0]) for part in parts]
        squares = [part[:, 2] - part[:, 0] * m**2 for part, m in zip(parts, means, strict=True)]
        freedom = parts[0][:, 0] + parts[1][:, 0] - 2
        difference, spread = means[0] - means[1], squares[0] + squares[1]
        # rounding leaves a little where all values are equal
        is_spread = np.isfinite(difference) & (freedom > 0) & (spread > 1e-12)  # noqa: PLR2004
        pooled = np.sqrt(np.where(is_spread, spread / np.maximum(freedom, 1), 1.0))
        return difference, np.where(is_spread, difference / pooled, np.nan)

    def cohens_d(self, values: Float[np.ndarray, "trace"]) -> Estimate:
        """Cohen's d with its interval; 0 where the values have no spread."""
        found = self.class_effects(values)[1]
        return Estimate(0.0, 0.0, 0.0) if np.isnan(found[0]) else Estimate.of(found)

    def median_differences(self, values: Float[np.ndarray, "trace"]) -> Float[np.ndarray, "row"]:
        """Median of label 1 minus that of label 0 in the sample, then in each resample."""
        codes, n_groups = group_codes(self.groups)
        sides = [(values[is_in], codes[is_in]) for is_in in (self.labels == 1, self.labels == 0)]
        blocks = drawn_blocks(n_groups, self.how.n_resamples, self.how.seed)
        rows = chain([np.ones(n_groups, dtype=np.int64)], *blocks)
        medians = [[_median(np.repeat(v, counts[of])) for v, of in sides] for counts in rows]
        positive, negative = np.array(medians).T
        return positive - negative

    def permutation_p(self, values: Float[np.ndarray, "trace"]) -> float:
        """Two-sided p-value of the difference of means under exchanged labels.

        One is added to both counts, so it is never 0. Where most records stand in questions with
        both classes, labels are exchanged within questions only.
        """
        n_permutations = self.how.n_permutations
        generator = np.random.default_rng(self.how.seed)
        observed = abs(_difference(values, self.labels[None])[0])
        within = group_codes(self.groups)[0] if self.is_mixed else None
        n_extreme = 0
        for start in range(0, n_permutations, _BLOCK):
            keys = generator.random((min(_BLOCK, n_permutations - start), len(values)))
            drawn = _permuted(self.labels, within, keys)
            n_extreme += int((np.abs(_difference(values, drawn)) >= observed - 1e-12).sum())
        return (n_extreme + 1) / (n_permutations + 1)

    @property
    def is_mixed(self) -> bool:
        """Whether most records stand in questions with both classes."""
        codes, n_groups = group_codes(self.groups)
        share = np.bincount(codes, weights=self.labels, minlength=n_groups) / np.bincount(codes)
        is_mixed = (share > 0) & (share < 1)
        return bool(is_mixed[codes].mean() > _MIXED)

    def correlation(
        self, first: Float[np.ndarray, "trace"], second: Float[np.ndarray, "trace"]
    ) -> Estimate | None:
        """Pearson's correlation with its interval; ``None`` where one of them has no spread."""
        if np.isnan(pearson(first, second)):
            return None
        x, y = first - first.mean(), second - second.mean()
        columns = np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1)
        n, sx, sy, sxx, syy, sxy = self.sums(columns).T
        spread = (n * sxx - sx**2) * (n * syy - sy**2)
        is_spread = spread > 0
        found = (n * sxy - sx * sy) / np.sqrt(np.where(is_spread, spread, 1))
        return Estimate.of(np.where(is_spread, found, np.nan))


def shift(table: SinkTable, how: AnalyzeConfig) -> Shift:
    """Compare the sink mass of both classes; see :class:`Shift`."""
    sample, mass = Sample(table.labels, table.groups, how), table.mass
    lengths = table.length[:, None]
    adjusted = length_adjusted(mass, lengths)
    residual = length_adjusted(table.labels.astype(np.float64), lengths)
    differences, effects = sample.class_effects(mass)
    return Shift(
        mean_positive=float(mass[table.labels == 1].mean()),
        mean_negative=float(mass[table.labels == 0].mean()),
        mean_difference=Estimate.of(differences),
        median_difference=Estimate.of(sample.median_differences(mass)),
        cohens_d=Estimate.of(effects),
        p_permutation=sample.permutation_p(mass),
        permutation="within questions" if sample.is_mixed else "free",
        adjusted_d=sample.cohens_d(adjusted),
        adjusted_p=sample.permutation_p(adjusted),
        length_d=sample.cohens_d(table.length),
        length_pearson=pearson(mass, table.length),
        entropy_pearson=pearson(mass, table.entropy),
        partial_correlation=sample.correlation(adjusted, residual),
    )


def pearson(first: Float[np.ndarray, "trace"], second: Float[np.ndarray, "trace"]) -> float:
    """Pearson's correlation; NaN where one of them has no spread."""
    if len(first) < 3 or not first.std() > 0 or not second.std() > 0:  # noqa: PLR2004
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


def prediction(
    table: SinkTable, probabilities: Float[np.ndarray, "seed trace"], how: AnalyzeConfig
) -> Prediction:
    """What sink mass predicts; see :class:`Prediction`.

    Args:
        table: Records with both classes.
        probabilities: Of the cross-fitted model on sink mass alone, for the calibration.
        how: Resamples.
    """
    mass, labels = table.mass, table.labels
    adjusted = length_adjusted(mass, table.length[:, None])
    curve = reliability_curve(probabilities[0], labels, n_bins=N_RELIABILITY_BINS)
    prevalence = float(labels.mean())
    precision, recall, _ = precision_recall_curve(labels, mass)

    def estimate(metric: str, scores: Float[np.ndarray, "trace"], value: float) -> Estimate:
        resampled = {"n_resamples": how.n_resamples, "seed": how.seed}
        return Estimate(value, *bootstrap_interval(metric, scores, labels, table.groups, **resampled))

    return Prediction(
        auroc=estimate("auroc", mass, auroc(mass, labels)),
        auprc=estimate("auprc", mass, evaluate(mass, labels)["auprc"]),
        auprc_trapezoid=float(auc(recall, precision)),
        prevalence=prevalence,
        adjusted_auroc=estimate("auroc", adjusted, auroc(adjusted, labels)),
        bins=quantile_bins(table, how),
        ece=float(np.mean([ece(row, labels) for row in probabilities])),
        brier=float(np.mean([brier_score_loss(labels, row) for row in probabilities])),
        brier_of_prevalence=prevalence * (1 - prevalence),
        reliability=tuple((float(p), float(share), int(n)) for p, share, n in zip(*curve, strict=True)),
    )


def quantile_bins(table: SinkTable, how: AnalyzeConfig) -> tuple[QuantileBin, ...]:
    """Share of label 0 in bins of equal size by rising sink mass; equal values are not parted."""
    _, index, counts = np.unique(table.mass, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts + 1) / 2
    bins = np.floor(middle * N_QUANTILES / len(table.mass)).astype(np.int64)[index]
    is_in = bins[:, None] == np.unique(bins)[None]
    columns = np.concatenate([is_in, is_in & (table.labels == 0)[:, None]], axis=1).astype(float)
    sample = Sample(table.labels, table.groups, how)
    sizes, hits = np.split(sample.sums(columns), 2, axis=1)
    return tuple(
        QuantileBin(float(table.mass[members].mean()), int(size[0]), Estimate.of(_ratio(hit, size)))
        for members, size, hit in zip(is_in.T, sizes.T, hits.T, strict=True)
    )


def _ratio(total: Float[np.ndarray, "row"], count: Float[np.ndarray, "row"]) -> Float[np.ndarray, "row"]:
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _median(values: Float[np.ndarray, "value"]) -> float:
    return float(np.median(values)) if values.size else float("nan")


def _difference(
    values: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "row trace"]
) -> Float[np.ndarray, "row"]:
    n_positive = labels.sum(axis=1)
    total = labels @ values
    n_negative = len(values) - n_positive
    return total / n_positive - (values.sum() - total) / n_negative


def _permuted(
    labels: Int[np.ndarray, "trace"],
    within: Int[np.ndarray, "trace"] | None,
    keys: Float[np.ndarray, "row trace"],
) -> Int[np.ndarray, "row trace"]:
    if within is None:
        return labels[np.argsort(keys, axis=1)]
    # sorted by question and then at random: each question keeps its own labels
    by_group = np.argsort(within, kind="stable")
    drawn = np.empty(keys.shape, dtype=labels.dtype)
    np.put_along_axis(drawn, np.argsort(within + keys, axis=1), labels[by_group][None], axis=1)
    return drawn
