"""Detectors that ship with graphhalu, what their cards say, and settings of a server of them."""

from pathlib import Path
from typing import Any, Final

from pydantic import Field

from graphhalu.core.config import Config
from graphhalu.core.files import read_json_object
from graphhalu.core.registry import unknown_name

READY: Final = Path(__file__).with_name("ready_detectors")
"""A folder for each, named MODEL-KIND; the detector of answers of a model is MODEL alone."""
DEFAULT_READY: Final = "smollm2"
"""What scores where no other detector is named or trained, and the model has none of its own."""
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


def ready_of_answers(model: str | None) -> str:
    """Name of the ready detector of answers of a model, or of the embedded model if it has none."""
    return model if model in ready_names() else DEFAULT_READY


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


API_KEY: Final = "GRAPHHALU_API_KEY"
"""Environment variable of the key that requests must bring; without it none is asked for."""
LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
"""Addresses of this machine."""


class ServeConfig(Config):
    """Settings of a server."""

    host: str = "127.0.0.1"
    """Address to listen on; others than loopback need an API key in GRAPHHALU_API_KEY."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port; 0 takes a free one."""
    max_batch: int = Field(default=8, ge=1)
    """Answers that are written together."""
    queue_size: int = Field(default=64, ge=1)
    """Requests that wait; further ones are refused with 429."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Seconds from a request's arrival to its last token."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Longest answer of a request that states none, in tokens."""
    max_total_tokens: int = Field(default=2048, ge=2)
    """Most tokens of prompt and answer of a request."""
    max_body_bytes: int = Field(default=2**20, ge=1)
    """Largest body of a request."""
    log_prompts: bool = False
    """Whether prompts and answers are written to the log."""
