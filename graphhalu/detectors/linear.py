"""Logistic regression over a path of penalties with scikit-learn, and linear models of columns.

Classes are balanced, the intercept is free, columns are standardised by the given traces, and
both penalties are relative, so that one grid serves 30 columns and 30,000.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.linalg import eigh
from scipy.special import expit

Truth = Int[np.ndarray, "trace"]

Kept = Float[np.ndarray, "trace kept"]

L2_GRID: Final = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Strengths of a model under an L2 penalty: scikit-learn's ``C`` times the variance of all columns
together, which is the number of columns where nothing is reduced."""
L1_GRID: Final = (0.7, 0.5, 0.35, 0.25, 0.17, 0.12)
"""Penalties relative to the smallest one that leaves no column in."""
MAX_MISSING: Final = 0.5
"""A column that more of the training traces lack is left out."""
_SMALLEST: Final = 1e-6
_FEW_DIMENSIONS: Final = 512
"""Above this L-BFGS takes the place of Newton's method, which factors a square matrix a step."""


class Scaling(NamedTuple):
    """How raw columns become standardised ones, learnt on training items: traces or tokens.

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
        *,
        has_all_medians: bool = True,
    ) -> "Scaling":
        """Learn from training items; constant columns and those that most items lack are not used.

        Args:
            values: NaN where missing.
            median: Of the whole training set, of which this is one fold.
            has_all_medians: Whether columns without a missing value get theirs too: those of
                50,000 columns take seconds, and only other items can need them.
        """
        is_known = np.isfinite(values)
        is_kept = is_known.mean(axis=0) >= 1 - MAX_MISSING
        if median is None:
            median = np.zeros(values.shape[1])
            needed = is_kept & (has_all_medians | ~is_known.all(axis=0))
            median[needed] = column_medians(values[:, needed])
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
        wide[:, places] = self
        return Scaling(*wide)

    @property
    def is_used(self) -> Bool[np.ndarray, "column"]:
        """Columns that say anything."""
        return self.scale > 0

    def apply(self, values: Float[np.ndarray, "trace column"], dtype: Any = np.float64) -> Kept:
        """Used columns, missing values filled in, standardised."""
        used = self.is_used
        median, scale, mean = (part[used].astype(dtype) for part in self)
        scaled = values[:, used].astype(dtype)
        is_missing = ~np.isfinite(scaled)
        if is_missing.any():
            scaled = np.where(is_missing, median, scaled)
        scaled -= mean
        scaled *= scale
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
        parts = {name: arrays[name] for name in ("median", "mean", "weight", "is_used")}
        shapes = {name: part.shape for name, part in parts.items()}
        if set(shapes.values()) != {(parts["weight"].size,)}:
            raise ValueError(f"arrays of one length expected, got {shapes}")
        return cls(**parts, bias=float(arrays["bias"][0]))

    def logits(self, values: Float[np.ndarray, "trace column"]) -> Float[np.ndarray, "trace"]:
        """One logit a trace, NaN where every column that is read is missing.

        The sum runs row by row and not through a matrix product, whose rounding depends on how
        many rows there are: a trace has the same score alone and among others.
        """
        return np.where(self._is_known(values), self._weighted(values).sum(axis=1) + self.bias, np.nan)

    def parts(self, values: Float[np.ndarray, "trace column"]) -> Float[np.ndarray, "trace column"]:
        """What each column adds to the bias; NaN where every column that is read is missing."""
        parts = np.zeros(values.shape)
        parts[:, self.is_used] = self._weighted(values)
        parts[~self._is_known(values)] = np.nan
        return parts

    def _is_known(self, values: Float[np.ndarray, "trace column"]) -> Bool[np.ndarray, "trace"]:
        return np.isfinite(values[:, self.is_used]).any(axis=1)

    def _weighted(self, values: Float[np.ndarray, "trace column"]) -> Float[np.ndarray, "trace used"]:
        used = self.is_used
        kept = np.ascontiguousarray(values[:, used], dtype=np.float64)
        filled = np.where(np.isfinite(kept), kept, self.median[used])
        return np.ascontiguousarray((filled - self.mean[used]) * self.weight[used])


class Rotation(NamedTuple):
    """Standardised columns in their principal axes, largest variance first.

    An L2 penalty does not notice a rotation, so with all components a model is that of the
    columns themselves, at the price of as many dimensions as there are traces.

    Attributes:
        scores: The traces, component by component.
        span: What components are sums of: columns, or traces where there are fewer of them.
        back: Share of each of these in each component.
    """

    scores: Float[np.ndarray, "trace component"]
    span: Float[np.ndarray, "place kept"] | None
    back: Float[np.ndarray, "place component"]

    @classmethod
    def of(cls, values: Kept, n_components: int = 512) -> "Rotation":
        """Rotate standardised columns; keep at most so many components that vary."""
        if not values.size:
            return cls(np.zeros((len(values), 0)), None, np.zeros((values.shape[1], 0)))
        # through the smaller of the two products, several times faster than a decomposition
        is_wide = values.shape[1] > len(values)
        product = values @ values.T if is_wide else values.T @ values
        ends = (max(0, len(product) - n_components), len(product) - 1)
        variance, vectors = eigh(product, subset_by_index=ends, check_finite=False)
        order = np.flatnonzero(variance > _SMALLEST * max(float(variance[-1]), _SMALLEST))[::-1]
        size, vectors = np.sqrt(variance[order]), np.ascontiguousarray(vectors[:, order])
        if is_wide:
            return cls(vectors * size, values, vectors / size)
        return cls(values @ vectors, None, vectors)

    def turned(self, values: Float[np.ndarray, "other kept"]) -> Float[np.ndarray, "other component"]:
        """Other traces, component by component."""
        return (values if self.span is None else values @ self.span.T) @ self.back

    def columns(
        self, weights: Float[np.ndarray, "component *candidate"]
    ) -> Float[np.ndarray, "kept *candidate"]:
        """Weights of columns from weights of the first components."""
        back = self.back[:, : len(weights)] @ weights
        return back if self.span is None else self.span.T @ back


class Solution(NamedTuple):
    """One point of a path of penalties."""

    weight: Float[np.ndarray, "kept"]
    bias: float

    def logits(self, values: Kept) -> Float[np.ndarray, "trace"]:
        """One logit a trace."""
        return values @ self.weight + self.bias


def l2_path(values: Kept, labels: Truth, strengths: Sequence[float] = L2_GRID) -> list[Solution]:
    """Logistic regressions under an L2 penalty, each begun at the one before.

    Minimises ``sum_i s_i log(1 + exp(-y_i m_i)) + |w|^2 V / (2 c)`` with balanced weights ``s``,
    total variance ``V`` and strength ``c``.
    """
    from sklearn import config_context
    from sklearn.linear_model import LogisticRegression
    from sklearn.utils.class_weight import compute_sample_weight

    total_variance = max(float(np.square(values).sum()) / len(values), _SMALLEST)
    solver = "newton-cholesky" if values.shape[1] <= _FEW_DIMENSIONS else "lbfgs"
    model = LogisticRegression(solver=solver, warm_start=True, tol=1e-5, max_iter=500)
    weights = compute_sample_weight("balanced", labels)
    found = []
    # scikit-learn's checks take as long as these fits
    with config_context(assume_finite=True, skip_parameter_validation=True):
        for strength in strengths if values.shape[1] else ():
            model.C = strength / total_variance
            model.fit(values, labels, weights)
            found.append(Solution(model.coef_[0].copy(), float(model.intercept_[0])))
    return found or [Solution(np.zeros(0), 0.0)] * len(strengths)


def l1_path(values: Kept, labels: Truth, penalties: Sequence[float] = L1_GRID) -> list[Solution]:
    """Logistic regressions under an L1 penalty, sparsest first.

    Minimises ``mean_i s_i log(1 + exp(-y_i m_i)) + penalty * limit * |w|_1``, where ``limit`` is
    the smallest penalty under which all weights are 0. Only columns that may leave 0 are given to
    scikit-learn, ten times faster with 6,000 columns; one outside that violates its condition joins.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.utils.class_weight import compute_sample_weight

    share = compute_sample_weight("balanced", labels) / len(labels)
    weight, bias = np.zeros(values.shape[1]), 0.0
    gradient = np.abs(values.T @ (share * (labels - 0.5)))  # at 0 every trace has the odds 1/2
    limit = float(gradient.max(initial=0.0))
    settings = {"l1_ratio": 1, "solver": "liblinear", "intercept_scaling": 10.0, "max_iter": 1000}
    found = []
    for penalty in (limit * relative for relative in penalties):
        is_wrong, is_active = gradient > penalty, weight != 0
        while is_wrong.any():
            is_active |= is_wrong
            model = LogisticRegression(C=1 / penalty, random_state=0, **settings)
            model.fit(values[:, is_active], labels, share)
            weight[is_active], bias = model.coef_[0], float(model.intercept_[0])
            odds = expit(values[:, is_active] @ weight[is_active] + bias)
            gradient = np.abs(values.T @ (share * (labels - odds)))
            is_wrong = ~is_active & (gradient > penalty * 1.001)
        found.append(Solution(weight.copy(), bias))
    return found
