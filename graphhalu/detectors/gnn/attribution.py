"""Effect of the edges and heads of a graph on the logit of a network, by taking them away."""

import re
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader

from graphhalu.detectors.base import Attribution, EdgeEffect

MAX_EDGES: Final = 512
"""Edges that are taken away one by one: the strongest ones."""
_BATCH: Final = 32
_CHANNEL: Final = re.compile(r"(?:layer(\d+)\.)?attention_head(\d+)")


def attribute_graph(
    logits_of: Callable[[Batch], Tensor],
    data: Data,
    layers: Sequence[int],
    channels: Sequence[str],
    shape: tuple[int, int],
) -> Attribution:
    """Logit minus the logit without an edge, and without the attention of a head on all edges.

    Args:
        logits_of: One logit a graph of a batch; of several (tokens) the largest counts.
        data: The graph of a trace.
        layers: Model layers of the graph.
        channels: Names of the columns of ``edge_attr``.
        shape: Layers and heads of the language model.
    """
    whole = float(_logits(logits_of, [data])[0])
    chosen = data.edge_attr.mean(1).argsort(descending=True, stable=True)[:MAX_EDGES].sort()[0]
    without = _logits(logits_of, [_without_edge(data, edge) for edge in chosen.tolist()])
    edges = [
        EdgeEffect(*_ends(data, edge, layers), whole - float(logit))
        for edge, logit in zip(chosen.tolist(), without, strict=True)
    ]
    return Attribution(
        heads=_heads(logits_of, data, _places(data, layers, channels), shape, whole),
        features={"edges": sum(edge.effect for edge in edges)},
        is_exact=False,
        rest=whole,
        edges=tuple(sorted(edges, key=lambda edge: -abs(edge.effect))),
    )


Places = list[tuple[int, Tensor, int, int]]


def _places(data: Data, layers: Sequence[int], channels: Sequence[str]) -> Places:
    """Channel, edges, model layer and head of every head that is on the edges."""
    of_edge = data.layer_index[data.edge_index[1]]
    found: Places = []
    for channel, name in enumerate(channels):
        match = _CHANNEL.fullmatch(name)
        if match is None:
            continue
        if match[1]:  # a multiplex graph has a column a layer and head
            found.append((channel, of_edge >= 0, int(match[1]), int(match[2])))
        else:
            found += [(channel, of_edge == place, layer, int(match[2])) for place, layer in enumerate(layers)]
    return found


def _heads(
    logits_of: Callable[[Batch], Tensor], data: Data, places: Places, shape: tuple[int, int], whole: float
) -> Float[np.ndarray, "layer head"]:
    changed = []
    for channel, is_here, _, _ in places:
        less = data.clone()
        less.edge_attr = data.edge_attr.clone()
        less.edge_attr[is_here, channel] = 0
        changed.append(less)
    heads = np.zeros(shape)
    for (_, _, layer, head), logit in zip(places, _logits(logits_of, changed), strict=True):
        heads[layer, head] = whole - float(logit)
    return heads


def _logits(logits_of: Callable[[Batch], Tensor], graphs: Sequence[Data]) -> Float[np.ndarray, "graph"]:
    found: list[float] = []
    for batch in DataLoader(list(graphs), _BATCH):
        # the same graph each time: as many tokens
        found += logits_of(batch).view(batch.num_graphs, -1).amax(1).double().tolist()
    return np.array(found)


def _without_edge(data: Data, edge: int) -> Data:
    kept = torch.arange(data.num_edges) != edge
    less = data.clone()
    less.edge_index, less.edge_attr = data.edge_index[:, kept], data.edge_attr[kept]
    return less


def _ends(data: Data, edge: int, layers: Sequence[int]) -> tuple[int | None, int, int]:
    """Model layer (``None`` in a multiplex graph of several), key and query."""
    n_tokens = int((data.layer_index == 0).sum())
    key, query = data.edge_index[:, edge].tolist()
    is_single = data.num_nodes > n_tokens or len(layers) == 1
    layer = layers[int(data.layer_index[query])] if is_single else None
    return layer, key % n_tokens, query % n_tokens
