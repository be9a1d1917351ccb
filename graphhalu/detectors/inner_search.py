"""The choices of a probe (columns, components, penalty) by folds within the training side.

The validation side takes no part: a comparison fits calibration and threshold there.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.core.numerics import auroc
from graphhalu.core.splits import InnerFold, inner_folds
from graphhalu.detectors.linear import (
    L1_GRID,
    L2_GRID,
    LinearModel,
    Rotation,
    Scaling,
    Solution,
    l1_path,
    l2_path,
)

ALL_COMPONENTS: Final = 512
CLEARLY: Final = 1e-3
"""Differences of AUROC below it do not decide; the simpler candidate is taken."""


@dataclass(frozen=True)
class Side:
    """Columns and labels of the training traces.

    Attributes:
        values: Features; NaN where missing.
        columns: Names of the columns.
        labels: 1 = hallucinated.
        groups: Question group of each trace.
        seed: Of what is random in a method.
    """

    values: Float[np.ndarray, "trace column"]
    columns: tuple[str, ...]
    labels: Int[np.ndarray, "trace"]
    groups: Shaped[np.ndarray, "trace"]
    seed: int = 0


@dataclass(frozen=True)
class Grid:
    """What a logistic probe chooses from.

    Attributes:
        views: Name of each choice of columns, and their places.
        penalty: ``"l2"`` after a rotation into principal components, or ``"l1"``.
        components: Numbers of components, for L2; one larger than there are keeps all.
        strengths: Of :func:`l2_path`, or penalties of :func:`l1_path`; the simplest model first.
        n_screened: Views that a ridge regression lets through to the search.
    """

    views: Mapping[str, Int[np.ndarray, "_"]]
    penalty: Literal["l2", "l1"] = "l2"
    components: tuple[int, ...] = (ALL_COMPONENTS,)
    strengths: tuple[float, ...] = ()
    n_screened: int = 4

    @property
    def path(self) -> tuple[float, ...]:
        """The strengths, or the usual ones of the penalty."""
        return self.strengths or (L2_GRID if self.penalty == "l2" else L1_GRID)


@dataclass(frozen=True)
class Learned:
    """A fitted model, and how it was chosen.

    Attributes:
        model: Fitted on the whole side.
        out_of_fold: Logit of each trace from a fold's model that never saw its question; NaN
            where there were no folds, and for methods that use none.
        report: Plain values for the record.
    """

    model: Any
    out_of_fold: Float[np.ndarray, "trace"]
    report: Mapping[str, Any]


def folds_of(
    labels: Int[np.ndarray, "trace"], groups: Shaped[np.ndarray, "trace"], *, n_folds: int, seed: int
) -> list[InnerFold]:
    """Grouped folds in which both parts hold both classes; none if there are too few groups."""
    try:
        folds = inner_folds(labels, groups, np.arange(len(labels)), n_folds=n_folds, seed=seed)
    except NotEnoughDataError:
        return []
    return with_both_classes(folds, labels)


def with_both_classes(folds: Sequence[InnerFold], labels: Int[np.ndarray, "item"]) -> list[InnerFold]:
    """The folds in which both parts hold both classes."""
    return [fold for fold in folds if all(len(np.unique(labels[part])) > 1 for part in fold)]


def search(side: Side, grid: Grid, folds: Sequence[InnerFold]) -> Learned:
    """Choose by the mean AUROC over the folds, then fit on the whole side.

    Among candidates within 0.001 of the best the simplest is taken: the first view, the fewest
    components, the strongest penalty. Without folds that is the first of all.
    """
    scaling = Scaling.of(side.values, has_all_medians=False)
    grid = _pruned(grid, scaling.is_used, len(side.labels))
    views = _screened(side, grid, folds, scaling)
    numbers = grid.components if grid.penalty == "l2" else (ALL_COMPONENTS,)
    candidates = list(product(views, sorted(numbers), grid.path))
    logits = np.full((len(candidates), len(side.labels)), np.nan)
    for fold in folds:
        scaled = _scaled(side, [grid.views[view] for view in views], fold, scaling.median)
        labels = side.labels[fold.train]
        rows = [_held_out_logits(train, test, labels, grid) for train, test in scaled]
        logits[:, fold.held_out] = np.concatenate(rows)
    place, inner_auroc = first_of_the_best(logits, side.labels, folds)
    view, n_components, strength = candidates[place]
    model = fit_candidate(side, grid, view, n_components, strength)
    report = {
        "view": view,
        "n_components": n_components,
        "strength": strength,
        "n_folds": len(folds),
        "n_candidates": len(candidates),
        "inner_auroc": inner_auroc,
        "n_columns": len(grid.views[view]),
        "n_weights": int((model.weight != 0).sum()),
    }
    return Learned(model, logits[place], report)


def first_of_the_best(
    logits: Float[np.ndarray, "candidate trace"], labels: Int[np.ndarray, "trace"], folds: Sequence[InnerFold]
) -> tuple[int, float | None]:
    """The first candidate within 0.001 of the best mean AUROC over the folds, and its own AUROC.

    Without folds that is the first of all, and has no AUROC.
    """
    if not folds:
        return 0, None
    aurocs = np.mean([[auroc(row[f.held_out], labels[f.held_out]) for row in logits] for f in folds], axis=0)
    place = simplest(aurocs)
    return place, float(aurocs[place])


def simplest(aurocs: Float[np.ndarray, "candidate"]) -> int:
    """The first candidate within 0.001 of the best."""
    return int(np.flatnonzero(aurocs >= aurocs.max() - CLEARLY)[0])


def fit_candidate(side: Side, grid: Grid, view: str, n_components: int, strength: float) -> LinearModel:
    """One point of a grid on a whole side, folded into weights of the raw columns."""
    chosen = grid.views[view]
    scaling = Scaling.of(side.values[:, chosen])
    values = scaling.apply(side.values[:, chosen])
    path = grid.path[: grid.path.index(strength) + 1]
    if grid.penalty == "l1":
        found = l1_path(values, side.labels, path)[-1]
    else:
        rotation = Rotation.of(values, n_components)
        turned = l2_path(rotation.scores, side.labels, path)[-1]
        found = Solution(rotation.columns(turned.weight), turned.bias)
    return scaling.widened(chosen, side.values.shape[1]).linear(*found)


def choose_heads(side: Side, folds: Sequence[InnerFold], n_most: int = 10) -> Learned:
    """The mean of the columns that differ most between the classes; the number by folds.

    A column counts as it is: neither scaled nor turned, so only those that are higher for
    hallucinated traces come first.
    """
    numbers = np.arange(1, min(n_most, side.values.shape[1]) + 1)
    logits = np.zeros((len(numbers), len(side.labels)))
    for train, held_out in folds:
        scaling, order = _ranked_heads(side.values[train], side.labels[train])
        filled = _filled(side.values[held_out], scaling)[:, order[: len(numbers)]]
        logits[:, held_out] = (np.cumsum(filled, axis=1, dtype=np.float64) / numbers).T
    best, inner_auroc = first_of_the_best(logits, side.labels, folds)
    scaling, order = _ranked_heads(side.values, side.labels)
    weight = np.zeros(len(order))
    weight[order[: best + 1]] = 1 / (best + 1)
    model = LinearModel(scaling.median, np.zeros_like(weight), weight, weight > 0, 0.0)
    heads = [side.columns[place] for place in np.flatnonzero(weight)]
    report = {"n_heads": best + 1, "heads": heads, "n_folds": len(folds), "inner_auroc": inner_auroc}
    return Learned(model, logits[best], report)


def _ranked_heads(
    values: Float[np.ndarray, "trace column"], labels: Int[np.ndarray, "trace"]
) -> tuple[Scaling, Int[np.ndarray, "column"]]:
    """Columns by how much higher they are for hallucinated traces, the highest first."""
    scaling = Scaling.of(values)
    filled = _filled(values, scaling)
    difference = filled[labels == 1].mean(axis=0) - filled[labels == 0].mean(axis=0)
    return scaling, np.argsort(np.where(scaling.is_used, -difference, np.inf), kind="stable")


def _filled(values: Float[np.ndarray, "trace column"], scaling: Scaling) -> Float[np.ndarray, "trace column"]:
    return np.where(np.isfinite(values), values, scaling.median)


def _scaled(
    side: Side, views: Sequence[Int[np.ndarray, "_"]], fold: InnerFold, median: Float[np.ndarray, "column"]
) -> Iterator[tuple[Float[np.ndarray, "train kept"], Float[np.ndarray, "held_out kept"]]]:
    """Both parts of a fold for each view, standardised by the first; all columns only once."""
    chosen = np.unique(np.concatenate(views))
    values = side.values[np.ix_(fold.train, chosen)]
    scaling = Scaling.of(values, median[chosen])
    train = scaling.apply(values)
    held_out = scaling.apply(side.values[np.ix_(fold.held_out, chosen)])
    place = np.cumsum(scaling.is_used) - 1
    for view in views:
        among = np.searchsorted(chosen, view)
        kept = place[among[scaling.is_used[among]]]
        yield train[:, kept], held_out[:, kept]


def _held_out_logits(
    train: Float[np.ndarray, "train kept"],
    held_out: Float[np.ndarray, "held_out kept"],
    labels: Int[np.ndarray, "train"],
    grid: Grid,
) -> list[Float[np.ndarray, "held_out"]]:
    """Logits of the held-out traces, in the order of the grid's points."""
    if grid.penalty == "l1":
        return [found.logits(held_out) for found in l1_path(train, labels, grid.path)]
    rotation = Rotation.of(train, max(grid.components))
    turned = rotation.turned(held_out)
    return [
        found.logits(turned[:, :number])
        for number in sorted(grid.components)
        for found in l2_path(rotation.scores[:, :number], labels, grid.path)
    ]


