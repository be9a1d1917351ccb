"""graphhalu's own detector: a stack of the joint probe and graph networks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, final

import numpy as np
from pydantic import Field, field_validator

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.core.splits import Split
from graphhalu.detectors.base import ChosenTraces, Compared, Detector, DetectorCard
from graphhalu.detectors.gnn.config import QUICK, NetworkConfig
from graphhalu.detectors.gnn.detector import NetworkDetector
from graphhalu.detectors.gnn.detectors import Gat
from graphhalu.detectors.gnn.question import QuestionGat
from graphhalu.detectors.joint import JointProbe
from graphhalu.detectors.samples import WAY_OUT, SampleAgreement, has_samples
from graphhalu.detectors.saved import TrainedConfig
from graphhalu.detectors.stack import Stack
from graphhalu.labels.labels import Labels
from graphhalu.traces.trace import Trace

Part = Literal["probe", "graph", "question", "samples"]
PARTS: Final[tuple[Part, ...]] = ("probe", "graph", "question", "samples")
OF_SAMPLES: Final = ("question", "samples")
"""Parts that are left out where questions have no samples."""


class StackConfig(NetworkConfig):
    """Settings of graphhalu: those of its graph network, and which parts are stacked."""

    parts: Annotated[tuple[Part, ...], Field(min_length=1)] = PARTS
    """``probe``: the joint probe of attention, hidden states and likelihood. ``graph``: gat. ``question``:
    the graph of the answer and its samples; ``samples``: their agreement. The last two are left out where
    no training question has samples."""

    @field_validator("parts")
    @classmethod
    def _differ(cls, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        if len(set(parts)) < len(parts):
            raise ValueError(f"expected different parts, got {list(parts)}")
        return parts


@final
class Graphhalu(Stack):
    """Joint probe, graph networks and agreement of samples, joined on logits that are out of fold.

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

    @property
    def compares(self) -> Compared | None:
        """Samples, where a part that reads them was fitted."""
        return "samples" if set(OF_SAMPLES) & set(self.members) else None

    def check(self, traces: Sequence[Trace]) -> None:
        """As :meth:`NetworkDetector.check`."""
        self._member("graph").check(traces)

    def fit(self, traces: Sequence[Trace], labels: Labels, split: Split) -> Detector:
        """Fit every part on the training side, then join them; validation takes no part.

        Raises:
            NotEnoughDataError: If the training side lacks a class, or only parts of samples are asked for
                and there are none.
        """
        chosen = ChosenTraces.labelled(traces, labels, split.train)
        kept = np.array(chosen.indices, dtype=np.int64)
        parts = [part for part in self.config.parts if part not in OF_SAMPLES or has_samples(chosen)]
        if not parts:
            raise NotEnoughDataError(f"no training question has samples\n  {WAY_OUT}")
        members: dict[str, Any] = {}
        for part in parts:
            member = self._member(part)
            if isinstance(member, NetworkDetector):
                member.log_folder = self.log_folder
            members[part] = member.fit(traces, labels, split)
        self.join_members(members, labels, kept)
        reports = {name: member.training_report for name, member in members.items()}
        self.training_report = {"n_train": len(kept), **reports, "weights": self.weights()}
        return self

    @classmethod
    def member_class(cls, name: str) -> type[Detector]:
        """The class of a part."""
        kinds: dict[str, type[Detector]] = {"probe": JointProbe, "graph": Gat}
        kinds |= {"question": QuestionGat, "samples": SampleAgreement}
        return kinds[name]

    def _member(self, part: Part) -> Any:
        """A part that is not fitted; graph networks take the settings of the whole."""
        kind: Any = self.member_class(part)
        if not issubclass(kind, NetworkDetector):
            return kind(seed=self.config.seed)
        # what is not asked for is decided by the traces
        unasked = {"prompt_edges"} - self.config.model_fields_set
        fields = self.config.model_dump(exclude={"parts", *unasked})
        return kind(config=NetworkConfig.model_validate(fields))
