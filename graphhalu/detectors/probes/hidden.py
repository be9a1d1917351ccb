"""Probes that read hidden states."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import ClassVar, Final, NamedTuple, final

import numpy as np
from jaxtyping import Float, Int

from graphhalu.detectors.base import DetectorCard
from graphhalu.detectors.probes.attention import LogisticProbe, Recipe, Views, pca_grid
from graphhalu.detectors.probes.base import ProbeDetector
from graphhalu.detectors.probes.likelihood import LIKELIHOOD
from graphhalu.detectors.probes.logistic import Rotation, Scaling, l2_path
from graphhalu.detectors.probes.search import ALL_COMPONENTS, Fold, Grid, Learned, Side, places_by
from graphhalu.detectors.sides import auroc
from graphhalu.features.spec import FeatureSpec

STATES: Final = ("state_last_prompt", "state_last_answer", "state_mean_answer")
"""Positions whose hidden state a probe can read."""
N_COMPONENTS: Final = (1, 2, 4, 8)
QUANTILES: Final = (0.3, 0.5, 0.7, 0.85)
"""Shares of the training traces below the threshold on the membership score."""
STRENGTHS: Final = (0.1, 0.3, 1.0)
"""As of :func:`l2_path`, of HaloScope."""
_N_LAYERS: Final = 10


def layer_of(column: str) -> str:
    """Position and layer of a column such as ``state_last_answer.n07.unit012``."""
    return column.rsplit(".", 1)[0]


def layer_views(columns: Sequence[str]) -> Views:
    """One view a position and layer."""
    return places_by(layer_of, columns)


def one_layer_grid(columns: Sequence[str]) -> Grid:
    """One layer and position, principal components, L2."""
    return Grid(layer_views(columns), components=(64, ALL_COMPONENTS), n_screened=3)


@final
class HiddenProbe(LogisticProbe):
    """The hidden state of one position in one layer.

    Summary:
        logistic regression on one hidden state, layer and position chosen inside

    Source:
        Linear probes as of Azaria & Mitchell 2023, arXiv:2304.13734, and Orgad et al. 2024,
        arXiv:2410.02707. Position (last prompt token, last answer token, mean of the answer),
        layer, components and penalty are chosen in three grouped folds within the training side; a
        ridge regression lets three of all positions and layers through.
    """

    recipe: ClassVar[Recipe] = Recipe(tuple(map(FeatureSpec, STATES)), one_layer_grid)
    card: ClassVar[DetectorCard] = DetectorCard.of(__doc__, "hidden-probe", "hidden", reads=("hidden",))


@final
class HaloScope(ProbeDetector):
    """Membership in a subspace as pseudo-label, then a probe.

    Summary:
        probe trained on pseudo-labels from the main subspace of one hidden layer

    Source:
        HaloScope (Du et al. 2024, arXiv:2409.17504): zeta = mean over the first k principal
        components of the weighted squared projection of the centred last-token state (the released
        code takes the mean before the square, so that signs cancel); traces above a quantile of
        zeta count as hallucinated, and a classifier learns that. Here a logistic regression and not
        a network; layer, k, weighting, sign and quantile are chosen by the labels of the training
        side, the released code picks the layer on the test side.
    """

    card: ClassVar[DetectorCard] = DetectorCard.of(__doc__, "haloscope", "hidden", reads=("hidden",))

    def specs(self) -> tuple[FeatureSpec, ...]:
        """The last answer token in every kept layer."""
        return (FeatureSpec("state_last_answer"),)

    def learn(self, side: Side, folds: Sequence[Fold], validation: Side | None) -> Learned:
        """Find the subspace, then learn its pseudo-labels."""
        return learn_halo(side, layer_views(side.columns))


@final
class HalluShift(LogisticProbe):
    """How hidden states and attention change from layer to layer.

    Summary:
        logistic regression on shifts between layers and on token probabilities

    Source:
        HalluShift (Dasgupta et al. 2025, IJCNN): Wasserstein-1 of sorted values and cosine between
        layers i and i + 2, and probability features. Here a logistic regression and not a two-layer
        network, nine probability features of our own list, everything chosen in three grouped folds
        within the training side; the released code stops early on the test side.
    """

    recipe: ClassVar[Recipe] = Recipe(
        tuple(
            FeatureSpec(name)
            for name in (
                "hallushift_hidden_distance",
                "hallushift_hidden_cosine",
                "hallushift_attention_distance",
                "hallushift_attention_cosine",
                *LIKELIHOOD,
            )
        ),
        pca_grid,
    )
    card: ClassVar[DetectorCard] = DetectorCard.of(
        __doc__,
        "hallushift",
        "hidden",
        "attention",
        "likelihood",
        reads=("hidden", "attention", "token_logprob", "token_entropy", "top1_margin"),
    )


@final
class IcrProbe(LogisticProbe):
    """How far each layer's update follows its attention.

    Summary:
        logistic regression on how far each layer's update follows its attention

    Source:
        ICR Probe (Zhang et al. 2025, ACL): Jensen-Shannon divergence between attention and the
        projections of a layer's update. Here the prompt stays visible to the answer, which the
        released code masks by mistake, the answer is averaged, and a logistic regression takes the
        place of a network; chosen in three grouped folds within the training side.
    """

    recipe: ClassVar[Recipe] = Recipe((FeatureSpec("icr"),), pca_grid)
    card: ClassVar[DetectorCard] = DetectorCard.of(
        __doc__, "icr", "hidden", "attention", reads=("hidden", "attention")
    )


class Subspace(NamedTuple):
    """One choice of layer, components, weighting and sign, and how well it parts the classes."""

    auroc: float
    layer: str
    n_components: int
    is_weighted: bool
    sign: int
    membership: Float[np.ndarray, "trace"]


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


def learn_halo(side: Side, layers: Mapping[str, Int[np.ndarray, "_"]]) -> Learned:
    """Choose subspace and quantile by the training labels, learn the pseudo-labels.

    At most ten layers, evenly spread, are looked at. The classifier is fitted on pseudo-labels
    alone; true labels only choose between a handful of subspaces and quantiles.
    """
    names = list(layers)
    picked = np.unique(np.linspace(0, len(names) - 1, _N_LAYERS).round().astype(int))
    best = max(
        (_best_of_layer(side, names[place], layers[names[place]]) for place in picked.tolist()),
        key=lambda subspace: subspace.auroc,
    )
    chosen = layers[best.layer]
    values = side.values[:, chosen]
    scaling = Scaling.of(values)
    rotation = Rotation.of(scaling.apply(values))
    fitted = [
        (auroc(rotation.scores @ found.weight, side.labels), place, found)
        for place, quantile in enumerate(QUANTILES)
        for found in l2_path(rotation.scores, _pseudo_labels(best, quantile), STRENGTHS)
    ]
    reached, place, solution = max(fitted, key=lambda entry: entry[0])
    wide = scaling.widened(chosen, side.values.shape[1])
    model = wide.linear(rotation.columns(solution.weight), solution.bias)
    report = {
        "layer": best.layer,
        "n_components": best.n_components,
        "is_weighted": best.is_weighted,
        "sign": best.sign,
        "quantile": QUANTILES[place],
        "membership_auroc": best.auroc,
        "train_auroc": reached,
    }
    return Learned(model, np.full(len(side.labels), np.nan), report)


def _pseudo_labels(subspace: Subspace, quantile: float) -> Int[np.ndarray, "trace"]:
    value = subspace.sign * subspace.membership
    return (value > np.quantile(value, quantile)).astype(np.int64)


def _best_of_layer(side: Side, layer: str, chosen: Int[np.ndarray, "chosen"]) -> Subspace:
    values = side.values[:, chosen]
    scaling = Scaling.of(values)
    used = scaling.is_used
    # the method centres and does not scale
    centred = scaling.apply(values) / scaling.scale[used]
    scores = Rotation.of(centred, max(N_COMPONENTS)).scores
    found = []
    for number, is_weighted in product(N_COMPONENTS, (True, False)):
        membership = membership_score(scores, number, is_weighted=is_weighted)
        parts = auroc(membership, side.labels)
        sign = 1 if parts >= 0.5 else -1  # noqa: PLR2004
        found.append(Subspace(max(parts, 1 - parts), layer, number, is_weighted, sign, membership))
    return max(found, key=lambda subspace: subspace.auroc)
