"""A recorded trace as if some of its tokens were not there."""

from collections.abc import Collection
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Int

from graphhalu.errors import UsageError
from graphhalu.traces.schema import array_spec
from graphhalu.traces.trace import Trace


def without_tokens(trace: Trace, positions: Collection[int]) -> Trace:
    """Take tokens out of what was recorded; the model does not run again.

    Rows and keys of these tokens go, all other values stay as they are: attention is not
    renormalised, hidden states and probabilities are those with the token in place. What a key
    received loses what the taken rows gave it, where whole attention is kept.

    Args:
        trace: A trace with an answer.
        positions: Positions to take out; at least one token of prompt and answer must stay.

    Raises:
        UsageError: If a position is none of the trace, or nothing of prompt or answer would stay.
    """
    taken = np.zeros(trace.length, dtype=bool)
    wrong = [position for position in positions if not 0 <= position < trace.length]
    if wrong:
        message = f"token {wrong[0]} is not among the {trace.length} of trace {trace.trace_id!r}"
        raise UsageError(message)
    taken[list(positions)] = True
    n_prompt = int((~taken[: trace.prompt_length]).sum())
    n_answer = int((~taken[trace.prompt_length :]).sum())
    if not n_prompt or not n_answer:
        message = f"trace {trace.trace_id!r} would keep no token of its prompt or its answer"
        raise UsageError(message)
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
    kept = {"token": ~taken, "row": ~taken[start:], "pair": _kept_pairs(taken, start)}
    arrays = {}
    for name, array in trace.arrays.items():
        spec = array_spec(name)
        values = np.compress(kept[spec.ragged_axis], array[:], axis=spec.ragged_dim)
        if name == "edge_key":
            values = _moved(values, taken)
        arrays[name] = values
    if "received" in arrays and ("attention" in arrays or "attention_fixed" in arrays):
        arrays["received"] = arrays["received"] - _given(trace, taken)
    return Trace(record, trace.shape, arrays)


def _kept_pairs(taken: Bool[np.ndarray, "token"], start: int) -> Bool[np.ndarray, "pair"]:
    """Pairs of a row and an earlier key, or its own, of which both stay."""
    rows = [~taken[: row + 1] & ~taken[row] for row in range(start, len(taken))]
    return np.concatenate(rows)


def _moved(
    keys: Int[np.ndarray, "layer head row edge"], taken: Bool[np.ndarray, "token"]
) -> Int[np.ndarray, "layer head row edge"]:
    """Keys at their new positions; an edge to a taken token is none."""
    place = np.where(taken, -1, np.cumsum(~taken) - 1)
    return np.where(keys < 0, -1, place[keys]).astype(keys.dtype)


def _given(trace: Trace, taken: Bool[np.ndarray, "token"]) -> np.ndarray:
    """What the taken rows gave to each key that stays."""
    start = trace.record.row_start
    rows = [row - start for row in np.flatnonzero(taken) if row >= start]
    given = [
        trace.attention(layer)[:, rows].sum(1)[:, ~taken] for layer in trace.shape.attention_layers
    ]
    return np.stack(given).astype(np.float32)
