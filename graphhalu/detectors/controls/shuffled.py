"""Control: a probe that learns labels which say nothing."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, final

import numpy as np
from jaxtyping import Int, Shaped

from graphhalu.detectors.base import DetectorCard
from graphhalu.detectors.probes.attention import LogisticProbe, Recipe, pca_grid
from graphhalu.detectors.probes.search import Fold, Learned, Side, folds_of
from graphhalu.features.spec import FeatureSpec


@final
class ShuffledLabels(LogisticProbe):
    """The per-head sink probe on labels shuffled among questions.

    Summary:
        the per-head sink probe fitted on labels shuffled among training questions

    Source:
        Control: what is above 0.5 here is leakage or chance. Labels of a question stay together;
        the number of each is unchanged.
    """

    recipe: ClassVar[Recipe] = Recipe((FeatureSpec("sink_mass_k1"), FeatureSpec("sink_mass_k4")), pca_grid)
    card: ClassVar[DetectorCard] = DetectorCard.of(
        __doc__, "shuffled-labels", "attention", reads=("sink_keys",), is_control=True
    )

    def learn(self, side: Side, folds: Sequence[Fold], validation: Side | None) -> Learned:
        """Shuffle, then search as the probe does."""
        labels = shuffled_by_group(side.labels, side.groups, seed=self.config.seed)
        anew = folds_of(labels, side.groups, n_folds=self.config.n_folds, seed=self.config.seed)
        return super().learn(replace(side, labels=labels), anew, None)


def shuffled_by_group(
    labels: Int[np.ndarray, "trace"], groups: Shaped[np.ndarray, "trace"], *, seed: int
) -> Int[np.ndarray, "trace"]:
    """The labels of all groups, one group after another, dealt to the groups in another order.

    Groups of one size swap their labels whole; at the seams of groups of different sizes a
    group can get labels of two.
    """
    _, group = np.unique(groups, return_inverse=True)
    place = np.random.default_rng(seed).permutation(int(group.max()) + 1)
    taken = np.argsort(place[group], kind="stable")
    shuffled = np.empty_like(labels)
    shuffled[np.argsort(group, kind="stable")] = labels[taken]
    return shuffled
