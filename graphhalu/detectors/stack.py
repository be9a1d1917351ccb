"""Stacks: detectors joined on logits out of fold, by weights that are never negative."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.special import expit

from graphhalu.detectors.attribution import Attribution, EdgeEffect
from graphhalu.detectors.base import Detector, Scores
from graphhalu.detectors.identity import check_identity
from graphhalu.detectors.probes.logistic import balanced_weights
from graphhalu.detectors.saved import damaged, read_description, required, write_description
from graphhalu.detectors.trained import ConfiguredDetector, TrainedConfig
from graphhalu.traces.trace import Trace

RIDGE: Final = 0.05
"""Penalty on the squared weights of the joined logits, a trace."""
_FLOOR: Final = 1e-9
"""Added to a weight where it is counted how much is known: without weights all count alike."""


class Joint(NamedTuple):
    """How one block's logit enters the sum."""

    mean: float
    scale: float
    weight: float


class Stack(ConfiguredDetector, ABC):
    """Detectors whose standardised logits are added up, each with a weight of at least 0.

    A subclass fits its members and joins them with :func:`join`.

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
    errors_of_damage: ClassVar[tuple[type[Exception], ...]] = (AttributeError, TypeError)
    """What only damaged files raise when they are read."""

    def __init__(self, seed: int | None = None, config: TrainedConfig | None = None) -> None:
        super().__init__(seed, config)
        self.members: Mapping[str, Detector] = {}
        self.joints: dict[str, Joint] = {}
        self.bias = 0.0

    @classmethod
    @abstractmethod
    def member_class(cls, name: str) -> type[Detector]:
        """The class of a member."""

    def score(self, traces: Sequence[Trace]) -> Scores:
        """Weighted sum of the standardised logits; a member that is missing counts as its mean.

        NaN where members with too little of the weight are known.
        """
        self._check_fitted()
        check_identity(self.identity, traces)
        total, known = np.full(len(traces), self.bias), np.zeros(len(traces))
        all_weights = sum(joint.weight + _FLOOR for joint in self.joints.values())
        for name, member in self.members.items():
            mean, scale, weight = self.joints[name]
            logits = member.score(traces).values
            found = np.isfinite(logits)
            total += np.where(found, weight * scale * (np.where(found, logits, mean) - mean), 0.0)
            known += np.where(found, weight + _FLOOR, 0.0)
        is_known = (known > 0) & (known >= self.least_known * all_weights)
        return Scores.of(np.where(is_known, total, np.nan))

    def attribute(self, trace: Trace) -> Attribution | None:
        """Parts of the members, weighed as they are joined; one that is missing adds nothing."""
        self._check_fitted()
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

    def save(self, folder: Path) -> None:
        """Write each member into a folder of its own, and how they are joined."""
        self._check_fitted()
        for name, member in self.members.items():
            member.save(folder / self.folder_of_members / name)
        values = {
            "config": self.config.model_dump(mode="json"),
            "bias": self.bias,
            "joints": {name: joint._asdict() for name, joint in self.joints.items()},
            "training": self.training_report,
        }
        write_description(folder, self.card.name, values)

    @classmethod
    def load(cls, folder: Path) -> Detector:
        """Read what :meth:`save` wrote.

        Raises:
            DataFileError: If the files do not fit each other.
        """
        values = read_description(folder, cls.card.name)
        config, joints, bias = (required(values, k, folder) for k in ("config", "joints", "bias"))
        try:
            detector = cls(**cls.settings(**config))
            detector.joints = {name: Joint(**joint) for name, joint in joints.items()}
            detector.bias = float(bias)
            detector.members = {
                name: cls.member_class(name).load(folder / cls.folder_of_members / name)
                for name in detector.joints
            }
        except cls.errors_of_damage as error:
            raise damaged(folder, error) from None
        detector.training_report = dict(values.get("training") or {})
        return detector

    def _check_fitted(self) -> None:
        if not self.members:
            raise self.unfitted()


def join(
    logits: dict[str, Float[np.ndarray, "trace"]], labels: Int[np.ndarray, "trace"]
) -> tuple[dict[str, Joint], float]:
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
    values: Float[np.ndarray, "trace block"], labels: Int[np.ndarray, "trace"]
) -> tuple[Float[np.ndarray, "block"], float]:
    share = balanced_weights(labels) / len(labels)
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
