"""Detectors with settings and a seed, saved as arrays beside a description."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from graphhalu.core.config import Config, validate
from graphhalu.core.errors import UsageError
from graphhalu.detectors.base import Detector
from graphhalu.detectors.saved import (
    damaged,
    read_arrays,
    read_description,
    required,
    write_arrays,
    write_description,
)


class TrainedConfig(Config):
    """What every trained detector lets the user set."""

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


class TrainedDetector(ConfiguredDetector, ABC):
    """A detector that is saved as arrays."""

    saved_fields: ClassVar[tuple[str, ...]] = ()
    """What a description must hold beside the settings."""

    @abstractmethod
    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays of the fitted detector.

        Raises:
            UsageError: If it is not fitted.
        """

    def description(self) -> dict[str, Any]:
        """The values of :attr:`saved_fields`."""
        return {}

    @abstractmethod
    def restore(self, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """Inverse of :meth:`arrays` and :meth:`description`.

        Raises:
            KeyError: If an array is missing.
            RuntimeError: If weights do not fit a network.
            TypeError: If a value is of another type.
            ValueError: If arrays and values do not fit each other.
        """

    def save(self, folder: Path) -> None:
        """Write the arrays, the settings, and what else is needed to score."""
        write_arrays(folder, self.arrays())
        values = {
            "config": self.config.model_dump(mode="json"),
            **self.description(),
            "training": self.training_report,
        }
        write_description(folder, self.card.name, values)

    @classmethod
    def load(cls, folder: Path) -> Detector:
        """Read what :meth:`save` wrote."""
        values = read_description(folder, cls.card.name)
        config, *_ = [required(values, key, folder) for key in ("config", *cls.saved_fields)]
        arrays = read_arrays(folder)
        try:
            detector = cls(**cls.settings(**config))
            detector.restore(arrays, values)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise damaged(folder, error) from None
        detector.training_report = dict(values.get("training") or {})
        return detector
