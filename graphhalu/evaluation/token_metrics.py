"""Metrics of token scores that those of single items do not have: by answer and by span."""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from graphhalu.detectors.sides import auroc
from graphhalu.evaluation.bootstrap import resample_metrics, resample_sums
from graphhalu.evaluation.counts import ratio, roc_counts
from graphhalu.evaluation.crossfit import OutOfFold
from graphhalu.evaluation.metrics import METRICS
from graphhalu.evaluation.token_spans import MarkedAnswer, SpanCounts, count_spans
from graphhalu.labels.labels import Labels

TOKEN_METRICS: Final = (
    "within_auroc", "char_precision", "char_recall", "char_f1", "span_precision", "span_recall",
    "span_f1", "answer_auroc_max", "answer_auroc_mean",
)  # fmt: skip
"""Their names, in the order of a table."""
_REDUCED: Final[dict[str, Callable[[np.ndarray], np.floating[Any]]]] = {
    "max": np.max,
    "mean": np.mean,
}


class Measured(NamedTuple):
    """A metric in one seed: NaN where it is not defined, and the same on each resample."""

    value: float
    resampled: Float[np.ndarray, "resample"]


class Resampling(NamedTuple):
    """How contexts are drawn; the same for all detectors.

    Attributes:
        groups: Group of each answer: what belongs to one context.
        n_resamples: How many.
        seed: Of the draws.
    """

    groups: Shaped[np.ndarray, "answer"]
    n_resamples: int
    seed: int


def token_metrics(
    fit: OutOfFold, labels: Labels, marked: Sequence[MarkedAnswer], resampling: Resampling
) -> dict[str, Measured]:
    """Every metric of :data:`TOKEN_METRICS` over the answers that one seed tested.

    Args:
        fit: Scores of the tokens.
        labels: Labels of tokens.
        marked: The characters of all answers.
        resampling: Groups of all answers, and the draws.
    """
    tested = np.unique(labels.owner[fit.is_tested])
    drawn = resampling._replace(groups=resampling.groups[tested])
    places = [labels.places(tested[at : at + 1]) for at in range(len(tested))]
    scores = [fit.values[own] for own in places]
    truth = [labels.items[own] for own in places]
    counts = [
        count_spans(marked[index], fit.is_predicted_positive[own])
        for index, own in zip(tested.tolist(), places, strict=True)
    ]
    found = {"within_auroc": _within(scores, truth, drawn), **_spans(counts, drawn)}
    is_hallucinated = np.array([int(each.any()) for each in truth], dtype=np.int64)
    for name, reduce in _REDUCED.items():
        values = np.array([_reduced(each, reduce) for each in scores], dtype=np.float64)
        found[f"answer_auroc_{name}"] = _answers(values, is_hallucinated, drawn)
    return found


def _within(
    scores: Sequence[Float[np.ndarray, "_"]],
    truth: Sequence[Int[np.ndarray, "_"]],
    resampling: Resampling,
) -> Measured:
    """Mean AUROC over the tokens of one hallucinated answer, whatever other answers score."""
    columns = np.zeros((len(scores), 2))
    for row, (values, labels) in enumerate(zip(scores, truth, strict=True)):
        is_valid = np.isfinite(values)
        if 0 < labels[is_valid].sum() < is_valid.sum():
            columns[row] = auroc(values[is_valid], labels[is_valid]), 1.0
    total, n_answers = _sums(columns, resampling).T
    return _measured(ratio(total, n_answers))


def _spans(counts: Sequence[SpanCounts], resampling: Resampling) -> dict[str, Measured]:
    """Precision, recall and F1 of characters and spans, summed over answers."""
    sums = _sums(np.array(counts, dtype=np.float64), resampling)
    of = dict(zip(SpanCounts._fields, sums.T, strict=True))
    found = {
        "char_precision": ratio(of["right"], of["called"]),
        "char_recall": ratio(of["right"], of["marked"]),
        "char_f1": ratio(2 * of["right"], of["called"] + of["marked"]),
        "span_precision": ratio(of["right_spans"], of["called_spans"]),
        "span_recall": ratio(of["found_spans"], of["marked_spans"]),
    }
    # without a predicted span there is no precision, and F1 is 0 as long as anything is marked
    precision, recall = np.nan_to_num(found["span_precision"]), found["span_recall"]
    both = precision + recall
    found["span_f1"] = np.where(both == 0, both, ratio(2 * precision * recall, both))
    return {name: _measured(values) for name, values in found.items()}


def _answers(
    scores: Float[np.ndarray, "answer"], labels: Int[np.ndarray, "answer"], resampling: Resampling
) -> Measured:
    """AUROC over answers, each with one number of its tokens."""
    is_valid = np.isfinite(scores)
    known = labels[is_valid]
    if not 0 < known.sum() < len(known):
        return Measured(float("nan"), np.full(resampling.n_resamples, np.nan))
    drawn = resample_metrics(
        ["auroc"], np.where(is_valid, scores, 0.0), labels, resampling.groups, is_valid=is_valid,
        n_resamples=resampling.n_resamples, seed=resampling.seed,
    )  # fmt: skip
    value = METRICS["auroc"](roc_counts(scores[is_valid], known))
    return Measured(float(value[0]), drawn["auroc"])


def _sums(
    columns: Float[np.ndarray, "answer column"], resampling: Resampling
) -> Float[np.ndarray, "draw column"]:
    """Sums over all answers in the first row, over those of each resample in the others."""
    groups, n_resamples, seed = resampling
    drawn = resample_sums(columns, groups, n_resamples=n_resamples, seed=seed)
    return np.concatenate([columns.sum(axis=0)[None], drawn])


def _measured(draws: Float[np.ndarray, "draw"]) -> Measured:
    return Measured(float(draws[0]), draws[1:])


def _reduced(
    values: Float[np.ndarray, "_"], reduce: Callable[[np.ndarray], np.floating[Any]]
) -> float:
    known = values[np.isfinite(values)]
    return float(reduce(known)) if len(known) else float("nan")
