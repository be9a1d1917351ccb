"""graphhalu's own detector: a stack of the joint probe and the graph network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, final

import numpy as np
from pydantic import Field, field_validator

from graphhalu.core.splits import Split
from graphhalu.detectors.base import ChosenTraces, Detector, DetectorCard
from graphhalu.detectors.gnn.config import QUICK, NetworkConfig
from graphhalu.detectors.gnn.detector import NetworkDetector
from graphhalu.detectors.gnn.detectors import Gat
from graphhalu.detectors.joint import JointProbe
from graphhalu.detectors.saved import TrainedConfig
from graphhalu.detectors.stack import Stack
from graphhalu.labels.labels import Labels
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
            raise ValueError(f"expected different parts, got {list(parts)}")
        return parts


@final
class Graphhalu(Stack):
    """Joint probe and graph network, joined on logits that are out of fold.

    Args:
        seed: By default that of the configuration.
        config: Settings.
    """

    card: ClassVar[DetectorCard] = DetectorCard.of("graphhalu")
    config_class: ClassVar[type[TrainedConfig]] = StackConfig
    quick_settings: ClassVar[Mapping[str, Any]] = QUICK
    is_exact: ClassVar[bool] = False
    least_known: ClassVar[float] = 0.0
    new_field: ClassVar[str] = "joints"

    config: StackConfig

    def __init__(self, seed: int | None = None, config: TrainedConfig | None = None) -> None:
        super().__init__(seed, config)
        self.log_folder: Path | None = None
        """Where Lightning's logger writes; nothing is logged without."""

    def check(self, traces: Sequence[Trace]) -> None:
        """As :meth:`NetworkDetector.check`."""
        self._graph().check(traces)

    def fit(self, traces: Sequence[Trace], labels: Labels, split: Split) -> Detector:
        """Fit both parts on the training side, then join them; validation takes no part."""
        kept = np.array(ChosenTraces.labelled(traces, labels, split.train).indices, dtype=np.int64)
        members: dict[str, Any] = {}
        if "probe" in self.config.parts:
            members["probe"] = JointProbe(seed=self.config.seed).fit(traces, labels, split)
        if "graph" in self.config.parts:
            graph = self._graph()
            graph.log_folder = self.log_folder
            members["graph"] = graph.fit(traces, labels, split)
        self.join_members(members, labels, kept)
        reports = {name: member.training_report for name, member in members.items()}
        self.training_report = {"n_train": len(kept), **reports, "weights": self.weights()}
        return self

    @classmethod
    def member_class(cls, name: str) -> type[Detector]:
        """The class of a part."""
        return {"probe": JointProbe, "graph": Gat}[name]

    def _graph(self) -> NetworkDetector:
        fields = self.config.model_dump(exclude={"parts"})
        return Gat(config=NetworkConfig.model_validate(fields))
