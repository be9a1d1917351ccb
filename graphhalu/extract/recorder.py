"""What is kept of attention while a pass shows it.

Every chunk of attention rows (in float32) that passes by is reduced at once, and what is kept of a
whole batch lies padded where the model is, in the stored number format; afterwards the arrays of one
trace are cut out without padding. Whole weights go to main memory layer by layer, without a wait for
the device; one at the end is enough. The keys of a chunk end at its last row or behind it.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from math import prod
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from graphhalu.core.axes import N_SPANS, RowRange
from graphhalu.extract.forward import TokenSequence
from graphhalu.models.load import token_positions
from graphhalu.traces.schema import ARRAYS, FIXED_STEPS, N_SINK_KEYS, RAGGED_AXES, TraceShape, n_pairs

_TINY: Final = torch.finfo(torch.float32).tiny
_PACKED: Final[tuple[str, ...]] = ("attention", "attention_fixed")
_KEY_POSITIONS: Final = {"argmax_key", "edge_key"}
PINNED_BYTES: Final = 2**30
"""Largest array of a batch in page-locked memory, to which a GPU copies while it computes."""


Chunk = Float[Tensor, "trace head row key"]


def _span_mass(recorder: "AttentionRecorder", _row_start: int, weights: Chunk) -> tuple[Tensor]:
    """Attention of a row summed over each named span."""
    return (weights @ recorder.is_span.to(weights.device)[:, :, : weights.shape[-1]],)


def _self_attention(_recorder: "AttentionRecorder", row_start: int, weights: Chunk) -> tuple[Tensor]:
    """Attention of a row to its own token: the diagonal of the chunk."""
    return (weights.diagonal(offset=row_start, dim1=2, dim2=3),)


def _row_entropy(_recorder: "AttentionRecorder", _row_start: int, weights: Chunk) -> tuple[Tensor]:
    """Entropy of a row in nat; a weight of 0 adds nothing."""
    # a weight of 0 times a finite logarithm is 0; torch.special.entr takes three times as long
    return (-(weights * weights.clamp_min(_TINY).log_()).sum(-1),)


def _argmax_key(_recorder: "AttentionRecorder", _row_start: int, weights: Chunk) -> tuple[Tensor]:
    """Key position of a row's largest weight; the first of equals."""
    return (weights.argmax(-1),)


def _sink_keys(recorder: "AttentionRecorder", _row_start: int, weights: Chunk) -> tuple[Tensor]:
    """Attention of a row to each of the first tokens; zeros beyond the end of a short sequence."""
    places = recorder.first_keys.to(weights.device)
    last = weights.shape[-1] - 1
    return (weights.take_along_dim(places.clamp(max=last), dim=3).masked_fill(places > last, 0.0),)


def _edges(
    recorder: "AttentionRecorder", row_start: int, weights: Chunk
) -> tuple[Int[Tensor, "trace head row edge"], Float[Tensor, "trace head row edge"], Tensor]:
    """The strongest keys of a row other than its own token, and the mass of all others.

    The first ``n_edges`` of the store's shape; with ``edge_mass`` a row ends before that once
    the kept share of its attention to other tokens reaches it. A place without an edge has key
    -1 and weight 0. Own attention, edges and dropped mass add up to the row.
    """
    others = weights.clone()
    others.diagonal(offset=row_start, dim1=2, dim2=3).zero_()
    total = others.sum(-1)
    n_edges = recorder.shape.n_edges
    found = others.topk(min(n_edges, others.shape[-1]), dim=-1)
    is_edge = found.values > 0
    if recorder.edge_mass is not None:
        before = found.values.cumsum(-1) - found.values
        is_edge &= before < recorder.edge_mass * total[..., None]
    weight = found.values * is_edge
    missing = (0, n_edges - weight.shape[-1])
    key = nn.functional.pad(found.indices.where(is_edge, -1), missing, value=-1)
    dropped = (total - weight.sum(-1)).clamp(min=0)
    return key, nn.functional.pad(weight, missing), dropped


