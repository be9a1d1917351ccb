"""Layers of traces as graphs of their tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, Int64, UInt8

from graphhalu.core.errors import GraphhaluError, UsageError
from graphhalu.features.block import TraceBlock
from graphhalu.graphs.block import layer_places, layer_stream, to_float32, trace_block, trace_runs
from graphhalu.graphs.nodes import NodeSource, block_features
from graphhalu.graphs.pairs import Pairs, candidate_pairs, importance, is_of_edges
from graphhalu.graphs.recipe import (
    DEFAULT_EDGES,
    DEFAULT_NODES,
    DEFAULT_RECIPE,
    IMPORTANCES,
    GraphRecipe,
    HeadRoles,
)
from graphhalu.traces.schema import N_SINK_KEYS
from graphhalu.traces.trace import Trace

__all__ = [
    "DEFAULT_EDGES",
    "DEFAULT_NODES",
    "DEFAULT_RECIPE",
    "IMPORTANCES",
    "GraphRecipe",
    "HeadRoles",
    "TokenGraph",
    "build_graph",
    "build_graphs",
    "iter_graphs",
]


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
    edge_attr: Float32[np.ndarray, "edge channel"]
    is_answer: Bool[np.ndarray, "node"]
    span: UInt8[np.ndarray, "node"]
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
        message = f"a graph of one layer has the view 'layers', got {recipe.view!r}: build_graphs"
        raise UsageError(message)
    return build_graphs(trace, (layer,), recipe)[0]


def build_graphs(
    trace: Trace, layers: Sequence[int], recipe: GraphRecipe = DEFAULT_RECIPE
) -> list[TokenGraph]:
    """The graphs of some layers of a trace: one a layer, or a single multiplex graph.

    The diagonal is no edge: a token's attention to itself is a node feature. Pairs without
    attention are no edges either. From a store of edges (``--keep edges``) the rule chooses
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


class _Edges(NamedTuple):
    """Edges of some graphs of a block, one graph after another."""

    pairs: Int64[np.ndarray, "2 edge"]
    attr: Float32[np.ndarray, "edge channel"]
    kept_mass: Float32[np.ndarray, "graph_layer row"]
    bounds: Int[np.ndarray, "graph_layer trace_end"]


def _build(traces: Sequence[Trace], layers: tuple[int, ...], recipe: GraphRecipe) -> list[list[TokenGraph]]:
    """Graphs of each trace."""
    if not layers:
        message = "a graph needs at least one layer"
        raise UsageError(message)
    block = trace_block(traces, need_all_rows=recipe.prompt_edges)
    layer_places(block.shape, layers, "attention")  # refuses layers that are not kept
    _check_roles(block, recipe)
    x, names = _node_features(block, layers, recipe)
    channel_names = _channel_names(block, layers, recipe)
    is_answer, span = block.is_answer_token, block.stream("span_code")
    built: list[list[TokenGraph]] = [[] for _ in block.records]
    for place, edges, edge_place in _edges_of_layers(block, layers, recipe):
        of_layer = layers if recipe.view == "multiplex" else layers[place : place + 1]
        bounds = edges.bounds[edge_place].tolist()
        for number, record in enumerate(block.records):
            nodes = slice(*block.tokens.offsets[number : number + 2].tolist())
            rows = slice(*block.rows.offsets[number : number + 2].tolist())
            kept_mass = np.full(record.length, np.nan, dtype=np.float32)
            kept_mass[block.row_token[rows]] = edges.kept_mass[edge_place, rows]
            of_edge = slice(bounds[number], bounds[number + 1])
            # copies: a graph that is kept must not keep its whole block
            graph = TokenGraph(
                x=x[place, nodes].copy(),
                edge_index=edges.pairs[:, of_edge].copy(),
                edge_attr=edges.attr[of_edge].copy(),
                is_answer=is_answer[nodes].copy(),
                span=span[nodes].astype(np.uint8),
                layer=None if recipe.view == "multiplex" else of_layer[0],
                layers=of_layer,
                trace_id=record.trace_id,
                question_id=record.question_id,
                group_id=record.group_id,
                kept_mass=kept_mass,
                node_feature_names=names,
                edge_feature_names=channel_names,
            )
            built[number].append(graph)
    return built


