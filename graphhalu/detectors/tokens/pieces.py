"""The graph of a trace as a node head reads it: answer rows, and what they attend to.

Only the rows from the last prompt token on are needed, so stores of answer rows will do.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from graphhalu.axes import N_SPANS, SPAN_NAMES
from graphhalu.detectors.graph_memory import MEMORY
from graphhalu.detectors.graph_pieces import GraphPiece
from graphhalu.errors import GraphhaluError, TraceNotFoundError
from graphhalu.traces.trace import Trace


class NodeRecipe(NamedTuple):
    """How the graph of a trace is made.

    Attributes:
        layers: Model layers, whose heads are the channels of an edge.
        tau: Attention that a head must pass; below, its weight counts as 0. An edge exists where
            any head of any layer passes.
        n_hops: Rounds of message passing.
        has_edges: Whether there are any edges.
    """

    layers: tuple[int, ...]
    tau: float
    n_hops: int
    has_edges: bool = True


_OF_HEAD: Final = ("own", "sink", "entropy")


def node_pieces(
    traces: Sequence[Trace], indices: Sequence[int], recipe: NodeRecipe
) -> Iterator[GraphPiece | GraphhaluError]:
    """The graphs of some traces in order, or the error that stands in their place."""
    for index in indices:
        trace = traces[index]
        piece = MEMORY.get(trace, recipe)
        try:
            yield piece if piece is not None else _made(trace, recipe)
        except GraphhaluError as error:
            yield error


def _made(trace: Trace, recipe: NodeRecipe) -> GraphPiece:
    piece = node_piece(trace, recipe)
    MEMORY.put(trace, recipe, piece)
    return piece


def node_piece(trace: Trace, recipe: NodeRecipe) -> GraphPiece:
    """The graph of one trace.

    Nodes are the rows from the last prompt token on, which are read out, and the other tokens of
    the prompt that one of them attends to. These have no row of their own: of them only the
    named span is known.

    Raises:
        TraceNotFoundError: If the trace lacks a layer, its attention, or the answer rows.
    """
    weights = _weights(trace, recipe)
    first = trace.prompt_length - 1
    query, key = np.nonzero(weights.any(axis=0))
    is_prompt = key < first
    attended = np.unique(key[is_prompt])
    n_rows = weights.shape[1]
    source = np.where(is_prompt, n_rows + np.searchsorted(attended, key), key - first)
    x = np.zeros((1, n_rows + len(attended), _n_features(trace, recipe)), dtype=np.float32)
    x[0, :n_rows, N_SPANS:] = _row_features(trace, recipe)
    token = np.concatenate([np.arange(first, trace.length), attended])
    x[0, np.arange(len(token)), trace.span_code[token]] = 1
    edge_attr = weights[:, query, key].T
    strength = np.bincount(query, weights=edge_attr.mean(1), minlength=len(token))
    return GraphPiece(
        x=x,
        strength=strength[None].astype(np.float32),
        degree=np.bincount(query, minlength=len(token))[None].astype(np.int64),
        source=source.astype(np.int64),
        edge_attr=np.ascontiguousarray(edge_attr, dtype=np.float16),
        edges_a_layer=(len(query),),
        node_counts=(n_rows, len(attended), *[0] * (recipe.n_hops - 1)),
        node_feature_names=_names(trace, recipe),
        token=token.astype(np.int64),
    )


def _weights(trace: Trace, recipe: NodeRecipe) -> Float32[np.ndarray, "channel row key"]:
    """Attention of the readout rows that passes the threshold, own weight aside."""
    first = trace.prompt_length - 1 - trace.record.row_start
    if first < 0:
        message = (
            f"trace {trace.trace_id!r} does not keep the row that produces its answer\n"
            f"  Extract it again:  graphhalu extract --rows answer"
        )
        raise TraceNotFoundError(message)
    found = [trace.censored_attention(layer)[:, first:] for layer in recipe.layers]
    weights: Float[np.ndarray, "channel row key"] = np.concatenate(found)
    rows = np.arange(weights.shape[1])
    weights[:, rows, rows + trace.prompt_length - 1] = 0
    tau = recipe.tau if recipe.has_edges else np.inf
    return np.where(weights > tau, weights, 0).astype(np.float32)


def _row_features(trace: Trace, recipe: NodeRecipe) -> Float32[np.ndarray, "row feature"]:
    """Own weight, share of the first four tokens and entropy of every head of a row."""
    first = trace.prompt_length - 1 - trace.record.row_start
    columns = []
    for layer in recipe.layers:
        own = trace.layer_stream("self_attention", layer)
        sink = np.clip(trace.layer_stream("sink_keys", layer).sum(-1), 0, 1)
        entropy = trace.layer_stream("row_entropy", layer)
        columns += [own[:, first:], sink[:, first:], entropy[:, first:]]
    return np.concatenate(columns).T.astype(np.float32)


def _n_features(trace: Trace, recipe: NodeRecipe) -> int:
    return N_SPANS + len(_OF_HEAD) * len(recipe.layers) * trace.shape.n_heads


def _names(trace: Trace, recipe: NodeRecipe) -> tuple[str, ...]:
    of_head = tuple(
        f"layer{layer}.{name}_head{head}"
        for layer in recipe.layers
        for name in _OF_HEAD
        for head in range(trace.shape.n_heads)
    )
    return (*(f"span.{name}" for name in SPAN_NAMES), *of_head)


def token_count(piece: GraphPiece) -> int:
    """Answer tokens of a graph: one less than rows that are read out."""
    return piece.node_counts[0] - 1
