"""Logistic regression over a whole path of penalties, for few traces and many columns.

Classes are balanced, the intercept is free, columns are standardised by the given traces, and
both penalties are relative, so that one grid serves 30 columns and 30,000.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.linalg import eigh, eigvalsh, solve
from scipy.optimize import minimize
from scipy.special import expit

L2_GRID: Final = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Strengths of a model under an L2 penalty: scikit-learn's ``C`` times the variance of all columns
together, which is the number of columns where nothing is reduced."""
L1_GRID: Final = (0.7, 0.5, 0.35, 0.25, 0.17, 0.12)
"""Penalties relative to the smallest one that leaves no column in."""
MAX_MISSING: Final = 0.5
"""A column that more of the training traces lack is left out."""
_SMALLEST: Final = 1e-6
_FEW_DIMENSIONS: Final = 96
_L1_TOLERANCE: Final = 1e-4


@dataclass(frozen=True)
class Scaling:
    """How raw columns become standardised ones, learnt on training traces.

    Attributes:
        median: Stands in for a missing value; 0 where the column is not used.
        scale: One over the standard deviation; 0 where the column is not used.
        mean: Mean after the medians stood in.
    """

    median: Float[np.ndarray, "column"]
    scale: Float[np.ndarray, "column"]
    mean: Float[np.ndarray, "column"]

    @classmethod
    def of(
        cls,
        values: Float[np.ndarray, "trace column"],
        median: Float[np.ndarray, "column"] | None = None,
    ) -> "Scaling":
        """Learn from training traces; constant columns and those that most lack are not used.

        Args:
            values: NaN where missing.
            median: Of the whole training side, within which this is one fold.
        """
        is_known = np.isfinite(values)
        is_kept = is_known.mean(axis=0) >= 1 - MAX_MISSING
        if median is None:
            median = np.zeros(values.shape[1])
            median[is_kept] = column_medians(values[:, is_kept])
        filled = np.where(is_known, values, median.astype(values.dtype))
        mean = filled.mean(axis=0, dtype=np.float64)
        filled -= mean.astype(filled.dtype)
        std = np.sqrt(np.einsum("ij,ij->j", filled, filled).astype(np.float64) / len(filled))
        is_kept &= std > _SMALLEST * np.maximum(np.abs(mean), _SMALLEST)
        scale = np.where(is_kept, 1 / np.where(is_kept, std, 1.0), 0.0)
        return cls(np.where(is_kept, median, 0.0), scale, np.where(is_kept, mean, 0.0))

    def widened(self, places: Int[np.ndarray, "column"], n_columns: int) -> "Scaling":
        """The same among more columns, which it does not use."""
        wide = np.zeros((3, n_columns))
        wide[:, places] = self.median, self.scale, self.mean
        return Scaling(*wide)

    def narrowed(self, places: Int[np.ndarray, "chosen"]) -> "Scaling":
        """Of some of the columns."""
        return Scaling(self.median[places], self.scale[places], self.mean[places])

    @property
    def is_used(self) -> Bool[np.ndarray, "column"]:
        """Columns that say anything."""
        return self.scale > 0

    def apply(self, values: Float[np.ndarray, "trace column"]) -> Float[np.ndarray, "trace kept"]:
        """Used columns, missing values filled in, standardised."""
        used = self.is_used
        scaled = values[:, used].astype(np.float64)
        is_missing = ~np.isfinite(scaled)
        if is_missing.any():
            scaled = np.where(is_missing, self.median[used], scaled)
        scaled -= self.mean[used]
        scaled *= self.scale[used]
        return scaled

    def linear(self, weight: Float[np.ndarray, "kept"], bias: float) -> "LinearModel":
        """The same model on raw columns."""
        raw = np.zeros(len(self.scale))
        raw[self.is_used] = weight * self.scale[self.is_used]
        return LinearModel(self.median, self.mean, raw, self.is_used, bias)


def column_medians(values: Float[np.ndarray, "trace column"]) -> Float[np.ndarray, "column"]:
    """Median of the known values of each column; every column has one."""
    by_column = np.ascontiguousarray(values.T)  # a median runs along memory several times faster
    if np.isfinite(by_column).all():
        return np.median(by_column, axis=1).astype(np.float64)
    known = np.where(np.isfinite(by_column), by_column, np.nan)
    return np.nanmedian(known, axis=1).astype(np.float64)


