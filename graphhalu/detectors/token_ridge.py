"""Linear discriminant with a ridge penalty in closed form, and the choice of what it reads.

The classes are balanced, the intercept is free, and columns are standardised by the tokens that
are learnt from. All of it follows from sums of products of the columns, and these add up: one
pass gives the sums of each part of the training side, and every fold of it then costs as much
as a linear system, however many tokens there are.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.linalg import LinAlgError, solve

from graphhalu.detectors.probes.logistic import LinearModel
from graphhalu.detectors.sides import auroc
from graphhalu.detectors.token_features import View

STRENGTHS: Final = (1.0, 0.1, 0.01, 0.001)
"""Penalties, the strongest first: each times the number of columns is added to the diagonal of
their correlations."""
_SMALLEST: Final = 1e-6
_CLEARLY: Final = 1e-3
_FALLBACK: Final = 1
"""Place of the penalty that is taken where there are no folds to choose by."""

Views = tuple[View, ...]


class Standard(NamedTuple):
    """How raw columns become those whose products are summed; learnt without labels.

    Attributes:
        mean: Mean of the known values; stands in for a missing one.
        scale: One over the standard deviation; 0 for a column that says nothing.
    """

    mean: Float[np.ndarray, "column"]
    scale: Float[np.ndarray, "column"]

    @classmethod
    def of(cls, values: Float[np.ndarray, "token column"]) -> "Standard":
        """Learn from training tokens; a constant column is not used, nor one without a value."""
        is_known = np.isfinite(values)
        count = np.maximum(is_known.sum(axis=0), 1)
        mean = np.where(is_known, values, 0).sum(axis=0, dtype=np.float64) / count
        centred = np.where(is_known, values - mean.astype(values.dtype), 0)
        std = np.sqrt(np.einsum("ij,ij->j", centred, centred).astype(np.float64) / count)
        is_used = std > _SMALLEST * np.maximum(np.abs(mean), _SMALLEST)
        return cls(mean, np.where(is_used, 1 / np.where(is_used, std, 1.0), 0.0))

    def apply(self, values: Float[np.ndarray, "token column"]) -> Float[np.ndarray, "token column"]:
        """Standardised values, 0 where missing."""
        centred = (values - self.mean) * self.scale
        return np.where(np.isfinite(centred), centred, 0).astype(np.float32)

    def linear(self, weight: Float[np.ndarray, "column"], bias: float) -> LinearModel:
        """The same model on raw columns."""
        return LinearModel(self.mean, self.mean, weight * self.scale, self.scale > 0, bias)


@dataclass(frozen=True)
class Moments:
    """Sums over the tokens of each part of the training side, class by class.

    Attributes:
        count: Tokens.
        total: Sum of each column.
        product: Sum of the products of each two columns.
    """

    count: Float[np.ndarray, "part 2"]
    total: Float[np.ndarray, "part 2 column"]
    product: Float[np.ndarray, "part 2 column column"]

    @classmethod
    def of(
        cls,
        values: Float[np.ndarray, "token column"],
        labels: Int[np.ndarray, "token"],
        part: Int[np.ndarray, "token"],
        n_parts: int,
    ) -> "Moments":
        """Sum up; ``part`` says to which part of the side each token belongs."""
        n_columns = values.shape[1]
        count = np.zeros((n_parts, 2))
        total = np.zeros((n_parts, 2, n_columns))
        product = np.zeros((n_parts, 2, n_columns, n_columns), dtype=np.float32)
        for number in range(n_parts):
            for label in (0, 1):
                chosen = values[(part == number) & (labels == label)]
                count[number, label] = len(chosen)
                total[number, label] = chosen.sum(axis=0, dtype=np.float64)
                product[number, label] = chosen.T @ chosen
        return cls(count, total, product)

    def models(
        self, is_chosen: Bool[np.ndarray, "part"], strengths: Sequence[float] = STRENGTHS
    ) -> Iterator[tuple[Float[np.ndarray, "column"], float]]:
        """Weights and bias for each penalty, learnt from the chosen parts.

        Minimises ``sum_i s_i (y_i - z_i u - b)^2 + strength * columns * |u|^2`` over
        standardised columns ``z`` and ``y`` of -1 and 1, with weights ``s`` that sum to 1 and let
        both classes weigh alike: a regularised linear discriminant.
        """
        share = 0.5 / self.count[is_chosen].sum(axis=0)
        of_class = self.total[is_chosen].sum(axis=0) * share[:, None]
        mean, difference = of_class.sum(axis=0), of_class[1] - of_class[0]
        square = np.einsum("pckl,c->kl", self.product[is_chosen], share.astype(np.float32))
        covariance = square.astype(np.float64) - np.outer(mean, mean)
        variance = np.diag(covariance)
        used = np.flatnonzero(variance > _SMALLEST)
        std = np.sqrt(variance[used])
        correlation = covariance[np.ix_(used, used)] / np.outer(std, std)
        target = difference[used] / std
        for strength in strengths:
            ridge = correlation + strength * max(len(used), 1) * np.eye(len(used))
            weight = np.zeros(len(mean))
            weight[used] = _solved(ridge, target) / std
            yield weight, -float(mean @ weight)


def _solved(
    matrix: Float[np.ndarray, "used used"], target: Float[np.ndarray, "used"]
) -> Float[np.ndarray, "used"]:
    try:
        found: Float[np.ndarray, "used"] = solve(matrix, target, assume_a="pos", check_finite=False)
    except LinAlgError:  # rounding in single precision can leave a matrix just short of positive
        found = np.linalg.lstsq(matrix, target, rcond=None)[0]
    return found


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
