"""Recorders of single weights: all of them, or the strongest of each row."""

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from graphhalu.extract.recorders import Batch, Recorder
from graphhalu.numerics import FIXED_STEPS, n_pairs, triangle_size
from graphhalu.traces.schema import ARRAYS


class Edges(Recorder):
    """The strongest keys of a row other than its own token, and the mass of all others.

    The first ``n_edges`` of the store's shape; with ``edge_mass`` a row ends before that once
    the kept share of its attention to other tokens reaches it. A place without an edge has key
    -1 and weight 0. Own attention, edges and dropped mass add up to the row.
    """

    names = ("edge_key", "edge_weight", "dropped_mass")

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch)
        n_edges = batch.shape.n_edges
        self.key = self.empty_rows(n_edges, dtype=torch.int32)
        self.weight = self.empty_rows(n_edges, dtype=torch.float16)
        self.dropped = self.empty_rows(dtype=torch.float16)

    def rows(
        self, position: int, row_start: int, weights: Float[Tensor, "trace head row key"]
    ) -> None:
        """Sort out the strongest keys of every row of the chunk."""
        others = weights.clone()
        others.diagonal(offset=row_start, dim1=2, dim2=3).zero_()
        total = others.sum(-1)
        found = others.topk(min(self.key.shape[-1], others.shape[-1]), dim=-1)
        is_edge = found.values > 0
        if self.batch.edge_mass is not None:
            before = found.values.cumsum(-1) - found.values
            is_edge &= before < self.batch.edge_mass * total[..., None]
        weight = found.values * is_edge
        start = row_start - self.batch.first_row
        place = (position, slice(None), slice(None), slice(start, start + weights.shape[2]))
        n_missing = self.key.shape[-1] - weight.shape[-1]
        key = found.indices.where(is_edge, -1).to(torch.int32)
        self.key[place] = nn.functional.pad(key, (0, n_missing), value=-1).cpu()
        self.weight[place] = nn.functional.pad(weight, (0, n_missing)).cpu().half()
        self.dropped[place] = (total - weight.sum(-1)).clamp(min=0).cpu().half()

    def trace_arrays(self, index: int) -> dict[str, np.ndarray]:
        """Keys, weights and dropped mass of one trace."""
        kept = (self.key, self.weight, self.dropped)
        return {
            name: self.cut_rows(each, index) for name, each in zip(self.names, kept, strict=True)
        }


class FullAttention(Recorder):
    """The complete causal rows, packed one after another, in float16."""

    names: tuple[str, ...] = ("attention",)

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch)
        n_layers, n_heads = len(batch.shape.attention_layers), batch.shape.n_heads
        dtype = ARRAYS[self.names[0]].dtype
        self.kept = [
            np.empty((n_layers, n_heads, n_pairs(length, start)), dtype=dtype)
            for length, start in zip(batch.lengths, batch.row_starts, strict=True)
        ]

    def rows(
        self, position: int, row_start: int, weights: Float[Tensor, "trace head row key"]
    ) -> None:
        """Pack the chunk's rows of every trace; rows of padding are dropped."""
        stored = self.stored(weights)
        for index, (length, first_row) in enumerate(
            zip(self.batch.lengths, self.batch.row_starts, strict=True)
        ):
            start = max(row_start, first_row)
            stop = min(row_start + stored.shape[2], length)
            if start >= stop:
                continue
            packed, own = self.kept[index][position], stored[index]
            begin = triangle_size(start) - triangle_size(first_row)
            # one copy a row takes a seventh of the time of an index for each entry
            for row in range(start, stop):
                packed[:, begin : begin + row + 1] = own[:, row - row_start, : row + 1]
                begin += row + 1

    def trace_arrays(self, index: int) -> dict[str, np.ndarray]:
        """The packed rows of one trace."""
        return {self.names[0]: self.kept[index]}

    def stored(
        self, weights: Float[Tensor, "trace head row key"]
    ) -> Shaped[np.ndarray, "trace head row key"]:
        """The weights in the stored number format."""
        return np.asarray(weights.to(torch.float16).cpu().numpy())


class FixedAttention(FullAttention):
    """The complete causal rows as multiples of 1/65,535."""

    names = ("attention_fixed",)

    def stored(
        self, weights: Float[Tensor, "trace head row key"]
    ) -> Shaped[np.ndarray, "trace head row key"]:
        """The weights in the stored number format; NaN is told by the recorder set, not here."""
        steps = weights.nan_to_num(0.0).mul(FIXED_STEPS).round_().clamp_(0, FIXED_STEPS)
        return np.asarray(steps.to(torch.int32).cpu().numpy()).astype(np.uint16)
