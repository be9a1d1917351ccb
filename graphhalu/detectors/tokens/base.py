"""The one contract of all token detectors: fit on labelled tokens, score tokens, save, load."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field

from graphhalu.config import Config, validate
from graphhalu.detectors.base import DetectorCard
from graphhalu.detectors.identity import Identity
from graphhalu.errors import NotEnoughDataError, UsageError
from graphhalu.labels.tokens import TokenLabels
from graphhalu.splits import Split
from graphhalu.traces.trace import Trace


@dataclass(frozen=True)
class TokenScores:
    """One score an answer token; higher means more likely hallucinated.

    Attributes:
        values: Scores of the answer tokens of each trace; NaN where ``is_valid`` is false.
        is_valid: Whether the detector could compute a score.
    """

    values: tuple[Float[np.ndarray, "_"], ...]
    is_valid: tuple[Bool[np.ndarray, "_"], ...]

    @classmethod
    def of(cls, values: Sequence[Float[np.ndarray, "_"]]) -> "TokenScores":
        """Scores whose finite values are valid."""
        return cls(tuple(values), tuple(np.isfinite(each) for each in values))


class TokenConfig(Config):
    """What every token detector lets the user set."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of folds within the training side, of samples and of weights."""


class TokenDetector(ABC):
    """A detector of hallucinated tokens.

    Every choice is made inside :meth:`fit` from the training and validation side of the split.

    Args:
        seed: By default that of the configuration.
        config: Settings.
    """

    card: ClassVar[DetectorCard]
    config_class: ClassVar[type[TokenConfig]] = TokenConfig
    identity: Identity | None = None
    """Of the traces that a saved detector was fitted on; ``None`` for one fitted just now."""

    def __init__(self, seed: int | None = None, config: TokenConfig | None = None) -> None:
        config = config or self.config_class()
        self.config = config if seed is None else config.model_copy(update={"seed": seed})
        self.training_report: dict[str, Any] = {}

    @classmethod
    def settings(cls, **values: Any) -> dict[str, Any]:
        """Arguments of the constructor from plain values.

        Raises:
            ConfigError: If a field is unknown or a value does not validate.
        """
        config = validate(cls.config_class, values, source=f"settings of {cls.card.name}")
        return {"seed": config.seed, "config": config}

    @abstractmethod
    def fit(self, traces: Sequence[Trace], labels: TokenLabels, split: Split) -> "TokenDetector":
        """Train on ``split.train``, choose on it and on ``split.validation``.

        Args:
            traces: All traces; indices of the split point into them.
            labels: Labels of the answer tokens of the same traces in the same order.
            split: Sides without a shared question or context.

        Raises:
            NotEnoughDataError: If a side lacks a class that the method needs.
        """

    @abstractmethod
    def score_tokens(self, traces: Sequence[Trace]) -> TokenScores:
        """One score an answer token of each trace, independent of the other traces given."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write weights (safetensors) and settings (JSON) into an existing folder."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> "TokenDetector":
        """Read what :meth:`save` wrote."""

    def unfitted(self) -> UsageError:
        """The error for a score before a fit."""
        message = f"{self.card.name} is not fitted: call fit first, or load a saved one"
        return UsageError(message)


def labelled(labels: TokenLabels, indices: Int[np.ndarray, "side"], name: str) -> list[int]:
    """The traces of a side whose tokens are labelled, in the order of the store.

    Raises:
        NotEnoughDataError: If their tokens are all of one class.
    """
    chosen: list[int] = np.sort(indices[labels.is_valid[indices]]).tolist()
    n_positive = sum(int(labels.values[index].sum()) for index in chosen)
    n_tokens = sum(len(labels.values[index]) for index in chosen)
    if n_positive in {0, n_tokens}:
        message = (
            f"{name} needs tokens of both classes on the training side, got {n_positive} "
            f"hallucinated among {n_tokens} of {len(chosen)} answers\n"
            f"  Extract more answers with marked spans"
        )
        raise NotEnoughDataError(message)
    return chosen
