"""Stored arrays of a trace: axes, number formats and units, as listed in ``arrays.yaml``.

A *ragged* axis (token, row, pair) is concatenated over the traces of a part and addressed by
offsets. ``FORMAT.md`` beside this file is the specification for readers without graphhalu.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Float, Float32, Shaped, UInt16

from graphhalu.core.axes import N_SPANS
from graphhalu.core.files import packaged_table
from graphhalu.core.registry import unknown_name
from graphhalu.datasets.question import category_of

Square = Shaped[np.ndarray, "*batch row key"]

FORMAT: Final = "graphhalu-traces"
FORMAT_VERSION: Final = 2

FIXED_STEPS: Final = 65_535
"""Steps from 0 to 1 of a probability in fixed point; it is off by at most half of one, 7.6e-6."""

Ragged = Literal["token", "row", "pair"]
N_SINK_KEYS: Final = 4
RAGGED_AXES: Final[tuple[Ragged, ...]] = ("token", "row", "pair")
RECORDS: Final = "records"
"""The array of UTF-8 JSON Lines that holds the record of each trace of a part."""


@dataclass(frozen=True)
class ArraySpec:
    """One stored array of a trace.

    Attributes:
        name: Name of the array in a part.
        axes: Names of its axes in order; exactly one of them is ragged.
        dtype: Number format on disk.
        encoding: ``"plain"``, ``"bfloat16"`` for bfloat16 bits in uint16, or ``"fixed16"`` for
            steps of 1/65,535 from 0 to 1 in uint16.
        meaning: What a value is, with its unit.
    """

    name: str
    axes: tuple[str, ...]
    dtype: str
    meaning: str
    encoding: Literal["plain", "bfloat16", "fixed16"] = "plain"

    @property
    def ragged_axis(self) -> Ragged:
        """The one axis whose length differs from trace to trace."""
        return next(axis for axis in RAGGED_AXES if axis in self.axes)

    @property
    def ragged_dim(self) -> int:
        """Position of the ragged axis."""
        return self.axes.index(self.ragged_axis)


_TABLE: Final = packaged_table(Path(__file__).with_name("arrays.yaml"))
ARRAYS: Final = {
    name: ArraySpec(name, **{**fields, "axes": tuple(fields["axes"])}) for name, fields in _TABLE.items()
}
"""Every array that a part may hold; a store lists the ones it keeps."""
CONTRAST: Final = ("contrast_logprob", "contrast_entropy", "output_shift", "lens_rank", "contrast_hidden")
"""Those that compare an answer with a replay of it without its context."""


def array_spec(name: str) -> ArraySpec:
    """The specification of a stored array.

    Raises:
        UnknownNameError: If no array has this name.
    """
    if name not in ARRAYS:
        raise unknown_name("trace array", name, ARRAYS)
    return ARRAYS[name]


@dataclass(frozen=True)
class TraceShape:
    """Sizes and meaning of the axes of a store's arrays, the same for all its traces.

    Attributes:
        attention_layers: Model layer of each entry of the layer axis.
        hidden_layers: Index into the model's hidden states of each entry of the hidden axis
            (0 = embeddings, ``n_layers`` = after the final norm).
        layer_windows: For each entry of the layer axis, how many keys a row can see
            (sliding window, itself included), or ``None`` for all.
        n_edges: How many edges of a row are kept; 0 in a store that keeps none.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    hidden_size: int
    attention_layers: tuple[int, ...]
    hidden_layers: tuple[int, ...]
    layer_windows: tuple[int | None, ...]
    n_edges: int = 0

    def axis_size(self, axis: str) -> int:
        """Length of a fixed axis."""
        return {
            "layer": len(self.attention_layers),
            "hidden_layer": len(self.hidden_layers),
            "head": self.n_heads,
            "kv_head": self.n_kv_heads,
            "feature": self.hidden_size,
            "span": N_SPANS,
            "sink_key": N_SINK_KEYS,
            "edge": self.n_edges,
        }[axis]


