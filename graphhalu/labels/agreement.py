"""How far two labellers agree, and what a threshold does to it. Pure functions on labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from graphhalu.errors import StoreMismatchError
from graphhalu.labels.labels import Labels


class Kappa(NamedTuple):
    """Cohen's kappa, or why there is none."""

    value: float | None
    reason: str | None = None


@dataclass(frozen=True)
class Agreement:
    """Two labellers on the traces that both could decide.

    Attributes:
        first: Name of the first labeller.
        second: Name of the second labeller.
        n_both: Traces with a valid label of both.
        confusion: Counts ``[label of the first][label of the second]``.
        share: Share of equal labels, or ``None`` without such traces.
        kappa: Agreement beyond chance, or why there is none.
        is_one_meaning: Whether a 1 means the same to both.
    """

    first: str
    second: str
    n_both: int
    confusion: tuple[tuple[int, int], tuple[int, int]]
    share: float | None
    kappa: Kappa
    is_one_meaning: bool = True


@dataclass(frozen=True)
class SweepRow:
    """What one threshold would label.

    Attributes:
        threshold: Scores below it are hallucinated.
        prevalence: Share of hallucinated answers.
        n_both: Answers that the reference decided too.
        kappa: Agreement with the reference on those.
    """

    threshold: float
    prevalence: float
    n_both: int
    kappa: Kappa


def cohen_kappa(
    first: Int[np.ndarray, "trace"],
    second: Int[np.ndarray, "trace"],
    names: tuple[str, str] = ("the first", "the second"),
) -> Kappa:
    """Agreement of two labellers beyond chance: 1 = full, 0 = as by chance, below 0 = worse.

    A labeller that gives one class only has no kappa: the formula would give 0, or divide by
    zero, whatever the other says.

    Args:
        first: 0 or 1 for each trace.
        second: 0 or 1 for each trace.
        names: What to call them in the reason.

    Source:
        Cohen 1960. Equal to scikit-learn's ``cohen_kappa_score`` where both classes occur.
    """
    if not len(first):
        return Kappa(None, "no answer is valid for both")
    for name, values in zip(names, (first, second), strict=True):
        if len(np.unique(values)) == 1:
            return Kappa(None, f"{name} gives one class only")
    observed = float((first == second).mean())
    share_first, share_second = float(first.mean()), float(second.mean())
    chance = share_first * share_second + (1 - share_first) * (1 - share_second)
    return Kappa((observed - chance) / (1 - chance))


def agreement(first: Labels, second: Labels) -> Agreement:
    """Compare two labellers on the traces that both could decide.

    Raises:
        StoreMismatchError: If their traces differ, or stand in another order.
    """
    if first.trace_ids != second.trace_ids:
        message = (
            f"the labels by {first.labeller!r} and {second.labeller!r} belong to different "
            f"traces ({len(first.trace_ids)} and {len(second.trace_ids)}); label the store again"
        )
        raise StoreMismatchError(message)
    both = first.is_valid & second.is_valid
    one, other = first.values[both].astype(np.int64), second.values[both].astype(np.int64)
    counts = np.bincount(2 * one + other, minlength=4).tolist()
    return Agreement(
        first=first.labeller,
        second=second.labeller,
        n_both=len(one),
        confusion=((counts[0], counts[1]), (counts[2], counts[3])),
        share=float((one == other).mean()) if len(one) else None,
        kappa=cohen_kappa(one, other, (first.labeller, second.labeller)),
        is_one_meaning=first.meaning == second.meaning,
    )


def threshold_sweep(
    scores: Float[np.ndarray, "trace"],
    is_decided: Bool[np.ndarray, "trace"],
    reference: Labels,
    thresholds: Sequence[float],
) -> list[SweepRow]:
    """Prevalence and agreement with a reference for each threshold; empty without a score.

    Args:
        scores: Likeness to a gold answer; below the threshold means hallucinated.
        is_decided: Which answers a threshold decides.
        reference: Labels of another rule for the same traces.
        thresholds: Thresholds to try.
    """
    if not is_decided.any():
        return []
    both = is_decided & reference.is_valid
    expected = reference.values[both].astype(np.int64)
    rows = []
    for threshold in thresholds:
        is_below = scores < threshold
        names = ("the threshold", reference.labeller)
        kappa = cohen_kappa(is_below[both].astype(np.int64), expected, names)
        prevalence = float(is_below[is_decided].mean())
        rows.append(SweepRow(float(threshold), prevalence, int(both.sum()), kappa))
    return rows
