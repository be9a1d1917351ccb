"""Settings of graph detectors, and what their graphs are made of."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, field_validator

from graphhalu.config import Config
from graphhalu.errors import DetectorMismatchError
from graphhalu.graphs.build import DEFAULT_NODES, GraphRecipe, TokenGraph
from graphhalu.graphs.edges import TopK
from graphhalu.graphs.nodes import NODE_BLOCKS
from graphhalu.registry import unknown_name
from graphhalu.traces.trace import Trace


class GraphDetectorConfig(Config):
    """Settings of a graph detector."""

    epochs: Annotated[int, Field(ge=1)] = 40
    """Epochs at most."""
    patience: Annotated[int, Field(ge=1)] = 8
    """Epochs without a lower validation loss before training stops."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 3e-3
    """Step size of AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    """Weight decay of AdamW."""
    hidden_size: Annotated[int, Field(ge=4, multiple_of=4)] = 32
    """Channels of every layer; a multiple of the 4 heads of the GAT."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Share of activations that training drops."""
    layers: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    """Layers of the language model, one graph each; by default 1/3, 1/2, 2/3 of its depth."""
    edges_per_row: Annotated[int, Field(ge=1)] = 8
    """Strongest keys of each query that become edges."""
    nodes: Annotated[tuple[str, ...], Field(min_length=1)] = DEFAULT_NODES
    """Blocks of node features. ``hidden`` is not among the defaults: hundreds of features over
    few traces are learnt by heart."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Graphs a step; a trace has one graph a layer."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of weights, dropout and the order of batches."""

    @property
    def recipe(self) -> GraphRecipe:
        """How graphs are built."""
        return GraphRecipe(edges=TopK(self.edges_per_row), nodes=self.nodes)

    @field_validator("nodes")
    @classmethod
    def _known(cls, nodes: tuple[str, ...]) -> tuple[str, ...]:
        for name in nodes:
            if name not in NODE_BLOCKS:
                message = str(unknown_name("block of node features", name, NODE_BLOCKS))
                raise ValueError(message)
        return nodes


@dataclass(frozen=True)
class GraphSchema:
    """What the graphs were made of; a fitted network reads only such graphs.

    Attributes:
        n_layers: Layers of the language model.
        n_heads: Its attention heads.
        layers: Layers that become graphs.
        node_feature_names: Columns of the node features.
    """

    n_layers: int
    n_heads: int
    layers: tuple[int, ...]
    node_feature_names: tuple[str, ...]

    @classmethod
    def of(cls, trace: Trace, layers: tuple[int, ...], graph: TokenGraph) -> "GraphSchema":
        """The schema of a trace and one of its graphs."""
        shape = trace.shape
        return cls(shape.n_layers, shape.n_heads, layers, graph.node_feature_names)

    def check_model(self, trace: Trace) -> None:
        """Refuse a trace of another model.

        Raises:
            DetectorMismatchError: If the model has other layers or heads.
        """
        came = (trace.shape.n_layers, trace.shape.n_heads)
        if came != (self.n_layers, self.n_heads):
            message = (
                f"the detector was fitted on a model with {self.n_layers} layers and "
                f"{self.n_heads} heads, trace {trace.trace_id!r} comes from one with {came[0]} and "
                f"{came[1]}\n  Train a detector on traces of that model"
            )
            raise DetectorMismatchError(message)

    def check_features(self, graph: TokenGraph) -> None:
        """Refuse a graph with other node features.

        Raises:
            DetectorMismatchError: Names the features.
        """
        if graph.node_feature_names != self.node_feature_names:
            differing = sorted(set(graph.node_feature_names) ^ set(self.node_feature_names))
            message = (
                f"graphs of trace {graph.trace_id!r} have other node features than the detector "
                f"was fitted on: {', '.join(differing) or 'another order'}\n  Train it again"
            )
            raise DetectorMismatchError(message)
