"""Metrics and curves of scores and probabilities.

Hallucinated (1) is the positive class, and no score is flipped.

Every rank metric is arithmetic on one table of counts: how many hallucinated and correct traces
score at or above each distinct score. A bootstrap gives one row of weights a resample, so that a
metric of all resamples is one vectorised function.

The metrics of rejection keep the ``k`` traces with the lowest scores. Traces of equal score are
rejected in random order, and the expectation over that order counts, so a result never depends on
the order of a file. With ``C(k)`` correct traces expected among the kept ones they are arithmetic
on ``sum of C(k) / k``; within one tie ``C`` is linear in ``k``, so that each tie is one term with
harmonic numbers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int, Num, Shaped
from scipy.special import logit

from graphhalu.core import numerics
from graphhalu.core.axes import LABEL_CORRECT, LABEL_HALLUCINATED
from graphhalu.core.errors import NotEnoughDataError

Floats = Float[np.ndarray, "item"]
"""One number an item: a trace, or a token."""
Ints = Int[np.ndarray, "item"]
Mask = Bool[np.ndarray, "item"]
Groups = Shaped[np.ndarray, "item"]
Resampled = Float[np.ndarray, "resample"]
Counts = Float[np.ndarray, "resample threshold"]
Weights = Num[np.ndarray, "resample item"]
Places = Int[np.ndarray, "threshold"]

MAX_REJECTION: Final = 0.5
"""Rejection goes up to this share of the traces in the prediction-rejection ratio."""
N_BINS: Final = 15
_GRID: Final = np.linspace(0, 1, 501)


@dataclass(frozen=True)
class RocCounts:
    """Weighted counts at or above each distinct score, from the highest score down.

    Attributes:
        hits: Hallucinated items.
        alarms: Correct items.
    """

    hits: Counts
    alarms: Counts

    @property
    def n_correct(self) -> Resampled:
        """Correct items."""
        return self.alarms[:, -1]

    @cached_property
    def n_all(self) -> Resampled:
        """All items."""
        return self.hits[:, -1] + self.n_correct

    @cached_property
    def kept_ties(self) -> tuple[Counts, ...]:
        """The terms of ``sum of C(k) / k``, one a tie; weights must be whole numbers.

        Returns:
            The sum over all ``k`` that end within the tie; traces below the tie; ``C(k)`` of the
            tie, extended to ``k = 0``, in which it is linear; share of correct traces in the tie.
        """
        flagged = self.hits + self.alarms
        kept = self.n_all[:, None] - flagged
        in_tie, correct = np.diff(flagged, prepend=0), np.diff(self.alarms, prepend=0)
        slope = correct / np.maximum(in_tie, 1.0)
        level = (self.alarms[:, -1:] - self.alarms) - slope * kept
        # row by row in memory, since the rounding of sums depends on the layout
        up_to = np.ascontiguousarray(self.harmonic(np.append(self.n_all[:, None], kept, axis=1)))
        return level * (up_to[:, :-1] - up_to[:, 1:]) + correct, kept, level, slope

    def harmonic(self, n_terms: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """``1 + 1/2 + … + 1/n`` for whole numbers up to that of all items."""
        return _harmonic_numbers(int(self.n_all.max(initial=0)))[n_terms.astype(np.int64)]


@lru_cache(maxsize=8)
def _harmonic_numbers(largest: int) -> Float[np.ndarray, "term"]:
    return np.append(0.0, np.cumsum(1 / np.arange(1, largest + 1)))


def roc_counts(scores: Floats, labels: Ints, weights: Weights | None = None) -> RocCounts:
    """Count both classes at or above each distinct score, once for each row of weights.

    Args:
        scores: Higher means more likely hallucinated; finite.
        labels: 1 = hallucinated, 0 = correct.
        weights: How often each trace counts in each resample; once, in one row, by default.
    """
    order, last_of_tie = tie_order(scores)
    rows = np.ones((1, len(scores))) if weights is None else weights
    return sorted_counts(rows[:, order], labels[order], last_of_tie)


def tie_order(scores: Floats) -> tuple[Ints, Places]:
    """Order of falling scores, and the place in it where each distinct score ends."""
    order = np.argsort(-scores, kind="stable")
    return order, np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))


def sorted_counts(weights: Weights, labels: Ints, last_of_tie: Places) -> RocCounts:
    """:func:`roc_counts` of weights and labels that :func:`tie_order` has sorted."""
    # summed in place: a fifth faster than through new arrays
    alarms = weights.astype(np.float64)
    hits = alarms * labels
    np.cumsum(hits, axis=1, out=hits)
    np.cumsum(alarms, axis=1, out=alarms)
    alarms -= hits
    ends = slice(None) if len(last_of_tie) == len(labels) else last_of_tie
    return RocCounts(hits[:, ends], alarms[:, ends])


def check_scores(scores: Floats, labels: Ints) -> None:
    """Refuse scores and labels that no metric is defined for.

    Raises:
        ValueError: If a score is not finite, or a label is neither 0 nor 1.
        NotEnoughDataError: If one class is missing.
    """
    if n_bad := int((~np.isfinite(scores)).sum()):
        raise ValueError(f"{n_bad} of {len(scores)} scores are not finite; leave invalid scores out first")
    if not np.isin(labels, (LABEL_CORRECT, LABEL_HALLUCINATED)).all():
        raise ValueError(f"labels must be 0 or 1, got {np.unique(labels)[:5].tolist()}")
    check_classes(labels, "a metric needs both classes")


def check_classes(labels: Ints, needed: str, *, least: int = 1, way_out: str = "") -> None:
    """Refuse labels with too few of a class.

    Args:
        labels: 0 or 1.
        needed: Begins the message, as "a metric needs both classes".
        least: Items of each class that are needed.
        way_out: Ends the message.

    Raises:
        NotEnoughDataError: Says how many of each class there are.
    """
    n_correct, n_positive = np.bincount(labels, minlength=2).tolist()
    if min(n_correct, n_positive) < least:
        raise NotEnoughDataError(f"{needed}, got {n_positive} hallucinated and {n_correct} correct{way_out}")


def auroc(scores: Floats, labels: Ints) -> float:
    """Chance that a hallucinated trace scores above a correct one; a tie counts one half.

    Raises:
        ValueError: If a score is not finite, or a label is neither 0 nor 1.
        NotEnoughDataError: If one class is missing.
    """
    check_scores(scores, labels)
    return numerics.auroc(scores, labels)


def evaluate(scores: Floats, labels: Ints) -> dict[str, float]:
    """Every metric of :data:`METRICS`.

    Raises:
        ValueError: If a score is not finite, or a label is neither 0 nor 1.
        NotEnoughDataError: If one class is missing.
    """
    check_scores(scores, labels)
    counts = roc_counts(scores, labels)
    return {name: float(metric(counts)[0]) for name, metric in METRICS.items()}


AnyShape = Float[np.ndarray, "*shape"]


def ratio(numerator: AnyShape, denominator: Float[np.ndarray, "*any"]) -> AnyShape:
    """Division that gives NaN, without a warning, where there is nothing to divide by."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)


