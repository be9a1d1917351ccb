"""Detectors with settings and a seed, saved as a description beside arrays."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import Field

from graphhalu.core.config import Config, validate
from graphhalu.core.errors import DataFileError, UsageError
from graphhalu.detectors.base import Detector
from graphhalu.detectors.saved import damaged, read_description, required, write_description

T = TypeVar("T")


class TrainedConfig(Config):
    """Settings of every trained detector."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of folds within the training side, of samples and of weights."""


class ConfiguredDetector(Detector, ABC):
    """A detector that is made from a configuration.

    Args:
        seed: By default that of the configuration.
        config: Settings.
    """

    config_class: ClassVar[type[TrainedConfig]] = TrainedConfig

    def __init__(self, seed: int | None = None, config: TrainedConfig | None = None) -> None:
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

    def unfitted(self) -> UsageError:
        """The error for a score before a fit."""
        message = f"{self.card.name} is not fitted: call fit first, or load a saved one"
        return UsageError(message)

    def fitted(self, learned: T | None) -> T:
        """What fitting learned.

        Raises:
            UsageError: If it is missing.
        """
        if learned is None:
            raise self.unfitted()
        return learned


class TrainedDetector(ConfiguredDetector, ABC):
    """A detector whose files are a description and what :meth:`write` puts beside it."""

    saved_fields: ClassVar[tuple[str, ...]] = ("config",)
    """Fields that a description must hold."""

    @abstractmethod
    def write(self, folder: Path) -> dict[str, Any]:
        """Write arrays into an existing folder; return fields of the description.

        Raises:
            UsageError: If the detector is not fitted.
        """

    @abstractmethod
    def restore(self, folder: Path, values: Mapping[str, Any]) -> None:
        """Inverse of :meth:`write`.

        Raises:
            DataFileError: If a file cannot be read.
            KeyError: If an array is missing.
            RuntimeError: If weights do not fit a network.
            TypeError: If a value is of another type.
            ValueError: If arrays and values do not fit each other.
        """

    def save(self, folder: Path) -> None:
        """Write the settings, and everything else that is needed to score."""
        values = {
            "config": self.config.model_dump(mode="json"),
            **self.write(folder),
            "training": self.training_report,
        }
        write_description(folder, self.card.name, values)

    @classmethod
    def load(cls, folder: Path) -> Detector:
        """Read what :meth:`save` wrote.

        Raises:
            DataFileError: If the files cannot be read or do not fit each other.
        """
        values = read_description(folder, cls.card.name)
        for field in cls.saved_fields:
            required(values, field, folder)
        try:
            detector = cls(**cls.settings(**values.get("config", {})))
            detector.restore(folder, values)
        except DataFileError:
            raise
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise damaged(folder, error) from None
        detector.training_report = dict(values.get("training") or {})
        return detector