Reduction = Callable[["AttentionRecorder", int, Chunk], tuple[Tensor, ...]]

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
        sequences: Prompt and answer of each trace, and the first query row that is kept of it;
            they are padded on the right to a common length, behind the padding of their own.
        shape: Which layers are kept.
        arrays: Names of the arrays to keep; those that do not come from attention are passed over.
        device: Where the model is.
        edge_mass: Share of a row after which no more of its edges are kept, or ``None``.
    """

    def __init__(
        self,
        sequences: Sequence[TokenSequence],
        shape: TraceShape,
        arrays: tuple[str, ...],
        *,
        device: torch.device,
        edge_mass: float | None = None,
    ) -> None:
        self.sequences, self.shape, self.device, self.edge_mass = tuple(sequences), shape, device, edge_mass
        # from the first row that any sequence keeps to the last token of the longest
        first = min(each.padding + each.row_start for each in sequences)
        self.span_of_rows = RowRange(first, max(each.padding + each.length for each in sequences))
        n_rows = self.span_of_rows.stop - first
        self._reductions = {n: reduce for n, reduce in _REDUCTIONS.items() if {*n} & {*arrays}}
        per_row = [name for names in self._reductions for name in names]
        per_key = [name for name in ("received", "value_norm") if name in arrays]
        self._rows = {name: self._empty(name, n_rows) for name in per_row}
        self._keys = {name: self._empty(name, self.span_of_rows.stop) for name in per_key}
        n_weights = [n_pairs(each.length, each.row_start) for each in self.sequences]
        self._ends = np.cumsum([0, *n_weights]).tolist()
        self._packed = {name: self._empty_packed(name) for name in _PACKED if name in arrays}
        self._under_way: dict[tuple[str, int], Tensor] = {}
        self._places: dict[Any, tuple[tuple[Tensor, ...], Tensor]] = {}
        self._n_rows_seen = dict.fromkeys(shape.attention_layers, 0)
        self._layers_with_values: set[int] = set()
        sizes = (len(shape.attention_layers), len(self.sequences))
        self._is_finite = torch.ones(sizes, dtype=torch.bool, device=device)

    @cached_property
    def token_ids(self) -> Int[Tensor, "trace token"]:
        """Vocabulary indices."""
        return self._padded([sequence.token_ids for sequence in self.sequences])

    @cached_property
    def is_token(self) -> Bool[Tensor, "trace token"]:
        """Which positions are tokens and not padding."""
        return self._padded([np.ones_like(each.token_ids) for each in self.sequences]).bool()

    @cached_property
    def is_span(self) -> Float[Tensor, "trace 1 token span"]:
        """Membership of each token in each span."""
        codes = self._padded([sequence.span_code for sequence in self.sequences])
        return nn.functional.one_hot(codes, N_SPANS).float()[:, None]

    @cached_property
    def is_kept_row(self) -> Float[Tensor, "trace token"]:
        """1 for each row that its sequence keeps, 0 for others and for padding."""
        is_kept = [np.arange(each.length) >= each.row_start for each in self.sequences]
        return self._padded(is_kept).float()

    @cached_property
    def first_keys(self) -> Int[Tensor, "trace 1 1 sink_key"]:
        """Where the first tokens of each sequence stand."""
        starts = torch.tensor([each.padding for each in self.sequences], device=self.device)
        return (starts[:, None] + torch.arange(N_SINK_KEYS, device=self.device))[:, None, None]

    @cached_property
    def positions(self) -> Int[Tensor, "trace token"]:
        """Place of each token in its sequence."""
        return token_positions(self.is_token)

    def _padded(self, values: list[Shaped[np.ndarray, "_"]]) -> Int[Tensor, "trace token"]:
        padded = np.zeros((len(values), self.span_of_rows.stop), dtype=np.int64)
        for own, each, sequence in zip(padded, values, self.sequences, strict=True):
            own[sequence.padding : sequence.padding + len(each)] = each
        return torch.from_numpy(padded).to(self.device)

    def wanted_rows(self, layer: int) -> RowRange | None:
        """The rows from the first that any sequence keeps, of the layers that are kept."""
        is_kept = layer in self._n_rows_seen and self._keeps_rows
        return self.span_of_rows if is_kept else None

    def rows(self, layer: int, row_start: int, weights: Chunk) -> None:
        """Reduce a chunk of rows and keep the results; note traces that are not finite."""
        exact = weights.float()
        position = self.shape.attention_layers.index(layer)
        first, stop = row_start - self.span_of_rows.start, row_start + exact.shape[2]
        self._note_finite(position, row_start, exact)
        for names, reduce in self._reductions.items():
            for name, values in zip(names, reduce(self, row_start, exact), strict=True):
                self._rows[name][position, :, :, first : first + exact.shape[2]] = values
        if "received" in self._keys:
            is_kept = self.is_kept_row.to(exact.device)[:, None, None, row_start:stop]
            sums = (is_kept @ exact)[:, :, 0]
            self._keys["received"][position, ..., : sums.shape[-1]] += sums.to(self.device)
        self._n_rows_seen[layer] += exact.shape[2]
        for name, packed in self._packed.items():
            if exact.device.type == "cpu":
                self._pack(packed[position].numpy(), row_start, _stored(exact, name).numpy())
            else:
                self._gather(name, layer, row_start, exact)

    def values(self, layer: int, value: Float[Tensor, "trace kv_head key channel"]) -> None:
        """Keep the Euclidean norm of each value vector."""
        if "value_norm" not in self._keys or layer not in self._n_rows_seen:
            return
        kept = self._keys["value_norm"]
        norms = value.float().norm(dim=-1)
        assert norms.shape[1] == kept.shape[2], f"{norms.shape[1]} heads of values"
        kept[self.shape.attention_layers.index(layer)] = norms
        self._layers_with_values.add(layer)

    def collect(self) -> None:
        """Bring what is kept to main memory; every layer must have shown every wanted row.

        What was not shown would be stored as noise.
        """
        expected = self.span_of_rows.stop - self.span_of_rows.start if self._keeps_rows else 0
        for layer, n_rows in self._n_rows_seen.items():
            assert n_rows == expected, f"layer {layer} showed {n_rows} of {expected} rows"
        if "value_norm" in self._keys:
            missing = self._n_rows_seen.keys() - self._layers_with_values
            assert not missing, f"layers {missing} showed no values"
        self._rows = {name: in_main_memory(values) for name, values in self._rows.items()}
        self._keys = {name: in_main_memory(values) for name, values in self._keys.items()}
        self._is_finite = self._is_finite.cpu()

    def failure(self, index: int) -> str | None:
        """Why a trace failed, if its attention is not finite; names the first such layer."""
        bad = (~self._is_finite[:, index]).nonzero()
        if not len(bad):
            return None
        return f"the attention of layer {self.shape.attention_layers[int(bad[0])]} holds NaN or infinity"

    def trace_arrays(self, index: int) -> dict[str, np.ndarray]:
        """Every recorded array of one trace, without padding; after :meth:`collect`."""
        sequence = self.sequences[index]
        keys = slice(sequence.padding, sequence.padding + sequence.length)
        first = sequence.padding - self.span_of_rows.start
        rows = slice(first + sequence.row_start, first + sequence.length)
        cut = {name: kept[:, index, :, rows] for name, kept in self._rows.items()}
        cut |= {name: kept[:, index, :, keys] for name, kept in self._keys.items()}
        arrays = {name: np.ascontiguousarray(values.numpy()) for name, values in cut.items()}
        for name in _KEY_POSITIONS & arrays.keys() if sequence.padding else ():
            arrays[name] = np.where(arrays[name] >= 0, arrays[name] - sequence.padding, -1)
        pairs = slice(self._ends[index], self._ends[index + 1])
        whole = {name: packed[..., pairs].numpy() for name, packed in self._packed.items()}
        return arrays | {name: values.view(ARRAYS[name].dtype) for name, values in whole.items()}

    @property
    def _keeps_rows(self) -> bool:
        return bool(self._rows or self._packed or "received" in self._keys)

    def _sizes(self, name: str) -> list[int]:
        """Lengths of the fixed axes of an array."""
        axes = (axis for axis in ARRAYS[name].axes if axis not in RAGGED_AXES)
        return [self.shape.axis_size(axis) for axis in axes]

    def _empty(self, name: str, n_places: int) -> Shaped[Tensor, "layer trace ..."]:
        """``[layer, trace, head, row or key, …]`` of zeros in the stored number format."""
        n_layers, n_heads, *trailing = self._sizes(name)
        shape = (n_layers, len(self.sequences), n_heads, n_places, *trailing)
        return torch.zeros(shape, dtype=getattr(torch, ARRAYS[name].dtype), device=self.device)

    def _empty_packed(self, name: str) -> Shaped[Tensor, "layer head pair"]:
        """Room in main memory for the weights of all traces, one after another."""
        # no 16 bits without a sign are copied by index on a GPU
        dtype = torch.float16 if name == "attention" else torch.int16
        return main_memory([*self._sizes(name), self._ends[-1]], dtype, self.device)

    def _pack(
        self,
        packed: Shaped[np.ndarray, "head pair"],
        row_start: int,
        stored: Shaped[np.ndarray, "trace head row key"],
    ) -> None:
        """Put the causal rows of every trace one after another; rows of padding are dropped."""
        for index, sequence in enumerate(self.sequences):
            chunk = row_start - sequence.padding
            start = max(chunk, sequence.row_start)
            begin = self._ends[index] + n_pairs(start) - n_pairs(sequence.row_start)
            own = stored[index, :, :, sequence.padding :]
            # one copy a row takes a seventh of the time of an index for each entry
            for row in range(start, min(chunk + stored.shape[2], sequence.length)):
                packed[:, begin : begin + row + 1] = own[:, row - chunk, : row + 1]
                begin += row + 1

    def _gather(self, name: str, layer: int, row_start: int, weights: Chunk) -> None:
        """As :meth:`_pack`, on a GPU; a layer that is complete starts on its way to main memory."""
        packed = self._packed[name][self.shape.attention_layers.index(layer)]
        if (name, layer) not in self._under_way:
            self._under_way[name, layer] = torch.empty_like(packed, device=weights.device)
        (trace, row, key), place = self._pairs(row_start, weights)
        own = weights.transpose(0, 1)[:, trace, row, key]
        self._under_way[name, layer][:, place] = _stored(own, name)
        if self._n_rows_seen[layer] == self.span_of_rows.stop - self.span_of_rows.start:
            packed.copy_(self._under_way.pop((name, layer)), non_blocking=True)

    def _pairs(self, row_start: int, weights: Chunk) -> tuple[tuple[Tensor, ...], Int[Tensor, "pair"]]:
        """Trace, row and key of each kept weight of a chunk, and its place among all of the batch."""
        at = (row_start, *weights.shape[2:], weights.device)
        if at not in self._places:
            rows = torch.arange(row_start, row_start + weights.shape[2], device=weights.device)
            keys = torch.arange(weights.shape[3], device=weights.device)
            is_kept = self.is_kept_row.to(weights.device)[:, row_start : row_start + len(rows), None] > 0
            padding = torch.tensor([each.padding for each in self.sequences], device=weights.device)[:, None]
            is_seen = (keys <= rows[:, None]) & (keys >= padding[:, :, None])
            trace, row, key = found = (is_kept & is_seen).nonzero(as_tuple=True)
            starts = [self._ends[n] - n_pairs(each.row_start) for n, each in enumerate(self.sequences)]
            own = rows - padding
            begins = torch.tensor(starts, device=weights.device)[:, None] + own * (own + 1) // 2 - padding
            self._places[at] = found, begins[trace, row] + key
        return self._places[at]

    def _note_finite(self, position: int, row_start: int, weights: Chunk) -> None:
        """Note traces whose rows hold NaN or infinity, without a wait for the device."""
        sums = weights.sum(-1).abs()
        is_padding = ~self.is_token.to(weights.device)[:, None, row_start : row_start + weights.shape[2]]
        is_finite = ((sums < torch.inf) | is_padding).flatten(1).all(dim=1)
        self._is_finite[position] &= is_finite.to(self.device)


def _stored(weights: Float[Tensor, "..."], name: str) -> Shaped[Tensor, "..."]:
    """Whole weights in the 16 bits of an array."""
    if name == "attention":
        return weights.to(torch.float16)
    # NaN is told as a failure of its trace
    steps = weights.nan_to_num(0.0).mul_(FIXED_STEPS).round_().clamp_(0, FIXED_STEPS)
    return steps.to(torch.int32).to(torch.int16)


def main_memory(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Room for what comes from a device; a GPU copies to page-locked memory while it computes."""
    n_bytes = prod(shape) * dtype.itemsize
    has_pinned = device.type == "cuda" and torch.backends.cuda.is_built()  # type: ignore[no-untyped-call]
    return torch.empty(tuple(shape), dtype=dtype, pin_memory=has_pinned and n_bytes <= PINNED_BYTES)


def in_main_memory(values: Tensor) -> Tensor:
    """The same in main memory; of a GPU's it is there when the device has been waited for."""
    if values.device.type == "cpu":
        return values
    return main_memory(values.shape, values.dtype, values.device).copy_(values, non_blocking=True)