def counted_auroc(counts: RocCounts) -> Resampled:
    """AUROC of each resample; NaN where a resample lacks a class."""
    hits, alarms = counts.hits, counts.alarms
    # trapezoids: twice the mean height times the width, the first one from the origin
    twice = np.einsum("rt,rt->r", alarms[:, 1:] - alarms[:, :-1], hits[:, 1:] + hits[:, :-1])
    area = (twice + alarms[:, 0] * hits[:, 0]) / 2
    return ratio(area, hits[:, -1] * alarms[:, -1])


def counted_auprc(counts: RocCounts) -> Resampled:
    """Average precision of each resample; NaN where a resample lacks a class."""
    hits, alarms = counts.hits, counts.alarms
    flagged = hits + alarms
    # nothing flagged means no hits either, and 0 / 1 is the 0 that is wanted there
    precision = hits / np.maximum(flagged, 1.0, out=flagged)
    gained = np.einsum("rt,rt->r", hits[:, 1:] - hits[:, :-1], precision[:, 1:])
    value = ratio(gained + hits[:, 0] * precision[:, 0], hits[:, -1])
    return np.where(alarms[:, -1] > 0, value, np.nan)


def counted_tpr_at_fpr(counts: RocCounts, *, max_fpr: float) -> Resampled:
    """Largest true-positive rate of a threshold whose false-positive rate is within the bound.

    One value for each resample; NaN where it lacks a class. Only the achievable points of the ROC
    count: tied scores are flagged together, and nothing is interpolated between points, since no
    threshold reaches a point in between. A point on the bound counts.
    """
    n_correct = counts.n_correct
    guess = np.floor(max_fpr * n_correct) + 1
    most_alarms = np.where(ratio(guess, n_correct) <= max_fpr, guess, guess - 1)
    # the counts only rise, so the last threshold within the bound is found by counting
    n_within = (counts.alarms <= most_alarms[:, None]).sum(axis=1)
    last = np.take_along_axis(counts.hits, np.maximum(n_within - 1, 0)[:, None], axis=1)[:, 0]
    value = ratio(np.where(n_within > 0, last, 0.0), counts.hits[:, -1])
    return np.where(n_correct > 0, value, np.nan)


