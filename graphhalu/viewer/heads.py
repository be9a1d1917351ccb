"""The attention of a layer packed for a browser: each row's strongest weights, as they are stored.

A head's bytes are, little-endian, one after another, for ``R`` stored rows, ``K`` edges a row and
``G`` pieces of text::

    rest    float32 [R]        attention to all tokens but the first four
    sinks   uint16  [R, 4]     weight on each of the first four tokens
    own     uint16  [R]        weight on the row's own token
    key     uint16  [R, K]     the strongest other tokens, 65,535 = none
    weight  uint16  [R, K]     weight on each of them
    spans   uint16  [3, 6, 6]  mean weight of the rows of a span on a span
    pieces  uint16  [3, G, G]  the same of pieces

Weights are float16 bits or steps of 1/65,535, as the store has them, so that a browser reads the
stored number to the last bit. Means are in steps of 1/65,534, and 65,535 says that there is none.
They come three times: of all keys, and with the first one or four hidden and every row divided
by what is left.
"""

import base64
from collections.abc import Iterable, Sequence
from typing import Final, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, UInt16

from graphhalu.core.axes import N_SPANS
from graphhalu.core.errors import UsageError
from graphhalu.traces.schema import FIXED_STEPS, N_SINK_KEYS, TraceRecord, TraceShape
from graphhalu.traces.trace import Trace

Grouped = Float32[np.ndarray, "head row group"]

NO_KEY: Final = 65_535
MEAN_STEPS: Final = 65_534
NO_MEAN: Final = 65_535
PAGE_BYTES: Final = 40 * 2**20
"""What the weights of a page should take, with the edges of a row that are kept by default."""
FEWEST_EDGES: Final = 4
MOST_EDGES: Final = 16
HIDDEN_SINKS: Final = (0, 1, N_SINK_KEYS)
"""How many first tokens can be hidden."""

WeightFormat = Literal["float16", "fixed16"]


class LayerRows(NamedTuple):
    """The rows of all heads of a layer, reduced to what a browser gets.

    Attributes:
        rest: Attention to all tokens but the first four; what is unknown is in it.
        sinks: Weight on each of the first four tokens.
        own: Weight on the row's own token.
        key: The strongest tokens that are neither, strongest first; -1 = none.
        weight: Weight on each of them.
        spans: Mean weight of the rows of a span on a span, for each of :data:`HIDDEN_SINKS`;
            NaN where a span has no row.
        pieces: The same of pieces; none where single weights are not kept.
    """

    rest: Float32[np.ndarray, "head row"]
    sinks: Float32[np.ndarray, "head row 4"]
    own: Float32[np.ndarray, "head row"]
    key: Int[np.ndarray, "head row edge"]
    weight: Float32[np.ndarray, "head row edge"]
    spans: Float32[np.ndarray, "3 head span span"]
    pieces: Float32[np.ndarray, "3 head piece piece"]


def weight_format(arrays: Sequence[str]) -> WeightFormat:
    """The number format of the weights that a store with these arrays keeps."""
    is_fixed = "attention_fixed" in arrays and "attention" not in arrays
    return "fixed16" if is_fixed else "float16"


def most_edges(trace: Trace) -> int:
    """Edges of a row, first tokens and own token aside, that the trace can give."""
    if trace.has_attention:
        return trace.length
    return trace.shape.n_edges if "edge_key" in trace.arrays else 0


def packed_bytes(shape: TraceShape, n_rows: int, n_edges: int) -> int:
    """About the bytes of all heads of a trace in a page, where four characters carry three."""
    n_heads = len(shape.attention_layers) * shape.n_heads
    return n_heads * n_rows * (14 + 4 * n_edges) * 4 // 3


def fitting_edges(shape: TraceShape, records: Iterable[TraceRecord]) -> int:
    """Edges of a row with which these traces make a page of a good size; 4 to 16."""
    n_rows = sum(record.length - record.row_start for record in records)
    choices = range(FEWEST_EDGES, MOST_EDGES + 1)
    fitting = [n_edges for n_edges in choices if packed_bytes(shape, n_rows, n_edges) <= PAGE_BYTES]
    return max(fitting, default=FEWEST_EDGES)


