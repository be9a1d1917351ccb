"""The graphs of one trace, cut to what can reach the readout and ordered by how far away it is."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int64

from graphhalu.graphs.build import TokenGraph

_FAR: Final = np.iinfo(np.int64).max


class GraphPiece(NamedTuple):
    """Graphs of one trace, ready to be put beside those of others.

    Nodes are ordered by distance to the readout (in hops, over all layers), then by position.
    Edges are ordered by layer and query.

    Attributes:
        x: Node features.
        strength: Attention that each row pays along all its edges, mean over the channels; also
            along those that are cut off.
        degree: Edges that end in each node.
        source: Attended key of each edge, as a node of the piece.
        edge_attr: Attention of each edge.
        edges_a_layer: How many edges each layer has.
        node_counts: Nodes at each distance, from 0.
        node_feature_names: Columns of ``x``.
        token: Position of each node in the trace.
    """

    x: Float32[np.ndarray, "layer node feature"]
    strength: Float32[np.ndarray, "layer node"]
    degree: Int64[np.ndarray, "layer node"]
    source: Int64[np.ndarray, "edge"]
    edge_attr: Float[np.ndarray, "edge channel"]
    edges_a_layer: tuple[int, ...]
    node_counts: tuple[int, ...]
    node_feature_names: tuple[str, ...]
    token: Int64[np.ndarray, "node"]

    @property
    def n_bytes(self) -> int:
        """Bytes of the arrays."""
        return sum(value.nbytes for value in self if isinstance(value, np.ndarray))


def graph_piece(
    graphs: Sequence[TokenGraph], n_hops: int, *, half_edges: bool = False
) -> GraphPiece:
    """Cut and order the graphs of one trace.

    Args:
        graphs: One a layer, or one multiplex graph.
        n_hops: Rounds of message passing: a node farther from the readout can change nothing.
        half_edges: Whether attention is kept in half precision, as most stores keep it.
    """
    distance = readout_distance(graphs, n_hops)
    order = np.argsort(distance, kind="stable")[: int((distance <= n_hops).sum())]
    place = np.full(len(distance), -1)
    place[order] = np.arange(len(order))
    cut = [_cut_edges(graph, distance, place, n_hops) for graph in graphs]
    edge_attr = np.concatenate(
        [graph.edge_attr[kept] for graph, (kept, _) in zip(graphs, cut, strict=True)]
    )
    return GraphPiece(
        x=np.stack([graph.x[order] for graph in graphs]),
        strength=np.stack([_strength(graph)[order] for graph in graphs]),
        degree=np.stack([degree for _, degree in cut]),
        source=np.concatenate(
            [place[graph.edge_index[0, kept]] for graph, (kept, _) in zip(graphs, cut, strict=True)]
        ),
        edge_attr=edge_attr.astype(np.float16 if half_edges else np.float32),
        edges_a_layer=tuple(len(kept) for kept, _ in cut),
        node_counts=tuple(np.bincount(distance[order], minlength=n_hops + 1).tolist()),
        node_feature_names=graphs[0].node_feature_names,
        token=order.astype(np.int64),
    )


def readout_mask(is_answer: Bool[np.ndarray, "node"]) -> Bool[np.ndarray, "node"]:
    """Answer tokens, and the last prompt token: its row predicts the first answer token."""
    return is_answer | np.append(is_answer[1:], False)


def readout_distance(graphs: Sequence[TokenGraph], n_hops: int) -> Int[np.ndarray, "node"]:
    """Fewest edges, of any layer, from each token to one that is read out.

    Tokens that need more than ``n_hops`` are said to be infinitely far away.
    """
    key, query = np.concatenate([graph.edge_index for graph in graphs], axis=1)
    distance = np.where(readout_mask(graphs[0].is_answer), 0, _FAR)
    for hop in range(n_hops):
        reached = key[distance[query] == hop]
        distance[reached[distance[reached] == _FAR]] = hop + 1
    return distance


def _cut_edges(
    graph: TokenGraph, distance: np.ndarray, place: np.ndarray, n_hops: int
) -> tuple[Int[np.ndarray, "kept"], Int64[np.ndarray, "node"]]:
    """Edges that a message can travel along, by query, and how many end in each node."""
    query = graph.edge_index[1]
    kept = np.flatnonzero(distance[query] < n_hops)
    kept = kept[np.argsort(place[query[kept]], kind="stable")]
    n_nodes = int((place >= 0).sum())
    return kept, np.bincount(place[query[kept]], minlength=n_nodes).astype(np.int64)


def _strength(graph: TokenGraph) -> Float32[np.ndarray, "node"]:
    paid = np.bincount(graph.edge_index[1], weights=graph.edge_attr.mean(1), minlength=len(graph.x))
    return paid.astype(np.float32)