def counted_prr(counts: RocCounts, *, max_rejection: float = MAX_REJECTION) -> Resampled:
    """Prediction-rejection ratio: 1 = as good as an oracle, 0 = as random rejection.

    The quality of a trace is 1 minus its label. With ``R = floor(max_rejection * n)`` the area
    is the mean quality of what is kept, averaged over rejecting 0 … ``R - 1`` traces, and the
    ratio is ``(area - random) / (oracle - random)``. Random rejection keeps the mean quality.

    Args:
        counts: Counts of whole numbers of traces.
        max_rejection: Largest share that is rejected, in (0, 1].

    Returns:
        One value for each resample; NaN where it lacks a class or rejects none.

    Source:
        Malinin and Gales 2021; area and limit as ``PredictionRejectionArea(max_rejection)`` of
        lm-polygraph (Vashurin et al. 2025, TACL). There the random curve is a mean over 1,000
        shuffles and ties fall as the sort leaves them; here both are exact expectations.
    """
    n_rejected = np.floor(max_rejection * counts.n_all)
    fewest = counts.n_all - n_rejected
    random = n_rejected * ratio(counts.n_correct, counts.n_all)
    return ratio(_kept_quality(counts, fewest) - random, _oracle_quality(counts, fewest) - random)


def counted_aurc(counts: RocCounts) -> Resampled:
    """Area under the risk-coverage curve: mean risk over all numbers of kept traces; low is good.

    One value for each resample; NaN where it lacks a class.

    Source:
        Geifman and El-Yaniv 2017; ties as expectations.
    """
    area = 1 - ratio(counts.kept_ties[0].sum(axis=1), counts.n_all)
    return np.where((counts.n_correct > 0) & (counts.n_correct < counts.n_all), area, np.nan)


def counted_excess_aurc(counts: RocCounts) -> Resampled:
    """E-AURC: :func:`counted_aurc` minus that of an oracle with as many hallucinated traces.

    One value for each resample, low is good; NaN where it lacks a class.

    Source:
        Geifman, Uziel and El-Yaniv 2019; the oracle's area is exact, not the approximation.
    """
    best = 1 - ratio(_oracle_quality(counts, np.zeros_like(counts.n_all)), counts.n_all)
    return counted_aurc(counts) - best


def _kept_quality(counts: RocCounts, fewest: Resampled) -> Resampled:
    """Sum of ``C(k) / k`` over ``k = fewest + 1 … n``: whole ties, and a part of the last one."""
    terms, kept, levels, slopes = counts.kept_ties
    is_whole = kept >= fewest[:, None]
    whole = np.einsum("rt,rt->r", terms, is_whole)
    place = is_whole.sum(axis=1)[:, None]
    above = np.append(counts.n_all[:, None], kept, axis=1)
    upper = np.take_along_axis(above, place, axis=1)[:, 0]
    inside = np.minimum(place, kept.shape[1] - 1)
    level, slope = (np.take_along_axis(each, inside, axis=1)[:, 0] for each in (levels, slopes))
    steps = counts.harmonic(upper) - counts.harmonic(fewest)
    return np.where(upper > fewest, whole + level * steps + slope * (upper - fewest), whole)


def _oracle_quality(counts: RocCounts, fewest: Resampled) -> Resampled:
    """The same sum when every hallucinated trace is rejected before any correct one."""
    tail = counts.harmonic(counts.n_all) - counts.harmonic(np.maximum(counts.n_correct, fewest))
    return np.maximum(counts.n_correct - fewest, 0.0) + counts.n_correct * tail


METRICS: Final[Mapping[str, Callable[[RocCounts], Resampled]]] = {
    "auroc": counted_auroc,
    "auprc": counted_auprc,
    "tpr_at_5_fpr": partial(counted_tpr_at_fpr, max_fpr=0.05),
    "tpr_at_1_fpr": partial(counted_tpr_at_fpr, max_fpr=0.01),
    "prr_50": counted_prr,
    "aurc": counted_aurc,
    "e_aurc": counted_excess_aurc,
}
"""The rank metrics of a comparison by name: from the counts of each resample to its value."""