def layer_text(trace: Trace, layer: int, n_edges: int, starts: Sequence[int]) -> str:
    """A layer as one line of base64 a head.

    Args:
        trace: The trace.
        layer: Model layer.
        n_edges: Edges of a row, first tokens and own token aside.
        starts: First token of each piece of the text.

    Raises:
        UsageError: If the trace is too long for 16-bit positions.
        TraceNotFoundError: If the store keeps no attention of this layer.
    """
    if trace.length >= NO_KEY:
        raise UsageError(f"trace {trace.trace_id!r} has {trace.length:,} tokens; shown are up to 65,534")
    rows = layer_rows(trace, layer, n_edges, starts)
    kind = weight_format(tuple(trace.arrays))
    packed = (_packed(rows, head, kind) for head in range(trace.shape.n_heads))
    return "\n".join(base64.b64encode(each).decode() for each in packed)


def layer_rows(trace: Trace, layer: int, n_edges: int, starts: Sequence[int]) -> LayerRows:
    """The strongest weights of every row of a layer, and means over spans and pieces.

    Args:
        trace: The trace.
        layer: Model layer.
        n_edges: At most so many edges a row; a store of edges may have fewer.
        starts: First token of each piece of the text; pieces lie within spans.
    """
    n_kept = min(n_edges, most_edges(trace))
    if trace.has_attention:
        return _of_matrices(trace, layer, n_kept, np.array(starts, dtype=np.int64))
    return _of_streams(trace, layer, n_kept)


def _of_matrices(trace: Trace, layer: int, n_edges: int, starts: Int[np.ndarray, "piece"]) -> LayerRows:
    attention = trace.attention(layer)
    n_heads, n_rows, length = attention.shape
    tokens = np.arange(n_rows) + trace.record.row_start
    sinks = np.zeros((n_heads, n_rows, N_SINK_KEYS), dtype=np.float32)
    sinks[..., :length] = attention[..., :N_SINK_KEYS]
    own = attention[:, np.arange(n_rows), tokens]
    code = trace.span_code
    span_of_piece = np.eye(N_SPANS, dtype=np.float32)[code[starts]]
    piece_of_row = np.searchsorted(starts, tokens, side="right") - 1
    spans, pieces = [], []
    for n_hidden in HIDDEN_SINKS:
        attention[..., :n_hidden] = 0
        sums = np.add.reduceat(attention, starts, axis=2)
        shares = _shares(sums, is_whole=n_hidden == 0)
        pieces.append(_row_means(shares, piece_of_row, len(starts)))
        spans.append(_row_means(shares @ span_of_piece, code[tokens], N_SPANS))
    rest = attention.sum(-1, dtype=np.float64).astype(np.float32)
    attention[:, np.arange(n_rows), tokens] = 0
    key, weight = _strongest(attention, n_edges)
    return LayerRows(rest, sinks, own, key, weight, np.stack(spans), np.stack(pieces))


def _of_streams(trace: Trace, layer: int, n_edges: int) -> LayerRows:
    sinks = trace.layer_stream("sink_keys", layer)
    own = trace.layer_stream("self_attention", layer)
    mass = trace.layer_stream("span_mass", layer)
    tokens = np.arange(own.shape[1]) + trace.record.row_start
    if n_edges:
        edges = trace.edges(layer)
        is_sink = (edges.key >= 0) & (edges.key < N_SINK_KEYS)
        known = np.where(is_sink, edges.weight, 0).sum(-1)
        others = np.where(is_sink, 0, edges.weight)
        first = np.where(tokens < N_SINK_KEYS, own, 0)
        unknown = edges.dropped - np.maximum(sinks.sum(-1) - first - known, 0)
        rest = others.sum(-1) + own - first + np.maximum(unknown, 0)
        order = np.argsort(-others, axis=-1, kind="stable")[..., :n_edges]
        weight = np.take_along_axis(others, order, axis=-1)
        key = np.where(weight > 0, np.take_along_axis(edges.key, order, axis=-1), -1)
    else:
        rest = np.maximum(mass.sum(-1) - sinks.sum(-1), 0)
        key = np.empty((*own.shape, 0), dtype=np.int32)
        weight = np.empty((*own.shape, 0), dtype=np.float32)
    spans = _stream_spans(mass, sinks, trace.span_code, tokens)
    n_heads = len(own)
    pieces = np.empty((len(HIDDEN_SINKS), n_heads, 0, 0), dtype=np.float32)
    return LayerRows(rest.astype(np.float32), sinks, own, key, weight, spans, pieces)