@dataclass(frozen=True)
class LinearModel:
    """Scaling, reduction and regression folded into one weight a raw column.

    Attributes:
        median: Stands in for a missing value.
        mean: Taken off before weighting, which keeps the bias small.
        weight: 0 for a column that is not read, and where a sparse penalty says so.
        is_used: Columns that are read.
        bias: Logit of a trace that is at the mean everywhere.
    """

    median: Float[np.ndarray, "column"]
    mean: Float[np.ndarray, "column"]
    weight: Float[np.ndarray, "column"]
    is_used: Bool[np.ndarray, "column"]
    bias: float

    @property
    def n_parameters(self) -> int:
        """Weights that are not 0, and the bias."""
        return int(np.count_nonzero(self.weight)) + 1

    def arrays(self) -> dict[str, np.ndarray]:
        """All that a saved model holds."""
        found = {name: getattr(self, name) for name in ("median", "mean", "weight", "is_used")}
        return {**found, "bias": np.array([self.bias], dtype=np.float64)}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "LinearModel":
        """Inverse of :meth:`arrays`.

        Raises:
            KeyError: If one is missing.
            ValueError: If they do not fit each other.
        """
        shapes = {name: arrays[name].shape for name in ("median", "mean", "weight", "is_used")}
        if set(shapes.values()) != {(arrays["weight"].size,)}:
            message = f"arrays of one length expected, got {shapes}"
            raise ValueError(message)
        median, mean, weight = (arrays[name] for name in ("median", "mean", "weight"))
        return cls(median, mean, weight, arrays["is_used"], float(arrays["bias"][0]))

    def widened(self, places: Int[np.ndarray, "column"], n_columns: int) -> "LinearModel":
        """The same model among more columns, which it does not read."""
        wide = np.zeros((3, n_columns))
        wide[:, places] = self.median, self.mean, self.weight
        is_used = np.zeros(n_columns, dtype=bool)
        is_used[places] = self.is_used
        return LinearModel(wide[0], wide[1], wide[2], is_used, self.bias)

    def logits(self, values: Float[np.ndarray, "trace column"]) -> Float[np.ndarray, "trace"]:
        """One logit a trace, NaN where every column that is read is missing.

        The sum runs row by row and not through a matrix product, whose rounding depends on how
        many rows there are: a trace has the same score alone and among others.
        """
        return np.where(
            self._is_known(values), self._weighted(values).sum(axis=1) + self.bias, np.nan
        )

    def parts(self, values: Float[np.ndarray, "trace column"]) -> Float[np.ndarray, "trace column"]:
        """What each column adds to the bias; NaN where every column that is read is missing."""
        parts = np.zeros(values.shape)
        parts[:, self.is_used] = self._weighted(values)
        parts[~self._is_known(values)] = np.nan
        return parts

    def _is_known(self, values: Float[np.ndarray, "trace column"]) -> Bool[np.ndarray, "trace"]:
        return np.isfinite(values[:, self.is_used]).any(axis=1)

    def _weighted(
        self, values: Float[np.ndarray, "trace column"]
    ) -> Float[np.ndarray, "trace used"]:
        used = self.is_used
        kept = np.ascontiguousarray(values[:, used], dtype=np.float64)
        filled = np.where(np.isfinite(kept), kept, self.median[used])
        return np.ascontiguousarray((filled - self.mean[used]) * self.weight[used])


def balanced_weights(labels: Int[np.ndarray, "trace"]) -> Float[np.ndarray, "trace"]:
    """A weight a trace, so that both classes weigh alike; their mean is 1."""
    counts = np.bincount(labels, minlength=2)
    weights: Float[np.ndarray, "trace"] = len(labels) / (2.0 * counts[labels])
    return weights


