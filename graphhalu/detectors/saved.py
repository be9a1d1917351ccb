"""Detectors on disk: ``detector.json``, and ``model.safetensors`` for weights.

A saved detector says of which class it is, and on which traces it was fitted.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, TypeVar

import numpy as np
from pydantic import Field
from safetensors import SafetensorError
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch
from torch import Tensor

from graphhalu.core.config import Config, load_config
from graphhalu.core.errors import DataFileError, GraphhaluError, UnknownNameError, UsageError
from graphhalu.core.files import read_json_object, reading, reason_of, shown
from graphhalu.core.numerics import json_ready
from graphhalu.core.provenance import provenance
from graphhalu.core.registry import class_path, unknown_name
from graphhalu.detectors.base import Detector
from graphhalu.detectors.identity import Identity, check_identity
from graphhalu.detectors.registry import DETECTORS
from graphhalu.traces.trace import Trace

T = TypeVar("T")

FORMAT: Final = "graphhalu-detector"
FORMAT_VERSION: Final = 1
DESCRIPTION_FILE: Final = "detector.json"
WEIGHTS_FILE: Final = "model.safetensors"
DETECTOR_FOLDER: Final = "detector"
"""Of a run: weights, settings, and the calibration with the threshold of a decision."""


class TrainedConfig(Config):
    """Settings of every trained detector."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of folds within the training side, of samples and of weights."""


class TrainedDetector(Detector, ABC):
    """A detector with settings, whose files are a description and what :meth:`write` puts beside it.

    Args:
        seed: By default that of the configuration.
        config: Settings.
    """

    config_class: ClassVar[type[TrainedConfig]] = TrainedConfig
    saved_fields: ClassVar[tuple[str, ...]] = ("config",)
    """Fields that a description must hold."""
    new_field: ClassVar[str] = "config"
    """A field that descriptions of the first edition lack, whose networks cannot be read."""

    model: Any = None
    """What fitting learned, where that is one object; it counts its parameters."""

    def __init__(self, seed: int | None = None, config: TrainedConfig | None = None) -> None:
        config = config or self.config_class()
        self.config = config if seed is None else config.model_copy(update={"seed": seed})
        self.training_report: dict[str, Any] = {}

    @classmethod
    def settings(cls, **values: Any) -> dict[str, Any]:
        """Arguments of the constructor from plain values, as YAML or ``--set`` gives them.

        Raises:
            ConfigError: If a field is unknown or a value does not validate.
        """
        config = load_config(cls.config_class, None, values)
        return {"seed": config.seed, "config": config}

    def fitted(self, learned: T | None, traces: Sequence[Trace] = ()) -> T:
        """What fitting learned.

        Raises:
            UsageError: If it is missing.
        """
        if learned is None:
            raise UsageError(f"{self.card.name} is not fitted: call fit first, or load a saved one")
        check_identity(self.identity, traces)
        return learned

    @property
    def n_parameters(self) -> int | None:
        """Those of the model."""
        return None if self.model is None else self.model.n_parameters

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
            DataFileError: If the files cannot be read, do not fit each other, or are of the first edition.
        """
        values, name = read_description(folder, cls.card.name), cls.card.name
        if cls.new_field not in values and cls.new_field != "config":
            raise DataFileError(
                f"the {name} in {folder} was trained by an earlier edition, whose network is gone\n"
                f"  Train it again:  graphhalu train {name}"
            )
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


def write_description(folder: Path, name: str, values: Mapping[str, Any]) -> None:
    """Write ``detector.json``: format, name, what the detector says of itself, provenance."""
    folder.mkdir(parents=True, exist_ok=True)
    head = {"format": FORMAT, "format_version": FORMAT_VERSION, "name": name}
    _write_json(folder / DESCRIPTION_FILE, {**head, **values, "provenance": provenance()})


def add_to_description(folder: Path, added: Mapping[str, Any]) -> None:
    """Add fields to the description that is in a folder."""
    path = folder / DESCRIPTION_FILE
    _write_json(path, {**_read_json(path), **added})


def read_description(folder: Path, name: str | None = None) -> dict[str, Any]:
    """Read ``detector.json`` and check what it says it is.

    Args:
        folder: Where a detector was saved.
        name: The detector expected there, or ``None`` for any.

    Raises:
        UsageError: If there is no such file, or it holds another detector.
        DataFileError: If it is not a description of a detector, or one of a later version.
    """
    path = folder / DESCRIPTION_FILE
    values = _read_json(path)
    if values.get("format") != FORMAT or not isinstance(values.get("name"), str):
        raise DataFileError(f"{path} does not describe a detector: format {shown(values.get('format'))}")
    version = values.get("format_version")
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise DataFileError(
            f"{path} has format version {shown(version)}, this graphhalu reads up to "
            f"{FORMAT_VERSION}\n"
            f"  Install a newer graphhalu, or train the detector again"
        )
    if name is not None and values["name"] != name:
        raise UsageError(
            f"{folder} holds the detector {values['name']!r}, not {name!r}\n"
            f"  load_detector(folder) finds the class by itself"
        )
    return values


def required(values: Mapping[str, Any], key: str, folder: Path) -> Any:
    """A field of the description.

    Raises:
        DataFileError: If it is missing.
    """
    if key not in values:
        raise DataFileError(f"{folder / DESCRIPTION_FILE} lacks {key!r}; train the detector again")
    return values[key]


def write_weights(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write ``model.safetensors``."""
    folder.mkdir(parents=True, exist_ok=True)
    save_torch({name: value.contiguous() for name, value in weights.items()}, folder / WEIGHTS_FILE)


