"""One layer of a trace as a graph of its tokens."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from graphhalu.errors import NonFiniteError, UsageError
from graphhalu.graphs.edges import EdgeRule, TopK, is_causal_pair
from graphhalu.graphs.nodes import node_features
from graphhalu.registry import unknown_name
from graphhalu.traces.trace import Trace

DEFAULT_EDGES: Final = TopK(8)
DEFAULT_NODES: Final = (
    "position",
    "span",
    "sink",
    "instability",
    "self_attention",
    "entropy",
    "likelihood",
)
IMPORTANCES: Final = ("mean", "max")


@dataclass(frozen=True)
class GraphRecipe:
    """How a trace becomes a graph.

    Attributes:
        edges: Rule that chooses edges by their importance.
        nodes: Blocks of node features, names in ``NODE_BLOCKS``.
        prompt_edges: Whether rows of the prompt have edges. Without, edges begin at the last
            prompt token, whose row produces the first answer token.
        importance: Over heads, ``"mean"`` or ``"max"`` of a pair's attention.
    """

    edges: EdgeRule = DEFAULT_EDGES
    nodes: tuple[str, ...] = DEFAULT_NODES
    prompt_edges: bool = True
    importance: str = "mean"

    def __post_init__(self) -> None:
        """Refuse an importance that is not known.

        Raises:
            UnknownNameError: Lists the known ones.
        """
        if self.importance not in IMPORTANCES:
            raise unknown_name("importance of a pair", self.importance, IMPORTANCES)

    def first_row(self, trace: Trace) -> int:
        """First row that may have edges; row 0 has no other token to attend to."""
        return 1 if self.prompt_edges else max(1, trace.prompt_length - 1)


DEFAULT_RECIPE: Final = GraphRecipe()


@dataclass(frozen=True)
class TokenGraph:
    """Tokens of one layer, with an edge from each attended key to the attending query.

    Attributes:
        x: Node features.
        edge_index: Row 0 = attended key, row 1 = attending query; sorted by query, then key.
        edge_attr: Attention of every head on the edge; not renormalised.
        is_answer: Which tokens belong to the answer.
        layer: Model layer.
        kept_mass: Share of a row's attention to other tokens (mean over heads) that lies on
            its edges; 1 for a row that attends to no other token. In a store of edges, what the
            store dropped counts as not kept.
        node_feature_names: ``block.column`` for every column of ``x``.
        edge_feature_names: One name for every column of ``edge_attr``.
    """

    x: Float32[np.ndarray, "node feature"]
    edge_index: Int64[np.ndarray, "2 edge"]
    edge_attr: Float32[np.ndarray, "edge head"]
    is_answer: Bool[np.ndarray, "node"]
    layer: int
    trace_id: str
    question_id: str
    group_id: str
    kept_mass: Float32[np.ndarray, "row"]
    node_feature_names: tuple[str, ...]
    edge_feature_names: tuple[str, ...]


def build_graph(trace: Trace, layer: int, recipe: GraphRecipe = DEFAULT_RECIPE) -> TokenGraph:
    """The token graph of one layer.

    The diagonal is no edge: a token's attention to itself is a node feature. Pairs without
    attention are no edges either. From a store of edges (``--keep edges``) the rule chooses
    among those that are kept of any head.

    Args:
        trace: Keeps attention or its strongest edges, and every row of them.
        layer: Model layer.
        recipe: How edges and node features are chosen.

    Raises:
        UsageError: If the trace does not keep all rows.
        TraceNotFoundError: If it does not keep this layer, or what a block of nodes reads.
        NonFiniteError: If attention or a node feature is NaN or infinite.

    Source:
        Frasca et al., CHARM (tokens as nodes, attended to attending, per-head weights on the
        edges). There, an edge exists where any head passes a threshold and smaller weights are
        set to 0; here the rule reads one importance a pair and the weights stay as they are.
    """
    _check_rows(trace)
    attention = _finite_attention(trace, layer)
    mean = attention.mean(0)
    is_edge = _edges(attention, mean, trace, recipe)
    query, key = np.nonzero(is_edge)
    nodes = node_features(trace, layer, recipe.nodes)
    return TokenGraph(
        x=nodes.values,
        edge_index=np.stack([key, query]).astype(np.int64),
        edge_attr=np.ascontiguousarray(attention[:, query, key].T),
        is_answer=trace.is_answer,
        layer=layer,
        trace_id=trace.trace_id,
        question_id=trace.record.question_id,
        group_id=trace.record.group_id,
        kept_mass=_kept_mass(mean, is_edge, _dropped(trace, layer)),
        node_feature_names=nodes.names,
        edge_feature_names=tuple(f"attention_head{head}" for head in range(len(attention))),
    )


def _edges(
    attention: Float[np.ndarray, "head row key"],
    mean: Float[np.ndarray, "row key"],
    trace: Trace,
    recipe: GraphRecipe,
) -> Bool[np.ndarray, "row key"]:
    importance = mean if recipe.importance == "mean" else attention.max(0)
    may_have_edges = np.arange(len(mean)) >= recipe.first_row(trace)
    return recipe.edges.choose(importance, 0) & may_have_edges[:, None]


def _kept_mass(
    mean: Float[np.ndarray, "row key"],
    is_edge: Bool[np.ndarray, "row key"],
    dropped: Float[np.ndarray, "row"],
) -> Float32[np.ndarray, "row"]:
    others = np.where(is_causal_pair(*mean.shape), mean, 0.0).astype(np.float64)
    total = others.sum(1) + dropped
    kept = np.where(is_edge, others, 0.0).sum(1)
    share = np.where(total > 0, kept / np.where(total > 0, total, 1.0), 1.0)
    return np.minimum(share, 1.0).astype(np.float32)


def _dropped(trace: Trace, layer: int) -> Float[np.ndarray, "row"]:
    if trace.has_attention:
        return np.zeros(trace.length)
    return trace.edges(layer).dropped.mean(0).astype(np.float64)


def _finite_attention(trace: Trace, layer: int) -> Float32[np.ndarray, "head row key"]:
    attention = trace.censored_attention(layer)
    if not np.isfinite(attention).all():
        message = (
            f"trace {trace.trace_id!r}, layer {layer}: attention has NaN or infinity\n"
            f"  Extract the trace again, or leave it out"
        )
        raise NonFiniteError(message)
    return attention


def _check_rows(trace: Trace) -> None:
    if trace.record.row_start:
        message = (
            f"a token graph needs every attention row, trace {trace.trace_id!r} keeps the rows "
            f"from {trace.record.row_start} on\n  Extract it again with all rows"
        )
        raise UsageError(message)