@dataclass(frozen=True)
class Rotation:
    """Standardised columns in their principal axes, largest variance first.

    Attributes:
        scores: The traces, component by component.
        values: The standardised columns.
        back: From weights of components to weights of columns; where there are more columns than
            traces to weights of traces, which then weigh their columns.
        is_wide: Which of the two ``back`` is.
    """

    scores: Float[np.ndarray, "trace component"]
    values: Float[np.ndarray, "trace kept"]
    back: Float[np.ndarray, "place component"]
    is_wide: bool

    @classmethod
    def of(cls, values: Float[np.ndarray, "trace kept"], n_components: int = 512) -> "Rotation":
        """Rotate through the smaller of the two products of the columns.

        An L2 penalty does not notice a rotation, so with all components the model is that of the
        columns themselves, at the price of as many dimensions as there are traces.

        Args:
            values: Standardised.
            n_components: Keep at most so many.
        """
        is_wide = values.shape[1] > values.shape[0]
        product = values @ values.T if is_wide else values.T @ values
        size = len(product)
        if not size:
            return cls(np.zeros((len(values), 0)), values, np.zeros((0, 0)), is_wide)
        places = (max(0, size - n_components), size - 1)
        variance, vectors = eigh(product, subset_by_index=places, check_finite=False)
        order = np.flatnonzero(variance > _SMALLEST * max(float(variance[-1]), _SMALLEST))[::-1]
        variance, vectors = np.sqrt(variance[order]), np.ascontiguousarray(vectors[:, order])
        if is_wide:
            return cls(vectors * variance, values, vectors / variance, is_wide)
        return cls(values @ vectors, values, vectors, is_wide)

    def columns(
        self, weights: Float[np.ndarray, "component candidate"]
    ) -> Float[np.ndarray, "kept candidate"]:
        """Weights of columns from weights of the first components."""
        back = self.back[:, : len(weights)] @ weights
        return self.values.T @ back if self.is_wide else back


class Solution(NamedTuple):
    """One point of a path of penalties."""

    weight: Float[np.ndarray, "kept"]
    bias: float


def l2_path(
    values: Float[np.ndarray, "trace kept"],
    labels: Int[np.ndarray, "trace"],
    strengths: Sequence[float] = L2_GRID,
) -> Iterator[Solution]:
    """Logistic regressions under an L2 penalty, from weak to strong, each from the one before.

    Minimises ``sum_i s_i log(1 + exp(-y_i m_i)) + |w|^2 V / (2 c)`` with balanced weights ``s``,
    total variance ``V`` and strength ``c``, to a gradient of 1e-5 a trace.
    """
    share = balanced_weights(labels) / len(labels)
    sign = 2.0 * labels - 1.0
    total_variance = max(float(np.square(values).sum()) / len(values), _SMALLEST)
    solve_at = _newton if values.shape[1] <= _FEW_DIMENSIONS else _quasi_newton
    point = np.zeros(values.shape[1] + 1)
    for strength in strengths:
        penalty = total_variance / (strength * len(labels))
        point = solve_at(point, values, sign, share, penalty)
        yield Solution(point[:-1].copy(), float(point[-1]))


def _quasi_newton(
    start: Float[np.ndarray, "dimension"],
    values: Float[np.ndarray, "trace kept"],
    sign: Float[np.ndarray, "trace"],
    share: Float[np.ndarray, "trace"],
    penalty: float,
) -> Float[np.ndarray, "dimension"]:
    found: Float[np.ndarray, "dimension"] = minimize(
        _l2_loss, start, (values, sign, share, penalty), method="L-BFGS-B", jac=True,
        options={"maxiter": 500, "gtol": 1e-5, "ftol": 1e-12},
    ).x  # fmt: skip
    return found


def _newton(
    start: Float[np.ndarray, "dimension"],
    values: Float[np.ndarray, "trace kept"],
    sign: Float[np.ndarray, "trace"],
    share: Float[np.ndarray, "trace"],
    penalty: float,
) -> Float[np.ndarray, "dimension"]:
    """Newton's method with step halving; several times faster where there are few dimensions."""
    wide = np.column_stack([values, np.ones(len(values))])
    ridge = np.append(np.full(values.shape[1], penalty), 0.0)
    point = start
    loss, gradient = _l2_loss(point, values, sign, share, penalty)
    for _ in range(50):
        if float(np.abs(gradient).max()) < 1e-8:  # noqa: PLR2004
            break
        odds = expit(wide @ point)
        curvature = (wide * (share * odds * (1 - odds))[:, None]).T @ wide
        curvature[np.diag_indices_from(curvature)] += ridge + 1e-12
        step = solve(curvature, gradient, assume_a="pos", check_finite=False)
        moved = point - step
        new_loss, gradient = _l2_loss(moved, values, sign, share, penalty)
        for _ in range(20):
            if new_loss <= loss:
                break
            step = step / 2
            moved = point - step
            new_loss, gradient = _l2_loss(moved, values, sign, share, penalty)
        point, loss = moved, new_loss
    return point


