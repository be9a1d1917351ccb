"""A trained detector with the configuration by which new answers are made for it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from graphhalu.core.config import validate
from graphhalu.core.errors import UsageError
from graphhalu.detectors.base import Detector
from graphhalu.detectors.identity import Identity
from graphhalu.detectors.saved import load_detector
from graphhalu.evaluation.calibration import CALIBRATION_FILE, Calibration, read_calibration
from graphhalu.extract.settings import ExtractConfig

Answers = Literal["generated", "given"]

_FOLDER: Final = "detector"
_LOADABLE: Final = ("none", "int8", "nf4")
_DTYPES: Final = ("float32", "bfloat16", "float16")
_OF_ANOTHER_MACHINE: Final = ("device", "threads", "trust_remote_code")
"""Settings of a model that are not taken from a file: where it ran, and which code may run."""


@dataclass(frozen=True)
class ScoringRecipe:
    """A trained detector with all that a new answer needs.

    Attributes:
        folder: Where it was saved.
        detector: Loaded; it reads no language model.
        calibration: From scores to probabilities; ``None`` if the validation side of its training
            held one class only.
        identity: What the traces that it was trained on were made with.
    """

    folder: Path
    detector: Detector
    calibration: Calibration | None
    identity: Identity

    @classmethod
    def read(cls, run: Path, detector_class: type[Detector] | str | None = None) -> "ScoringRecipe":
        """Read what ``graphhalu train`` saved.

        Args:
            run: Folder of the run, or its folder ``detector``.
            detector_class: Class of a detector that is not registered, or ``module:Class``.

        Raises:
            UsageError: If there is no saved detector, or it was saved without its identity.
            DataFileError: If a file cannot be read.
        """
        folder = run / _FOLDER if (run / _FOLDER).is_dir() else run
        detector = load_detector(folder, detector_class=detector_class)
        if detector.identity is None:
            message = (
                f"the detector in {folder} does not say which model it belongs to: it was fitted "
                f"on traces in memory\n  Train it on a store:  graphhalu train"
            )
            raise UsageError(message)
        calibration = read_calibration(folder / CALIBRATION_FILE)
        return cls(folder, detector, calibration, detector.identity)

    def config(self, answers: Answers, **model: Any) -> ExtractConfig:
        """How answers are made and captured, as in training.

        Args:
            answers: Whether the model answers, or answers are given to it.
            model: Fields of the model's settings that differ: name, device, threads.

        Raises:
            ConfigError: If the saved settings do not validate.
        """
        source = f"the settings saved in {self.folder}"
        saved = self.identity.config or _first_edition(self.identity)
        config = validate(ExtractConfig, saved, source=source)
        spec = config.model.model_dump(exclude=set(_OF_ANOTHER_MACHINE))
        # whole attention only where this detector reads it
        reads, keep = set(self.detector.card.reads), config.capture.keep
        if reads and "attention" not in reads and keep == "full":
            keep = "streams"
        changed = {
            "model": {**spec, **model},
            "generation": {**config.generation.model_dump(), "answers": answers},
            "capture": {**config.capture.model_dump(), "keep": keep},
        }
        return validate(ExtractConfig, {**config.model_dump(), **changed}, source=source)


def _first_edition(identity: Identity) -> dict[str, Any]:
    """The configuration of a detector that was saved without it, from its identity."""
    quantization, prompt = identity.quantization, identity.prompt
    return {
        "model": {
            "name": identity.model,
            "revision": identity.revision,
            "quantization": quantization if quantization in _LOADABLE else "none",
            "dtype": identity.dtype if identity.dtype in _DTYPES else "auto",
        },
        "prompt": {
            "template": prompt.get("template") or "auto",
            "chat": "on" if prompt.get("chat") else "off",
            "system": prompt.get("system"),
        },
        "generation": {k: value for k, value in identity.generation.items() if k != "answers"},
        "capture": identity.capture,
    }
