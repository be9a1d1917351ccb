"""Configuration of an extraction."""

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, model_validator

from graphhalu.core.config import Config
from graphhalu.core.errors import UsageError
from graphhalu.models.cards import ModelSpec

GPU_CHUNK_BYTES: Final = 384 * 2**20
"""Attention weights (float32) of a layer that exist at a time on a GPU, which wants few launches a layer."""


class DatasetSettings(Config):
    """Which questions are asked."""

    name: str = "worldfacts"
    """Name of a data set in the registry."""
    path: Path | None = None
    """File in a published layout; by default what is bundled, or the hub."""
    seed: int = 0
    """Seed of the order in which questions are taken."""
    fields: dict[str, str] = Field(default_factory=dict)
    """Which columns of the user's own file hold question, answers, context …"""

    def identity(self) -> dict[str, Any]:
        """What decides which questions there are; reads the file that they come from."""
        from graphhalu.core.provenance import file_sha256
        from graphhalu.datasets.registry import own_path

        own = own_path(self.name)
        path = own or self.path
        found = {"name": own.name if own is not None else self.name, "seed": self.seed}
        found["file_sha256"] = file_sha256(path) if path is not None else None
        return found | ({"fields": dict(self.fields)} if self.fields else {})


class PromptSettings(Config):
    """How a question becomes a prompt."""

    template: str = "auto"
    """Name of a prompt template; ``auto`` takes the one on the data set's card."""
    chat: Literal["off", "on", "auto"] = "off"
    """Whether the model's chat template is used; auto uses it where there is one."""
    system: str | None = None
    """System prompt, for chat templates that have one."""


class GenerationSettings(Config):
    """How answers are found."""

    num_beams: int = Field(default=5, ge=1)
    """Beams of the search."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Longest answer, in tokens."""
    keep_beams: int = Field(default=1, ge=1)
    """How many final beams of a question become traces."""
    samples: int = Field(default=0, ge=0)
    """Sampled answers of a question that become traces beside its beams."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the sampled answers; the seed of the data set decides the draws."""
    ask: bool = False
    """Whether the model is asked if its answer is true, and if each sample supports it."""
    stop_at_newline: bool | None = None
    """Whether a newline ends an answer; by default for plain prompts and not for chat."""
    answers: Literal["generated", "given"] = "generated"
    """``generated``: the model answers; ``given``: answers of the data set are replayed."""

    @model_validator(mode="after")
    def _keep_what_there_is(self) -> "GenerationSettings":
        if self.keep_beams > self.num_beams:
            raise ValueError(f"a search of {self.num_beams} beams cannot keep {self.keep_beams} of them")
        if self.samples and self.answers == "given":
            raise ValueError("answers of the data set are replayed, and none can be sampled beside them")
        if self.ask and self.answers == "given":
            raise ValueError("the model is asked about its own answers, and these are of the data set")
        return self

    def identity(self) -> dict[str, Any]:
        """The settings that decide what answers there are."""
        if self.answers == "given":
            return {"answers": "given", "stop_at_newline": self.stop_at_newline}
        unused = {"answers"} if self.samples else {"answers", "samples", "temperature"}
        unused |= set() if self.ask else {"ask"}
        return self.model_dump(mode="json", exclude=unused)


