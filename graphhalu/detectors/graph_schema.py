"""Settings of graph detectors, and what their graphs are made of."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal, final

from pydantic import Field, field_validator

from graphhalu.config import Config
from graphhalu.detectors.graph_pieces import GraphPiece
from graphhalu.errors import DetectorMismatchError
from graphhalu.graphs.edges import Threshold, TopK
from graphhalu.graphs.nodes import NODE_BLOCKS
from graphhalu.graphs.recipe import DEFAULT_NODES, GraphRecipe
from graphhalu.registry import unknown_name
from graphhalu.traces.schema import TraceShape
from graphhalu.traces.trace import Trace


class NetworkConfig(Config, ABC):
    """What all graph detectors let the user set."""

    epochs: Annotated[int, Field(ge=1)] = 40
    """Epochs at most."""
    patience: Annotated[int, Field(ge=1)] = 8
    """Epochs without a higher AUROC on the validation side before training stops."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 3e-3
    """Step size of AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    """Weight decay of AdamW."""
    hidden_size: Annotated[int, Field(ge=4, multiple_of=4)] = 32
    """Channels of every layer; a multiple of the 4 heads of the GAT."""
    n_convolutions: Annotated[int, Field(ge=1, le=4)] = 2
    """Rounds of message passing; of blocks, where there are no messages."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Share of activations that training drops."""
    layers: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    """Layers of the language model; by default what suits the detector."""
    nodes: Annotated[tuple[str, ...], Field(min_length=1)] = DEFAULT_NODES
    """Blocks of node features. ``hidden`` is not among the defaults: hundreds of features over
    few traces are learnt by heart."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Traces a step; the graphs of all layers of a trace go together."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of weights, dropout and the order of batches."""
    devices: Annotated[int, Field(ge=1)] = 1
    """Processes that share every step: GPUs, or parts of the CPU. Without dropout the result is
    that of one but for rounding."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """What they train on; by default the GPU if there is one."""

    @property
    @abstractmethod
    def recipe(self) -> GraphRecipe:
        """How graphs are built."""

    def default_layers(self, shape: TraceShape) -> tuple[int, ...]:
        """Layers of the language model where none are given: three."""
        from graphhalu.graphs.dataset import default_layers

        return default_layers(shape)

    @field_validator("nodes")
    @classmethod
    def _known(cls, nodes: tuple[str, ...]) -> tuple[str, ...]:
        for name in nodes:
            if name not in NODE_BLOCKS:
                message = str(unknown_name("block of node features", name, NODE_BLOCKS))
                raise ValueError(message)
        return nodes


@final
class GraphDetectorConfig(NetworkConfig):
    """Settings of a detector on graphs of the strongest attention of each row.

    By default it reads three layers, at 1/3, 1/2 and 2/3 of the depth.
    """

    view: Literal["layers", "multiplex"] = "layers"
    """One graph a layer, or one a trace with the heads of all layers on its edges."""
    edges_per_row: Annotated[int, Field(ge=1)] = 8
    """Strongest keys of each query that become edges."""

    @property
    def recipe(self) -> GraphRecipe:
        """How graphs are built."""
        return GraphRecipe(edges=TopK(self.edges_per_row), nodes=self.nodes, view=self.view)


@final
class CHARMConfig(NetworkConfig):
    """Settings of CHARM: one graph a trace, every layer and head on its edges."""

    nodes: Annotated[tuple[str, ...], Field(min_length=1)] = ("diagonal",)
    """Blocks of node features. The paper's second form has ``hidden`` beside the diagonal."""
    tau: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Attention that a head must pass; below, its weight counts as 0. An edge exists where any
    head of any layer passes."""

    @property
    def recipe(self) -> GraphRecipe:
        """How graphs are built."""
        return GraphRecipe(
            edges=Threshold(self.tau, censor=True), nodes=self.nodes, prompt_edges=False,
            importance="max", view="multiplex",
        )  # fmt: skip

    def default_layers(self, shape: TraceShape) -> tuple[int, ...]:
        """Every layer that is kept."""
        return shape.attention_layers


@final
class ResidualConfig(NetworkConfig):
    """Settings of graphhalu: a joint probe, and a graph network for what that leaves."""

    epochs: Annotated[int, Field(ge=1)] = 20
    """Epochs at most."""
    patience: Annotated[int, Field(ge=1)] = 4
    """Epochs without a higher AUROC on the validation side before training stops."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    """Step size of AdamW."""
    edges_per_row: Annotated[int, Field(ge=1)] = 8
    """Strongest keys of each query that become edges."""
    sinks: Literal["keep", "renormalise"] = "renormalise"
    """Whether the first four tokens are neighbours, or left out of every head's share."""
    has_start: bool = True
    """Whether the network adds to the joint probe; without, it begins from nothing."""
    has_recurrence: bool = True
    """Whether a recurrent unit carries each token's state from layer to layer."""
    has_layer_attention: bool = True
    """Whether layers are weighed for each trace."""

    @property
    def recipe(self) -> GraphRecipe:
        """How graphs are built."""
        return GraphRecipe(edges=TopK(self.edges_per_row), nodes=self.nodes, sinks=self.sinks)


@dataclass(frozen=True)
class GraphSchema:
    """What the graphs were made of; a fitted network reads only such graphs.

    Attributes:
        n_layers: Layers of the language model.
        n_heads: Its attention heads.
        layers: Layers that become graphs.
        n_graphs: Graphs of a trace.
        n_channels: Weights of an edge.
        node_feature_names: Columns of the node features.
    """

    n_layers: int
    n_heads: int
    layers: tuple[int, ...]
    n_graphs: int
    n_channels: int
    node_feature_names: tuple[str, ...]

    @classmethod
    def of(cls, trace: Trace, layers: tuple[int, ...], piece: GraphPiece) -> "GraphSchema":
        """The schema of a trace and its graphs."""
        shape = trace.shape
        return cls(
            shape.n_layers, shape.n_heads, layers, len(piece.x), piece.edge_attr.shape[1],
            piece.node_feature_names,
        )  # fmt: skip

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

    def check_features(self, trace: Trace, piece: GraphPiece) -> None:
        """Refuse graphs with other node features.

        Raises:
            DetectorMismatchError: Names the features.
        """
        if piece.node_feature_names != self.node_feature_names:
            differing = sorted(set(piece.node_feature_names) ^ set(self.node_feature_names))
            message = (
                f"graphs of trace {trace.trace_id!r} have other node features than the detector "
                f"was fitted on: {', '.join(differing) or 'another order'}\n  Train it again"
            )
            raise DetectorMismatchError(message)