ByThreshold = Float[np.ndarray, "threshold"]


class Curve(NamedTuple):
    """Points of a line, from left to right."""

    x: Float[np.ndarray, "point"]
    y: Float[np.ndarray, "point"]


def class_counts(scores: Floats, labels: Ints) -> tuple[ByThreshold, ByThreshold]:
    """Hallucinated and correct items at or above each distinct score, from the highest score down.

    Raises:
        ValueError: If a score is not finite, or a label is neither 0 nor 1.
        NotEnoughDataError: If one class is missing.
    """
    check_scores(scores, labels)
    counts = roc_counts(scores, labels)
    return counts.hits[0], counts.alarms[0]


def _roc_curve(scores: Floats, labels: Ints) -> Curve:
    hits, alarms = class_counts(scores, labels)
    return Curve(np.append(0.0, alarms / alarms[-1]), np.append(0.0, hits / hits[-1]))


def _precision_recall_curve(scores: Floats, labels: Ints) -> Curve:
    """On a grid of recall, since nothing lies on the straight line between two thresholds."""
    hits, alarms = class_counts(scores, labels)
    # rounding must not make the last threshold miss a recall of 1
    reached = np.searchsorted(hits / hits[-1], _GRID[1:] - 1e-12)
    return Curve(_GRID[1:], (hits / (hits + alarms))[reached])


def risk_coverage_curve(scores: Floats, labels: Ints) -> Curve:
    """Coverage ``1/n … 1``, the lowest scores kept first, and the risk at each: its mean is the AURC.

    The risk is the share of hallucinated traces among the kept ones.

    Raises:
        ValueError: If a score is not finite, or a label is neither 0 nor 1.
        NotEnoughDataError: If one class is missing.
    """
    hits, alarms = class_counts(scores, labels)
    kept = np.arange(1, len(scores) + 1)
    # all hallucinated traces are kept but those of the rejected ones
    rejected_hits = np.interp(len(scores) - kept, np.append(0.0, hits + alarms), np.append(0.0, hits))
    return Curve(kept / len(scores), (hits[-1] - rejected_hits) / kept)


_CURVES: Final[Mapping[str, Callable[[Floats, Ints], Curve]]] = {
    "roc": _roc_curve,
    "precision-recall": _precision_recall_curve,
    "risk-coverage": risk_coverage_curve,
    "calibration": lambda probability, labels: Curve(*reliability_curve(probability, labels)[:2]),
}


def mean_curve(samples: pa.Table, detector: str, kind: str) -> Curve:
    """A curve of a detector from its per-sample scores; the mean over seeds, exact for one seed.

    Args:
        samples: Scores as in a result.
        detector: Its name.
        kind: ``roc`` (hallucinations found against false alarms), ``precision-recall`` (as steps:
            the precision of the first threshold that reaches a recall), ``risk-coverage`` (share of
            hallucinated answers among the kept ones against the share that is kept), or
            ``calibration`` (share of hallucinated answers against probability in 15 bins of equal
            mass, seeds pooled).

    Raises:
        NotEnoughDataError: If there is no valid score or probability, or those of one class only.
    """
    needed = "probability" if kind == "calibration" else "score"
    mine = samples.filter((pc.field("detector") == detector) & pc.field("is_valid"))
    mine = mine.filter(pc.field(needed).is_valid())
    if not len(mine):
        raise NotEnoughDataError(f"{detector} has no valid {needed} to draw")
    frame = mine.to_pandas().astype({needed: np.float64, "label": np.int64})
    by_seed = frame.groupby(frame["seed"] * (kind != "calibration"), sort=False)
    curves = [_CURVES[kind](each[needed].to_numpy(), each["label"].to_numpy()) for _, each in by_seed]
    if len(curves) == 1:
        return curves[0]
    # before the first point of a curve there is nothing, so the grid starts where all have begun
    start = max(float(curve.x[0]) for curve in curves)
    grid = np.append(start, _GRID[start < _GRID])
    heights = np.mean([np.interp(grid, *curve) for curve in curves], axis=0)
    origin = [0.0] if all(curve.x[0] == curve.y[0] == 0 for curve in curves) else []
    return Curve(np.append(origin, grid), np.append(origin, heights))


