"""Probes of how likely the model found its own answer."""

from typing import ClassVar, Final, final

from graphhalu.detectors.base import DetectorCard
from graphhalu.detectors.probes.attention import LogisticProbe, Recipe, plain_grid
from graphhalu.features.spec import FeatureSpec

LIKELIHOOD: Final = (
    "logprob_mean",
    "logprob_min",
    "logprob_sum",
    "logprob_std",
    "output_entropy_mean",
    "output_entropy_max",
    "output_entropy_std",
    "margin_mean",
    "margin_min",
)
"""Features of the output distributions."""


@final
class LikelihoodProbe(LogisticProbe):
    """Everything that the output distributions say.

    Summary:
        logistic regression on log-probabilities, entropies and margins of the answer

    Source:
        Control: the probability features of HalluShift (Dasgupta et al. 2025) and of lm-polygraph
        in one model. The penalty is chosen in three grouped folds within the training side; classes
        are balanced.
    """

    recipe: ClassVar[Recipe] = Recipe(tuple(map(FeatureSpec, LIKELIHOOD)), plain_grid)
    card: ClassVar[DetectorCard] = DetectorCard.of(
        __doc__,
        "likelihood-probe",
        "likelihood",
        reads=("token_logprob", "token_entropy", "top1_margin"),
        is_control=True,
    )