@dataclass(frozen=True)
class TraceRecord:
    """Texts, lengths and identity of a trace; one JSON object in the store.

    Attributes:
        trace_id: ``question_id`` plus ``#`` and the beam's rank.
        prompt_length: Tokens before the answer.
        length: Tokens of prompt and answer; the end mark and padding are not among them.
        row_start: First stored query row; 0 when all rows are kept.
        answer: The text of the answer tokens.
        is_finished: Whether the answer ended by itself (end mark or newline) and was not cut.
        is_on_policy: Whether the model itself produced the answer.
        beam_index: Rank of the beam among the final beams, 0 = best; for given answers the
            place among them; samples come after the beams.
        is_sample: Whether the answer was sampled.
        asked: What the model said of its answer: ``p_true``, and ``supported`` by each sample; empty if it
            was not asked.
        beam_score: Length-normalised log-probability of the beam, or ``None`` for given answers.
        choices: Options that the prompt shows, lettered A, B, C …
        correct_choices: Places of the right ones.
        choice_logprobs: Log-probability (nat) of each letter as the first token of the answer,
            summed over its single-token spellings; empty if there are no choices.
        input_label: Label of the question in the data set: 1 = it misleads, 0 = it does not.
        given_label: Label of a given answer in the data set: 1 = hallucinated, 0 = correct.
        given_spans: Hallucinated ranges of characters of a given answer, half-open.
        answer_offsets: Range of characters of ``answer`` that each answer token covers.
    """

    trace_id: str
    question_id: str
    group_id: str
    question: str
    answers: tuple[str, ...]
    answer: str
    prompt: str
    prompt_length: int
    length: int
    row_start: int = 0
    context: str | None = None
    incorrect_answers: tuple[str, ...] = ()
    is_finished: bool = True
    is_on_policy: bool = True
    beam_index: int = 0
    beam_score: float | None = None
    choices: tuple[str, ...] = ()
    correct_choices: tuple[int, ...] = ()
    choice_logprobs: tuple[float, ...] = ()
    input_label: int | None = None
    given_label: int | None = None
    given_spans: tuple[tuple[int, int], ...] = ()
    answer_offsets: tuple[tuple[int, int], ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    is_sample: bool = False
    asked: dict[str, Any] = field(default_factory=dict)

    @property
    def category(self) -> str | None:
        """What the data set says the question is about; ``None`` where it says nothing."""
        return category_of(self.metadata)


def stored_shape(spec: ArraySpec, shape: TraceShape, record: TraceRecord) -> tuple[int, ...]:
    """Shape of one trace's slice of an array."""
    return tuple(
        ragged_length(axis, record) if axis in RAGGED_AXES else shape.axis_size(axis) for axis in spec.axes
    )


def ragged_length(axis: str, record: TraceRecord) -> int:
    """Length of a ragged axis for one trace."""
    if axis == "token":
        return record.length
    if axis == "row":
        return record.length - record.row_start
    return n_pairs(record.length, record.row_start)


def n_pairs(length: int, row_start: int = 0) -> int:
    """Entries of the causal rows ``row_start … length - 1``; row ``i`` has ``i + 1`` of them."""
    return (length * (length + 1) - row_start * (row_start + 1)) // 2


def pack_triangle(square: Square, row_start: int = 0) -> Shaped[np.ndarray, "*batch pair"]:
    """Keep what a causal row can see: entries ``key <= row``, row by row.

    Args:
        square: Rows ``row_start … key - 1`` of a causal matrix.
        row_start: Position of the first given row.

    Raises:
        ValueError: If the rows do not end at the last key.
    """
    n_rows, n_keys = square.shape[-2:]
    if row_start + n_rows != n_keys:
        raise ValueError(f"expected rows {row_start} … {n_keys - 1}, got {n_rows} rows and {n_keys} keys")
    rows, keys = np.tril_indices(n_rows, k=row_start, m=n_keys)
    return square[..., rows, keys]


def unpack_triangle(packed: Shaped[np.ndarray, "*batch pair"], length: int, row_start: int = 0) -> Square:
    """Inverse of :func:`pack_triangle`; entries above the diagonal are exactly 0."""
    n_rows = length - row_start
    expected = n_pairs(length, row_start)
    if packed.shape[-1] != expected:
        raise ValueError(
            f"expected {expected} pairs for rows {row_start} … {length - 1}, got {packed.shape[-1]}"
        )
    rows, keys = np.tril_indices(n_rows, k=row_start, m=length)
    square = np.zeros((*packed.shape[:-1], n_rows, length), dtype=packed.dtype)
    square[..., rows, keys] = packed
    return square


def to_bfloat16_bits(values: Float[np.ndarray, "*shape"]) -> UInt16[np.ndarray, "*shape"]:
    """Round float32 to bfloat16 (nearest, ties to even) and return the bits.

    bfloat16 keeps the range of float32, so massive activations over 65,504 survive; the
    relative error is at most 2**-8. NaN stays NaN.
    """
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
    quiet = (bits >> 16) | np.uint32(0x0040)
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)


def from_bfloat16_bits(bits: UInt16[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """The float32 values of bfloat16 bits, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def from_fixed_point(steps: UInt16[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """The float32 probabilities of fixed-point steps."""
    return steps.astype(np.float32) / np.float32(FIXED_STEPS)


def decoded(values: Shaped[np.ndarray, "..."], name: str) -> Shaped[np.ndarray, "..."]:
    """Values of the array of this name; half precision, bfloat16 bits and fixed point as float32."""
    encoding = array_spec(name).encoding
    if encoding != "plain":
        return (from_bfloat16_bits if encoding == "bfloat16" else from_fixed_point)(values)
    return values.astype(np.float32) if values.dtype == np.float16 else values