def _pruned(grid: Grid, is_used: Bool[np.ndarray, "column"], n_traces: int) -> Grid:
    """The grid without columns that say nothing and without what then is there twice."""
    views: dict[str, Int[np.ndarray, "_"]] = {}
    seen: set[bytes] = set()
    for name, chosen in grid.views.items():
        kept = chosen[is_used[chosen]]
        if kept.tobytes() not in seen:
            seen.add(kept.tobytes())
            views[name] = kept
    largest = min(n_traces, max(len(kept) for kept in views.values()))
    components = {number if number < largest else ALL_COMPONENTS for number in grid.components}
    return replace(grid, views=views, components=tuple(sorted(components)))


def _screened(side: Side, grid: Grid, folds: Sequence[InnerFold], scaling: Scaling) -> list[str]:
    """The most promising views, in the grid's order."""
    names = list(grid.views)
    if len(names) <= grid.n_screened or not folds:
        return names
    scores = [_ridge_auroc(side, grid.views[name], folds, scaling) for name in names]
    kept = np.argsort(scores, kind="stable")[::-1][: grid.n_screened]
    return [names[place] for place in sorted(kept.tolist())]


def _ridge_auroc(
    side: Side, chosen: Int[np.ndarray, "chosen"], folds: Sequence[InnerFold], scaling: Scaling
) -> float:
    """Mean AUROC over the folds of a weighted ridge regression on the classes; 0.5 without columns.

    Its kernel is computed once for all folds, which makes it many times faster than a logistic
    regression; the columns are standardised by the whole training side, without labels.
    """
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.utils.class_weight import compute_sample_weight

    if not len(chosen):  # every column is constant
        return 0.5
    scaled = Scaling(*(part[chosen] for part in scaling)).apply(side.values[:, chosen], np.float32)
    kernel = scaled @ scaled.T + np.float32(1)
    ridge = KernelRidge(alpha=4 * scaled.shape[1], kernel="precomputed")
    aurocs = []
    for train, held_out in folds:
        labels = side.labels[train]
        target = (2 * labels - 1).astype(np.float32)
        weights = compute_sample_weight("balanced", labels)
        ridge.fit(kernel[np.ix_(train, train)], target, weights)
        found = ridge.predict(kernel[np.ix_(held_out, train)])
        aurocs.append(auroc(found, side.labels[held_out]))
    return float(np.mean(aurocs))
