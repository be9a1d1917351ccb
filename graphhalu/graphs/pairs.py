"""Pairs of a row and an earlier key that may become edges, with the attention of every head.

Of complete attention the packed triangles are read as they are; of a store of edges only the
pairs that some head kept. No square is made of either.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Shaped

from graphhalu.core.errors import NonFiniteError
from graphhalu.core.numerics import ragged_offsets
from graphhalu.features.block import TraceBlock
from graphhalu.graphs.block import layer_places, packed_attention, to_float32
from graphhalu.graphs.edges import row_sums
from graphhalu.graphs.recipe import GraphRecipe


class Pairs(NamedTuple):
    """Candidates of some layers, those of a row one after another, lowest key first.

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
        total: Float[np.ndarray, "layer row"] = row_sums(self.mean, self.row_starts)
        return total + self.dropped


def candidate_pairs(block: TraceBlock, layers: tuple[int, ...]) -> Pairs:
    """Every pair of complete attention, or those that a store of edges kept in any of the layers.

    Raises:
        TraceNotFoundError: If the traces keep neither, or not these layers.
        NonFiniteError: If attention is NaN or infinite; names trace and layer.
    """
    pairs = _kept_pairs(block, layers) if is_of_edges(block) else _all_pairs(block, layers)
    is_finite = np.isfinite(pairs.mean)
    if not is_finite.all():
        place, pair = np.argwhere(~is_finite)[0].tolist()
        record = block.records[int(block.rows.trace[pairs.row[pair]])]
        message = (
            f"trace {record.trace_id!r}, layer {layers[place]}: attention has NaN or infinity\n"
            f"  Extract the trace again, or leave it out"
        )
        raise NonFiniteError(message)
    return pairs


def is_of_edges(block: TraceBlock) -> bool:
    """Whether only the strongest edges are kept."""
    is_complete = block.has("attention") or block.has("attention_fixed")
    return block.has("edge_key") and not is_complete


def importance(pairs: Pairs, recipe: GraphRecipe, layers: tuple[int, ...]) -> Float[np.ndarray, "layer pair"]:
    """One non-negative value a pair, 0 for a token with itself."""
    if recipe.importance == "mean":
        return pairs.mean
    if recipe.importance == "max":
        values = _maximum(pairs.weights)
    else:
        weights = recipe.weights(layers)[..., 0].astype(np.float32)
        values = np.einsum("lhp,lh->lp", to_float32(pairs.weights), weights)
    values[pairs.mean == 0] = 0
    return values


def _all_pairs(block: TraceBlock, layers: tuple[int, ...]) -> Pairs:
    weights = packed_attention(block, layers)
    n_keys = block.row_token + 1
    row_starts = ragged_offsets(n_keys)
    row = np.repeat(np.arange(len(n_keys)), n_keys)
    key = np.arange(row_starts[-1]) - np.repeat(row_starts[:-1], n_keys)
    mean = _mean(weights)
    own = mean[:, row_starts[1:] - 1]
    # NaN must be seen by who checks, although a token is no neighbour of itself
    mean[:, row_starts[1:] - 1] = np.where(np.isfinite(own), 0.0, own)
    return Pairs(weights, mean, key, row, row_starts, np.zeros((len(layers), len(n_keys))))


def _kept_pairs(block: TraceBlock, layers: tuple[int, ...]) -> Pairs:
    places = layer_places(block.shape, layers, "edge_key")
    keys = block.raw("edge_key")[places].astype(np.int64)
    weights = to_float32(block.raw("edge_weight")[places])
    is_edge = keys >= 0
    layer, head, row, _ = np.nonzero(is_edge)
    stride = int(block.tokens.lengths.max())
    number = row * stride + keys[is_edge]
    found = np.unique(number)
    table = np.zeros((len(layers), keys.shape[1], len(found)), dtype=np.float32)
    table[layer, head, np.searchsorted(found, number)] = weights[is_edge]
    pair_row = found // stride
    row_starts = np.searchsorted(pair_row, np.arange(len(block.row_token) + 1))
    dropped = to_float32(block.raw("dropped_mass")[places]).mean(1, dtype=np.float64)
    return Pairs(table, _mean(table), found % stride, pair_row, row_starts, dropped)


def _mean(weights: Shaped[np.ndarray, "layer head pair"]) -> Float32[np.ndarray, "layer pair"]:
    total = torch.zeros((weights.shape[0], weights.shape[2]))
    heads = torch.from_numpy(weights)
    for head in range(weights.shape[1]):  # torch adds half precision without a copy in single
        total += heads[:, head]
    mean: Float32[np.ndarray, "layer pair"] = (total / weights.shape[1]).numpy()
    return mean


def _maximum(weights: Shaped[np.ndarray, "layer head pair"]) -> Float32[np.ndarray, "layer pair"]:
    largest: Float32[np.ndarray, "layer pair"] = torch.from_numpy(weights).amax(1).float().numpy()
    return largest
