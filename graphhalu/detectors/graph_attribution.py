"""What the edges and heads of a graph add to the logit of a network, by taking them away."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from graphhalu.detectors.attribution import Attribution, EdgeEffect
from graphhalu.detectors.graph_pack import GraphPack
from graphhalu.detectors.graph_pieces import GraphPiece
from graphhalu.detectors.graph_schema import GraphSchema
from graphhalu.detectors.networks.base import GraphNetwork

MOST_EDGES: Final = 512
"""Edges that are taken away one by one: the strongest ones."""
_AT_ONCE: Final = 32


def attribute_graph(
    network: GraphNetwork, piece: GraphPiece, schema: GraphSchema, shape: tuple[int, int]
) -> Attribution:
    """Effect of each edge, and of each head of the layers that the network reads.

    An edge is taken out of the graph. A head is set to its training mean on every edge, which
    tells nothing of this trace; a network that does not read edges by head has no effect of any.

    Args:
        network: Fitted.
        piece: The graphs of one trace.
        schema: What they were made of.
        shape: Layers and heads of the language model.
    """
    whole = float(_logits(network, [piece])[0])
    chosen = _strongest(piece)
    layer, query = _places(piece)
    without = _logits(
        network,
        [
            _without_edge(piece, edge, int(layer[edge]), int(query[edge]))
            for edge in chosen.tolist()
        ],
    )
    edges = [
        EdgeEffect(
            schema.layers[int(layer[edge])] if schema.n_graphs > 1 or len(schema.layers) == 1
            else None,
            int(piece.token[piece.source[edge]]), int(piece.token[query[edge]]),
            whole - float(logit),
        )
        for edge, logit in zip(chosen, without, strict=True)
    ]  # fmt: skip
    heads = _heads(network, piece, schema, shape, whole)
    return Attribution(
        heads=heads,
        features={"edges": sum(edge.effect for edge in edges)},
        is_exact=False,
        rest=whole,
        edges=tuple(sorted(edges, key=lambda edge: -abs(edge.effect))),
    )


def _heads(
    network: GraphNetwork,
    piece: GraphPiece,
    schema: GraphSchema,
    shape: tuple[int, int],
    whole: float,
) -> Float[np.ndarray, "layer head"]:
    heads = np.zeros(shape)
    places = [
        (graph, channel) for graph in range(schema.n_graphs) for channel in range(schema.n_channels)
    ]
    of_graph = _places(piece)[0]
    logits = _logits(
        network,
        [
            _without_channel(network, piece, of_graph == graph, graph, channel)
            for graph, channel in places
        ],
    )
    for (graph, channel), logit in zip(places, logits, strict=True):
        # one graph a layer has its heads on the edges, a multiplex graph those of all layers
        number = channel if schema.n_graphs > 1 else channel % shape[1]
        place = graph if schema.n_graphs > 1 else channel // shape[1]
        heads[schema.layers[place], number] = whole - float(logit)
    return heads


def _logits(network: GraphNetwork, pieces: Sequence[GraphPiece]) -> Float[np.ndarray, "piece"]:
    found = []
    with torch.inference_mode():
        for start in range(0, len(pieces), _AT_ONCE):
            chosen = pieces[start : start + _AT_ONCE]
            batch = GraphPack.of(chosen).batch(torch.arange(len(chosen)))
            found.append(network(batch).mean(0).double().numpy())
    return np.concatenate(found) if found else np.zeros(0)


def _strongest(piece: GraphPiece) -> Int[np.ndarray, "chosen"]:
    strength = piece.edge_attr.astype(np.float32).mean(1)
    return np.sort(np.argsort(-strength, kind="stable")[:MOST_EDGES])


def _places(piece: GraphPiece) -> tuple[Int[np.ndarray, "edge"], Int[np.ndarray, "edge"]]:
    """Graph and querying node of each edge."""
    n_graphs, n_nodes = piece.degree.shape
    place = np.repeat(np.arange(n_graphs * n_nodes), piece.degree.reshape(-1))
    return place // n_nodes, place % n_nodes


def _without_edge(piece: GraphPiece, edge: int, layer: int, query: int) -> GraphPiece:
    degree = piece.degree.copy()
    degree[layer, query] -= 1
    strength = piece.strength.copy()
    strength[layer, query] -= piece.edge_attr[edge].astype(np.float32).mean()
    counts = list(piece.edges_a_layer)
    counts[layer] -= 1
    return piece._replace(
        strength=strength,
        degree=degree,
        source=np.delete(piece.source, edge),
        edge_attr=np.delete(piece.edge_attr, edge, axis=0),
        edges_a_layer=tuple(counts),
    )


def _without_channel(
    network: GraphNetwork,
    piece: GraphPiece,
    is_here: Bool[np.ndarray, "edge"],
    graph: int,
    channel: int,
) -> GraphPiece:
    edge_attr = piece.edge_attr.copy()
    standard = network.edge_standard
    mean = (
        edge_attr[is_here, channel].astype(np.float32).mean()
        if standard is None and is_here.any()
        else 0.0
        if standard is None
        else float(standard.mean[graph, channel])
    )
    edge_attr[is_here, channel] = mean
    return piece._replace(edge_attr=edge_attr)
