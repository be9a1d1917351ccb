"""The one contract of all detectors: fit on labelled traces, score traces, save, load."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float

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
    """

    name: str
    summary: str
    source: str
    inputs: tuple[Input, ...]
    is_supervised: bool
    is_control: bool = False


class Detector(ABC):
    """A detector of hallucinated answers.

    Every choice (layer, sign, threshold, epoch) is made inside :meth:`fit` from the training
    and validation side of the split; the test side is never looked at.
    """

    card: ClassVar[DetectorCard]

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

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write weights (safetensors) and settings (JSON) into an existing folder."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> "Detector":
        """Read what :meth:`save` wrote."""
