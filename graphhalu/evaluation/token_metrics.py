"""Metrics of token scores: by token, by span and by answer, with intervals over contexts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from graphhalu.detectors.sides import auroc
from graphhalu.errors import NotEnoughDataError
from graphhalu.evaluation.bootstrap import (
    percentile_interval,
    resample_metrics,
    resample_sums,
    two_sided_p,
)
from graphhalu.evaluation.metrics import METRICS, roc_counts
from graphhalu.evaluation.token_crossfit import TokenOutOfFold
from graphhalu.evaluation.token_spans import MarkedAnswer, SpanCounts, count_spans
from graphhalu.labels.labels import Labels

TOKEN_METRICS: Final[dict[str, str]] = {
    "token_auroc": "AUROC over all tokens",
    "token_auprc": "average precision over all tokens; the prevalence is what chance reaches",
    "within_auroc": "AUROC over the tokens of one hallucinated answer, mean over these answers",
    "char_precision": "share of called characters that are marked",
    "char_recall": "share of marked characters that are called",
    "char_f1": "F1 of characters, as RAGTruth measures it, white space aside",
    "span_precision": "share of called spans that are right",
    "span_recall": "share of marked spans that are found",
    "span_f1": "F1 of spans",
    "answer_auroc_max": "AUROC over answers by their highest token score",
    "answer_auroc_mean": "AUROC over answers by their mean token score",
}
"""Metrics by name, in words."""
RANKED: Final = ("auroc", "auprc")
_REDUCED: Final[dict[str, Callable[[np.ndarray], np.floating[Any]]]] = {
    "max": np.max,
    "mean": np.mean,
}


@dataclass(frozen=True)
class TokenMetric:
    """One metric of one detector, or the difference of two detectors in it.

    Attributes:
        value: Mean over seeds.
        low: Lower end of the interval over resampled contexts; ``None`` where too few resamples
            have the metric.
        high: Upper end, or ``None``.
        seed_sd: Standard deviation over seeds; ``None`` for one seed.
        p_value: Of a difference, two-sided; ``None`` for a metric.
    """

    value: float
    low: float | None
    high: float | None
    seed_sd: float | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class Measured:
    """All metrics of one detector in one seed.

    Attributes:
        values: By name; NaN where a metric is not defined.
        resamples: The same on resampled contexts.
    """

    values: Mapping[str, float]
    resamples: Mapping[str, Float[np.ndarray, "resample"]]


@dataclass(frozen=True)
class Resampling:
    """How contexts are drawn; the same for all detectors.

    Attributes:
        groups: Group of every trace: what belongs to one context.
        n_resamples: How many.
        seed: Of the draws.
        level: Coverage of the intervals.
    """

    groups: Shaped[np.ndarray, "trace"]
    n_resamples: int
    seed: int
    level: float


class _Items(NamedTuple):
    """Tokens, or answers, with the group that they are drawn with."""

    scores: Float[np.ndarray, "item"]
    labels: Int[np.ndarray, "item"]
    groups: Shaped[np.ndarray, "item"]


def measure(
    found: TokenOutOfFold,
    labels: Labels,
    marked: Sequence[MarkedAnswer],
    resampling: Resampling,
) -> Measured:
    """Every metric of the tested traces, and its resamples."""
    tested = np.flatnonzero(found.fold >= 0).tolist()
    groups = resampling.groups[tested]
    scores = [found.values[index] for index in tested]
    truth = [labels.token_labels("")[index] for index in tested]
    counts = [count_spans(marked[index], found.is_called[index]) for index in tested]
    of_tokens = np.repeat(groups, [len(each) for each in scores])
    tokens = _Items(np.concatenate(scores), np.concatenate(truth), of_tokens)
    parts = [
        _ranked(tokens, resampling, "token_{}", RANKED),
        _within(scores, truth, groups, resampling),
        _called(counts, groups, resampling),
    ]
    is_hallucinated = np.array([int(each.any()) for each in truth], dtype=np.int64)
    for name, reduce in _REDUCED.items():
        values = np.array([_reduced(each, reduce) for each in scores], dtype=np.float64)
        items = _Items(values, is_hallucinated, groups)
        parts.append(_ranked(items, resampling, f"answer_{{}}_{name}", ("auroc",)))
    return Measured(
        {name: value for part in parts for name, value in part.values.items()},
        {name: value for part in parts for name, value in part.resamples.items()},
    )


def summarised(seeds: Sequence[Measured], level: float) -> dict[str, TokenMetric]:
    """Each metric over the seeds."""
    return {
        name: _summary(
            [seed.values[name] for seed in seeds], [seed.resamples[name] for seed in seeds], level
        )
        for name in TOKEN_METRICS
        if all(np.isfinite(seed.values[name]) for seed in seeds)
    }


def differences(
    first: Sequence[Measured], second: Sequence[Measured], level: float
) -> dict[str, TokenMetric]:
    """The first detector minus the second in each metric, on the same resamples."""
    pairs = list(zip(first, second, strict=True))
    found = {}
    for name in TOKEN_METRICS:
        values = [a.values[name] - b.values[name] for a, b in pairs]
        if np.isfinite(values).all():
            drawn = [a.resamples[name] - b.resamples[name] for a, b in pairs]
            found[name] = _summary(values, drawn, level, is_difference=True)
    return found


def _summary(
    values: Sequence[float],
    resamples: Sequence[Float[np.ndarray, "resample"]],
    level: float,
    *,
    is_difference: bool = False,
) -> TokenMetric:
    drawn = np.mean(resamples, axis=0)
    low, high = _interval(drawn, level)
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    p_value = two_sided_p(drawn) if is_difference and low is not None else None
    return TokenMetric(float(np.mean(values)), low, high, spread, p_value)


def _interval(
    drawn: Float[np.ndarray, "resample"], level: float
) -> tuple[float | None, float | None]:
    try:
        low, high, _ = percentile_interval(drawn, level)
    except NotEnoughDataError:
        return None, None
    return low, high


def _ranked(items: _Items, resampling: Resampling, label: str, names: Sequence[str]) -> Measured:
    """Rank metrics of tokens or of answers."""
    scores, labels, groups = items
    is_valid: Bool[np.ndarray, "item"] = np.isfinite(scores)
    known = labels[is_valid]
    if not 0 < known.sum() < len(known):
        nothing = np.full(resampling.n_resamples, np.nan)
        return Measured(
            {label.format(name): float("nan") for name in names},
            {label.format(name): nothing for name in names},
        )
    counts = roc_counts(scores[is_valid], known)
    drawn = resample_metrics(
        names, np.where(is_valid, scores, 0.0), labels, groups, is_valid=is_valid,
        n_resamples=resampling.n_resamples, seed=resampling.seed,
    )  # fmt: skip
    return Measured(
        {label.format(name): float(METRICS[name](counts)[0]) for name in names},
        {label.format(name): drawn[name] for name in names},
    )


def _within(
    scores: Sequence[Float[np.ndarray, "_"]],
    truth: Sequence[Int[np.ndarray, "_"]],
    groups: Shaped[np.ndarray, "trace"],
    resampling: Resampling,
) -> Measured:
    """Whether the right tokens of an answer score highest, whatever other answers score."""
    columns = np.zeros((len(scores), 2))
    for row, (values, labels) in enumerate(zip(scores, truth, strict=True)):
        is_valid = np.isfinite(values)
        if 0 < labels[is_valid].sum() < is_valid.sum():
            columns[row] = auroc(values[is_valid], labels[is_valid]), 1.0
    sums = _sums(columns, groups, resampling)
    ratios = _ratio(sums[:, 0], sums[:, 1])
    return Measured({"within_auroc": float(ratios[0])}, {"within_auroc": ratios[1:]})


def _called(
    counts: Sequence[SpanCounts], groups: Shaped[np.ndarray, "trace"], resampling: Resampling
) -> Measured:
    """Precision, recall and F1 of characters and spans, summed over answers."""
    columns = np.array(counts, dtype=np.float64)
    of = dict(zip(SpanCounts._fields, _sums(columns, groups, resampling).T, strict=True))
    ratios = {
        "char_precision": _ratio(of["right"], of["called"]),
        "char_recall": _ratio(of["right"], of["marked"]),
        "char_f1": _ratio(2 * of["right"], of["called"] + of["marked"]),
        "span_precision": _ratio(of["right_spans"], of["called_spans"]),
        "span_recall": _ratio(of["found_spans"], of["marked_spans"]),
    }
    precision, recall = ratios["span_precision"], ratios["span_recall"]
    # with nothing called there is no precision, and F1 is 0 as long as anything is marked
    both = np.nan_to_num(precision) + recall
    ratios["span_f1"] = np.where(
        both == 0, both, _ratio(2 * np.nan_to_num(precision) * recall, both)
    )
    return Measured(
        {name: float(values[0]) for name, values in ratios.items()},
        {name: values[1:] for name, values in ratios.items()},
    )


def _sums(
    columns: Float[np.ndarray, "trace column"],
    groups: Shaped[np.ndarray, "trace"],
    resampling: Resampling,
) -> Float[np.ndarray, "draw column"]:
    """Sums over all traces in the first row, over those of each resample in the others."""
    drawn = resample_sums(columns, groups, n_resamples=resampling.n_resamples, seed=resampling.seed)
    return np.concatenate([columns.sum(axis=0)[None], drawn])


def _ratio(
    numerator: Float[np.ndarray, "draw"], denominator: Float[np.ndarray, "draw"]
) -> Float[np.ndarray, "draw"]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)


def _reduced(
    values: Float[np.ndarray, "_"], reduce: Callable[[np.ndarray], np.floating[Any]]
) -> float:
    known = values[np.isfinite(values)]
    return float(reduce(known)) if len(known) else float("nan")