def calibration_band(samples: pa.Table) -> tuple[Float[np.ndarray, "end point"], Float[np.ndarray, "point"]]:
    """Ends between which 95 % of the bins lie by chance if the probabilities are right, and where."""
    n_tested = len(pc.unique(samples["trace_id"]))
    share = np.linspace(0, 1, 101)
    reach = 1.96 * np.sqrt(share * (1 - share) * N_BINS / max(n_tested, N_BINS))
    return np.stack([np.maximum(share - reach, 0), np.minimum(share + reach, 1)]), share


Bins = tuple[Float[np.ndarray, "bin"], Float[np.ndarray, "bin"], Int[np.ndarray, "bin"]]


def equal_bins(values: Floats, n_bins: int) -> Ints:
    """The bin of each value, in bins of equal size by rising value; equal values are never parted."""
    _, value_index, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts + 1) / 2
    bin_of_value = np.floor(middle * n_bins / len(values)).astype(np.int64)
    return np.unique(bin_of_value, return_inverse=True)[1][value_index]  # empty bins are dropped


def reliability_curve(probability: Floats, labels: Ints, *, n_bins: int = N_BINS) -> Bins:
    """Mean probability, share of hallucinated traces and number of traces in bins of equal mass.

    The bins rise with the probability. Equal probabilities are never parted, so that the order of a
    file changes nothing: a bin takes all traces of the probability at its edge, and there may be
    fewer bins than asked for.

    Raises:
        ValueError: If a probability is not in [0, 1] or no bin is asked for.
        NotEnoughDataError: If there is no trace.
    """
    _check_probabilities(probability)
    if n_bins < 1:
        raise ValueError(f"n_bins must be 1 or more, got {n_bins}")
    bins = equal_bins(probability, n_bins)
    n_traces = np.bincount(bins)
    mean, share = (np.bincount(bins, weights=each) / n_traces for each in (probability, labels))
    return mean, share, n_traces


def ece(probability: Floats, labels: Ints, *, n_bins: int = N_BINS) -> float:
    """Expected calibration error: mean distance of probability and share over the bins' traces.

    Raises:
        ValueError: If a probability is not in [0, 1] or no bin is asked for.
        NotEnoughDataError: If there is no trace.

    Source:
        Naeini et al. 2015, with bins of equal mass in place of equal width.
    """
    mean, share, n_traces = reliability_curve(probability, labels, n_bins=n_bins)
    return float(np.average(np.abs(mean - share), weights=n_traces))


def recalibration(probability: Floats, labels: Ints) -> tuple[float, float]:
    """Slope and intercept of the logistic curve from the logit of a probability to that of the label.

    Right probabilities have 1 and 0. The slope is below 1 where they are too far from the base rate, as
    after overfitting, the intercept above 0 where they are too low on the whole. Both are NaN where
    a class is missing or all probabilities are equal.
    Probabilities are kept within half an item of 0 and 1, since an isotonic curve reaches both.

    Raises:
        ValueError: If a probability is not in [0, 1].
        NotEnoughDataError: If there is no trace.

    Source:
        Cox 1958; both by maximum likelihood in one curve, the intercept where the logit is 0.
    """
    from sklearn.linear_model import LogisticRegression

    _check_probabilities(probability)
    edge = 0.5 / len(probability)
    logits = logit(np.clip(probability, edge, 1 - edge))
    if len(np.unique(labels)) < 2 or np.ptp(logits) == 0:  # noqa: PLR2004
        return np.nan, np.nan
    model = LogisticRegression(C=np.inf, max_iter=1000).fit(logits[:, None], labels)
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def log_losses(probability: Floats, labels: Ints) -> Floats:
    """Negative log-probability (nat) that was given to each label; infinite for a sure mistake.

    Raises:
        ValueError: If a probability is not in [0, 1].
        NotEnoughDataError: If there is no trace.
    """
    _check_probabilities(probability)
    with np.errstate(divide="ignore"):
        return -np.log(np.where(labels == 1, probability, 1 - probability))


def _check_probabilities(probability: Floats) -> None:
    if not len(probability):
        raise NotEnoughDataError("no trace has a probability")
    if not ((probability >= 0) & (probability <= 1)).all():
        lowest, highest = np.nanmin(probability), np.nanmax(probability)
        raise ValueError(f"probabilities must be in [0, 1], got {lowest:g} to {highest:g}")