def _stream_spans(
    mass: Float32[np.ndarray, "head row span"],
    sinks: Float32[np.ndarray, "head row 4"],
    code: np.ndarray,
    tokens: Int[np.ndarray, "row"],
) -> Float32[np.ndarray, "3 head span span"]:
    first = np.eye(N_SPANS, dtype=np.float32)[code[:N_SINK_KEYS]]
    means = []
    for n_hidden in HIDDEN_SINKS:
        n_first = min(n_hidden, len(first))
        left = np.maximum(mass - sinks[..., :n_first] @ first[:n_first], 0)
        # half precision leaves crumbs where a row sees nothing but hidden tokens
        left[:, tokens < n_hidden] = 0
        shares = _shares(left, is_whole=n_hidden == 0)
        means.append(_row_means(shares, code[tokens], N_SPANS))
    return np.stack(means)


def _shares(sums: Grouped, *, is_whole: bool) -> Grouped:
    """Rows divided by their sum; rows with nothing left are NaN."""
    if is_whole:
        return sums
    total = sums.sum(-1, keepdims=True)
    shares: Grouped = np.where(total > 0, sums / np.where(total > 0, total, 1), np.float32(np.nan))
    return shares


def _row_means(
    values: Grouped, group_of_row: np.ndarray, n_groups: int
) -> Float32[np.ndarray, "head rowgroup group"]:
    """Mean over the rows of each group; rows that are NaN do not count."""
    is_there = ~np.isnan(values[..., :1])
    member = np.eye(n_groups, dtype=np.float32)[group_of_row].T
    count = member @ is_there.astype(np.float32)
    total = member @ np.where(is_there, values, 0)
    means: Float32[np.ndarray, "head rowgroup group"] = np.where(
        count > 0, total / np.maximum(count, 1), np.float32(np.nan)
    )
    return means


def _strongest(
    attention: Float32[np.ndarray, "head row key"], n_edges: int
) -> tuple[Int[np.ndarray, "head row edge"], Float32[np.ndarray, "head row edge"]]:
    """Keys of the largest weights of each row, largest first; -1 where a row has no more."""
    found = torch.from_numpy(attention).topk(min(n_edges, attention.shape[-1]), dim=-1)
    weight, key = found.values.numpy(), found.indices.numpy()
    # the first of equal weights comes first
    order = np.lexsort((key, -weight), axis=-1)
    weight, key = (np.take_along_axis(each, order, axis=-1) for each in (weight, key))
    return np.where(weight > 0, key, -1), weight


def _packed(rows: LayerRows, head: int, kind: WeightFormat) -> bytes:
    key = np.where(rows.key[head] < 0, NO_KEY, rows.key[head])
    parts = (
        rows.rest[head].astype("<f4"),
        _bits(rows.sinks[head], kind),
        _bits(rows.own[head], kind),
        key.astype("<u2"),
        _bits(rows.weight[head], kind),
        _mean_steps(rows.spans[:, head]),
        _mean_steps(rows.pieces[:, head]),
    )
    return b"".join(np.ascontiguousarray(part).tobytes() for part in parts)


def _bits(weights: Float[np.ndarray, "*axes"], kind: WeightFormat) -> UInt16[np.ndarray, "*axes"]:
    """Weights in the number format that they were stored in, bit for bit."""
    if kind == "fixed16":
        return np.rint(weights * np.float64(FIXED_STEPS)).astype("<u2")
    return weights.astype("<f2").view("<u2")


def _mean_steps(means: Float32[np.ndarray, "*axes"]) -> UInt16[np.ndarray, "*axes"]:
    steps = np.rint(np.clip(np.nan_to_num(means), 0, 1) * MEAN_STEPS)
    return np.where(np.isnan(means), NO_MEAN, steps).astype("<u2")
