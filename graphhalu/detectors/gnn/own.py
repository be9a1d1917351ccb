"""graphhalu's own detector: a stack of the joint probe and the graph network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, final

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field, field_validator

from graphhalu.config import load_config
from graphhalu.detectors.attribution import Attribution, EdgeEffect
from graphhalu.detectors.base import Detector, DetectorCard, Scores
from graphhalu.detectors.ensemble import Joint, join
from graphhalu.detectors.gnn.config import NetworkConfig
from graphhalu.detectors.gnn.detectors import GATDetector
from graphhalu.detectors.identity import check_identity
from graphhalu.detectors.probes.joint import JointProbe
from graphhalu.detectors.saved import damaged, read_description, required, write_description
from graphhalu.detectors.sides import ChosenTraces
from graphhalu.errors import DataFileError, UsageError
from graphhalu.labels.labels import Labels
from graphhalu.splits import Split
from graphhalu.traces.trace import Trace

Part = Literal["probe", "graph"]
PARTS: Final[tuple[Part, ...]] = ("probe", "graph")


class StackConfig(NetworkConfig):
    """Settings of graphhalu: those of its graph network, and which parts are stacked."""

    parts: Annotated[tuple[Part, ...], Field(min_length=1)] = PARTS
    """``probe``: the joint probe of attention, hidden states and likelihood. ``graph``: gat."""

    @field_validator("parts")
    @classmethod
    def _differ(cls, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        if len(set(parts)) < len(parts):
            message = f"expected different parts, got {list(parts)}"
            raise ValueError(message)
        return parts


@final
class GraphhaluDetector(Detector):
    """Joint probe and graph network, joined on logits that are out of fold.

    Args:
        seed: By default that of the configuration.
        config: Settings.
    """

    card: ClassVar[DetectorCard] = DetectorCard(
        name="graphhalu",
        summary="joint probe of attention, hidden states and likelihood, stacked with gat",
        source=(
            "Our own: stacking (Wolpert 1992; Breiman 1996) of joint-probe and gat by weights of "
            "at least 0, learnt on logits of training traces from inner folds that never saw "
            "their question. With parts=[probe] or parts=[graph] it is one of the two alone."
        ),
        inputs=("attention", "hidden", "likelihood"),
        is_supervised=True,
        reads=(
            "attention", "hidden", "span_code", "span_mass", "received", "sink_keys",
            "self_attention", "row_entropy", "token_logprob", "token_entropy", "top1_margin",
        ),
        is_graph=True,
    )  # fmt: skip

    def __init__(self, seed: int | None = None, config: StackConfig | None = None) -> None:
        config = config or StackConfig()
        self.config = config if seed is None else config.model_copy(update={"seed": seed})
        self.members: dict[str, Detector] = {}
        self.joints: dict[str, Joint] = {}
        self.bias = 0.0
        self.training_report: dict[str, Any] = {}
        self.log_folder: Path | None = None
        """Where Lightning's logger writes; nothing is logged without."""

    @classmethod
    def settings(cls, **values: Any) -> dict[str, Any]:
        """Arguments of the constructor from plain values.

        Raises:
            ConfigError: If a field is unknown or a value does not validate.
        """
        config = load_config(StackConfig, None, values)
        return {"seed": config.seed, "config": config}

    def check(self, traces: Sequence[Trace]) -> None:
        """As :meth:`NetworkDetector.check`."""
        self._graph().check(traces)

    def fit(self, traces: Sequence[Trace], labels: Labels, split: Split) -> Detector:
        """Fit both parts on the training side, then join them; validation takes no part."""
        kept = np.array(ChosenTraces.labelled(traces, labels, split.train).indices, dtype=np.int64)
        self.members, logits = {}, {}
        if "probe" in self.config.parts:
            probe = JointProbe(seed=self.config.seed)
            learned, used = probe.fit_side(traces, labels, split.train)
            self.members["probe"] = probe
            found = dict(zip(used.tolist(), learned.out_of_fold.tolist(), strict=True))
            logits["probe"] = _placed(found, kept)
        if "graph" in self.config.parts:
            graph = self._graph()
            graph.log_folder = self.log_folder
            graph.fit(traces, labels, split)
            self.members["graph"] = graph
            found = {index: float(value[0]) for index, value in graph.out_of_fold.items()}
            logits["graph"] = _placed(found, kept)
        self.joints, self.bias = join(logits, labels.values[kept])
        reports = {n: getattr(member, "training_report", {}) for n, member in self.members.items()}
        self.training_report = {
            "n_train": len(kept), **reports,
            "weights": {name: joint.weight for name, joint in self.joints.items()},
        }  # fmt: skip
        return self

    def score(self, traces: Sequence[Trace]) -> Scores:
        """Weighted sum of the standardised logits; a part that is missing counts as its mean."""
        self._check_fitted()
        check_identity(self.identity, traces)
        total, is_known = np.full(len(traces), self.bias), np.zeros(len(traces), dtype=bool)
        for name, member in self.members.items():
            mean, scale, weight = self.joints[name]
            logits = member.score(traces).values
            found = np.isfinite(logits)
            total += np.where(found, weight * scale * (np.where(found, logits, mean) - mean), 0.0)
            is_known |= found
        return Scores.of(np.where(is_known, total, np.nan))

    def attribute(self, trace: Trace) -> Attribution | None:
        """The parts of both, weighed as they are joined."""
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
        return Attribution(heads, features, is_exact=False, rest=rest, edges=edges)

    @property
    def n_parameters(self) -> int | None:
        """Those of both parts, their weights, and the bias."""
        if not self.members:
            return None
        return sum(each.n_parameters or 0 for each in self.members.values()) + len(self.members) + 1

    def save(self, folder: Path) -> None:
        """Write each part into a folder of its own, and how they are joined."""
        self._check_fitted()
        for name, member in self.members.items():
            member.save(folder / name)
        values = {
            "config": self.config.model_dump(mode="json"), "bias": self.bias,
            "joints": {name: joint._asdict() for name, joint in self.joints.items()},
            "training": self.training_report,
        }  # fmt: skip
        write_description(folder, self.card.name, values)

    @classmethod
    def load(cls, folder: Path) -> Detector:
        """Read what :meth:`save` wrote.

        Raises:
            DataFileError: If the files do not fit each other, or are of the first edition.
        """
        values = read_description(folder, cls.card.name)
        if "joints" not in values:
            message = (
                f"the graphhalu in {folder} was trained by an earlier edition, whose network is "
                f"gone\n  Train it again:  graphhalu train graphhalu"
            )
            raise DataFileError(message)
        config, joints, bias = (required(values, k, folder) for k in ("config", "joints", "bias"))
        kinds: dict[str, type[Detector]] = {"probe": JointProbe, "graph": GATDetector}
        try:
            detector = cls(**cls.settings(**config))
            detector.joints = {name: Joint(**joint) for name, joint in joints.items()}
            detector.bias = float(bias)
            detector.members = {name: kinds[name].load(folder / name) for name in detector.joints}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise damaged(folder, error) from None
        detector.training_report = dict(values.get("training") or {})
        return detector

    def _graph(self) -> GATDetector:
        fields = self.config.model_dump(exclude={"parts"})
        return GATDetector(config=NetworkConfig.model_validate(fields))

    def _check_fitted(self) -> None:
        if not self.members:
            message = f"{self.card.name} is not fitted: call fit first, or load a saved one"
            raise UsageError(message)


def _placed(found: dict[int, float], kept: Int[np.ndarray, "trace"]) -> Float[np.ndarray, "trace"]:
    """Out-of-fold logits among all training traces; NaN where there is none."""
    return np.array([found.get(index, np.nan) for index in kept.tolist()])
