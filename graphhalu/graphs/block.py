"""Traces read side by side, so that one vector operation serves the graphs of all of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int, Shaped

from graphhalu.core.errors import TraceNotFoundError, UsageError
from graphhalu.core.numerics import from_bfloat16_bits, from_fixed_point, n_pairs
from graphhalu.features.block import TraceBlock, block_of
from graphhalu.traces.lazy import LazyArray
from graphhalu.traces.schema import TraceShape
from graphhalu.traces.trace import Trace

BLOCK_ELEMENTS: Final = 2**23
"""Attention weights of one block: 16 MB in half precision, and about as much while in work."""


@dataclass(frozen=True)
class StoredRun:
    """Arrays of traces that lie side by side in a store; each chunk is decoded once.

    Attributes:
        arrays: Array of the whole run, by name.
    """

    arrays: Mapping[str, LazyArray]

    def names(self) -> tuple[str, ...]:
        """Arrays that are there."""
        return tuple(self.arrays)

    def read(self, name: str, first: int | None = None) -> np.ndarray:
        """An array in the stored number format, or one entry of its first axis."""
        return self.arrays[name][slice(None) if first is None else first]


def trace_block(traces: Sequence[Trace], *, need_all_rows: bool = True) -> TraceBlock:
    """A block of these traces, in their order.

    Args:
        traces: Of one model and one kind of extraction.
        need_all_rows: Whether rows of the prompt are needed, or only those from the last prompt
            token on, which produce the answer.

    Raises:
        UsageError: If they are of models with other axes, or do not keep the rows.
    """
    for trace in traces:
        if trace.shape != traces[0].shape:
            message = "graphs are built of traces of one model and one kind of extraction"
            raise UsageError(message)
        first_row = 0 if need_all_rows else trace.prompt_length - 1
        if trace.record.row_start > first_row:
            message = (
                f"a token graph needs the attention rows from {first_row} on, trace "
                f"{trace.trace_id!r} keeps the rows from {trace.record.row_start} on\n"
                f"  Extract it again with all rows, or build graphs with prompt_edges=False"
            )
            raise UsageError(message)
    first = traces[0]
    joined = {
        name: array.joined(len(traces))
        for name, array in first.arrays.items()
        if isinstance(array, LazyArray)
    }
    if len(joined) < len(first.arrays) or not _are_neighbours(traces):
        return block_of(traces)
    return TraceBlock(tuple(trace.record for trace in traces), first.shape, StoredRun(joined))


def trace_runs(
    traces: Sequence[Trace], indices: Sequence[int], n_layers: int
) -> Iterator[tuple[list[int], list[Trace]]]:
    """Traces that are read together, in the order asked for, with their indices.

    Args:
        traces: A store or a list.
        indices: Which of them.
        n_layers: Layers that will be read; they bound how many traces go together.
    """
    run: list[Trace] = []
    members: list[int] = []
    size = 0
    for index in indices:
        trace = traces[index]
        added = n_pairs(trace.length) * n_layers * trace.shape.n_heads
        if run and (size + added > BLOCK_ELEMENTS or not _are_neighbours([run[-1], trace])):
            yield members, run
            run, members, size = [], [], 0
        run.append(trace)
        members.append(index)
        size += added
    if run:
        yield members, run


def layer_places(shape: TraceShape, layers: Sequence[int], what: str) -> list[int]:
    """Entries of the layer axis that hold these model layers.

    Raises:
        TraceNotFoundError: If a layer is not kept.
    """
    kept = shape.attention_layers
    return [_place(layer, kept, f"{what} of layer") for layer in layers]


def layer_stream(block: TraceBlock, name: str, layers: Sequence[int]) -> Float32[np.ndarray, "layer ..."]:
    """Some model layers of a stream, in float32.

    Raises:
        TraceNotFoundError: If the traces do not keep it, or not these layers.
    """
    places = layer_places(block.shape, layers, name)
    return to_float32(block.raw(name)[places])


def packed_attention(block: TraceBlock, layers: Sequence[int]) -> Shaped[np.ndarray, "layer head pair"]:
    """Attention of some model layers, triangles one after another, in half or single precision.

    Raises:
        TraceNotFoundError: If the traces do not keep it, or not these layers.
    """
    places = layer_places(block.shape, layers, "attention")
    is_fixed = not block.has("attention") and block.has("attention_fixed")
    values = _matrix(block, "attention_fixed" if is_fixed else "attention", places)
    return from_fixed_point(values) if is_fixed else values


def hidden_states(
    block: TraceBlock, layers: Sequence[int], name: str = "hidden"
) -> Float32[np.ndarray, "layer token feature"]:
    """Hidden states that model layers leave: ``hidden[layer + 1]``.

    Args:
        block: Traces that keep them.
        layers: Model layers.
        name: ``"hidden"``, or ``"hidden_rows"`` for those of the stored rows only.

    Raises:
        TraceNotFoundError: If the traces do not keep one of them.
    """
    kept = block.shape.hidden_layers
    places = [_place(layer + 1, kept, "hidden states of layer") for layer in layers]
    return from_bfloat16_bits(_matrix(block, name, places))


def sees_sink(block: TraceBlock, layers: Sequence[int], n_sink: int) -> Bool[np.ndarray, "layer row"]:
    """Rows that come after the first ``n_sink`` tokens and still see all of them."""
    n_visible = block.n_visible[layer_places(block.shape, layers, "windows")]
    sees: Bool[np.ndarray, "layer row"] = (block.row_token >= n_sink) & (n_visible > block.row_token)
    return sees


def repeated(block: TraceBlock, values: Int[np.ndarray, "trace"]) -> Int[np.ndarray, "token"]:
    """One value a trace, for each of its tokens."""
    return np.repeat(values, block.tokens.lengths)


def to_float32(values: Shaped[np.ndarray, "*axes"]) -> Float32[np.ndarray, "*axes"]:
    """The same numbers in single precision; numpy converts half precision several times slower."""
    if values.dtype != np.float16:
        return values.astype(np.float32, copy=False)
    if not values.flags.writeable:  # torch warns of memory that it may not write to
        values = values.copy()
    converted: Float32[np.ndarray, "*axes"] = torch.from_numpy(values).float().numpy()
    return converted


def _matrix(block: TraceBlock, name: str, places: Sequence[int]) -> np.ndarray:
    """A matrix is stored layer by layer, so only the layers asked for are decoded."""
    if not block.has(name):
        message = (
            f"trace {block.records[0].trace_id!r} keeps no {name!r} "
            f"(it has {', '.join(block.arrays.names())})\n  Extract it again with another --keep"
        )
        raise TraceNotFoundError(message)
    return np.stack([block.arrays.read(name, place) for place in places])


def _place(layer: int, kept: tuple[int, ...], what: str) -> int:
    if layer not in kept:
        listed = ", ".join(map(str, kept))
        message = f"no {what} {layer}: the trace keeps {listed or 'none'}"
        raise TraceNotFoundError(message)
    return kept.index(layer)


def _are_neighbours(traces: Sequence[Trace]) -> bool:
    """Whether traces can be read together: side by side in one part, or all in memory."""
    arrays = [next(iter(trace.arrays.values()), None) for trace in traces]
    first = arrays[0]
    if not isinstance(first, LazyArray):
        return not any(isinstance(array, LazyArray) for array in arrays) and all(
            trace.shape == traces[0].shape for trace in traces
        )
    return all(
        isinstance(array, LazyArray) and array.part is first.part and array.place == first.place + number
        for number, array in enumerate(arrays)
    )
