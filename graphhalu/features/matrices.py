"""Whole attention and hidden states of a block, one layer at a time.

A store packs the causal rows of a trace one after another, row ``i`` with its keys ``0 … i``: the
empty upper half is not kept. Row sums, row norms and the like are then reductions over neighbouring
entries, for all heads, rows and traces at once.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from graphhalu.core.numerics import ragged_offsets
from graphhalu.features.block import Ragged, TraceBlock
from graphhalu.traces.schema import from_bfloat16_bits, from_fixed_point, ragged_length


@dataclass(frozen=True)
class RowPairs:
    """Query-key pairs of some rows of a block.

    Attributes:
        index: Place of each pair among all stored pairs of the block.
        key: Position of its key within its trace.
        row: Place of each chosen row among the stored rows of the block.
        by_row: The pairs of each chosen row.
        by_trace: The chosen rows of each trace.
    """

    index: Int[np.ndarray, "pair"]
    key: Int[np.ndarray, "pair"]
    row: Int[np.ndarray, "row"]
    by_row: Ragged
    by_trace: Ragged

    def row_sum(self, values: Float[np.ndarray, "*axes pair"]) -> Float[np.ndarray, "*axes row"]:
        """Sum over the pairs of each row, in float64."""
        return np.moveaxis(self.by_row.sum(values), 0, -1)

    def spread(self, values: Float[np.ndarray, "*axes row"]) -> Float[np.ndarray, "*axes pair"]:
        """The value of each row, once for each of its pairs."""
        return np.repeat(values, self.by_row.lengths, axis=-1)


def row_pairs(block: TraceBlock, is_chosen: Bool[np.ndarray, "row"], window: int | None = None) -> RowPairs:
    """The visible pairs of the chosen rows.

    Args:
        block: Traces, whatever they keep.
        is_chosen: Which stored rows.
        window: Keys that a row can see, itself included; by default all before it.
    """
    row = np.flatnonzero(is_chosen)
    token = block.row_token[row]
    first = np.zeros_like(token) if window is None else np.maximum(token + 1 - window, 0)
    by_row = Ragged(ragged_offsets(token + 1 - first))
    key = first[by_row.trace] + by_row.position
    index = row_starts(block)[row][by_row.trace] + key
    return RowPairs(index, key, row, by_row, block.rows.among(row))


def row_starts(block: TraceBlock) -> Int[np.ndarray, "row"]:
    """Where each stored row's key 0 lies among the stored pairs of the block."""
    n_pairs = np.array([ragged_length("pair", r) for r in block.records], dtype=np.int64)
    before = ragged_offsets(n_pairs)[block.rows.trace]
    skipped = block.of_record("row_start")[block.rows.trace]
    token = block.row_token
    return before + (token * (token + 1) - skipped * (skipped + 1)) // 2


def answer_pairs(block: TraceBlock) -> dict[int | None, RowPairs]:
    """The visible pairs of the rows that produce the answer, for each window of the layers."""
    windows = dict.fromkeys(block.shape.layer_windows)
    return {window: row_pairs(block, block.is_answer_row, window) for window in windows}


def attention_at(
    block: TraceBlock, place: int, index: Int[np.ndarray, "pair"]
) -> Float[np.ndarray, "head pair"]:
    """Attention of one layer at some stored pairs, float32; NaN for what is not finite.

    Args:
        block: Traces that keep whole attention.
        place: Place on the layer axis.
        index: Places among the stored pairs of the block.

    Raises:
        TraceNotFoundError: If the traces do not keep whole attention.
    """
    is_fixed = not block.has("attention") and block.has("attention_fixed")
    name = "attention_fixed" if is_fixed else "attention"
    # about half of the pairs belong to the prompt's rows: they are never decoded
    stored = np.take(block.stored(name, place), index, axis=-1)
    weights = from_fixed_point(stored) if is_fixed else stored.astype(np.float32)
    weights[np.isinf(weights)] = np.nan
    return weights


def finite_or_missing(values: Float[np.ndarray, "*axes"]) -> Float[np.ndarray, "*axes"]:
    """The values with NaN for whatever is not a finite number."""
    return np.where(np.isfinite(values), values, values.dtype.type(np.nan))


def state_axis(block: TraceBlock) -> tuple[str, Ragged, Int[np.ndarray, "item"]]:
    """Which array holds the hidden states, its ragged axis, and the token of each entry.

    All tokens where they are kept, else the stored rows.
    """
    if block.has("hidden") or not block.has("hidden_rows"):
        return "hidden", block.tokens, block.tokens.position
    return "hidden_rows", block.rows, block.row_token


def states(
    block: TraceBlock, place: int, chosen: Bool[np.ndarray, "item"] | Int[np.ndarray, "chosen"] | None = None
) -> Float[np.ndarray, "chosen unit"]:
    """Hidden states of one hidden layer at some entries of :func:`state_axis`, float32.

    What is not finite is NaN.

    Args:
        block: Traces that keep hidden states.
        place: Place on the hidden axis.
        chosen: A mask of the entries, or their places; by default all.

    Raises:
        TraceNotFoundError: If the traces keep no hidden states.
    """
    bits = block.stored(state_axis(block)[0], place)
    found = from_bfloat16_bits(bits if chosen is None else bits[chosen])
    found[np.isinf(found)] = np.nan
    return found


def keeps_all_states(block: TraceBlock) -> Bool[np.ndarray, "trace"]:
    """Whether the states of all tokens of each trace are kept."""
    starts: Bool[np.ndarray, "trace"] = block.of_record("row_start") == 0
    return starts | (state_axis(block)[0] == "hidden")


def is_answer_state(block: TraceBlock) -> Bool[np.ndarray, "item"]:
    """Which entries of :func:`state_axis` are tokens of the answer."""
    _, axis, token = state_axis(block)
    return token >= block.of_record("prompt_length")[axis.trace]


def is_producing_state(block: TraceBlock) -> Bool[np.ndarray, "item"]:
    """Which entries of :func:`state_axis` produce the answer: ``prompt_length - 1 … length - 2``.

    They are the same tokens as the answer-producing rows of attention, in the same order.
    """
    _, axis, token = state_axis(block)
    first = block.of_record("prompt_length")[axis.trace] - 1
    last = block.of_record("length")[axis.trace] - 2
    return (token >= first) & (token <= last)


def chosen_by_trace(block: TraceBlock, is_chosen: Bool[np.ndarray, "item"]) -> Ragged:
    """The chosen entries of :func:`state_axis` of each trace."""
    return state_axis(block)[1].among(is_chosen)


def trace_place(
    block: TraceBlock, token: Int[np.ndarray, "trace"]
) -> tuple[Int[np.ndarray, "trace"], Bool[np.ndarray, "trace"]]:
    """Entry of :func:`state_axis` that holds one token of each trace, and whether it is kept."""
    name, axis, _ = state_axis(block)
    place = token - (block.of_record("row_start") if name == "hidden_rows" else 0)
    return axis.offsets[:-1] + np.maximum(place, 0), place >= 0


def unit_states(found: Float[np.ndarray, "item unit"]) -> Float[np.ndarray, "item unit"]:
    """States scaled to length 1; NaN for a state of zeros."""
    norm = np.sqrt(np.einsum("iu,iu->i", found, found))
    return found / np.where(norm > 0, norm, np.nan)[:, None]
