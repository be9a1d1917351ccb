"""Recording of the attention rows that pass by, in the stored number format.

Every chunk of rows (in float32) is reduced at once, and what is kept of a whole batch lies
padded in main memory; afterwards the arrays of one trace are cut out without padding. The keys of
a chunk end at its last row or behind it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer, Shaped
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from graphhalu.core.axes import N_SPANS, RowRange
from graphhalu.extract.forward import TokenSequence
from graphhalu.traces.schema import ARRAYS, FIXED_STEPS, N_SINK_KEYS, RAGGED_AXES, TraceShape, n_pairs

_TINY: Final = torch.finfo(torch.float32).tiny
_PACKED: Final = ("attention", "attention_fixed")


@dataclass(frozen=True)
class PaddedBatch:
    """Sequences of one replay, padded on the right to a common length.

    Attributes:
        sequences: Prompt and answer of each, and the first query row that is kept of it.
        shape: Which layers are kept.
        device: Where the model is.
        edge_mass: Share of a row after which no more of its edges are kept, or ``None``.
    """

    sequences: tuple[TokenSequence, ...]
    shape: TraceShape
    device: torch.device
    edge_mass: float | None = None

    @cached_property
    def token_ids(self) -> Int[Tensor, "trace token"]:
        """Vocabulary indices."""
        return self._padded([sequence.token_ids for sequence in self.sequences])

    @cached_property
    def is_token(self) -> Bool[Tensor, "trace token"]:
        """Which positions are tokens and not padding."""
        lengths = torch.tensor([each.length for each in self.sequences], device=self.device)
        return torch.arange(self.rows.stop, device=self.device) < lengths[:, None]

    @property
    def rows(self) -> RowRange:
        """From the first row that any sequence keeps to the last token of the longest."""
        first = min(sequence.row_start for sequence in self.sequences)
        return RowRange(first, max(sequence.length for sequence in self.sequences))

    @cached_property
    def is_span(self) -> Float[Tensor, "trace 1 token span"]:
        """Membership of each token in each span."""
        codes = self._padded([sequence.span_code for sequence in self.sequences])
        return nn.functional.one_hot(codes, N_SPANS).float()[:, None]

    @cached_property
    def is_kept_row(self) -> Float[Tensor, "trace token"]:
        """1 for each row that its sequence keeps, 0 for others and for padding."""
        rows = torch.arange(self.rows.stop, device=self.device)
        starts = torch.tensor([each.row_start for each in self.sequences], device=self.device)
        return (self.is_token & (rows >= starts[:, None])).float()

    def _padded(self, values: list[Integer[np.ndarray, "_"]]) -> Int[Tensor, "trace token"]:
        tensors = [torch.from_numpy(each.astype(np.int64)) for each in values]
        return pad_sequence(tensors, batch_first=True).to(self.device)


Chunk = Float[Tensor, "trace head row key"]


def _span_mass(batch: PaddedBatch, _row_start: int, weights: Chunk) -> tuple[Tensor]:
    """Attention of a row summed over each named span."""
    return (weights @ batch.is_span[:, :, : weights.shape[-1]],)


def _self_attention(_batch: PaddedBatch, row_start: int, weights: Chunk) -> tuple[Tensor]:
    """Attention of a row to its own token: the diagonal of the chunk."""
    return (weights.diagonal(offset=row_start, dim1=2, dim2=3),)


def _row_entropy(_batch: PaddedBatch, _row_start: int, weights: Chunk) -> tuple[Tensor]:
    """Entropy of a row in nat; a weight of 0 adds nothing."""
    # a weight of 0 times a finite logarithm is 0; torch.special.entr takes three times as long
    return (-(weights * weights.clamp_min(_TINY).log_()).sum(-1),)


def _argmax_key(_batch: PaddedBatch, _row_start: int, weights: Chunk) -> tuple[Tensor]:
    """Key position of a row's largest weight; the first of equals."""
    return (weights.argmax(-1),)


def _sink_keys(_batch: PaddedBatch, _row_start: int, weights: Chunk) -> tuple[Tensor]:
    """Attention of a row to each of the first tokens; zeros beyond the end of a short sequence."""
    first = weights[..., :N_SINK_KEYS]
    return (nn.functional.pad(first, (0, N_SINK_KEYS - first.shape[-1])),)


