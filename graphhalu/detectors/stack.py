"""Stacks: detectors joined on logits out of fold, by weights that are never negative."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.utils.class_weight import compute_sample_weight

from graphhalu.core.errors import NotEnoughDataError, UsageError
from graphhalu.core.splits import Split
from graphhalu.detectors.base import (
    Attribution,
    ChosenTraces,
    Detector,
    DetectorCard,
    EdgeEffect,
    Scores,
    card_attributes,
    check_classes,
)
from graphhalu.detectors.probes import ProbeConfig, ProbeDetector, Summaries
from graphhalu.detectors.saved import TrainedConfig, TrainedDetector
from graphhalu.labels.labels import Labels
from graphhalu.traces.trace import Trace

Truth = Int[np.ndarray, "trace"]

RIDGE: Final = 0.05
"""Penalty on the squared weights of the joined logits, a trace."""
_FLOOR: Final = 1e-9
"""Added to a weight where it is counted how much is known: without weights all count alike."""


class Joint(NamedTuple):
    """How one block's logit enters the sum."""

    mean: float
    scale: float
    weight: float


class Stack(TrainedDetector, ABC):
    """Detectors whose standardised logits are added up, each with a weight of at least 0.

    A subclass fits its members and joins them with :meth:`join_members`.

    Args:
        seed: By default that of the configuration.
        config: Settings.
    """

    is_exact: ClassVar[bool]
    """Whether an attribution sums to the score; see :class:`Attribution`."""
    least_known: ClassVar[float]
    """Share of the weight that a trace must have; some of it in any case."""
    folder_of_members: ClassVar[str] = ""
    """Where members are saved below the folder of the stack."""
    saved_fields: ClassVar[tuple[str, ...]] = ("config", "joints", "bias")

    members: Mapping[str, Detector] = {}
    joints: Mapping[str, Joint] = {}
    bias: float = 0.0

    @classmethod
    @abstractmethod
    def member_class(cls, name: str) -> type[Detector]:
        """The class of a member."""

    def join_members(self, members: Mapping[str, Any], labels: Labels, kept: Truth) -> None:
        """Take over fitted members and weigh them by their logits out of fold.

        Args:
            members: Each has the logits of training traces, or of their answer tokens, as ``out_of_fold``,
                by index.
            labels: Of all traces.
            kept: Indices of the training traces; one that a member lacks counts as its mean.
        """
        logits = {}
        for name, member in members.items():
            known = member.out_of_fold
            every = np.full(len(labels.items), np.nan)
            places = labels.places(np.array(list(known), dtype=np.int64))
            every[places] = np.concatenate([np.zeros(0), *map(np.ravel, known.values())])
            logits[name] = every[labels.places(kept)]
        self.members = members
        self.joints, self.bias = join(logits, labels.items[labels.places(kept)])

    def score(self, traces: Sequence[Trace]) -> Scores:
        """Weighted sum of the standardised logits; a member that is missing counts as its mean.

        NaN where members with too little of the weight are known.
        """
        members = self.fitted(self.members or None, traces)
        scores = {name: member.score(traces) for name, member in members.items()}
        first = next(iter(scores.values()))
        total, known = np.full(len(first.values), self.bias), np.zeros(len(first.values))
        all_weights = sum(joint.weight + _FLOOR for joint in self.joints.values())
        for name, of_member in scores.items():
            mean, scale, weight = self.joints[name]
            logits = of_member.values
            found = np.isfinite(logits)
            total += np.where(found, weight * scale * (np.where(found, logits, mean) - mean), 0.0)
            known += np.where(found, weight + _FLOOR, 0.0)
        is_known = (known > 0) & (known >= self.least_known * all_weights)
        return replace(Scores.of(np.where(is_known, total, np.nan)), lengths=first.lengths)

    def attribute(self, trace: Trace) -> Attribution | None:
        """Parts of the members, weighed as they are joined; one that is missing adds nothing."""
        self.fitted(self.members or None)
        heads = np.zeros((trace.shape.n_layers, trace.shape.n_heads))
        features, rest = {}, self.bias
        edges: tuple[EdgeEffect, ...] = ()
        for name, member in self.members.items():
            found, joint = member.attribute(trace), self.joints[name]
            if found is None:
                continue
            share = joint.weight * joint.scale
            heads += share * found.heads
            features[name] = share * (sum(found.features.values()) - joint.mean)
            rest += share * (found.rest - joint.mean)
            edges = found.edges or edges
        return Attribution(heads, features, is_exact=self.is_exact, rest=rest, edges=edges)

    @property
    def n_parameters(self) -> int | None:
        """Those of all members, a weight for each, and the bias."""
        if not self.members:
            return None
        return sum(each.n_parameters or 0 for each in self.members.values()) + len(self.members) + 1

    def weights(self) -> dict[str, float]:
        """Weight of each member in the sum."""
        return {name: joint.weight for name, joint in self.joints.items()}

    def write(self, folder: Path) -> dict[str, Any]:
        """Write each member into a folder of its own; describe how they are joined."""
        self.fitted(self.members or None)
        for name, member in self.members.items():
            member.save(folder / self.folder_of_members / name)
        return {"bias": self.bias, "joints": {name: joint._asdict() for name, joint in self.joints.items()}}

    def restore(self, folder: Path, values: Mapping[str, Any]) -> None:
        """Load the members of a saved stack."""
        self.joints = {name: Joint(**joint) for name, joint in values["joints"].items()}
        self.bias = float(values["bias"])
        self.members = {
            name: self.member_class(name).load(folder / self.folder_of_members / name) for name in self.joints
        }