class CaptureSettings(Config):
    """What is kept of a forward pass."""

    keep: Literal["full", "edges", "streams"] = "full"
    """``full`` keeps every attention weight, ``edges`` the strongest of each row, ``streams`` the
    reductions only."""
    attention_format: Literal["float16", "fixed16"] = "float16"
    """Number format of full attention: ``fixed16`` has steps of 1/65,535. It is a third smaller
    and nearer to large weights, and blind to weights below 7.6e-6."""
    rows: Literal["all", "answer"] = "all"
    """``answer`` keeps the query rows that produce the answer, and computes no others."""
    layers: tuple[int, ...] | None = None
    """Model layers whose attention is kept; by default all."""
    hidden_layers: tuple[int, ...] | Literal["all", "none"] = "all"
    """Hidden states that are kept: 0 = embeddings, the last = after the final norm."""
    hidden_tokens: Literal["all", "rows"] = "all"
    """``rows`` keeps the hidden states of the stored rows only (with ``rows: answer``, those that
    produce the answer)."""
    edges: int = Field(default=16, ge=1)
    """With ``keep: edges``, how many edges of a row are kept at most."""
    edge_mass: float | None = Field(default=None, gt=0, le=1)
    """With ``keep: edges``, the share of a row after which no more of its edges are kept."""
    contrast: bool = False
    """Whether each answer is replayed without its context too, and what differs is kept."""

    @model_validator(mode="before")
    @classmethod
    def _answer_rows(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("contrast"):
            return {"rows": "answer", **values}
        return values

    @model_validator(mode="after")
    def _compare_answers(self) -> "CaptureSettings":
        if self.contrast and self.rows != "answer":
            raise ValueError("contrast compares the rows of the answer: rows must be answer")
        return self

    @property
    def n_edges(self) -> int:
        """Edges of a row in the store."""
        return self.edges if self.keep == "edges" else 0

    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays that a store with these settings holds."""
        from graphhalu.traces.schema import ARRAYS, CONTRAST  # numpy takes as long as refusing an option

        kept = {"float16": "attention", "fixed16": "attention_fixed"}[self.attention_format]
        left_out = {"attention", "attention_fixed"} - ({kept} if self.keep == "full" else set())
        if self.keep != "edges":
            left_out |= {"edge_key", "edge_weight", "dropped_mass"}
        left_out.add("hidden_rows" if self.hidden_tokens == "all" else "hidden")
        if self.hidden_layers in ("none", ()):
            left_out |= {"hidden", "hidden_rows"}
        if not self.contrast:
            left_out |= {*CONTRAST}
        return tuple(name for name in ARRAYS if name not in left_out)

    def identity(self) -> dict[str, Any]:
        """The settings that decide the content; those without effect here are left out."""
        unused = set() if self.keep == "edges" else {"edges", "edge_mass"}
        if not self.contrast:
            unused.add("contrast")
        if self.rows == "all":
            unused.add("rows")
        if self.hidden_tokens == "all":
            unused.add("hidden_tokens")
        if self.keep != "full" or self.attention_format == "float16":
            unused.add("attention_format")
        return self.model_dump(mode="json", exclude=unused)


class ExtractConfig(Config):
    """Everything that decides what an extraction yields, and how fast."""

    model: ModelSpec = ModelSpec()
    """The language model."""
    dataset: DatasetSettings = DatasetSettings()
    """The questions."""
    prompt: PromptSettings = PromptSettings()
    """The prompt."""
    generation: GenerationSettings = GenerationSettings()
    """The search for answers."""
    capture: CaptureSettings = CaptureSettings()
    """What is kept."""
    num_samples: int | None = Field(default=None, ge=1)
    """How many questions; a store can be extended with more later."""
    batch_size: int = Field(default=64, ge=1)
    """Questions that are answered at a time."""
    part_size: int = Field(default=64, ge=1)
    """Traces of one part, the unit that is committed."""


def trace_shape(model: Any, capture: CaptureSettings) -> Any:
    """The :class:`graphhalu.traces.schema.TraceShape` of a model's traces: what their axes mean.

    Args:
        model: A loaded model, or anything else with its sizes.
        capture: What is kept.

    Raises:
        UsageError: If a layer is asked for that the model does not have.
    """
    from graphhalu.traces.schema import TraceShape

    n_layers, named = model.n_layers, {"all": tuple(range(model.n_layers + 1)), "none": ()}
    layers = tuple(range(n_layers)) if capture.layers is None else capture.layers
    kept = capture.hidden_layers
    hidden = named[kept] if isinstance(kept, str) else kept
    _require_layers(layers, n_layers - 1, "attention layers")
    _require_layers(hidden, n_layers, "hidden states")
    return TraceShape(
        n_layers=n_layers,
        n_heads=model.n_heads,
        n_kv_heads=model.n_kv_heads,
        hidden_size=model.hidden_size,
        attention_layers=layers,
        hidden_layers=hidden,
        layer_windows=tuple(model.layer_windows[layer] for layer in layers),
        n_edges=capture.n_edges,
    )


def _require_layers(layers: tuple[int, ...], last: int, what: str) -> None:
    wrong = [layer for layer in layers if not 0 <= layer <= last]
    if wrong or len(set(layers)) != len(layers) or list(layers) != sorted(layers):
        raise UsageError(
            f"{what} must be different numbers from 0 to {last} in rising order, "
            f"got {', '.join(map(str, layers))}"
        )
