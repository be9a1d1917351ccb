"""Topology of token graphs: what their shape says, without features or weights of a network.

Paths and components through rustworkx, the rest in arrays; every measure equals that of networkx
where it has one.
"""

from typing import Final

import networkx as nx
import numpy as np
import rustworkx as rx
from jaxtyping import Float, Shaped

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
    result = nx.DiGraph(
        layer=graph.layer, layers=graph.layers, trace_id=graph.trace_id, question_id=graph.question_id
    )
    result.add_nodes_from(range(len(graph.x)))
    nx.set_node_attributes(result, dict(enumerate(graph.is_answer.tolist())), "is_answer")
    result.add_weighted_edges_from(_weighted_edges(graph))
    return result


def to_rustworkx(graph: TokenGraph) -> rx.PyDiGraph:
    """The same nodes and edges; an edge carries the mean of its channels."""
    result = rx.PyDiGraph(multigraph=False)
    result.add_nodes_from(range(len(graph.x)))
    result.add_edges_from(_weighted_edges(graph))
    return result


def _weighted_edges(graph: TokenGraph) -> list[tuple[int, int, float]]:
    return list(zip(*graph.edge_index.tolist(), graph.edge_attr.mean(1).tolist(), strict=True))


def pagerank(graph: TokenGraph) -> Float[np.ndarray, "node"]:
    """PageRank along reversed edges: a walker goes from a token to what it attends to.

    Edges are weighted by the mean of their channels; the values sum to 1. Reversed, a token that
    much attention goes to has a high rank.
    """
    drawn = to_rustworkx(graph)
    drawn.reverse()
    found = rx.pagerank(drawn, alpha=DAMPING, weight_fn=float, tol=_TOLERANCE, max_iter=_STEPS)
    return _of_nodes(found, len(graph.x))


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


def topology(graph: TokenGraph) -> dict[str, float]:
    """One number for each of :data:`MEASURES`; NaN where a graph has none."""
    n_nodes, is_answer = len(graph.x), graph.is_answer
    key, query = graph.edge_index
    weights = graph.edge_attr.mean(1, dtype=np.float64)
    rank, between, local = pagerank(graph), betweenness(graph), clustering(graph)
    ranked = rank[rank > 0]
    drawn = to_rustworkx(graph)
    drawn.remove_node(0)  # nearly all tokens attend to the first
    of_answer = weights[is_answer[query]].sum()
    within = weights[is_answer[query] & is_answer[key]].sum()
    values = {
        "pagerank_first": rank[0],
        "pagerank_answer": rank[is_answer].sum(),
        "pagerank_entropy": -(ranked * np.log(ranked)).sum() / np.log(n_nodes),
        "betweenness_max": between.max(),
        "betweenness_answer": between[is_answer].mean(),
        "clustering": local.mean(),
        "clustering_answer": local[is_answer].mean(),
        "degree": np.bincount(query, minlength=n_nodes).mean(),
        "degree_gini": _gini(np.bincount(key, weights=weights, minlength=n_nodes)),
        "components": rx.number_weakly_connected_components(drawn) / n_nodes,
        "answer_to_answer": within / of_answer if of_answer > 0 else np.nan,
        "edge_length": (query - key).mean() / n_nodes if len(key) else np.nan,
        "kept_mass": graph.kept_mass.mean(),
    }
    return {name: float(value) for name, value in values.items()}


def _gini(received: Shaped[np.ndarray, "node"]) -> float:
    """Inequality of what the nodes receive; NaN where none receives anything."""
    ordered, n_nodes = np.sort(received), len(received)
    ranks = 2 * np.arange(1, n_nodes + 1) - n_nodes - 1
    total = ordered.sum()
    return float((ranks * ordered).sum() / (n_nodes * total)) if total > 0 else float("nan")


MEASURES: Final[dict[str, str]] = {
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


def _of_nodes(values: rx.CentralityMapping, n_nodes: int) -> Float[np.ndarray, "node"]:
    return np.array([values[node] for node in range(n_nodes)], dtype=np.float64)