def _edges(
    batch: PaddedBatch, row_start: int, weights: Chunk
) -> tuple[Int[Tensor, "trace head row edge"], Float[Tensor, "trace head row edge"], Tensor]:
    """The strongest keys of a row other than its own token, and the mass of all others.

    The first ``n_edges`` of the store's shape; with ``edge_mass`` a row ends before that once
    the kept share of its attention to other tokens reaches it. A place without an edge has key
    -1 and weight 0. Own attention, edges and dropped mass add up to the row.
    """
    others = weights.clone()
    others.diagonal(offset=row_start, dim1=2, dim2=3).zero_()
    total = others.sum(-1)
    n_edges = batch.shape.n_edges
    found = others.topk(min(n_edges, others.shape[-1]), dim=-1)
    is_edge = found.values > 0
    if batch.edge_mass is not None:
        before = found.values.cumsum(-1) - found.values
        is_edge &= before < batch.edge_mass * total[..., None]
    weight = found.values * is_edge
    missing = (0, n_edges - weight.shape[-1])
    key = nn.functional.pad(found.indices.where(is_edge, -1), missing, value=-1)
    dropped = (total - weight.sum(-1)).clamp(min=0)
    return key, nn.functional.pad(weight, missing), dropped


Reduction = Callable[[PaddedBatch, int, Chunk], tuple[Tensor, ...]]

_REDUCTIONS: Final[dict[tuple[str, ...], Reduction]] = {
    ("span_mass",): _span_mass,
    ("self_attention",): _self_attention,
    ("row_entropy",): _row_entropy,
    ("argmax_key",): _argmax_key,
    ("sink_keys",): _sink_keys,
    ("edge_key", "edge_weight", "dropped_mass"): _edges,
}
"""Arrays with one value, or one short vector, a row, and how a chunk of rows is reduced to them."""