class EnsembleConfig(ProbeConfig):
    """Settings of the ensemble."""

    blocks: Annotated[tuple[str, ...], Field(min_length=1)] = card_attributes("all-features")["blocks"]
    """Names of probes; one that cannot be fitted on the traces is left out and reported."""


class AllFeatures(Stack):
    """A stack of probes.

    Args:
        seed: By default that of the configuration.
        config: Settings.
    """

    card: ClassVar[DetectorCard] = DetectorCard.of("all-features")
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
            UnknownNameError: If a block is not a probe.
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
            UsageError: If it is not a probe.
        """
        from graphhalu.detectors.registry import DETECTORS

        found: Any = Summaries if name == "summaries" else DETECTORS.registered(name)
        if not issubclass(found, ProbeDetector):
            raise UsageError(f"{name!r} is not a probe, so it gives no logits out of fold\n  Leave it out")
        return found

    def fit(self, traces: Sequence[Trace], labels: Labels, split: Split) -> Detector:
        """Fit every block, then join their out-of-fold logits; validation takes no part."""
        kept = np.array(ChosenTraces.labelled(traces, labels, split.train).indices, dtype=np.int64)
        check_classes(labels.values[kept], self.card)
        training = replace(split, validation=split.validation[:0])
        members, failures = dict[str, Any](), dict[str, str]()
        for name in self.config.blocks:
            kind = self.member_class(name)
            member = kind(**kind.settings(seed=self.config.seed, n_folds=self.config.n_folds))
            try:
                members[name] = member.fit(traces, labels, training)
            except NotEnoughDataError as error:
                failures[name] = str(error).splitlines()[0]
        if not members:
            raise NotEnoughDataError(f"no block could be fitted: {next(iter(failures.values()))}")
        self.join_members(members, labels, kept)
        self.training_report = {
            "n_train": len(kept),
            "left_out": failures,
            "weights": self.weights(),
            "blocks": {name: member.training_report for name, member in members.items()},
        }
        return self


def join(logits: dict[str, Float[np.ndarray, "trace"]], labels: Truth) -> tuple[dict[str, Joint], float]:
    """Non-negative logistic regression on standardised logits, under a small ridge.

    Args:
        logits: Out-of-fold logits of each block; NaN counts as the block's mean. A block that
            has none at all, as where there were no folds, gets the mean weight of all.
        labels: 1 = hallucinated.
    """
    joints = {}
    columns = []
    for name, column in logits.items():
        known = column[np.isfinite(column)]
        mean = float(known.mean()) if known.size else 0.0
        std = float(known.std()) if known.size else 1.0
        scale = 1.0 / std if std > 1e-9 else 0.0  # noqa: PLR2004
        columns.append(np.where(np.isfinite(column), (column - mean) * scale, 0.0))
        joints[name] = Joint(mean, scale, 1.0 / len(logits))
    values = np.column_stack(columns)
    if not values.any():
        return joints, 0.0
    weights, bias = _non_negative(values, labels)
    pairs = zip(joints.items(), weights.tolist(), strict=True)
    return {name: joint._replace(weight=weight) for (name, joint), weight in pairs}, bias


def _non_negative(
    values: Float[np.ndarray, "trace block"], labels: Truth
) -> tuple[Float[np.ndarray, "block"], float]:
    share = compute_sample_weight("balanced", labels) / len(labels)
    sign = 2.0 * labels - 1.0

    def loss(point: Float[np.ndarray, "dimension"]) -> tuple[float, Float[np.ndarray, "dimension"]]:
        margin = sign * (values @ point[:-1] + point[-1])
        slope = -sign * share * expit(-margin)
        value = share @ np.logaddexp(0.0, -margin) + 0.5 * RIDGE * point[:-1] @ point[:-1]
        return float(value), np.append(values.T @ slope + RIDGE * point[:-1], slope.sum())

    n_blocks = values.shape[1]
    bounds = [(0.0, None)] * n_blocks + [(None, None)]
    found = minimize(loss, np.zeros(n_blocks + 1), method="L-BFGS-B", jac=True, bounds=bounds)
    return found.x[:-1], float(found.x[-1])
