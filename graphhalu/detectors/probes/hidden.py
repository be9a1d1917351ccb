"""Probes that read hidden states."""

from collections.abc import Sequence
from typing import ClassVar, Final, final

from graphhalu.detectors.base import DetectorCard
from graphhalu.detectors.probes.attention import LogisticProbe, Recipe, Views, pca_grid
from graphhalu.detectors.probes.base import ProbeDetector
from graphhalu.detectors.probes.halo import learn_halo
from graphhalu.detectors.probes.likelihood import LIKELIHOOD
from graphhalu.detectors.probes.search import ALL_COMPONENTS, Fold, Grid, Learned, Side, places_by
from graphhalu.features.spec import FeatureSpec

STATES: Final = ("state_last_prompt", "state_last_answer", "state_mean_answer")
"""Positions whose hidden state a probe can read."""


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
    card: ClassVar[DetectorCard] = DetectorCard.of(
        __doc__, "hidden-probe", "hidden", reads=("hidden",)
    )


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

    card: ClassVar[DetectorCard] = DetectorCard.of(
        __doc__, "haloscope", "hidden", reads=("hidden",)
    )

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
                "hallushift_hidden_distance", "hallushift_hidden_cosine",
                "hallushift_attention_distance", "hallushift_attention_cosine", *LIKELIHOOD,
            )
        ),
        pca_grid,
    )  # fmt: skip
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