def _edges_of_layers(
    block: TraceBlock, layers: tuple[int, ...], recipe: GraphRecipe
) -> Iterator[tuple[int, _Edges, int]]:
    """Number of the graph of a trace, edges of several of them, and its place there."""
    if recipe.view == "multiplex":
        yield 0, _multiplex_edges(block, layers, recipe), 0
    elif is_of_edges(block):  # each layer has pairs of its own
        for place, layer in enumerate(layers):
            yield place, _layer_edges(block, (layer,), recipe), 0
    else:
        edges = _layer_edges(block, layers, recipe)
        yield from ((place, edges, place) for place in range(len(layers)))


def _layer_edges(block: TraceBlock, layers: tuple[int, ...], recipe: GraphRecipe) -> _Edges:
    pairs = _pairs(block, layers, recipe)
    is_edge = _chosen(block, pairs, layers, recipe)
    # several times quicker than nonzero over two axes
    layer, pair = np.divmod(np.flatnonzero(is_edge), is_edge.shape[1] or 1)
    rest = _beside_sinks(block, layers, recipe)
    attention = _censored(_gathered(pairs, layer, pair, rest), recipe)
    n_rows = len(pairs.row_starts) - 1
    place = layer * n_rows + pairs.row[pair]
    mass = attention.mean(1) if recipe.censors else pairs.mean[layer, pair]
    kept = np.bincount(place, weights=mass, minlength=len(layers) * n_rows)
    ends = np.arange(len(layers))[:, None] * n_rows + block.rows.offsets
    return _Edges(
        pairs=_edge_index(block, pairs, pair),
        attr=_channels(attention, layer, layers, recipe),
        kept_mass=_share(kept.reshape(len(layers), n_rows), pairs.others()),
        bounds=np.searchsorted(place, ends),
    )


def _multiplex_edges(block: TraceBlock, layers: tuple[int, ...], recipe: GraphRecipe) -> _Edges:
    pairs = _pairs(block, layers, recipe)
    pair = np.flatnonzero(_chosen(block, pairs, layers, recipe).any(0))
    rest = _beside_sinks(block, layers, recipe)
    of_layer = [
        _censored(_gathered(pairs, np.full_like(pair, place), pair, rest), recipe)
        for place in range(len(layers))
    ]
    n_rows = len(pairs.row_starts) - 1
    mass = np.sum([attention.mean(1, dtype=np.float64) for attention in of_layer], axis=0)
    kept = np.bincount(pairs.row[pair], weights=mass, minlength=n_rows)
    channels = [
        _channels(attention, np.full_like(pair, place), layers, recipe)
        for place, attention in enumerate(of_layer)
    ]
    return _Edges(
        pairs=_edge_index(block, pairs, pair),
        attr=np.concatenate(channels, axis=1),
        kept_mass=_share(kept[None], pairs.others().sum(0, keepdims=True)),
        bounds=np.searchsorted(pairs.row[pair], block.rows.offsets)[None],
    )


def _chosen(
    block: TraceBlock, pairs: Pairs, layers: tuple[int, ...], recipe: GraphRecipe
) -> Bool[np.ndarray, "layer pair"]:
    is_edge = recipe.edges.choose_pairs(importance(pairs, recipe, layers), pairs.row_starts)
    if not recipe.prompt_edges:
        first_row = np.array([recipe.first_row(record) for record in block.records])
        may_have_edges = block.row_token >= first_row[block.rows.trace]
        is_edge = is_edge & may_have_edges[pairs.row]
    return is_edge


def _pairs(block: TraceBlock, layers: tuple[int, ...], recipe: GraphRecipe) -> Pairs:
    pairs = candidate_pairs(block, layers)
    if recipe.sinks != "keep":
        pairs.mean[:, pairs.key < N_SINK_KEYS] = 0  # what has no mass is no edge
    return pairs


def _beside_sinks(
    block: TraceBlock, layers: tuple[int, ...], recipe: GraphRecipe
) -> Float32[np.ndarray, "layer head row"] | None:
    """Share of each row that does not go to the first tokens, where that is asked for."""
    if recipe.sinks != "renormalise":
        return None
    share = 1 - layer_stream(block, "sink_keys", layers)[..., :N_SINK_KEYS].sum(-1)
    return np.maximum(share, np.float32(LEAST_REST))


