"""The choices of a token probe, by folds within the training side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int

from graphhalu.detectors.probes.logistic import LinearModel
from graphhalu.detectors.sides import auroc
from graphhalu.detectors.tokens.ridge import STRENGTHS, Moments, Standard
from graphhalu.detectors.tokens.views import View

Views = tuple[View, ...]
_CLEARLY: Final = 1e-3
_FALLBACK: Final = 1
"""Place of the penalty that is taken where there are no folds to choose by."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of a training side.

    Attributes:
        read: The columns of some views, side by side.
        labels: 1 = hallucinated.
        part: Part of the side that each token belongs to; all tokens of a context share one.
        n_parts: How many parts; 1 = too few contexts to choose by.
    """

    read: Callable[[Views], Float[np.ndarray, "token column"]]
    labels: Int[np.ndarray, "token"]
    part: Int[np.ndarray, "token"]
    n_parts: int


@dataclass(frozen=True)
class Candidate:
    """Views with their best penalty, as the folds see it."""

    views: Views
    strength: float
    inner_auroc: float | None


def choose(tokens: Tokens, families: Sequence[Sequence[View]], *, is_joint: bool) -> Candidate:
    """The best views and penalty by the mean AUROC of tokens over the folds.

    Each family is read in the way that is best for it alone; then the families compete, and all
    of them together where that is wanted. Among candidates within 0.001 of the best the first
    and most strongly penalised is taken.

    Args:
        tokens: The training side.
        families: Every view of each family.
        is_joint: Whether the best views of all families together compete too; of hidden states
            only the best layer.
    """
    best = [_best([_judged(tokens, (view,)) for view in views]) for views in families]
    candidates = list(best)
    if is_joint and len(best) > 1:
        candidates.append(_judged(tokens, _one_of_each_kind(best)))
    return _best(candidates)


def fitted(tokens: Tokens, chosen: Candidate) -> LinearModel:
    """The chosen candidate on the whole side, as weights of raw columns."""
    values = tokens.read(chosen.views)
    standard = Standard.of(values)
    moments = Moments.of(standard.apply(values), tokens.labels, np.zeros_like(tokens.part), 1)
    weight, bias = next(moments.models(np.ones(1, dtype=np.bool_), (chosen.strength,)))
    return standard.linear(weight, bias)


def described(chosen: Candidate) -> dict[str, Any]:
    """A candidate as plain values."""
    return {
        "views": [view._asdict() for view in chosen.views],
        "strength": chosen.strength,
        "inner_auroc": chosen.inner_auroc,
    }


def _judged(tokens: Tokens, views: Views) -> Candidate:
    """The best penalty of some views."""
    if tokens.n_parts == 1:
        return Candidate(views, STRENGTHS[_FALLBACK], None)
    raw = tokens.read(views)
    values = Standard.of(raw).apply(raw)
    moments = Moments.of(values, tokens.labels, tokens.part, tokens.n_parts)
    aurocs = np.zeros((tokens.n_parts, len(STRENGTHS)))
    for held_out in range(tokens.n_parts):
        is_chosen = np.arange(tokens.n_parts) != held_out
        is_held_out = tokens.part == held_out
        for place, (weight, _) in enumerate(moments.models(is_chosen)):
            logits = values[is_held_out] @ weight
            aurocs[held_out, place] = auroc(logits, tokens.labels[is_held_out])
    mean = aurocs.mean(axis=0)
    place = int(np.flatnonzero(mean >= mean.max() - _CLEARLY)[0])
    return Candidate(views, STRENGTHS[place], float(mean[place]))


def _best(candidates: Sequence[Candidate]) -> Candidate:
    values = np.array([each.inner_auroc or 0.0 for each in candidates])
    return candidates[int(np.flatnonzero(values >= values.max() - _CLEARLY)[0])]


def _one_of_each_kind(best: Sequence[Candidate]) -> Views:
    """The view of each family; of families that differ in the layer only, the best one."""
    kinds: dict[str, Candidate] = {}
    for each in best:
        kind = each.views[0].family.partition(".")[0]
        kept = kinds.get(kind)
        if kept is None or (each.inner_auroc or 0.0) > (kept.inner_auroc or 0.0):
            kinds[kind] = each
    return tuple(each.views[0] for each in kinds.values())
