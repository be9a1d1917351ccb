"""The one contract of all detectors: fit on labelled traces, score traces, save, load."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from graphhalu.detectors.attribution import Attribution
from graphhalu.detectors.identity import Identity
from graphhalu.features.base import sections
from graphhalu.labels.labels import Labels
from graphhalu.splits import Split
from graphhalu.traces.trace import Trace

Input = Literal["attention", "hidden", "likelihood", "text", "length"]


@dataclass(frozen=True)
class Scores:
    """One score a trace; higher means more likely hallucinated.

    Attributes:
        values: The scores; NaN where ``is_valid`` is false, never a made-up number.
        is_valid: Whether the detector could compute a score.
    """

    values: Float[np.ndarray, "trace"]
    is_valid: Bool[np.ndarray, "trace"]

    @classmethod
    def of(cls, values: Float[np.ndarray, "trace"]) -> "Scores":
        """Scores whose finite values are valid."""
        return cls(values, np.isfinite(values))


@dataclass(frozen=True)
class DetectorCard:
    """What a user must know of a detector before trusting its number.

    Attributes:
        name: Registered name.
        summary: One line on what it computes.
        source: Paper, and every difference from it.
        inputs: What it reads from a trace.
        is_supervised: Whether it is trained on labels.
        is_control: Whether it is a control that a detector must beat.
        reads: Names of the stored arrays that it needs of a trace
            (:data:`graphhalu.traces.schema.ARRAYS`), so that a comparison can say how many
            bytes it costs to keep; empty if it needs none or does not say.
        is_graph: Whether it is a network on token graphs. The strongest detector that is none,
            or a control, is what all others are tested against.
    """

    name: str
    summary: str
    source: str
    inputs: tuple[Input, ...]
    is_supervised: bool
    is_control: bool = False
    reads: tuple[str, ...] = ()
    is_graph: bool = False

    @classmethod
    def of(
        cls, doc: str | None, name: str, *inputs: Input, note: str = "", **fields: Any
    ) -> "DetectorCard":
        """The card of a trained detector whose docstring has the sections Summary and Source.

        Args:
            doc: The docstring; ``None`` under ``python -OO``, which then has neither text.
            name: Registered name.
            inputs: What it reads from a trace.
            note: What several detectors say at the end of their source.
            fields: Other fields of the card.
        """
        text = sections(doc)
        source = f"{text.get('source', '')} {note}".strip()
        summary = text.get("summary", "")
        return cls(name, summary, source, inputs, is_supervised=True, **fields)


class Detector(ABC):
    """A detector of hallucinated answers.

    Every choice (layer, sign, threshold, epoch) is made inside :meth:`fit` from the training
    and validation side of the split; the test side is never looked at.
    """

    card: ClassVar[DetectorCard]
    identity: Identity | None = None
    """Of the traces that a saved detector was fitted on; ``None`` for one fitted just now."""

    @abstractmethod
    def fit(self, traces: Sequence[Trace], labels: Labels, split: Split) -> "Detector":
        """Train on ``split.train``, choose on ``split.validation``; return the detector.

        Args:
            traces: All traces; indices of the split point into them.
            labels: Labels of the same traces in the same order.
            split: Sides without a shared question.

        Raises:
            NotEnoughDataError: If a side lacks a class that the method needs.
        """

    @abstractmethod
    def score(self, traces: Sequence[Trace]) -> Scores:
        """One score a trace, independent of the other traces given."""

    def attribute(self, trace: Trace) -> Attribution | None:
        """What the score of a trace is made of; ``None`` where this detector cannot say."""
        return None

    @property
    def n_parameters(self) -> int | None:
        """Numbers that fitting chose; ``None`` where they are not counted."""
        return None

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write weights (safetensors) and settings (JSON) into an existing folder."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> "Detector":
        """Read what :meth:`save` wrote."""


@runtime_checkable
class PartOfTraces(Protocol):
    """A sequence of traces that knows the larger one it was taken from."""

    @property
    def pool(self) -> Sequence[Trace]:
        """All traces, also those beside the chosen ones."""


def sibling_traces(traces: Sequence[Trace]) -> list[list[Trace]]:
    """For each trace all sampled answers to its question, itself among them, the best beam first.

    A comparison scores the best beam of each question only. The other beams are in the same
    store, and a detector that reads across beams finds them here while fitting and while
    scoring; they never have a label that it could see, unless they are compared too. A given
    answer, which the model did not produce, has no sibling but itself.

    Args:
        traces: The traces to score or to fit on; the test side that a comparison hands to
            :meth:`Detector.score` knows of the store that it is taken from.
    """
    pool = traces.pool if isinstance(traces, PartOfTraces) else traces
    places: dict[str, list[tuple[int, int]]] = {}
    for place, trace in enumerate(pool):
        if trace.record.is_on_policy:
            rank = trace.record.beam_index
            places.setdefault(trace.record.question_id, []).append((rank, place))
    return [
        [pool[place] for _, place in sorted(places[trace.record.question_id])]
        if trace.record.is_on_policy
        else [trace]
        for trace in traces
    ]