def _gathered(
    pairs: Pairs,
    layer: Int[np.ndarray, "edge"],
    pair: Int[np.ndarray, "edge"],
    rest: Float32[np.ndarray, "layer head row"] | None,
) -> Float32[np.ndarray, "edge head"]:
    """Attention of every head on the edges; one flat look-up is the quickest."""
    _, n_heads, n_pairs = pairs.weights.shape
    places = (layer * (n_heads * n_pairs) + pair)[:, None] + np.arange(n_heads) * n_pairs
    attention = to_float32(np.take(pairs.weights.reshape(-1), places))
    if rest is None:
        return attention
    # half precision can bring a weight just above what is left
    return np.minimum(attention / rest[layer, :, pairs.row[pair]], np.float32(1))


def _edge_index(
    block: TraceBlock, pairs: Pairs, pair: Int[np.ndarray, "edge"]
) -> Int64[np.ndarray, "2 edge"]:
    return np.stack([pairs.key[pair], block.row_token[pairs.row[pair]]]).astype(np.int64)


def _censored(
    attention: Float32[np.ndarray, "edge head"], recipe: GraphRecipe
) -> Float32[np.ndarray, "edge head"]:
    if not recipe.censors:
        return attention
    tau: float = recipe.edges.tau  # type: ignore[attr-defined] # only a threshold censors
    return np.where(attention > tau, attention, np.float32(0))


def _channels(
    attention: Float32[np.ndarray, "edge head"],
    layer: Int[np.ndarray, "edge"],
    layers: tuple[int, ...],
    recipe: GraphRecipe,
) -> Float32[np.ndarray, "edge channel"]:
    if recipe.channels == "heads":
        return attention
    if recipe.channels == "weighted":
        weights = recipe.weights(layers).astype(np.float32)[layer]
        weighted: Float32[np.ndarray, "edge channel"] = np.einsum("eh,ehr->er", attention, weights)
        return weighted
    reduced: Float32[np.ndarray, "edge channel"] = (
        attention.mean(1, keepdims=True) if recipe.channels == "mean" else attention.max(1, keepdims=True)
    )
    return reduced


def _share(kept: np.ndarray, total: np.ndarray) -> Float32[np.ndarray, "graph_layer row"]:
    share = np.where(total > 0, kept / np.where(total > 0, total, 1.0), 1.0)
    return np.minimum(share, 1.0).astype(np.float32)


def _node_features(
    block: TraceBlock, layers: tuple[int, ...], recipe: GraphRecipe
) -> tuple[Float32[np.ndarray, "graph_layer token feature"], tuple[str, ...]]:
    found = block_features(NodeSource(block, layers, recipe.roles), recipe.nodes)
    if recipe.view != "multiplex":
        return found.values, found.names
    own = np.flatnonzero(found.is_of_layer)
    columns = [found.values[0][:, ~found.is_of_layer], *found.values[..., own]]
    names = [name for name, own in zip(found.names, found.is_of_layer, strict=True) if not own]
    names += [f"layer{layer}.{found.names[column]}" for layer in layers for column in own]
    return np.concatenate(columns, axis=1)[None], tuple(names)


def _channel_names(block: TraceBlock, layers: tuple[int, ...], recipe: GraphRecipe) -> tuple[str, ...]:
    if recipe.channels == "heads":
        names = [f"attention_head{head}" for head in range(block.shape.n_heads)]
    elif recipe.channels == "weighted":
        names = [f"attention_{role}" for role in _roles(recipe)]
    else:
        names = [f"attention_{recipe.channels}"]
    if recipe.view != "multiplex":
        return tuple(names)
    return tuple(f"layer{layer}.{name}" for layer in layers for name in names)


def _roles(recipe: GraphRecipe) -> tuple[str, ...]:
    return recipe.roles.names if recipe.roles else ()


def _check_roles(block: TraceBlock, recipe: GraphRecipe) -> None:
    shape = (block.shape.n_layers, block.shape.n_heads)
    if recipe.roles is not None and recipe.roles.values.shape[:2] != shape:
        came = recipe.roles.values.shape[:2]
        message = (
            f"expected weights of {shape[0]} layers and {shape[1]} heads, got {came[0]} and "
            f"{came[1]}: these roles are of another model"
        )
        raise UsageError(message)
