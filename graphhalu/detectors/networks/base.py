"""What GCN and GAT share: standardised inputs, a readout over the answer, one logit a graph."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import global_max_pool, global_mean_pool


class NetworkShape(NamedTuple):
    """Sizes that the data give.

    Attributes:
        n_layers: Layer graphs a trace.
        n_node_features: Features of a node.
        n_heads: Heads on an edge.
    """

    n_layers: int
    n_node_features: int
    n_heads: int


class GraphNetwork(nn.Module, ABC):
    """A plain torch module from a batch of layer graphs to one logit a graph.

    A batch holds ``x`` [node, feature], ``edge_index`` [2, edge] (key to query), ``edge_attr``
    [edge, head], ``is_readout`` [node], ``layer`` [graph] (position of the layer in the recipe)
    and ``batch`` [node] (graph of each node).

    Args:
        shape: Sizes that the data give.
        hidden_size: Channels of every layer.
        dropout: Share of activations that training drops.
    """

    node_mean: Tensor
    node_scale: Tensor
    edge_mean: Tensor
    edge_scale: Tensor

    def __init__(self, shape: NetworkShape, *, hidden_size: int = 32, dropout: float = 0.25):
        super().__init__()
        for name, size in (("node", shape.n_node_features), ("edge", shape.n_heads)):
            self.register_buffer(f"{name}_mean", torch.zeros(shape.n_layers, size))
            self.register_buffer(f"{name}_scale", torch.ones(shape.n_layers, size))
        self.project = nn.Linear(shape.n_node_features, hidden_size)
        self.layer_embedding = nn.Embedding(shape.n_layers, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Sequential(
            nn.Linear(3 * hidden_size, hidden_size),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_size, 1),
        )

    @abstractmethod
    def convolve(
        self, hidden: Float[Tensor, "node channel"], batch: Data
    ) -> Float[Tensor, "node channel"]:
        """Pass messages along the edges."""

    def forward(self, batch: Data) -> Float[Tensor, "graph"]:
        """One logit a graph; higher means more likely hallucinated."""
        layer_of_node = batch.layer[batch.batch]
        x = (batch.x - self.node_mean[layer_of_node]) / self.node_scale[layer_of_node]
        hidden = self.convolve(self.dropout(torch.relu(self.project(x))), batch)
        is_readout, n_graphs = batch.is_readout, len(batch.layer)
        answer, graph = hidden[is_readout], batch.batch[is_readout]
        readout = torch.cat(
            [
                global_mean_pool(answer, graph, n_graphs),
                global_max_pool(answer, graph, n_graphs),
                self.layer_embedding(batch.layer),
            ],
            dim=1,
        )
        logits: Float[Tensor, "graph"] = self.head(readout).squeeze(1)
        return logits

    def standardise_by(self, batches: Sequence[Data]) -> None:
        """Take mean and standard deviation of each feature in each layer from training batches.

        A feature that never changes keeps the scale 1.
        """
        nodes = [(batch.x, batch.layer[batch.batch]) for batch in batches]
        edges = [(batch.edge_attr, layer_of_edge(batch)) for batch in batches]
        for name, pairs in (("node", nodes), ("edge", edges)):
            values = torch.cat([values for values, _ in pairs])
            layers = torch.cat([layers for _, layers in pairs])
            mean, scale = _moments(values, layers, self.layer_embedding.num_embeddings)
            getattr(self, f"{name}_mean").copy_(mean)
            getattr(self, f"{name}_scale").copy_(scale)

    def standardised_edges(self, batch: Data) -> Float[Tensor, "edge head"]:
        """Attention of the edges, standardised in each layer and head."""
        layer = layer_of_edge(batch)
        edges: Float[Tensor, "edge head"] = batch.edge_attr - self.edge_mean[layer]
        return edges / self.edge_scale[layer]


def layer_of_edge(batch: Data) -> Int[Tensor, "edge"]:
    """Position in the recipe of the layer that each edge belongs to."""
    layer: Int[Tensor, "edge"] = batch.layer[batch.batch[batch.edge_index[1]]]
    return layer


def _moments(
    values: Float[Tensor, "item feature"], layers: Int[Tensor, "item"], n_layers: int
) -> tuple[Float[Tensor, "layer feature"], Float[Tensor, "layer feature"]]:
    means, scales = [], []
    for layer in range(n_layers):
        of_layer = values[layers == layer].double()
        scale = of_layer.std(0, correction=0)
        is_constant = scale <= 1e-6 * of_layer.abs().amax(0)  # division would blow rounding up
        means.append(of_layer.mean(0))
        scales.append(torch.where(is_constant, 1.0, scale))
    return torch.stack(means).float(), torch.stack(scales).float()
