"""Topology of token graphs: what their shape says, without features or weights of a network.

Paths and components through rustworkx, the rest in arrays; every measure equals that of networkx
where it has one.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import networkx as nx
import numpy as np
import rustworkx as rx
from jaxtyping import Float, Int

from graphhalu.graphs.build import TokenGraph

DAMPING: Final = 0.85
_TOLERANCE: Final = 1e-10
_STEPS: Final = 1000


def to_networkx(graph: TokenGraph) -> nx.DiGraph:
    """The same nodes and edges, from attended key to attending query.

    An edge has ``weight``, the mean of its channels: by default over the heads, of its attention.
    A node has ``is_answer``.
    The graph has ``layer`` (``None`` for a multiplex graph), ``layers``, ``trace_id`` and
    ``question_id``.
    """
    about = {"layer": graph.layer, "layers": graph.layers}
    result = nx.DiGraph(**about, trace_id=graph.trace_id, question_id=graph.question_id)
    result.add_nodes_from(
        (node, {"is_answer": is_answer}) for node, is_answer in enumerate(graph.is_answer.tolist())
    )
    keys, queries = graph.edge_index.tolist()
    weights = graph.edge_attr.mean(1).tolist()
    result.add_weighted_edges_from(zip(keys, queries, weights, strict=True))
    return result


def to_rustworkx(graph: TokenGraph) -> rx.PyDiGraph:
    """The same nodes and edges; an edge carries the mean of its channels."""
    result = rx.PyDiGraph(multigraph=False)
    result.add_nodes_from(range(len(graph.x)))
    keys, queries = graph.edge_index.tolist()
    weights = graph.edge_attr.mean(1).tolist()
    result.add_edges_from(list(zip(keys, queries, weights, strict=True)))
    return result


def pagerank(graph: TokenGraph) -> Float[np.ndarray, "node"]:
    """PageRank along reversed edges: a walker goes from a token to what it attends to.

    Edges are weighted by the mean of their channels; the values sum to 1. Reversed, a token that
    much attention goes to has a high rank.
    """
    return _of_nodes(
        rx.pagerank(_reversed(graph), alpha=DAMPING, weight_fn=float, tol=_TOLERANCE, max_iter=_STEPS),
        len(graph.x),
    )


def betweenness(graph: TokenGraph) -> Float[np.ndarray, "node"]:
    """Share of shortest paths (in hops) between other tokens that lead through each, in [0, 1]."""
    return _of_nodes(rx.betweenness_centrality(to_rustworkx(graph)), len(graph.x))


def clustering(graph: TokenGraph) -> Float[np.ndarray, "node"]:
    """Share of the pairs of a token's neighbours that are neighbours, edges without direction.

    0 for a token with fewer than two neighbours, as in networkx.
    """
    is_edge = np.zeros((len(graph.x), len(graph.x)), dtype=np.float32)
    key, query = graph.edge_index
    is_edge[key, query] = is_edge[query, key] = 1
    degree = is_edge.sum(1, dtype=np.float64)
    closed = np.einsum("ij,ij->i", is_edge @ is_edge, is_edge, dtype=np.float64)
    possible = degree * (degree - 1)
    return np.divide(closed, possible, out=np.zeros_like(closed), where=possible > 0)


class Degree(NamedTuple):
    """Edges at each token.

    Attributes:
        n_keys: Tokens that it attends to (in-degree).
        n_queries: Tokens that attend to it (out-degree).
        received: Sum of the mean of the channels over the edges that leave it.
    """

    n_keys: Int[np.ndarray, "node"]
    n_queries: Int[np.ndarray, "node"]
    received: Float[np.ndarray, "node"]


def degree(graph: TokenGraph) -> Degree:
    """Edges at each token, and the attention on those that leave it."""
    n_nodes = len(graph.x)
    key, query = graph.edge_index
    weights = graph.edge_attr.mean(1, dtype=np.float64)
    return Degree(
        np.bincount(query, minlength=n_nodes),
        np.bincount(key, minlength=n_nodes),
        np.bincount(key, weights=weights, minlength=n_nodes),
    )


def n_components(graph: TokenGraph, *, without_first: bool = False) -> int:
    """Weakly connected components; the first token, which nearly all attend to, can be left out."""
    drawn = to_rustworkx(graph)
    if without_first:
        drawn.remove_node(0)
    return int(rx.number_weakly_connected_components(drawn))


def topology(graph: TokenGraph) -> dict[str, float]:
    """One number for each measure of :data:`MEASURES`; NaN where a graph has none."""
    source = _Source(graph, pagerank(graph), betweenness(graph), clustering(graph), degree(graph))
    return {name: float(measure(source)) for name, measure in MEASURES.items()}


class _Source(NamedTuple):
    graph: TokenGraph
    rank: Float[np.ndarray, "node"]
    betweenness: Float[np.ndarray, "node"]
    clustering: Float[np.ndarray, "node"]
    degree: Degree

    @property
    def n_nodes(self) -> int:
        return len(self.rank)


def _pagerank_entropy(source: _Source) -> float:
    rank = source.rank[source.rank > 0]
    return float(-(rank * np.log(rank)).sum() / np.log(source.n_nodes))


def _degree_gini(source: _Source) -> float:
    received = np.sort(source.degree.received)
    total = received.sum()
    if total <= 0:
        return float("nan")
    n_nodes = len(received)
    ranks = 2 * np.arange(1, n_nodes + 1) - n_nodes - 1
    return float((ranks * received).sum() / (n_nodes * total))


def _answer_share(source: _Source) -> float:
    """Attention of answer tokens on their edges that goes to answer tokens."""
    key, query = source.graph.edge_index
    weights = source.graph.edge_attr.mean(1, dtype=np.float64)
    is_answer = source.graph.is_answer
    total = weights[is_answer[query]].sum()
    within = weights[is_answer[query] & is_answer[key]].sum()
    return float(within / total) if total > 0 else float("nan")


def _edge_length(source: _Source) -> float:
    key, query = source.graph.edge_index
    return float((query - key).mean() / source.n_nodes) if len(key) else float("nan")


MEASURES: Final[dict[str, Callable[[_Source], float]]] = {
    "pagerank_first": lambda source: float(source.rank[0]),
    "pagerank_answer": lambda source: float(source.rank[source.graph.is_answer].sum()),
    "pagerank_entropy": _pagerank_entropy,
    "betweenness_max": lambda source: float(source.betweenness.max()),
    "betweenness_answer": lambda source: float(source.betweenness[source.graph.is_answer].mean()),
    "clustering": lambda source: float(source.clustering.mean()),
    "clustering_answer": lambda source: float(source.clustering[source.graph.is_answer].mean()),
    "degree": lambda source: float(source.degree.n_keys.mean()),
    "degree_gini": _degree_gini,
    "components": lambda source: n_components(source.graph, without_first=True) / source.n_nodes,
    "answer_to_answer": _answer_share,
    "edge_length": _edge_length,
    "kept_mass": lambda source: float(source.graph.kept_mass.mean()),
}
"""Measure to the function that computes it, each with the meaning in :data:`MEANINGS`."""

MEANINGS: Final[dict[str, str]] = {
    "pagerank_first": "PageRank of the first token",
    "pagerank_answer": "PageRank of the answer tokens together",
    "pagerank_entropy": "entropy of PageRank over its largest value",
    "betweenness_max": "largest betweenness of a token",
    "betweenness_answer": "mean betweenness of the answer tokens",
    "clustering": "mean clustering coefficient",
    "clustering_answer": "mean clustering coefficient of the answer tokens",
    "degree": "mean number of edges a token",
    "degree_gini": "inequality of received attention (Gini)",
    "components": "weakly connected components without the first token, a token",
    "answer_to_answer": "share of the answer's attention that stays in the answer",
    "edge_length": "mean distance of key and query over the length",
    "kept_mass": "mean share of attention that lies on edges",
}
"""Measure to what it says, in words."""


def _reversed(graph: TokenGraph) -> rx.PyDiGraph:
    drawn = to_rustworkx(graph)
    drawn.reverse()
    return drawn


def _of_nodes(values: rx.CentralityMapping, n_nodes: int) -> Float[np.ndarray, "node"]:
    return np.array([values[node] for node in range(n_nodes)], dtype=np.float64)
