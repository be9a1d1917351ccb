"""graphhalu's own detector: a stack of the joint probe and the graph network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, final

import numpy as np
from pydantic import Field, field_validator

from graphhalu.core.config import load_config
from graphhalu.core.splits import Split
from graphhalu.detectors.base import ChosenTraces, Detector, DetectorCard
from graphhalu.detectors.gnn.config import NetworkConfig
from graphhalu.detectors.gnn.detector import NetworkDetector
from graphhalu.detectors.gnn.detectors import Gat
from graphhalu.detectors.joint import JointProbe
from graphhalu.detectors.saved import read_description, require_this_edition
from graphhalu.detectors.stack import Stack
from graphhalu.detectors.trained import TrainedConfig
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
    is_exact: ClassVar[bool] = False
    least_known: ClassVar[float] = 0.0

    config: StackConfig

    def __init__(self, seed: int | None = None, config: TrainedConfig | None = None) -> None:
        super().__init__(seed, config)
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
        members: dict[str, Detector] = {}
        if "probe" in self.config.parts:
            members["probe"] = JointProbe(seed=self.config.seed).fit(traces, labels, split)
        if "graph" in self.config.parts:
            graph = self._graph()
            graph.log_folder = self.log_folder
            members["graph"] = graph.fit(traces, labels, split)
        self.join_members(members, labels, kept)
        reports = {n: getattr(member, "training_report", {}) for n, member in members.items()}
        self.training_report = {"n_train": len(kept), **reports, "weights": self.weights()}
        return self

    @classmethod
    def member_class(cls, name: str) -> type[Detector]:
        """The class of a part."""
        members: dict[str, type[Detector]] = {"probe": JointProbe, "graph": Gat}
        return members[name]

    @classmethod
    def load(cls, folder: Path) -> Detector:
        """Read what :meth:`save` wrote.

        Raises:
            DataFileError: If the files do not fit each other, or are of the first edition.
        """
        require_this_edition(read_description(folder, cls.card.name), "joints", cls.card.name, folder)
        return super().load(folder)

    def _graph(self) -> NetworkDetector:
        fields = self.config.model_dump(exclude={"parts"})
        graph: NetworkDetector = Gat(config=NetworkConfig.model_validate(fields))
        return graph
