"""HaloScope: pseudo-labels from a subspace of one hidden layer, and a probe that learns them."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from graphhalu.core.numerics import auroc
from graphhalu.core.splits import InnerFold
from graphhalu.detectors.inner_search import Learned, Side
from graphhalu.detectors.linear import Rotation, Scaling, l2_path
from graphhalu.detectors.probes import ProbeDetector, by_layer

N_COMPONENTS: Final = (1, 2, 4, 8)
QUANTILES: Final = (0.3, 0.5, 0.7, 0.85)
"""Shares of the training traces below the threshold on the membership score."""
STRENGTHS: Final = (0.1, 0.3, 1.0)
"""As of :func:`l2_path`."""
_N_LAYERS: Final = 10


def learn_pseudo_labels(side: Side, _: Sequence[InnerFold]) -> Learned:
    """Learn pseudo-labels; true labels only choose between a few subspaces and quantiles.

    At most ten layers, evenly spread, are looked at.
    """
    layers = by_layer(side.columns)
    names = list(layers)
    picked = np.unique(np.linspace(0, len(names) - 1, _N_LAYERS).round().astype(int))
    best = max(
        (found for place in picked for found in _subspaces(side, names[place], layers[names[place]])),
        key=lambda subspace: subspace.auroc,
    )
    chosen = layers[best.report["layer"]]
    scaling = Scaling.of(side.values[:, chosen])
    rotation = Rotation.of(scaling.apply(side.values[:, chosen]))
    fitted = [
        (auroc(rotation.scores @ found.weight, side.labels), quantile, found)
        for quantile in QUANTILES
        for found in l2_path(rotation.scores, best.pseudo_labels(quantile), STRENGTHS)
    ]
    reached, quantile, solution = max(fitted, key=lambda entry: entry[0])
    wide = scaling.widened(chosen, side.values.shape[1])
    model = wide.linear(rotation.columns(solution.weight), solution.bias)
    report = {**best.report, "quantile": quantile, "membership_auroc": best.auroc, "train_auroc": reached}
    return Learned(model, np.full(len(side.labels), np.nan), report)


Haloscope: Final = ProbeDetector.variant("haloscope", __name__, learn=learn_pseudo_labels)


class Subspace(NamedTuple):
    """One choice of layer, components, weighting and sign.

    Attributes:
        auroc: How well its membership score tells the classes apart.
        membership: Higher for what counts as hallucinated.
        report: The choice, as plain values.
    """

    auroc: float
    membership: Float[np.ndarray, "trace"]
    report: Mapping[str, Any]

    def pseudo_labels(self, quantile: float) -> Int[np.ndarray, "trace"]:
        """1 for the traces above a quantile of the membership score."""
        return (self.membership > np.quantile(self.membership, quantile)).astype(np.int64)


def membership_score(
    scores: Float[np.ndarray, "trace component"], n_components: int, *, is_weighted: bool
) -> Float[np.ndarray, "trace"]:
    """``zeta = mean over the first k components j of w_j (h · v_j)^2``.

    Args:
        scores: Centred states in their principal axes, largest variance first.
        n_components: ``k``.
        is_weighted: Whether ``w_j`` is the component's singular value, or 1.
    """
    squares = np.square(scores[:, :n_components])
    weights = np.linalg.norm(scores[:, :n_components], axis=0) if is_weighted else 1.0
    return (squares * weights).mean(axis=1)


def _subspaces(side: Side, layer: str, chosen: Int[np.ndarray, "chosen"]) -> Iterator[Subspace]:
    """Every choice within one layer."""
    values = side.values[:, chosen]
    scaling = Scaling.of(values)
    # the method centres and does not scale
    centred = scaling.apply(values) / scaling.scale[scaling.is_used]
    scores = Rotation.of(centred, max(N_COMPONENTS)).scores
    for number, is_weighted in product(N_COMPONENTS, (True, False)):
        membership = membership_score(scores, number, is_weighted=is_weighted)
        reached = auroc(membership, side.labels)
        sign = 1 if reached >= 0.5 else -1  # noqa: PLR2004
        report = {"layer": layer, "n_components": number, "is_weighted": is_weighted, "sign": sign}
        yield Subspace(max(reached, 1 - reached), sign * membership, report)
