"""Traces: tokens, spans, attention, hidden states and row statistics of a prompt with its answer.

The arrays may lie in memory (fresh from the replay) or in a store, from which only what is
asked for is read; both look the same here.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8

from graphhalu.core.axes import Span, answer_producing_rows
from graphhalu.core.errors import TraceNotFoundError, UsageError
from graphhalu.traces.part import LazyArray
from graphhalu.traces.schema import (
    TraceRecord,
    TraceShape,
    array_spec,
    decoded,
    from_bfloat16_bits,
    from_fixed_point,
    unpack_triangle,
)


class Edges(NamedTuple):
    """The strongest attention of each row to other tokens.

    Attributes:
        key: Positions of the attended tokens, strongest first; -1 = no further edge.
        weight: Attention to each of them; 0 where there is no edge.
        dropped: Attention to all other tokens that are not among them.
    """

    key: Int[np.ndarray, "head row edge"]
    weight: Float[np.ndarray, "head row edge"]
    dropped: Float[np.ndarray, "head row"]


@dataclass(frozen=True, repr=False)
class Trace:
    """Prompt and answer of one question with what the model computed on them.

    Attributes:
        record: Identity, texts and lengths.
        shape: Sizes and meaning of the axes.
        arrays: Arrays in the stored number format, by name.
    """

    record: TraceRecord
    shape: TraceShape
    arrays: Mapping[str, np.ndarray | LazyArray]

    def __repr__(self) -> str:
        """Identity, lengths, and which arrays there are."""
        lengths = f"{self.prompt_length} + {self.answer_length} tokens"
        kept = "no arrays" if not self.arrays else f"keeps {', '.join(self.arrays)}"
        return f"Trace({self.trace_id!r}, {lengths}, {kept})"

    @property
    def trace_id(self) -> str:
        """Identity of the trace within its store."""
        return self.record.trace_id

    @property
    def question(self) -> str:
        """The question that was asked."""
        return self.record.question

    @property
    def text(self) -> str:
        """Prompt and answer, as the model read and wrote them."""
        return self.record.prompt + self.record.answer

    @property
    def tokens(self) -> list[str]:
        """Text of each token.

        A trace keeps where each answer token ends in the answer, and nothing of the kind for the
        prompt: a token of the prompt is ``#`` and its number in the vocabulary. So is one of the
        answer in a trace without ``answer_offsets``, as older stores have them. With a tokenizer,
        :func:`graphhalu.viewer.text.token_texts` gives all texts.
        """
        numbers = [f"#{index}" for index in self.token_ids.tolist()]
        if len(self.record.answer_offsets) != self.answer_length:
            return numbers
        ends = [0]
        for _, stop in self.record.answer_offsets:
            ends.append(max(ends[-1], stop))  # tokens of one character share its range
        answer = [self.record.answer[start:stop] for start, stop in pairwise(ends)]
        return numbers[: self.prompt_length] + answer

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return self.record.length

    @property
    def prompt_length(self) -> int:
        """Tokens before the answer."""
        return self.record.prompt_length

    @property
    def answer_length(self) -> int:
        """Tokens of the answer."""
        return self.record.length - self.record.prompt_length

    @property
    def token_ids(self) -> Int[np.ndarray, "token"]:
        """Vocabulary index of each token."""
        return self.stream("token_ids")

    @property
    def span_code(self) -> UInt8[np.ndarray, "token"]:
        """Named span of each token, as the integer of :class:`graphhalu.core.axes.Span`."""
        return self.stream("span_code")

    @property
    def is_answer(self) -> Bool[np.ndarray, "token"]:
        """Mask of the tokens of the answer."""
        return self.span_code == Span.ANSWER

    @property
    def answer_rows(self) -> slice:
        """The rows that produce the answer, as a slice of the stored rows."""
        rows = answer_producing_rows(self.prompt_length, self.length)
        return slice(rows.start - self.record.row_start, rows.stop - self.record.row_start)

    @property
    def has_attention(self) -> bool:
        """Whether every weight is kept."""
        return attention_kept(self.arrays) == "full"

    def attention(self, layer: int) -> Float[np.ndarray, "head row key"]:
        """Attention of one model layer, float32, zero above the diagonal.

        Raises:
            TraceNotFoundError: If the store does not keep attention, or not this layer.
        """
        position = layer_position(layer, self.shape.attention_layers, "attention of layer")
        if "attention" not in self.arrays and "attention_fixed" in self.arrays:
            packed = from_fixed_point(self.array("attention_fixed")[position])
        else:
            packed = self.array("attention")[position].astype(np.float32)
        return unpack_triangle(packed, self.length, self.record.row_start)

    def edges(self, layer: int) -> Edges:
        """The strongest edges of one model layer, as ``--keep edges`` stores them.

        Raises:
            TraceNotFoundError: If the store does not keep edges, or not this layer.
        """
        names = ("edge_key", "edge_weight", "dropped_mass")
        return Edges(*(self.layer_stream(name, layer) for name in names))

    def censored_attention(self, layer: int) -> Float[np.ndarray, "head row key"]:
        """Attention of one model layer as far as it is kept, float32.

        All of it in a store of full matrices. In a store of edges: the edges and each token's
        attention to itself; what else a row pays is unknown, not zero, and the rest of its sum.

        Raises:
            TraceNotFoundError: If the store keeps neither, or not this layer.
        """
        if self.has_attention or "edge_key" not in self.arrays:
            return self.attention(layer)
        edges = self.edges(layer)
        n_heads, n_rows = edges.dropped.shape
        square = np.zeros((n_heads, n_rows, self.length + 1), dtype=np.float32)
        # key -1 lands in the last column, which is cut off
        np.put_along_axis(square, edges.key.astype(np.int64), edges.weight, axis=-1)
        rows = np.arange(n_rows)
        square[:, rows, rows + self.record.row_start] = self.layer_stream("self_attention", layer)
        return square[..., :-1]

    def hidden(self, layer: int) -> Float[np.ndarray, "token feature"]:
        """Hidden states, float32: 0 = embeddings, ``n_layers`` = after the final norm.

        Raises:
            TraceNotFoundError: If the store does not keep hidden states, or not this one.
        """
        position = layer_position(layer, self.shape.hidden_layers, "hidden states of layer")
        return from_bfloat16_bits(self.array("hidden")[position])

    def hidden_rows(self, layer: int) -> Float[np.ndarray, "row feature"]:
        """Hidden states of the stored rows, float32; layers as in :meth:`hidden`.

        Raises:
            TraceNotFoundError: If the store keeps no hidden states, or not this one.
        """
        if "hidden_rows" not in self.arrays:
            return self.hidden(layer)[self.record.row_start :]
        position = layer_position(layer, self.shape.hidden_layers, "hidden states of layer")
        return from_bfloat16_bits(self.array("hidden_rows")[position])

    def stream(self, name: str) -> Shaped[np.ndarray, "..."]:
        """A whole array by name; half precision, bfloat16 bits and fixed point as float32."""
        return decoded(self.array(name)[:], name)

    def layer_stream(self, name: str, layer: int) -> Shaped[np.ndarray, "..."]:
        """One model layer of a stream whose first axis is ``layer``, as :meth:`stream`."""
        position = layer_position(layer, self.shape.attention_layers, f"{name} of layer")
        return decoded(self.array(name)[position], name)

    def array(self, name: str) -> np.ndarray | LazyArray:
        """An array in the stored number format; of a store, entries of its first axis are read alone.

        Raises:
            UnknownNameError: If no array has this name.
            TraceNotFoundError: If the trace does not keep it.
        """
        array_spec(name)
        if name not in self.arrays:
            raise TraceNotFoundError(
                f"trace {self.trace_id!r} keeps no {name!r} (it has {', '.join(self.arrays)})\n"
                f"  Extract it again with another --keep"
            )
        return self.arrays[name]


def attention_kept(arrays: Collection[str]) -> Literal["full", "edges", "streams"]:
    """How much of the attention these arrays keep."""
    if not {"attention", "attention_fixed"}.isdisjoint(arrays):
        return "full"
    return "edges" if "edge_key" in arrays else "streams"


def layer_position(layer: int, kept: tuple[int, ...], what: str) -> int:
    """Entry of a layer axis that holds a model layer.

    Args:
        layer: Number of the layer in the model.
        kept: Layers of the axis.
        what: What the axis holds, for the error: ``"attention of layer"``.

    Raises:
        TraceNotFoundError: If the layer is not kept.
    """
    if layer not in kept:
        listed = ", ".join(map(str, kept))
        raise TraceNotFoundError(f"no {what} {layer}: the trace keeps {listed or 'none'}")
    return kept.index(layer)


def without_tokens(trace: Trace, positions: Collection[int]) -> Trace:
    """Remove tokens from a recorded trace; the model does not run again.

    Rows and keys of these tokens are removed, all other values stay as they are: attention is not
    renormalised, hidden states and probabilities are those with the token in place. ``received``
    loses the attention of the removed rows, where whole attention is kept.

    Args:
        trace: A trace with an answer.
        positions: Positions to remove; at least one token of prompt and answer must stay.

    Raises:
        UsageError: If a position is outside of the trace, or no token of prompt or answer would stay.
    """
    taken = np.zeros(trace.length, dtype=bool)
    wrong = [position for position in positions if not 0 <= position < trace.length]
    if wrong:
        raise UsageError(f"token {wrong[0]} is not among the {trace.length} of trace {trace.trace_id!r}")
    taken[list(positions)] = True
    n_prompt = int((~taken[: trace.prompt_length]).sum())
    n_answer = int((~taken[trace.prompt_length :]).sum())
    if not n_prompt or not n_answer:
        raise UsageError(f"trace {trace.trace_id!r} would keep no token of its prompt or its answer")
    start = trace.record.row_start
    record = replace(
        trace.record,
        length=n_prompt + n_answer,
        prompt_length=n_prompt,
        row_start=int((~taken[:start]).sum()),
        answer_offsets=tuple(
            offsets
            for place, offsets in enumerate(trace.record.answer_offsets, trace.prompt_length)
            if not taken[place]
        ),
    )
    seen = np.tri(len(taken) - start, len(taken), start, dtype=bool)
    kept = {"token": ~taken, "row": ~taken[start:], "pair": (~taken[start:, None] & ~taken)[seen]}
    arrays = {}
    for name, array in trace.arrays.items():
        spec = array_spec(name)
        values = np.compress(kept[spec.ragged_axis], array[:], axis=spec.ragged_dim)
        if name == "edge_key":
            # keys at their new positions; -1 for an edge to a removed token
            place = np.where(taken, -1, np.cumsum(~taken) - 1)
            values = np.where(values < 0, -1, place[values]).astype(values.dtype)
        arrays[name] = values
    if "received" in arrays and ("attention" in arrays or "attention_fixed" in arrays):
        arrays["received"] = arrays["received"] - _given(trace, taken)
    return Trace(record, trace.shape, arrays)


def _given(trace: Trace, taken: Bool[np.ndarray, "token"]) -> np.ndarray:
    """Attention of the removed rows to each key that stays."""
    start = trace.record.row_start
    rows = [row - start for row in np.flatnonzero(taken) if row >= start]
    given = [trace.attention(layer)[:, rows].sum(1)[:, ~taken] for layer in trace.shape.attention_layers]
    return np.stack(given).astype(np.float32)