class AttentionRecorder:
    """Keeps what a store keeps of the attention of one batch; the observer of its replay.

    Args:
        batch: The sequences.
        arrays: Names of the arrays to keep; those that do not come from attention are passed over.
    """

    def __init__(self, batch: PaddedBatch, arrays: tuple[str, ...]) -> None:
        self.batch = batch
        n_rows = batch.rows.stop - batch.rows.start
        self._reductions = {n: reduce for n, reduce in _REDUCTIONS.items() if {*n} & {*arrays}}
        per_row = [name for names in self._reductions for name in names]
        per_key = [name for name in ("received", "value_norm") if name in arrays]
        self._rows = {name: self._empty(name, n_rows) for name in per_row}
        self._keys = {name: self._empty(name, batch.rows.stop) for name in per_key}
        self._packed = {name: self._empty_packed(name) for name in _PACKED if name in arrays}
        self._n_rows_seen = dict.fromkeys(batch.shape.attention_layers, 0)
        self._layers_with_values: set[int] = set()
        self._bad_layers: dict[int, int] = {}

    def wanted_rows(self, layer: int) -> RowRange | None:
        """The rows from the first that any sequence keeps, of the layers that are kept."""
        is_kept = layer in self._n_rows_seen and self._keeps_rows
        return self.batch.rows if is_kept else None

    def rows(self, layer: int, row_start: int, weights: Chunk) -> None:
        """Reduce a chunk of rows and keep the results; note traces that are not finite."""
        exact = weights.float()
        self._note_bad_rows(layer, row_start, exact)
        position = self.batch.shape.attention_layers.index(layer)
        first = row_start - self.batch.rows.start
        stop = row_start + exact.shape[2]
        for names, reduce in self._reductions.items():
            for name, values in zip(names, reduce(self.batch, row_start, exact), strict=True):
                self._rows[name][position, :, :, first : first + exact.shape[2]] = values
        if "received" in self._keys:
            is_kept = self.batch.is_kept_row[:, None, None, row_start:stop]
            sums = (is_kept @ exact)[:, :, 0]
            self._keys["received"][position, ..., : sums.shape[-1]] += sums.cpu()
        for name, packed in self._packed.items():
            self._pack([each[position] for each in packed], row_start, _stored(exact, name))
        self._n_rows_seen[layer] += exact.shape[2]

    def values(self, layer: int, value: Float[Tensor, "trace kv_head key channel"]) -> None:
        """Keep the Euclidean norm of each value vector."""
        if "value_norm" not in self._keys or layer not in self._n_rows_seen:
            return
        kept = self._keys["value_norm"]
        norms = value.float().norm(dim=-1)
        assert norms.shape[1] == kept.shape[2], f"{norms.shape[1]} heads of values"
        kept[self.batch.shape.attention_layers.index(layer)] = norms
        self._layers_with_values.add(layer)

    def require_complete(self) -> None:
        """Every layer has shown every wanted row: what was not would be stored as noise."""
        expected = self.batch.rows.stop - self.batch.rows.start if self._keeps_rows else 0
        for layer, n_rows in self._n_rows_seen.items():
            assert n_rows == expected, f"layer {layer} showed {n_rows} of {expected} rows"
        if "value_norm" in self._keys:
            missing = self._n_rows_seen.keys() - self._layers_with_values
            assert not missing, f"layers {missing} showed no values"

    def failure(self, index: int) -> str | None:
        """Why a trace failed, if its attention is not finite; names the first such layer."""
        if index not in self._bad_layers:
            return None
        return f"the attention of layer {self._bad_layers[index]} holds NaN or infinity"

    def trace_arrays(self, index: int) -> dict[str, np.ndarray]:
        """Every recorded array of one trace, without padding."""
        sequence, first = self.batch.sequences[index], self.batch.rows.start
        rows = slice(sequence.row_start - first, sequence.length - first)
        cut = {name: kept[:, index, :, rows] for name, kept in self._rows.items()}
        cut |= {name: kept[:, index, :, : sequence.length] for name, kept in self._keys.items()}
        return {
            **{name: np.ascontiguousarray(values.numpy()) for name, values in cut.items()},
            **{name: packed[index] for name, packed in self._packed.items()},
        }

    @property
    def _keeps_rows(self) -> bool:
        return bool(self._rows or self._packed or "received" in self._keys)

    def _sizes(self, name: str) -> list[int]:
        """Lengths of the fixed axes of an array."""
        axes = (axis for axis in ARRAYS[name].axes if axis not in RAGGED_AXES)
        return [self.batch.shape.axis_size(axis) for axis in axes]

    def _empty(self, name: str, n_places: int) -> Shaped[Tensor, "layer trace ..."]:
        """``[layer, trace, head, row or key, …]`` of zeros in the stored number format."""
        n_layers, n_heads, *trailing = self._sizes(name)
        shape = (n_layers, len(self.batch.sequences), n_heads, n_places, *trailing)
        return torch.from_numpy(np.zeros(shape, dtype=ARRAYS[name].dtype))

    def _empty_packed(self, name: str) -> list[Shaped[np.ndarray, "layer head _"]]:
        sizes, dtype = self._sizes(name), ARRAYS[name].dtype
        n_weights = [n_pairs(each.length, each.row_start) for each in self.batch.sequences]
        return [np.empty((*sizes, n), dtype=dtype) for n in n_weights]

    def _pack(
        self,
        packed: list[Shaped[np.ndarray, "head _"]],
        row_start: int,
        stored: Shaped[np.ndarray, "trace head row key"],
    ) -> None:
        """Put the causal rows of every trace one after another; rows of padding are dropped."""
        for index, sequence in enumerate(self.batch.sequences):
            start = max(row_start, sequence.row_start)
            begin = n_pairs(start) - n_pairs(sequence.row_start)
            # one copy a row takes a seventh of the time of an index for each entry
            for row in range(start, min(row_start + stored.shape[2], sequence.length)):
                own = stored[index, :, row - row_start, : row + 1]
                packed[index][:, begin : begin + row + 1] = own
                begin += row + 1

    def _note_bad_rows(self, layer: int, row_start: int, weights: Chunk) -> None:
        if bool(torch.isfinite(weights.sum())):
            return
        for index, sequence in enumerate(self.batch.sequences):
            rows = weights[index, :, : max(0, sequence.length - row_start)]
            if not bool(torch.isfinite(rows).all()):
                self._bad_layers.setdefault(index, layer)


def _stored(weights: Chunk, name: str) -> Shaped[np.ndarray, "trace head row key"]:
    """Whole weights in the number format of an array."""
    if name == "attention":
        return np.asarray(weights.to(torch.float16).cpu().numpy())
    # NaN is told as a failure of its trace
    steps = weights.nan_to_num(0.0).mul(FIXED_STEPS).round_().clamp_(0, FIXED_STEPS)
    return np.asarray(steps.to(torch.int32).cpu().numpy()).astype(np.uint16)
