"""Detectors that ship with graphhalu: which there are, and what their cards say."""

from pathlib import Path
from typing import Any, Final

from graphhalu.core.files import read_json_object
from graphhalu.core.registry import unknown_name

READY: Final = Path(__file__).with_name("ready_detectors")
"""A folder for each, named MODEL-KIND; the detector of answers of a model is MODEL alone."""
DEFAULT_READY: Final = "smollm2"
"""What scores where no other detector is named or trained."""
CARD_FILE: Final = "card.json"


def ready_names() -> list[str]:
    """Names of the detectors that ship."""
    return sorted(path.parent.name for path in READY.glob("*/detector.json"))


def ready_folder(name: str) -> Path:
    """Folder of a detector that ships.

    Raises:
        UnknownNameError: If there is none of this name; lists the nearest.
    """
    if name not in ready_names():
        raise unknown_name("ready detector", name, ready_names())
    return READY / name


def ready_of_tokens(model: str | None) -> str | None:
    """Name of the ready detector of tokens of a model, if there is one."""
    name = f"{model}-tokens"
    return name if name in ready_names() else None


def read_card(folder: Path) -> dict[str, Any] | None:
    """Training sets, held-out figures and limits of a detector; ``None`` if nobody wrote them.

    Args:
        folder: Of a saved detector.

    Raises:
        DataFileError: If the card cannot be read.
    """
    path = folder / CARD_FILE
    return read_json_object(path) if path.exists() else None
