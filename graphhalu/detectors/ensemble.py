"""All features together: a probe a block, joined by weights that are never negative."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Final, final

import numpy as np
from pydantic import Field

from graphhalu.core.errors import NotEnoughDataError, UsageError
from graphhalu.core.splits import Split
from graphhalu.detectors.base import Detector, DetectorCard
from graphhalu.detectors.probes.attention import LogisticProbe, Recipe, plain_grid
from graphhalu.detectors.probes.base import ProbeConfig, ProbeDetector
from graphhalu.detectors.sides import ChosenTraces, check_classes
from graphhalu.detectors.stack import Stack, join
from graphhalu.detectors.trained import TrainedConfig
from graphhalu.features.spec import FeatureSpec
from graphhalu.labels.labels import Labels
from graphhalu.traces.trace import Trace

BLOCKS: Final = (
    "sink-probe-heads",
    "sinkprobe",
    "lapeigvals",
    "attn-logdet-heads",
    "lookback",
    "instability-probe",
    "entropy-heads",
    "hidden-probe",
    "hallushift",
    "icr",
    "likelihood-probe",
    "summaries",
)
"""Probes that are joined; a text control is not among them."""


class EnsembleConfig(ProbeConfig):
    """Settings of the ensemble."""

    blocks: Annotated[tuple[str, ...], Field(min_length=1)] = BLOCKS
    """Names of probes; one that cannot be fitted on the traces is left out and reported."""


@final
class Summaries(LogisticProbe):
    """Numbers that have no block of their own.

    Summary:
        logistic regression on RAUQ and sizes of hidden states

    Source:
        A block of the ensemble.
    """

    recipe: ClassVar[Recipe] = Recipe(
        tuple(FeatureSpec(name) for name in ("rauq", "hidden_norm", "hidden_score", "hidden_effective_rank")),
        plain_grid,
    )
    card: ClassVar[DetectorCard] = DetectorCard.of(
        __doc__,
        "summaries",
        "attention",
        "hidden",
        "likelihood",
        reads=("attention", "hidden", "token_logprob"),
    )


@final
class AllFeatures(Stack):
    """A stack of probes.

    Args:
        seed: By default that of the configuration.
        config: Settings.

    Summary:
        a probe for each block of features, joined by a non-negative logistic regression

    Source:
        Stacking as of Wolpert 1992 and Breiman 1996: every block's probe gives logits of training
        traces from inner folds that never saw their question, and weights of at least 0 join them.
        The logits are those of the chosen candidate of each block, so blocks with many candidates
        look a little better than they are. A block that a trace lacks counts as its mean, and a
        trace that lacks those of more than half of the weight has no score. Text is not among the
        blocks.
    """

    card: ClassVar[DetectorCard] = DetectorCard.of(
        __doc__,
        "all-features",
        "attention",
        "hidden",
        "likelihood",
        reads=(
            "attention",
            "hidden",
            "received",
            "self_attention",
            "sink_keys",
            "span_mass",
            "row_entropy",
            "token_logprob",
            "token_entropy",
            "top1_margin",
        ),
    )

    config_class: ClassVar[type[TrainedConfig]] = EnsembleConfig
    is_exact: ClassVar[bool] = True
    least_known: ClassVar[float] = 0.5
    folder_of_members: ClassVar[str] = "blocks"

    config: EnsembleConfig

    @classmethod
    def settings(cls, **values: Any) -> dict[str, Any]:
        """Arguments of the constructor from plain values.

        Raises:
            ConfigError: If a field is unknown or a value does not validate.
            UnknownNameError: If a block is no probe.
        """
        settings = super().settings(**values)
        for name in settings["config"].blocks:
            cls.member_class(name)
        return settings

    @classmethod
    def member_class(cls, name: str) -> type[ProbeDetector]:
        """The probe of a block.

        Raises:
            UnknownNameError: If there is no such detector.
            UsageError: If it is no probe.
        """
        from graphhalu.detectors.registry import DETECTORS

        found: Any = Summaries if name == "summaries" else DETECTORS.registered(name)
        if not issubclass(found, ProbeDetector):
            message = f"{name!r} is no probe, so it gives no logits out of fold\n  Leave it out"
            raise UsageError(message)
        return found

    def fit(self, traces: Sequence[Trace], labels: Labels, split: Split) -> Detector:
        """Fit every block, then join their out-of-fold logits; validation takes no part."""
        kept = np.array(ChosenTraces.labelled(traces, labels, split.train).indices, dtype=np.int64)
        check_classes(labels.values[kept], self.card.name)
        members, columns, failures = {}, {}, {}
        for name in self.config.blocks:
            kind = self.member_class(name)
            settings = {"seed": self.config.seed, "n_folds": self.config.n_folds}
            member = kind(**kind.settings(**settings))
            try:
                learned, used = member.fit_side(traces, labels, split.train)
            except NotEnoughDataError as error:
                failures[name] = str(error).splitlines()[0]
                continue
            members[name] = member
            columns[name] = np.full(len(kept), np.nan)
            columns[name][np.isin(kept, used)] = learned.out_of_fold
        if not members:
            message = f"no block could be fitted: {next(iter(failures.values()))}"
            raise NotEnoughDataError(message)
        self.members = members
        self.joints, self.bias = join(columns, labels.values[kept])
        self.training_report = {
            "n_train": len(kept),
            "left_out": failures,
            "weights": self.weights(),
            "blocks": {name: member.training_report for name, member in members.items()},
        }
        return self
