"""Layers of several traces: row statistics, hidden states, and pairs that may become edges.

Of complete attention the packed triangles are read as they are; of a store of edges only the
pairs that some head kept. Neither is unpacked to squares.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Shaped

from graphhalu.core.errors import NonFiniteError
from graphhalu.core.numerics import ragged_offsets
from graphhalu.features.block import TraceBlock
from graphhalu.features.ragged import Ragged
from graphhalu.graphs.recipe import HeadRoles
from graphhalu.traces.schema import from_bfloat16_bits, from_fixed_point, n_pairs
from graphhalu.traces.trace import Trace, layer_position

BLOCK_ELEMENTS: Final = 2**23
"""Attention weights of one block: 16 MB in half precision, and about as much while in work."""


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
        if run and (size + added > BLOCK_ELEMENTS or not _are_alike(run[-1], trace)):
            yield members, run
            run, members, size = [], [], 0
        run.append(trace)
        members.append(index)
        size += added
    if run:
        yield members, run


def _are_alike(one: Trace, other: Trace) -> bool:
    return one.shape == other.shape and one.arrays.keys() == other.arrays.keys()


@dataclass(frozen=True)
class LayerBlock:
    """Some model layers of the traces of a block.

    Attributes:
        block: Traces that keep all rows, or those that produce their answers.
        layers: Model layers.
        roles: Weights of heads, for the node block ``roles``.
    """

    block: TraceBlock
    layers: tuple[int, ...]
    roles: HeadRoles | None = None

    @cached_property
    def positions(self) -> list[int]:
        """Entries of the layer axis that hold these layers.

        Raises:
            TraceNotFoundError: If a layer is not kept.
        """
        kept = self.block.shape.attention_layers
        return [layer_position(layer, kept, "attention of layer") for layer in self.layers]

    @property
    def has_only_edges(self) -> bool:
        """Whether only the strongest edges are kept."""
        is_complete = self.block.has("attention") or self.block.has("attention_fixed")
        return self.block.has("edge_key") and not is_complete

    def stream(self, name: str) -> Float32[np.ndarray, "layer ..."]:
        """A row statistic in float32.

        Raises:
            TraceNotFoundError: If the traces do not keep it.
        """
        return to_float32(self.block.raw(name)[self.positions])

    def attention(self) -> Shaped[np.ndarray, "layer head pair"]:
        """Attention, triangles one after another, in half or single precision.

        Raises:
            TraceNotFoundError: If the traces do not keep it.
        """
        if not self.block.has("attention") and self.block.has("attention_fixed"):
            return from_fixed_point(self._matrix("attention_fixed", self.positions))
        return self._matrix("attention", self.positions)

    def hidden(self) -> Float32[np.ndarray, "layer token feature"]:
        """Hidden states that the layers leave: ``hidden[layer + 1]``.

        Where the store keeps those of its rows only, other tokens have 0.

        Raises:
            TraceNotFoundError: If the traces do not keep one of them.
        """
        kept = self.block.shape.hidden_layers
        positions = [layer_position(layer + 1, kept, "hidden states of layer") for layer in self.layers]
        if self.block.has("hidden") or not self.block.has("hidden_rows"):
            return from_bfloat16_bits(self._matrix("hidden", positions))
        values = from_bfloat16_bits(self._matrix("hidden_rows", positions))
        return self.on_tokens(values.swapaxes(1, 2)).swapaxes(1, 2)

    def on_tokens(self, values: Shaped[np.ndarray, "*axes row"]) -> Shaped[np.ndarray, "*axes token"]:
        """Values of the stored rows at their tokens, 0 at tokens whose row is not stored."""
        block = self.block
        n_tokens = int(block.tokens.offsets[-1])
        if values.shape[-1] == n_tokens:
            return values
        spread = np.zeros((*values.shape[:-1], n_tokens), dtype=values.dtype)
        spread[..., block.tokens.offsets[block.rows.trace] + block.row_token] = values
        return spread

    def _matrix(self, name: str, positions: Sequence[int]) -> np.ndarray:
        # a matrix is stored layer by layer, so only the layers asked for are decoded
        return np.stack([self.block.stored(name, position) for position in positions])


class Pairs(NamedTuple):
    """Pairs of a row and an earlier key, those of a row one after another, lowest key first.

    Attributes:
        weights: Attention in the stored number format.
        mean: Mean over heads; 0 for a token with itself.
        key: Attended token, counted within its trace.
        row: Row of the block that attends.
        row_starts: Where each row starts on the pair axis, and where the last one ends.
        dropped: Attention to other tokens (mean over heads) that is not among the pairs.
    """

    weights: Shaped[np.ndarray, "layer head pair"]
    mean: Float32[np.ndarray, "layer pair"]
    key: Int[np.ndarray, "pair"]
    row: Int[np.ndarray, "pair"]
    row_starts: Int[np.ndarray, "row_end"]
    dropped: Float[np.ndarray, "layer row"]

    def others(self) -> Float[np.ndarray, "layer row"]:
        """Attention of each row to other tokens, mean over heads."""
        return Ragged(self.row_starts).sum(self.mean).T + self.dropped


def candidate_pairs(source: LayerBlock) -> Pairs:
    """Every pair of complete attention, or those that a store of edges kept in any of the layers.

    Raises:
        TraceNotFoundError: If the traces keep neither.
        NonFiniteError: If attention is NaN or infinite; names trace and layer.
    """
    pairs = _kept_pairs(source) if source.has_only_edges else _all_pairs(source)
    is_finite = np.isfinite(pairs.mean)
    if not is_finite.all():
        place, pair = np.argwhere(~is_finite)[0].tolist()
        record = source.block.records[int(source.block.rows.trace[pairs.row[pair]])]
        message = (
            f"trace {record.trace_id!r}, layer {source.layers[place]}: attention has NaN or "
            f"infinity\n  Extract the trace again, or leave it out"
        )
        raise NonFiniteError(message)
    return pairs


def _all_pairs(source: LayerBlock) -> Pairs:
    weights = source.attention()
    n_keys = source.block.row_token + 1
    rows = Ragged(ragged_offsets(n_keys))
    mean = _mean(weights)
    diagonal = rows.offsets[1:] - 1
    own = mean[:, diagonal]
    # NaN must be seen by who checks, although a token is no neighbour of itself
    mean[:, diagonal] = np.where(np.isfinite(own), 0.0, own)
    dropped = np.zeros((len(source.layers), len(n_keys)))
    return Pairs(weights, mean, rows.position, rows.trace, rows.offsets, dropped)


def _kept_pairs(source: LayerBlock) -> Pairs:
    block, positions = source.block, source.positions
    keys = block.raw("edge_key")[positions].astype(np.int64)
    is_edge = keys >= 0
    layer, head, row, _ = np.nonzero(is_edge)
    stride = int(block.tokens.lengths.max())
    number = row * stride + keys[is_edge]
    found = np.unique(number)
    table = np.zeros((len(positions), keys.shape[1], len(found)), dtype=np.float32)
    table[layer, head, np.searchsorted(found, number)] = source.stream("edge_weight")[is_edge]
    pair_row = found // stride
    row_starts = np.searchsorted(pair_row, np.arange(len(block.row_token) + 1))
    dropped = source.stream("dropped_mass").mean(1, dtype=np.float64)
    return Pairs(table, _mean(table), found % stride, pair_row, row_starts, dropped)


def _mean(weights: Shaped[np.ndarray, "layer head pair"]) -> Float32[np.ndarray, "layer pair"]:
    total = torch.zeros((weights.shape[0], weights.shape[2]))
    heads = torch.from_numpy(weights)
    for head in range(weights.shape[1]):  # torch adds half precision without a copy in single
        total += heads[:, head]
    mean: Float32[np.ndarray, "layer pair"] = (total / weights.shape[1]).numpy()
    return mean


def to_float32(values: Shaped[np.ndarray, "*axes"]) -> Float32[np.ndarray, "*axes"]:
    """The same numbers in single precision; numpy converts half precision several times slower."""
    if values.dtype != np.float16:
        return values.astype(np.float32, copy=False)
    if not values.flags.writeable:  # torch warns of memory that it may not write to
        values = values.copy()
    converted: Float32[np.ndarray, "*axes"] = torch.from_numpy(values).float().numpy()
    return converted
