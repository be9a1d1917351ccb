"""Metrics of token scores that those of single items do not have: by answer and by span."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int

from graphhalu.core.numerics import auroc
from graphhalu.evaluation.crossfit import OutOfFold
from graphhalu.evaluation.significance import CommonGround
from graphhalu.evaluation.token_spans import MarkedAnswer, SpanCounts, count_spans
from graphhalu.evaluation.weighted_metrics import ratio
from graphhalu.labels.labels import Labels

TOKEN_METRICS: Final = (
    "within_auroc",
    "char_precision",
    "char_recall",
    "char_f1",
    "span_precision",
    "span_recall",
    "span_f1",
    "answer_auroc_max",
    "answer_auroc_mean",
)
"""Their names, in the order of a table."""
_REDUCED: Final[dict[str, Callable[[np.ndarray], np.floating[Any]]]] = {"max": np.max, "mean": np.mean}


def token_metrics(
    fit: OutOfFold, labels: Labels, marked: Sequence[MarkedAnswer], answers: CommonGround
) -> dict[str, Float[np.ndarray, "row"]]:
    """Every metric of :data:`TOKEN_METRICS` over the answers that one seed tested.

    Args:
        fit: Scores of the tokens.
        labels: Labels of tokens.
        marked: The characters of all answers.
        answers: Labels and groups of all answers, and how contexts are drawn.

    Returns:
        The metric, NaN where it is not defined, and behind it the same on each resample.
    """
    tested = np.unique(labels.owner[fit.is_tested])
    ground = replace(answers, labels=answers.labels[tested], groups=answers.groups[tested])
    places = [labels.places(tested[at : at + 1]) for at in range(len(tested))]
    scores = [fit.values[own] for own in places]
    counts = [
        count_spans(marked[index], fit.is_predicted_positive[own])
        for index, own in zip(tested.tolist(), places, strict=True)
    ]
    truth = [labels.items[own] for own in places]
    found = {"within_auroc": _within(scores, truth, ground), **_spans(counts, ground)}
    for name, reduce in _REDUCED.items():
        known = [values[np.isfinite(values)] for values in scores]
        values = np.array([reduce(each) if len(each) else np.nan for each in known])
        found[f"answer_auroc_{name}"] = _answers(values, ground)
    return found


def _within(
    scores: Sequence[Float[np.ndarray, "_"]], truth: Sequence[Int[np.ndarray, "_"]], ground: CommonGround
) -> Float[np.ndarray, "row"]:
    """Mean AUROC over the tokens of one hallucinated answer, whatever other answers score."""
    columns = np.zeros((len(scores), 2))
    for row, (values, labels) in enumerate(zip(scores, truth, strict=True)):
        is_valid = np.isfinite(values)
        if 0 < labels[is_valid].sum() < is_valid.sum():
            columns[row] = auroc(values[is_valid], labels[is_valid]), 1.0
    return ratio(*ground.sums(columns).T)


def _spans(counts: Sequence[SpanCounts], ground: CommonGround) -> dict[str, Float[np.ndarray, "row"]]:
    """Precision, recall and F1 of characters and spans, summed over answers."""
    sums: Any = SpanCounts(*ground.sums(np.array(counts, dtype=np.float64)).T)
    found = {
        "char_precision": ratio(sums.right, sums.called),
        "char_recall": ratio(sums.right, sums.marked),
        "char_f1": ratio(2 * sums.right, sums.called + sums.marked),
        "span_precision": ratio(sums.right_spans, sums.called_spans),
        "span_recall": ratio(sums.found_spans, sums.marked_spans),
    }
    # without a predicted span there is no precision, and F1 is 0 as long as anything is marked
    precision, recall = np.nan_to_num(found["span_precision"]), found["span_recall"]
    both = precision + recall
    found["span_f1"] = np.where(both == 0, both, ratio(2 * precision * recall, both))
    return found


def _answers(scores: Float[np.ndarray, "answer"], ground: CommonGround) -> Float[np.ndarray, "row"]:
    """AUROC over answers, each with one number of its tokens."""
    is_valid = np.isfinite(scores)
    known = ground.labels[is_valid]
    if not 0 < known.sum() < len(known):
        return np.full(1 + ground.n_resamples, np.nan)
    drawn = ground.resample(["auroc"], scores, is_valid)["auroc"]
    return np.append(auroc(scores[is_valid], known), drawn)
