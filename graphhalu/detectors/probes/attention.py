"""Probes that read attention: one weight a layer and head, or more."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, final

import numpy as np
from jaxtyping import Int

from graphhalu.detectors.base import DetectorCard
from graphhalu.detectors.probes.base import ProbeDetector
from graphhalu.detectors.probes.search import ALL_COMPONENTS, Fold, Grid, Learned, Side, choose_heads, search
from graphhalu.features.spec import FeatureSpec

Views = dict[str, Int[np.ndarray, "_"]]
PCA: Final = (16, 64, ALL_COMPONENTS)
"""Numbers of principal components that probes choose from; the last keeps all."""


def all_columns(columns: Sequence[str]) -> Views:
    """One view: everything."""
    return {"all": np.arange(len(columns))}


def by_rank(ks: Sequence[int]) -> Callable[[Sequence[str]], Views]:
    """Views that keep the first ``k`` entries of the axis ``rank``, fewest first."""

    def views(columns: Sequence[str]) -> Views:
        found = (re.search(r"\.r(\d+)$", name) for name in columns)
        rank = np.array([int(match[1]) for match in found if match])
        return {f"k={k}": np.flatnonzero(rank < k) for k in ks if k <= rank.max() + 1}

    return views


@dataclass(frozen=True)
class Recipe:
    """What a logistic probe is made of.

    Attributes:
        features: They make the columns.
        grid: What it chooses from, given the names of the columns.
    """

    features: tuple[FeatureSpec, ...]
    grid: Callable[[Sequence[str]], Grid]


class LogisticProbe(ProbeDetector):
    """A logistic probe whose columns, components and penalty are chosen together."""

    recipe: ClassVar[Recipe]

    def specs(self) -> tuple[FeatureSpec, ...]:
        """Features that make the columns."""
        return self.recipe.features

    def learn(self, side: Side, folds: Sequence[Fold], validation: Side | None) -> Learned:
        """Search the grid."""
        return search(side, self.recipe.grid(side.columns), folds)


def pca_grid(columns: Sequence[str]) -> Grid:
    """Every column, principal components, L2."""
    return Grid(all_columns(columns), components=PCA)


_PROTOCOL: Final = (
    "Components and penalty are chosen in three grouped folds within the training side; classes are balanced."
)


def ranked_l1_grid(columns: Sequence[str]) -> Grid:
    """The largest 1, 5, 10 or 25 entries of each head, L1."""
    return Grid(by_rank((1, 5, 10, 25))(columns), penalty="l1")


def ranked_pca_grid(columns: Sequence[str]) -> Grid:
    """The largest 5, 10, 25 or 50 entries of each head, principal components, L2."""
    return Grid(by_rank((5, 10, 25, 50))(columns), components=(64, ALL_COMPONENTS))


def plain_grid(columns: Sequence[str]) -> Grid:
    """Every column, L2."""
    return Grid(all_columns(columns))


@final
class SinkProbeHeads(LogisticProbe):
    """The sink mass of every head.

    Summary:
        logistic regression on the sink mass of every layer and head

    Source:
        The per-head sink vector of the sinktda study (2026): mean attention of the answer's rows to
        the first token and to the first four.
    """

    recipe: ClassVar[Recipe] = Recipe((FeatureSpec("sink_mass_k1"), FeatureSpec("sink_mass_k4")), pca_grid)
    card: ClassVar[DetectorCard] = DetectorCard.of(
        __doc__, "sink-probe-heads", "attention", reads=("sink_keys",), note=_PROTOCOL
    )


@final
class SinkProbe(LogisticProbe):
    """The largest received attention of every head, L1.

    Summary:
        sparse logistic regression on the largest received attention of every head

    Source:
        Binkowski et al. 2026, SinkProbe, arXiv:2604.10697: mean received attention sorted from the
        largest, top k of each head, L1. Rows u >= i count (the paper's text has u > i in one
        place); k of 1, 5, 10, 25 and the penalty are chosen in three grouped folds within the
        training side; a rank that most traces are too short for is left out.
    """

    recipe: ClassVar[Recipe] = Recipe((FeatureSpec("received_top", {"k": 25}),), ranked_l1_grid)
    card: ClassVar[DetectorCard] = DetectorCard.of(__doc__, "sinkprobe", "attention", reads=("received",))


@final
class LapEigvals(LogisticProbe):
    """The largest eigenvalues of every head's Laplacian.

    Summary:
        logistic regression on the largest Laplacian eigenvalues of every head

    Source:
        Binkowski et al. 2025, LapEigvals (EMNLP): out-degree minus diagonal, top k of each head,
        principal components, balanced logistic regression. The last token has a row here and
        counts; k ends at 50; components (64 or at most 512, the paper's number), k and penalty are
        chosen in three grouped folds within the training side, the paper's tables choose k on the
        test side.
    """

    recipe: ClassVar[Recipe] = Recipe((FeatureSpec("lapeig_top", {"k": 50}),), ranked_pca_grid)
    card: ClassVar[DetectorCard] = DetectorCard.of(
        __doc__, "lapeigvals", "attention", reads=("received", "self_attention")
    )


@final
class AttnEigvals(LogisticProbe):
    """The largest eigenvalues of every head's attention.

    Summary:
        logistic regression on the largest eigenvalues of every head's attention

    Source:
        AttnEigvals of Binkowski et al. 2025 (EMNLP): top k of the diagonal. Differences as those of
        lapeigvals.
    """

    recipe: ClassVar[Recipe] = Recipe((FeatureSpec("attneig_top", {"k": 50}),), ranked_pca_grid)
    card: ClassVar[DetectorCard] = DetectorCard.of(
        __doc__, "attneigvals", "attention", reads=("self_attention",)
    )


@final
class AttnLogDetHeads(LogisticProbe):
    """The log-determinant of every head's attention.

    Summary:
        logistic regression on the mean log self-attention of every layer and head

    Source:
        The attention score of LLM-Check (Sriramanan et al. 2024, NeurIPS) before its sum over
        heads; AttnLogDet of Binkowski et al. 2025, which counts prompt rows too.
    """

    recipe: ClassVar[Recipe] = Recipe((FeatureSpec("self_attention_log"),), pca_grid)
    card: ClassVar[DetectorCard] = DetectorCard.of(
        __doc__, "attn-logdet-heads", "attention", reads=("self_attention",), note=_PROTOCOL
    )


@final
class Lookback(LogisticProbe):
    """The lookback ratio of every head.

    Summary:
        logistic regression on the lookback ratio of every layer and head

    Source:
        Chuang et al. 2024, Lookback Lens (EMNLP): mean attention to the prompt over itself plus
        mean attention to the answer so far, averaged over the answer. One vector an answer, grouped
        by question; the paper's windows of one answer fall on both sides. Scaled; the paper does
        not.
    """

    recipe: ClassVar[Recipe] = Recipe((FeatureSpec("lookback_ratio"),), plain_grid)
    card: ClassVar[DetectorCard] = DetectorCard.of(
        __doc__, "lookback", "attention", reads=("span_mass",), note=_PROTOCOL
    )


@final
class InstabilityProbe(LogisticProbe):
    """How much heads disagree, layer by layer.

    Summary:
        logistic regression on how much heads of a layer, and layers, disagree

    Source:
        The public study llm-attention-head-instability averages one number over layers; here every
        layer, four spans and three forms (plain, logit, relative to its bound), and the spread of
        each head over layers.
    """

    recipe: ClassVar[Recipe] = Recipe(
        (
            *(
                FeatureSpec(f"{form}_{span}")
                for form in ("head_std", "head_logit_std", "head_bounded_std")
                for span in ("sink", "context", "question", "answer")
            ),
            FeatureSpec("layer_std_sink"),
        ),
        pca_grid,
    )
    card: ClassVar[DetectorCard] = DetectorCard.of(
        __doc__, "instability-probe", "attention", reads=("span_mass", "sink_keys"), note=_PROTOCOL
    )


@final
class EntropyHeads(LogisticProbe):
    """The entropy of every head's rows.

    Summary:
        logistic regression on mean and spread of every head's row entropy

    Source:
        Attention entropy as in Zhai et al. 2023, arXiv:2303.06296, relative to the entropy of a
        uniform row.
    """

    recipe: ClassVar[Recipe] = Recipe(
        (FeatureSpec("attention_entropy_mean"), FeatureSpec("attention_entropy_std")), pca_grid
    )
    card: ClassVar[DetectorCard] = DetectorCard.of(
        __doc__, "entropy-heads", "attention", reads=("row_entropy",), note=_PROTOCOL
    )


@final
class Toha(ProbeDetector):
    """Mean spanning-tree divergence of a few chosen heads.

    Summary:
        length of a spanning tree over the answer, in the few heads that tell most

    Source:
        TOHA (ACL 2026): distance 1 - A, prompt contracted to one node, spanning tree over answer
        length; heads ranked by their mean difference between the classes, the best 1 to 10
        averaged. The number is chosen in three grouped folds within the training side, with heads
        ranked anew in each; the paper takes both from one labelled set.
    """

    card: ClassVar[DetectorCard] = DetectorCard.of(__doc__, "toha", "attention", reads=("attention",))

    def specs(self) -> tuple[FeatureSpec, ...]:
        """The divergence of every head."""
        return (FeatureSpec("mst_divergence"),)

    def learn(self, side: Side, folds: Sequence[Fold], validation: Side | None) -> Learned:
        """Rank heads and choose how many."""
        return choose_heads(side, folds)
