"""H2: what the scalar sink mass predicts, as it is and after length is taken away."""

from typing import Final

import numpy as np
from jaxtyping import Float, Int

from graphhalu.evaluation.bootstrap import bootstrap_interval, percentile_interval, resample_sums
from graphhalu.evaluation.metrics import auprc, auprc_trapezoid, auroc
from graphhalu.evaluation.probability import brier, ece, reliability_curve
from graphhalu.graphs.effects import length_adjusted
from graphhalu.studies.sinks.effects import LEVEL, Resampling
from graphhalu.studies.sinks.findings import Estimate, Prediction, QuantileBin
from graphhalu.studies.sinks.probes import Fitted
from graphhalu.studies.sinks.records import SinkTable

N_QUANTILES: Final = 5
N_RELIABILITY_BINS: Final = 10


def prediction(table: SinkTable, fitted: Fitted, how: Resampling) -> Prediction:
    """What sink mass predicts; see :class:`Prediction`.

    Args:
        table: Records with both classes.
        fitted: The cross-fitted model on sink mass alone, for the calibration.
        how: Resamples.
    """
    mass, labels = table.mass, table.labels
    adjusted = length_adjusted(mass, table.length[:, None])
    curve = reliability_curve(fitted.probability[0], labels, n_bins=N_RELIABILITY_BINS)
    prevalence = float(labels.mean())
    return Prediction(
        auroc=_metric("auroc", mass, table, how),
        auprc=_metric("auprc", mass, table, how),
        auprc_trapezoid=auprc_trapezoid(mass, labels),
        prevalence=prevalence,
        adjusted_auroc=_metric("auroc", adjusted, table, how),
        bins=quantile_bins(table, how),
        ece=float(np.mean([ece(row, labels) for row in fitted.probability])),
        brier=float(np.mean([brier(row, labels) for row in fitted.probability])),
        brier_of_prevalence=prevalence * (1 - prevalence),
        reliability=tuple(
            (float(p), float(share), int(n)) for p, share, n in zip(*curve, strict=True)
        ),
    )


def quantile_bins(table: SinkTable, how: Resampling) -> tuple[QuantileBin, ...]:
    """Share of label 0 in bins of equal size by rising sink mass; equal values are not parted."""
    bins = _bins(table.mass, N_QUANTILES)
    is_in = bins[:, None] == np.unique(bins)[None]
    columns = np.concatenate([is_in, is_in & (table.labels == 0)[:, None]], axis=1).astype(float)
    sums = resample_sums(columns, table.groups, n_resamples=how.n_resamples, seed=how.seed)
    whole = np.concatenate([columns.sum(axis=0, keepdims=True), sums])
    n_bins = is_in.shape[1]
    found = []
    for place in range(n_bins):
        count = whole[:, place]
        share = np.where(count > 0, whole[:, n_bins + place] / np.maximum(count, 1), np.nan)
        low, high, _ = percentile_interval(share[1:], LEVEL)
        mean = float(table.mass[is_in[:, place]].mean())
        found.append(QuantileBin(mean, int(count[0]), Estimate(float(share[0]), low, high)))
    return tuple(found)


def _bins(values: Float[np.ndarray, "trace"], n_bins: int) -> Int[np.ndarray, "trace"]:
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts + 1) / 2
    found: Int[np.ndarray, trace] = np.floor(middle * n_bins / len(values)).astype(np.int64)[index]
    return found


def _metric(
    name: str, scores: Float[np.ndarray, "trace"], table: SinkTable, how: Resampling
) -> Estimate:
    low, high, _ = bootstrap_interval(
        name, scores, table.labels, table.groups, n_resamples=how.n_resamples, seed=how.seed
    )
    found = auroc(scores, table.labels) if name == "auroc" else auprc(scores, table.labels).value
    return Estimate(found, low, high)