def write_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write ``model.safetensors`` without PyTorch; every bit is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    save_numpy(contiguous, folder / WEIGHTS_FILE)


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """Read ``model.safetensors`` as arrays; nothing in it can run.

    Raises:
        DataFileError: If the file is missing or damaged.
    """
    return {name: value.numpy() for name, value in read_weights(folder).items()}


def read_weights(folder: Path) -> dict[str, Tensor]:
    """As :func:`read_arrays`, as tensors."""
    path = folder / WEIGHTS_FILE
    with reading(f"{path} cannot be read", also=(SafetensorError,), way_out="Train the detector again"):
        return load_torch(path)


def damaged(folder: Path, error: Exception) -> GraphhaluError:
    """The error for files that are readable and do not fit each other."""
    return DataFileError(f"the detector in {folder} does not fit its own description: {reason_of(error)}")


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    text = json.dumps(json_ready(values), indent=2, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    missing = UsageError(f"no saved detector in {path.parent}: {path.name} is missing")
    return read_json_object(path, missing=missing)


def save_detector(detector: Detector, folder: Path, identity: Identity | None = None) -> None:
    """Write a fitted detector, with the model, quantisation and prompt that it belongs to.

    Args:
        detector: Fitted.
        folder: Is made if it is missing.
        identity: Of the traces that it was fitted on: ``Identity.of(store.configuration)``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    detector.save(folder)
    added: dict[str, Any] = {}
    path = class_path(type(detector))
    if DETECTORS.path(detector.card.name) != path:
        added["class"] = path
    if identity is not None:
        added["identity"] = identity.model_dump()
    if added:
        add_to_description(folder, added)


def load_detector(
    folder: Path, traces: Sequence[Trace] | None = None, *, detector_class: type[Detector] | str | None = None
) -> Detector:
    """Read a saved detector.

    Its file says of which class it is, and may come from a stranger: only a registered class is
    imported because of what it says.

    Args:
        folder: Where it was saved.
        traces: What it shall score; those of another model, quantisation or prompt are refused.
        detector_class: Class of one that is not registered, or ``module:Class``.

    Raises:
        UsageError: If the folder holds no saved detector, or one of another class.
        UnknownNameError: If its class is not registered here and none is given.
        DataFileError: If its files cannot be read.
        DetectorMismatchError: If it was fitted on other traces than these; names the fields.
    """
    values = read_description(folder)
    kind = _class_of(values, folder, detector_class)
    try:
        identity = None if values.get("identity") is None else Identity.model_validate(values["identity"])
    except ValueError as error:
        raise damaged(folder, error) from None
    if traces is not None:
        check_identity(identity, traces)
    what = f"the detector in {folder} does not fit its own description"
    with reading(what, also=(RuntimeError, SafetensorError)):
        detector: object = kind.load(folder)
    if not isinstance(detector, Detector):
        raise GraphhaluError(f"{class_path(kind)}.load must return the detector, got {shown(detector)}")
    detector.identity = identity
    return detector


def _class_of(values: Mapping[str, Any], folder: Path, given: type[Detector] | str | None) -> type[Detector]:
    """The class that the caller names, else the registered one; never one that a file names."""
    name, path = values["name"], values.get("class")
    if given is None:
        # a class of graphhalu's own needs no path, so one with a path only bears its name
        if name not in DETECTORS or (path is not None and DETECTORS.path(name) is not None):
            if path is None:
                raise unknown_name("detector", name, DETECTORS.names())
            raise UnknownNameError(
                f"the detector {shown(name)} in {folder} is of the class {shown(path)}, which is not "
                f"registered: nothing is imported because a file says so\n"
                f"  Install the plug-in that registers it, or, if you trust it, name the class:  "
                f"--detector-class module:Class   or   load_detector(folder, detector_class=...)"
            )
        return DETECTORS.registered(name)
    found = DETECTORS.get(given) if isinstance(given, str) else given
    DETECTORS.check(found, f"detector {shown(given)}")
    if found.card.name != name:
        raise UsageError(f"{folder} holds the detector {shown(name)}, not {found.card.name!r}")
    return found
