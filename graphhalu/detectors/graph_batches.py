"""Layer graphs of traces as batches for a graph network."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from torch_geometric.data import Batch, Data

from graphhalu.graphs.build import GraphRecipe, TokenGraph, build_graph
from graphhalu.traces.trace import Trace


def layer_graphs(trace: Trace, layers: Sequence[int], recipe: GraphRecipe) -> list[TokenGraph]:
    """The graphs of one trace, one a layer.

    Raises:
        GraphhaluError: If one of them cannot be built.
    """
    return [build_graph(trace, layer, recipe) for layer in layers]


def to_data(graphs: Sequence[TokenGraph], trace: int = 0, label: float = 0.0) -> list[Data]:
    """Graphs of one trace as what :class:`GraphNetwork` reads.

    Args:
        graphs: In the order of the recipe's layers.
        trace: Number of the trace among those of its side; ``trace`` in the data, since PyG
            adds offsets to attributes with ``index`` in their name.
        label: 1 = hallucinated.
    """
    return [
        Data(
            x=torch.from_numpy(graph.x),
            edge_index=torch.from_numpy(graph.edge_index),
            edge_attr=torch.from_numpy(graph.edge_attr),
            is_readout=torch.from_numpy(readout_mask(graph.is_answer)),
            layer=torch.tensor([position]),
            trace=torch.tensor([trace]),
            y=torch.tensor([label], dtype=torch.float32),
        )
        for position, graph in enumerate(graphs)
    ]


def readout_mask(is_answer: Bool[np.ndarray, "node"]) -> Bool[np.ndarray, "node"]:
    """Answer tokens, and the last prompt token: its row predicts the first answer token."""
    return is_answer | np.append(is_answer[1:], False)


def collate(data: Sequence[Data], batch_size: int) -> list[Data]:
    """Batches of ``batch_size`` graphs, the last one smaller; made once and used every epoch."""
    return [
        Batch.from_data_list(list(data[start : start + batch_size]))
        for start in range(0, len(data), batch_size)
    ]


def mean_by_trace(logits: Tensor, trace: Tensor, n_traces: int) -> Tensor:
    """Mean logit over the layer graphs of each trace."""
    total = logits.new_zeros(n_traces).index_add_(0, trace, logits)
    count = logits.new_zeros(n_traces).index_add_(0, trace, torch.ones_like(logits))
    return total / count
