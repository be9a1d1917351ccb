"""Token graphs: layers of traces as nodes, edges and their features.

Of complete attention the packed triangles are read as they are; of a store of edges only the
pairs that some head kept. Neither is unpacked to squares.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Int64, Shaped, UInt8

from graphhalu.core.errors import GraphhaluError, NonFiniteError, UsageError
from graphhalu.core.numerics import ragged_offsets
from graphhalu.features.block import Ragged, block_of
from graphhalu.graphs.edges import DEFAULT_RECIPE, GraphRecipe
from graphhalu.graphs.nodes import LayerBlock, node_features, to_float32
from graphhalu.traces.schema import N_SINK_KEYS, n_pairs
from graphhalu.traces.trace import Trace

EdgeHeads = Float32[np.ndarray, "edge head"]
EdgeChannels = Float32[np.ndarray, "edge channel"]

OfEdge = Int[np.ndarray, "edge"]

BLOCK_ELEMENTS: Final = 2**23
"""Attention weights of one block: 16 MB in half precision, and about as much while in work."""
LEAST_REST: Final = 1e-3
"""A head that leaves less to other tokens than the sink is divided by this: what half precision
keeps of so little says nothing."""


@dataclass(frozen=True)
class TokenGraph:
    """Tokens of a trace, with an edge from each attended key to the attending query.

    Attributes:
        x: Node features.
        edge_index: Row 0 = attended key, row 1 = attending query; sorted by query, then key.
        edge_attr: What the recipe's channels say, with the heads of one layer after those of
            another; attention is as the model has it, unless ``sinks="renormalise"``.
        is_answer: Which tokens belong to the answer.
        span: Named span of each token, as the integer of :class:`graphhalu.core.axes.Span`.
        token_id: Vocabulary index of each token; -1 in a trace in memory that does not keep it.
        layer: Model layer; ``None`` in a multiplex graph.
        layers: Model layers on the edges.
        kept_mass: Share of a row's attention to other tokens (mean over heads and layers; without
            sinks where those are left out) that lies on its edges; 1 for a row that attends to no
            other token. In a store of edges, what the store dropped counts as not kept, and so
            does what a threshold censors. NaN where the store keeps no row of the token.
        node_feature_names: ``block.column`` for every column of ``x``; in a multiplex graph
            ``layerL.block.column`` where layers differ.
        edge_feature_names: One name for every column of ``edge_attr``.
    """

    x: Float32[np.ndarray, "node feature"]
    edge_index: Int64[np.ndarray, "2 edge"]
    edge_attr: EdgeChannels
    is_answer: Bool[np.ndarray, "node"]
    span: UInt8[np.ndarray, "node"]
    token_id: Int[np.ndarray, "node"]
    layer: int | None
    layers: tuple[int, ...]
    trace_id: str
    question_id: str
    group_id: str
    kept_mass: Float32[np.ndarray, "node"]
    node_feature_names: tuple[str, ...]
    edge_feature_names: tuple[str, ...]


def build_graph(trace: Trace, layer: int, recipe: GraphRecipe = DEFAULT_RECIPE) -> TokenGraph:
    """The token graph of one layer; see :func:`build_graphs`.

    Raises:
        UsageError: Also if the recipe asks for one graph a trace.
    """
    if recipe.view == "multiplex":
        raise UsageError(f"a graph of one layer has the view 'layers', got {recipe.view!r}: build_graphs")
    return build_graphs(trace, (layer,), recipe)[0]


def build_graphs(
    trace: Trace, layers: Sequence[int], recipe: GraphRecipe = DEFAULT_RECIPE
) -> list[TokenGraph]:
    """The graphs of some layers of a trace: one a layer, or a single multiplex graph.

    The diagonal is not an edge: a token's attention to itself is a node feature. Pairs without
    attention are not edges either. From a store of edges (``--keep edges``) the rule chooses
    among those that are kept of any head.

    Args:
        trace: Keeps attention or its strongest edges; every row of them, or only those that
            produce the answer where the recipe has no edges into prompt rows.
        layers: Model layers.
        recipe: How edges and node features are chosen.

    Raises:
        UsageError: If no layer is given, the trace does not keep all rows, or weights of heads
            do not fit the model.
        TraceNotFoundError: If it does not keep a layer, or what a block of nodes reads.
        NonFiniteError: If attention or a node feature is NaN or infinite.

    Source:
        Frasca et al., CHARM (tokens as nodes, attended to attending, per-head weights on the
        edges). There, an edge exists where any head passes a threshold and smaller weights are
        set to 0: ``Threshold(tau, censor=True)`` with ``importance="max"``. By default the rule
        reads the mean over heads and the weights stay as they are.
    """
    return _build([trace], tuple(layers), recipe)[0]


def iter_graphs(
    traces: Sequence[Trace],
    layers: Sequence[int],
    recipe: GraphRecipe = DEFAULT_RECIPE,
    indices: Sequence[int] | None = None,
) -> Iterator[tuple[int, list[TokenGraph]]]:
    """The graphs of many traces, each with the trace's index; memory does not grow.

    Traces that lie side by side in a store are read and built together.

    Args:
        traces: A store or a list.
        layers: Model layers.
        recipe: How edges and node features are chosen.
        indices: Which traces, in the order wanted; by default all.

    Raises:
        GraphhaluError: As :func:`build_graphs`, when the iteration comes to that trace.
    """
    wanted = range(len(traces)) if indices is None else [int(index) for index in indices]
    for members, run in trace_runs(traces, wanted, len(layers)):
        try:
            built = _build(run, tuple(layers), recipe)
        except GraphhaluError:
            # those before the faulty one are good, and the error should come in its place
            for member, trace in zip(members, run, strict=True):
                yield member, build_graphs(trace, layers, recipe)
            continue
        yield from zip(members, built, strict=True)


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
        is_alike = not run or (trace.shape == run[-1].shape and trace.arrays.keys() == run[-1].arrays.keys())
        if run and not (is_alike and size + added <= BLOCK_ELEMENTS):
            yield members, run
            run, members, size = [], [], 0
        run.append(trace)
        members.append(index)
        size += added
    if run:
        yield members, run


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
        raise NonFiniteError(
            f"trace {record.trace_id!r}, layer {source.layers[place]}: attention has NaN or "
            f"infinity\n  Extract the trace again, or leave it out"
        )
    return pairs


def _all_pairs(source: LayerBlock) -> Pairs:
    weights = source.attention()
    n_keys = source.block.row_token + 1
    rows = Ragged(ragged_offsets(n_keys))
    mean = _mean(weights)
    diagonal = rows.offsets[1:] - 1
    own = mean[:, diagonal]
    # NaN must be seen by who checks, although a token is not a neighbour of itself
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
    return (total / weights.shape[1]).numpy()


def _build(traces: Sequence[Trace], layers: tuple[int, ...], recipe: GraphRecipe) -> list[list[TokenGraph]]:
    """Graphs of each trace."""
    if not layers:
        raise UsageError("a graph needs at least one layer")
    _check_traces(traces, recipe)
    block = block_of(traces)
    source = LayerBlock(block, layers, recipe.roles)
    _ = source.positions  # refuses layers that are not kept
    is_multiplex = recipe.view == "multiplex"
    features = node_features(source, recipe.nodes, is_multiplex=is_multiplex)
    channel_names = _channel_names(source, recipe)
    is_answer, span = block.is_answer_token, block.stream("span_code")
    ids = block.stream("token_ids") if block.has("token_ids") else np.full(len(span), -1)
    built: list[list[TokenGraph]] = [[] for _ in block.records]
    for place, (pairs, attr, kept, bounds) in enumerate(_edges(source, recipe)):
        for number, record in enumerate(block.records):
            nodes = slice(*block.tokens.offsets[number : number + 2].tolist())
            rows = slice(*block.rows.offsets[number : number + 2].tolist())
            kept_mass = np.full(record.length, np.nan, dtype=np.float32)
            kept_mass[block.row_token[rows]] = kept[rows]
            of_edge = slice(*bounds[number : number + 2].tolist())
            # copies: a graph that is kept must not keep its whole block
            built[number].append(
                TokenGraph(
                    x=features.values[place, nodes].copy(),
                    edge_index=pairs[:, of_edge].copy(),
                    edge_attr=attr[of_edge].copy(),
                    is_answer=is_answer[nodes].copy(),
                    span=span[nodes].astype(np.uint8),
                    token_id=ids[nodes].astype(np.int32),
                    layer=None if is_multiplex else layers[place],
                    layers=layers if is_multiplex else (layers[place],),
                    trace_id=record.trace_id,
                    question_id=record.question_id,
                    group_id=record.group_id,
                    kept_mass=kept_mass,
                    node_feature_names=features.names,
                    edge_feature_names=channel_names,
                )
            )
    return built


def _check_traces(traces: Sequence[Trace], recipe: GraphRecipe) -> None:
    """Refuse traces of two models, without the rows that are needed, or that weights do not fit."""
    shape = traces[0].shape
    for trace in traces:
        if trace.shape != shape:
            raise UsageError("graphs are built of traces of one model and one kind of extraction")
        first_row = 0 if recipe.prompt_edges else trace.prompt_length - 1
        if trace.record.row_start > first_row:
            raise UsageError(
                f"a token graph needs the attention rows from {first_row} on, trace "
                f"{trace.trace_id!r} keeps the rows from {trace.record.row_start} on\n"
                f"  Extract it again with all rows, or build graphs with prompt_edges=False"
            )
    expected = (shape.n_layers, shape.n_heads)
    if recipe.roles is not None and (came := recipe.roles.values.shape[:2]) != expected:
        raise UsageError(
            f"expected weights of {expected[0]} layers and {expected[1]} heads, got {came[0]} and "
            f"{came[1]}: these roles are of another model"
        )


def _edges(source: LayerBlock, recipe: GraphRecipe) -> list[tuple[np.ndarray, ...]]:
    """Edges of the graphs of one trace after another, for each graph that a trace has.

    Returns:
        Of each graph the pairs, channels, kept mass of each row, and where the edges of each trace begin.
    """
    if recipe.view != "multiplex" and source.has_only_edges and len(source.layers) > 1:
        # each layer has pairs of its own
        return [
            edges for layer in source.layers for edges in _edges(replace(source, layers=(layer,)), recipe)
        ]
    block, n_layers = source.block, len(source.layers)
    pairs = candidate_pairs(source)
    if recipe.sinks != "keep":
        pairs.mean[:, pairs.key < N_SINK_KEYS] = 0  # what has no mass is not an edge
    is_edge = _is_edge(source, pairs, recipe)
    others = Ragged(pairs.row_starts).sum(pairs.mean).T + pairs.dropped
    n_rows = others.shape[1]
    if recipe.view == "multiplex":
        edge = np.flatnonzero(is_edge.any(0))
        layer, pair = np.repeat(np.arange(n_layers), len(edge)), np.tile(edge, n_layers)
        attention = _attention(source, pairs, layer, pair, recipe)
        attr = np.hstack(np.split(_channels(attention, layer, source, recipe), n_layers))
        mass = attention.mean(1, dtype=np.float64).reshape(n_layers, -1).sum(0)
        layer, pair, others = np.zeros_like(edge), edge, others.sum(0, keepdims=True)
    else:
        # several times quicker than nonzero over two axes
        layer, pair = np.divmod(np.flatnonzero(is_edge), is_edge.shape[1] or 1)
        attention = _attention(source, pairs, layer, pair, recipe)
        attr = _channels(attention, layer, source, recipe)
        mass = attention.mean(1) if recipe.censors else pairs.mean[layer, pair]
    place = layer * n_rows + pairs.row[pair]
    index = np.stack([pairs.key[pair], block.row_token[pairs.row[pair]]]).astype(np.int64)
    kept = np.bincount(place, weights=mass, minlength=others.size).reshape(others.shape)
    share = np.where(others > 0, kept / np.where(others > 0, others, 1.0), 1.0)
    share = np.minimum(share, 1.0).astype(np.float32)
    ends = np.arange(len(others))[:, None] * n_rows + block.rows.offsets
    bounds = np.searchsorted(place, ends)
    return [(index, attr, *of_graph) for of_graph in zip(share, bounds, strict=True)]


def _is_edge(source: LayerBlock, pairs: Pairs, recipe: GraphRecipe) -> Bool[np.ndarray, "layer pair"]:
    is_edge = recipe.edges.choose_pairs(_importance(source, pairs, recipe), pairs.row_starts)
    if not recipe.prompt_edges:
        block = source.block
        first_row = np.array([recipe.first_row(record) for record in block.records])
        may_have_edges = block.row_token >= first_row[block.rows.trace]
        is_edge = is_edge & may_have_edges[pairs.row]
    return is_edge


def _importance(source: LayerBlock, pairs: Pairs, recipe: GraphRecipe) -> Float[np.ndarray, "layer pair"]:
    """One non-negative value a pair, 0 for a token with itself."""
    if recipe.importance == "mean":
        return pairs.mean
    if recipe.importance == "max":
        values = torch.from_numpy(pairs.weights).amax(1).float().numpy()
    else:
        weights = recipe.weights(source.layers)[..., 0].astype(np.float32)
        values = np.einsum("lhp,lh->lp", to_float32(pairs.weights), weights)
    values[pairs.mean == 0] = 0
    return values


def _attention(
    source: LayerBlock, pairs: Pairs, layer: OfEdge, pair: OfEdge, recipe: GraphRecipe
) -> EdgeHeads:
    """Attention of every head on the edges, as the recipe wants it."""
    _, n_heads, n_pairs = pairs.weights.shape
    # one flat look-up is the quickest
    places = (layer * (n_heads * n_pairs) + pair)[:, None] + np.arange(n_heads) * n_pairs
    attention = to_float32(np.take(pairs.weights.reshape(-1), places))
    if recipe.sinks == "renormalise":
        rest = np.maximum(1 - source.stream("sink_keys")[..., :N_SINK_KEYS].sum(-1), np.float32(LEAST_REST))
        # half precision can bring a weight just above what is left
        attention = np.minimum(attention / rest[layer, :, pairs.row[pair]], np.float32(1))
    if recipe.censors:
        tau: float = recipe.edges.tau  # type: ignore[attr-defined] # only a threshold censors
        attention = np.where(attention > tau, attention, np.float32(0))
    return attention


def _channels(attention: EdgeHeads, layer: OfEdge, source: LayerBlock, recipe: GraphRecipe) -> EdgeChannels:
    if recipe.channels == "heads":
        return attention
    if recipe.channels == "weighted":
        weights = recipe.weights(source.layers).astype(np.float32)[layer]
        return np.einsum("eh,ehr->er", attention, weights)
    return getattr(attention, recipe.channels)(1, keepdims=True)


def _channel_names(source: LayerBlock, recipe: GraphRecipe) -> tuple[str, ...]:
    kinds: Sequence[str] = (recipe.channels,)
    if recipe.channels == "heads":
        kinds = [f"head{head}" for head in range(source.block.shape.n_heads)]
    elif recipe.channels == "weighted" and recipe.roles is not None:
        kinds = recipe.roles.names
    layers = [f"layer{layer}." for layer in source.layers] if recipe.view == "multiplex" else [""]
    return tuple(f"{layer}attention_{kind}" for layer in layers for kind in kinds)
