"""All features together: a probe a block, joined by weights that are never negative."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, NamedTuple, final

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field
from scipy.optimize import minimize
from scipy.special import expit

from graphhalu.config import validate
from graphhalu.detectors.attribution import Attribution
from graphhalu.detectors.base import Detector, DetectorCard, Scores
from graphhalu.detectors.identity import check_identity
from graphhalu.detectors.probes.attention import LogisticProbe, Recipe, plain_grid
from graphhalu.detectors.probes.base import ProbeConfig, ProbeDetector
from graphhalu.detectors.probes.logistic import balanced_weights
from graphhalu.detectors.saved import damaged, read_description, required, write_description
from graphhalu.detectors.sides import ChosenTraces, check_classes
from graphhalu.errors import NotEnoughDataError, UsageError
from graphhalu.features.spec import FeatureSpec
from graphhalu.labels.labels import Labels
from graphhalu.splits import Split
from graphhalu.traces.trace import Trace

RIDGE: Final = 0.05
"""Penalty on the squared weights of the joined logits, a trace."""
BLOCKS: Final = (
    "sink-probe-heads", "sinkprobe", "lapeigvals", "attn-logdet-heads", "lookback",
    "instability-probe", "entropy-heads", "hidden-probe", "hallushift", "icr",
    "likelihood-probe", "summaries",
)  # fmt: skip
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
        tuple(
            FeatureSpec(name)
            for name in ("rauq", "hidden_norm", "hidden_score", "hidden_effective_rank")
        ),
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


class Joint(NamedTuple):
    """How one block's logit enters the sum."""

    mean: float
    scale: float
    weight: float


@final
class AllFeatures(Detector):
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

    def __init__(self, seed: int | None = None, config: EnsembleConfig | None = None) -> None:
        config = config or EnsembleConfig()
        self.config = config if seed is None else config.model_copy(update={"seed": seed})
        self.members: dict[str, ProbeDetector] = {}
        self.joints: dict[str, Joint] = {}
        self.bias = 0.0
        self.training_report: dict[str, Any] = {}

    @classmethod
    def settings(cls, **values: Any) -> dict[str, Any]:
        """Arguments of the constructor from plain values.

        Raises:
            ConfigError: If a field is unknown or a value does not validate.
            UnknownNameError: If a block is no probe.
        """
        config = validate(EnsembleConfig, values, source=f"settings of {cls.card.name}")
        for name in config.blocks:
            _block_class(name)
        return {"seed": config.seed, "config": config}

    def fit(self, traces: Sequence[Trace], labels: Labels, split: Split) -> Detector:
        """Fit every block, then join their out-of-fold logits; validation takes no part."""
        kept = np.array(ChosenTraces.labelled(traces, labels, split.train).indices, dtype=np.int64)
        check_classes(labels.values[kept], self.card.name)
        members, columns, failures = {}, {}, {}
        for name in self.config.blocks:
            kind = _block_class(name)
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
            "n_train": len(kept), "left_out": failures,
            "weights": {name: joint.weight for name, joint in self.joints.items()},
            "blocks": {name: member.training_report for name, member in members.items()},
        }  # fmt: skip
        return self

    def score(self, traces: Sequence[Trace]) -> Scores:
        """Weighted sum of the blocks' standardised logits; NaN where most of them are missing."""
        self._check_fitted()
        check_identity(self.identity, traces)
        total, known = np.full(len(traces), self.bias), np.zeros(len(traces))
        # where nothing was learnt all blocks count alike
        floor = 1e-9
        all_weights = sum(joint.weight + floor for joint in self.joints.values())
        for name, member in self.members.items():
            mean, scale, weight = self.joints[name]
            logits = member.score(traces).values
            found = np.isfinite(logits)
            total += np.where(found, weight * scale * (np.where(found, logits, mean) - mean), 0.0)
            known += np.where(found, weight + floor, 0.0)
        return Scores.of(np.where(known >= all_weights / 2, total, np.nan))

    def attribute(self, trace: Trace) -> Attribution | None:
        """Parts of the blocks, weighed as they are joined; a block that is missing adds nothing."""
        self._check_fitted()
        heads = np.zeros((trace.shape.n_layers, trace.shape.n_heads))
        features, rest = {}, self.bias
        for name, member in self.members.items():
            joint, found = self.joints[name], member.attribute(trace)
            if found is None:
                continue
            share = joint.weight * joint.scale
            heads += share * found.heads
            features[name] = share * (sum(found.features.values()) - joint.mean)
            rest += share * (found.rest - joint.mean)
        return Attribution(heads, features, is_exact=True, rest=rest)

    @property
    def n_parameters(self) -> int | None:
        """Those of all blocks, a weight for each block, and the bias."""
        if not self.members:
            return None
        return sum(member.n_parameters or 0 for member in self.members.values()) + (
            len(self.members) + 1
        )

    def save(self, folder: Path) -> None:
        """Write each block into a folder of its own, and how they are joined."""
        self._check_fitted()
        for name, member in self.members.items():
            member.save(folder / "blocks" / name)
        values = {
            "config": self.config.model_dump(mode="json"), "bias": self.bias,
            "joints": {name: joint._asdict() for name, joint in self.joints.items()},
            "training": self.training_report,
        }  # fmt: skip
        write_description(folder, self.card.name, values)

    @classmethod
    def load(cls, folder: Path) -> Detector:
        """Read what :meth:`save` wrote."""
        values = read_description(folder, cls.card.name)
        config, joints, bias = (required(values, k, folder) for k in ("config", "joints", "bias"))
        try:
            detector = cls(**cls.settings(**config))
            detector.joints = {name: Joint(**joint) for name, joint in joints.items()}
            detector.bias = float(bias)
            blocks = {name: folder / "blocks" / name for name in detector.joints}
            detector.members = {n: _probe(_block_class(n).load(p)) for n, p in blocks.items()}
        except (AttributeError, TypeError) as error:
            raise damaged(folder, error) from None
        detector.training_report = dict(values.get("training") or {})
        return detector

    def _check_fitted(self) -> None:
        if not self.members:
            message = f"{self.card.name} is not fitted: call fit first, or load a saved one"
            raise UsageError(message)


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


def _block_class(name: str) -> type[ProbeDetector]:
    from graphhalu.detectors.registry import DETECTORS

    found: Any = Summaries if name == "summaries" else DETECTORS.registered(name)
    if not issubclass(found, ProbeDetector):
        message = f"{name!r} is no probe, so it gives no logits out of fold\n  Leave it out"
        raise UsageError(message)
    return found


def _probe(detector: Detector) -> ProbeDetector:
    if not isinstance(detector, ProbeDetector):
        message = f"{type(detector).__name__} is no probe"
        raise TypeError(message)
    return detector
