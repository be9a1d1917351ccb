"""Cost of an extraction before it is run: operations, memory, bytes, and time at stated rates.

Operations, memory and bytes are arithmetic. Time is arithmetic over rates, which are those of a
machine: measured (``scripts/bench plan``, and COST.md beside this file), or assumed by the user.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from pydantic import Field, model_validator

from graphhalu.core.config import Config
from graphhalu.core.errors import UsageError
from graphhalu.core.provenance import bfloat16_hint
from graphhalu.core.registry import unknown_name
from graphhalu.extract.settings import GPU_CHUNK_BYTES, CaptureSettings, GenerationSettings, trace_shape
from graphhalu.traces.disk import estimate_bytes

_ASPECT: Final = 128
"""Channels a layer of dense models: 4,096 over 32 layers, 8,192 over 64."""
_PLAIN: Final = 12
"""Weights of a layer in squares of the channels: 4 in attention, 8 in the feed-forward part."""
_VOCABULARY: Final = 32_000
_CHUNK_COPIES: Final = 3
"""Scores, weights, and a copy of what the recorders ask for."""
_LOGIT_ROWS: Final = 64
"""Rows of logits at a time."""
_PART_TRACES: Final = 64
_PART_BYTES: Final = 512 * 2**20
"""Traces of one part, uncompressed, at most: one is written while the next is made."""


PAIR_BYTES: Final = 200
"""Bytes of memory that recording moves for one weight of attention: softmax, entropy, sums over
spans, largest weights, the copy that is kept. Measured on a CPU: 100 to 330."""


@dataclass(frozen=True)
class ModelSize:
    """Sizes of a dense decoder.

    Attributes:
        n_layers: Layers.
        hidden_size: Channels between layers.
        n_heads: Query heads a layer.
        n_kv_heads: Key and value heads a layer.
        head_size: Channels of a head.
        feed_forward: Channels inside the feed-forward part, which has a gate.
        vocabulary: Tokens that the model knows.
        n_embeddings: 1 where words in and out share their weights.
    """

    n_layers: int
    hidden_size: int
    n_heads: int
    n_kv_heads: int
    head_size: int
    feed_forward: int
    vocabulary: int
    n_embeddings: int = 2

    @classmethod
    def of_parameters(cls, n_parameters: float) -> "ModelSize":
        """A model of about this size in the proportions of Llama 2, every head with its own keys.

        Raises:
            UsageError: If it is too small to have a layer.
        """
        width = (n_parameters * _ASPECT / _PLAIN) ** (1 / 3)
        hidden = round(width / 128) * 128
        if hidden < 128 or not n_parameters < 1e14:  # noqa: PLR2004
            raise UsageError(f"expected between 1e6 and 1e14 parameters, as 7e9, got {n_parameters:g}")
        left = n_parameters - 2 * _VOCABULARY * hidden
        layers, heads = max(1, round(left / (_PLAIN * hidden**2))), hidden // 128
        return cls(layers, hidden, heads, heads, 128, round(hidden * 8 / 3), _VOCABULARY)

    @property
    def layer_windows(self) -> tuple[None, ...]:
        """Every row of every layer sees all keys."""
        return (None,) * self.n_layers

    @property
    def layer_weights(self) -> int:
        """Weights of all layers that every token passes."""
        attention = self.hidden_size * self.head_size * 2 * (self.n_heads + self.n_kv_heads)
        return self.n_layers * (attention + 3 * self.hidden_size * self.feed_forward)

    @property
    def n_parameters(self) -> int:
        """All weights but those of norms."""
        return self.layer_weights + self.n_embeddings * self.vocabulary * self.hidden_size


SIZES: Final = {
    "smollm2": ModelSize(30, 576, 9, 3, 64, 1536, 49_152, 1),
    "gemma3-270m": ModelSize(18, 640, 4, 1, 256, 2048, 262_144, 1),
    "llama2-7b": ModelSize(32, 4096, 32, 32, 128, 11_008, 32_000),
    "llama3.1-8b": ModelSize(32, 4096, 32, 8, 128, 14_336, 128_256),
    "llama2-70b": ModelSize(80, 8192, 64, 8, 128, 28_672, 32_000),
}
"""Published sizes of some models."""


class PlanSettings(Config):
    """An extraction that is planned, and what a device sustains."""

    model: str | None = None
    """A model of known size; by default llama2-7b."""
    parameters: float | None = None
    """Any dense model, by its parameters, as 7e9."""
    questions: float = Field(default=1e5, ge=1)
    """Questions, as 1e5."""
    prompt_tokens: int = Field(default=100, ge=0)
    """Tokens of a prompt."""
    answer_tokens: int = Field(default=32, ge=0)
    """Tokens of an answer."""
    beams: int = Field(default=5, ge=1)
    """Beams of the search."""
    kept_beams: int = Field(default=1, ge=1)
    """Beams that become traces."""
    batch: int = Field(default=16, ge=1)
    """Questions answered together."""
    weight_bytes: float = Field(default=2.0, ge=0.1)
    """Bytes of a weight as it is held: 4, 2, 1, or 0.5 with nf4."""
    capture: CaptureSettings = CaptureSettings()
    """What is kept."""
    teraflops: float = Field(default=100.0, ge=1e-6)
    """Sustained by a device in 1e12 operations a second."""
    bandwidth: float = Field(default=1000.0, ge=1e-6)
    """Memory of a device in 1e9 bytes a second."""
    disk: float = Field(default=500.0, ge=1e-6)
    """Compressed and written in 1e6 bytes a second."""
    devices: int = Field(default=1, ge=1)
    """Devices, each with the whole model."""

    @model_validator(mode="after")
    def _keep_what_there_is(self) -> "PlanSettings":
        GenerationSettings(num_beams=self.beams, keep_beams=self.kept_beams)
        return self

    @property
    def length(self) -> int:
        """Tokens of a trace."""
        return self.prompt_tokens + self.answer_tokens

    def size(self) -> "tuple[str, ModelSize]":
        """Name and size of the model.

        Raises:
            UsageError: If both a model and its parameters are given, or too few parameters.
            UnknownNameError: If the size of the model is not known.
        """
        if self.parameters is not None:
            if self.model is not None:
                raise UsageError("give a model or its parameters, not both")
            return f"{self.parameters / 1e9:,.3g}B parameters", ModelSize.of_parameters(self.parameters)
        name = self.model or "llama2-7b"
        if name not in SIZES:
            raise unknown_name("model of known size (else use --parameters)", name, SIZES)
        return name, SIZES[name]


class Cost(NamedTuple):
    """What one question costs; memory is that of the run.

    Attributes:
        generate_flops: Operations of prompt and search, a multiplication and an addition each counted.
        replay_flops: Operations that are there for what is recorded alone.
        pairs: Attention weights that recorders look at.
        weight_reads: Bytes of weights that the steps of the search read, a question.
        stored_bytes: Bytes on disk.
        raw_bytes: Bytes before compression.
        weights_bytes: Memory of the weights.
        cache_bytes: Memory of keys and values of a batch of beams.
        replay_bytes: Memory of the recorded pass: a chunk of rows, activations, waiting traces.
    """

    generate_flops: float
    replay_flops: float
    pairs: float
    weight_reads: float
    stored_bytes: int
    raw_bytes: int
    weights_bytes: float
    cache_bytes: float
    replay_bytes: float

    @property
    def memory_bytes(self) -> float:
        """Most memory at a time: the search and the replay do not run together."""
        return self.weights_bytes + max(self.cache_bytes, self.replay_bytes)


Rates = Mapping[str, float]
"""How fast a device is at each part of the work, in operations or bytes a second: ``generate``
(operations of the search), ``replay`` (operations of recorded passes), ``pairs``
(attention weights that are recorded), ``read`` (weights read from memory, in bytes) and ``store``
(bytes that are compressed and written)."""


def question_cost(size: ModelSize, work: PlanSettings) -> Cost:
    """Operations, bytes and memory of a question.

    A token costs two operations a weight, and four a channel of each head for each key it sees.
    A prompt is read once, for all beams and for the answers that are recorded behind it. Padding,
    layers with a window and beams that end early are not taken off, so this is a little more than
    what is done; where answers come from plain ``generate``, prompts run once more.
    """
    prompt, answer, length = work.prompt_tokens, work.answer_tokens, work.length
    seen = 4.0 * size.n_layers * size.n_heads * size.head_size
    words = 2.0 * size.hidden_size * size.vocabulary
    weights = 2.0 * size.layer_weights
    prefill = prompt * (weights + seen * prompt / 2) + words
    steps = work.beams * answer * (weights + seen * (prompt + answer / 2) + words)
    behind = answer * (weights + seen * (prompt + answer / 2) + words)
    pairs = size.n_layers * size.n_heads * (answer * prompt + answer * (answer + 1) / 2) * work.kept_beams
    n_rows = answer if work.capture.rows == "answer" else length - 1
    of_prompt = n_rows - answer  # whose logits the search does not need
    if of_prompt:
        pairs += size.n_layers * size.n_heads * prompt * (prompt + 1) / 2
    shape, arrays = trace_shape(size, work.capture), work.capture.arrays()
    starts = [prompt - 1] if work.capture.rows == "answer" else None
    stored, raw = (
        estimate_bytes(shape, arrays, [length], starts, is_compressed=each) * work.kept_beams
        for each in (True, False)
    )
    read = (size.layer_weights + size.vocabulary * size.hidden_size) * work.weight_bytes
    cache = 2 * size.n_layers * size.n_kv_heads * size.head_size * length * work.beams * work.batch
    activations = 4.0 * length * (size.hidden_size * 4 + size.feed_forward * 3)
    # states come from the model in its own format before they are packed
    states = max(work.weight_bytes, 2.0) * len(shape.hidden_layers) * length * size.hidden_size
    logit_rows = min(n_rows * work.batch, _LOGIT_ROWS)
    chunk = _CHUNK_COPIES * min(GPU_CHUNK_BYTES, 4.0 * size.n_heads * n_rows * length * work.batch)
    waiting = 2 * max(raw, min(_PART_TRACES * raw, _PART_BYTES))
    logits = 4.0 * logit_rows * size.vocabulary
    return Cost(
        generate_flops=prefill + steps,
        replay_flops=of_prompt * words + behind * work.kept_beams,
        pairs=pairs,
        weight_reads=answer * read / work.batch,
        stored_bytes=stored,
        raw_bytes=raw,
        weights_bytes=size.n_parameters * work.weight_bytes,
        cache_bytes=cache * max(work.weight_bytes, 2.0),
        replay_bytes=activations + states + chunk + logits + waiting,
    )


def question_seconds(cost: Cost, rates: Rates) -> dict[str, float]:
    """Time of a question on one device: ``generate`` and ``replay``, and ``store`` beside them.

    A search that waits for its weights is as slow as they.
    """
    return {
        "generate": max(cost.generate_flops / rates["generate"], cost.weight_reads / rates["read"]),
        "replay": cost.replay_flops / rates["replay"] + cost.pairs / rates["pairs"],
        "store": cost.raw_bytes / rates["store"],
    }


def assumed_rates(flops_per_s: float, read_bytes_per_s: float, store_bytes_per_s: float) -> Rates:
    """Rates of a device that nobody measured, from what it sustains.

    Recording is bound by memory: each weight of attention is moved :data:`PAIR_BYTES` bytes.
    """
    return {
        **dict.fromkeys(("generate", "replay"), flops_per_s),
        "pairs": read_bytes_per_s / PAIR_BYTES,
        "read": read_bytes_per_s,
        "store": store_bytes_per_s,
    }


def planned_cost(plan: PlanSettings) -> dict[str, Any]:
    """What a planned extraction costs: operations, seconds and bytes, a question and in all."""
    name, size = plan.size()
    cost = question_cost(size, plan)
    rates = assumed_rates(plan.teraflops * 1e12, plan.bandwidth * 1e9, plan.disk * 1e6)
    parts = question_seconds(cost, rates)
    seconds = max(parts["generate"] + parts["replay"], parts["store"])
    return {
        "model": name,
        "questions": plan.questions,
        "devices": plan.devices,
        "parameters": size.n_parameters,
        "tokens_a_trace": plan.length,
        "flops_a_question": cost.generate_flops + cost.replay_flops,
        **{f"{part}_s_a_question": value for part, value in parts.items()},
        "seconds_a_question": seconds,
        "bytes_a_question": cost.stored_bytes,
        "memory_bytes": cost.memory_bytes,
        "weights_bytes": cost.weights_bytes,
        "device_hours": plan.questions * seconds / 3600,
        "days": plan.questions * seconds / 86_400 / plan.devices,
        "bytes": plan.questions * cost.stored_bytes,
        "bfloat16": bfloat16_hint(),
    }