def _l2_loss(
    point: Float[np.ndarray, "dimension"],
    values: Float[np.ndarray, "trace kept"],
    sign: Float[np.ndarray, "trace"],
    share: Float[np.ndarray, "trace"],
    penalty: float,
) -> tuple[float, Float[np.ndarray, "dimension"]]:
    weight = point[:-1]
    margin = sign * (values @ weight + point[-1])
    loss = float(share @ np.logaddexp(0.0, -margin)) + 0.5 * penalty * float(weight @ weight)
    slope = -sign * share * expit(-margin)
    return loss, np.append(values.T @ slope + penalty * weight, slope.sum())


def l1_path(
    values: Float[np.ndarray, "trace kept"],
    labels: Int[np.ndarray, "trace"],
    penalties: Sequence[float] = L1_GRID,
) -> Iterator[Solution]:
    """Logistic regressions under an L1 penalty, sparsest first, each from the one before.

    Minimises ``mean_i s_i log(1 + exp(-y_i m_i)) + penalty * limit * |w|_1``, where ``limit`` is
    the smallest penalty under which all weights are 0. Only columns that may leave 0 are worked
    on; a column outside that violates its condition joins, until none does.
    """
    share = balanced_weights(labels) / len(labels)
    sign = 2.0 * labels - 1.0
    weight, bias = np.zeros(values.shape[1]), 0.0
    gradient = np.abs(values.T @ (sign * share)) / 2  # at 0 every trace has the probability 1/2
    limit = float(gradient.max(initial=0.0))
    for penalty in (limit * relative for relative in penalties):
        is_active = (weight != 0) | (gradient > penalty)
        while True:
            chosen = np.flatnonzero(is_active)
            weight[chosen], bias = _shrink(
                np.ascontiguousarray(values[:, chosen]), sign, share,
                Solution(weight[chosen], bias), penalty,
            )  # fmt: skip
            slope = -sign * share * expit(-sign * (values[:, chosen] @ weight[chosen] + bias))
            gradient = np.abs(values.T @ slope)
            is_wrong = ~is_active & (gradient > penalty * 1.001)
            if not is_wrong.any():
                break
            is_active |= is_wrong
        yield Solution(weight.copy(), bias)


def _shrink(
    values: Float[np.ndarray, "trace chosen"],
    sign: Float[np.ndarray, "trace"],
    share: Float[np.ndarray, "trace"],
    start: Solution,
    penalty: float,
) -> Solution:
    """Accelerated proximal gradient with restarts (Beck & Teboulle 2009) on a few columns."""
    wide = np.column_stack([values, np.ones(len(values))])
    point = np.append(start.weight, start.bias)
    threshold = np.append(np.full(values.shape[1], penalty), 0.0)
    product = (wide * share[:, None]).T @ wide
    last = len(product) - 1
    steepest = float(eigvalsh(product, subset_by_index=(last, last), check_finite=False)[0])
    step = 4.0 / max(steepest, _SMALLEST)
    ahead, momentum = point, 1.0
    for _ in range(2000):
        slope = -sign * share * expit(-sign * (wide @ ahead))
        moved = ahead - step * (slope @ wide)
        moved = np.sign(moved) * np.maximum(np.abs(moved) - step * threshold, 0.0)
        change = moved - point
        if float(np.abs(change).max()) < _L1_TOLERANCE * float(np.abs(moved).max()) + 1e-12:
            point = moved
            break
        if float((ahead - moved) @ change) > 0:
            momentum = 1.0
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = moved + (momentum - 1) / following * change
        point, momentum = moved, following
    return Solution(point[:-1], float(point[-1]))
