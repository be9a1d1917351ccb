"""GCN and GAT over token graphs as detectors."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, final

import numpy as np
import torch
from jaxtyping import Int
from pydantic import Field

from graphhalu.config import Config, validate
from graphhalu.detectors.base import Detector, DetectorCard, Scores
from graphhalu.detectors.saved import (
    damaged,
    read_description,
    read_weights,
    required,
    write_description,
    write_weights,
)
from graphhalu.errors import (
    ConfigError,
    DetectorMismatchError,
    GraphhaluError,
    NotEnoughDataError,
    UsageError,
)
from graphhalu.graphs.build import DEFAULT_NODES, GraphRecipe, TokenGraph
from graphhalu.graphs.edges import TopK
from graphhalu.graphs.nodes import NODE_BLOCKS
from graphhalu.labels.labels import Labels
from graphhalu.registry import unknown_name
from graphhalu.splits import Split
from graphhalu.traces.trace import Trace

if TYPE_CHECKING:  # PyG takes seconds to import; listing the detectors must not
    from graphhalu.detectors.networks.base import GraphNetwork


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


class GraphDetector(Detector):
    """A graph network over the layer graphs of a trace; the score is its mean logit.

    Args:
        seed: Seed of weights, dropout and order; by default that of the configuration.
        config: Settings.
    """

    def __init__(self, seed: int | None = None, config: GraphDetectorConfig | None = None) -> None:
        config = config or GraphDetectorConfig()
        self.config = config if seed is None else config.model_copy(update={"seed": seed})
        _check_nodes(self.config)
        self.schema: GraphSchema | None = None
        self.network: torch.nn.Module | None = None
        self.training_report: dict[str, Any] = {}

    @classmethod
    def settings(cls, **values: Any) -> dict[str, Any]:
        """Arguments of the constructor from plain values, as YAML or ``--set`` gives them.

        Raises:
            ConfigError: If a field is unknown or a value does not validate.
        """
        config = validate(GraphDetectorConfig, values, source=f"settings of {cls.card.name}")
        _check_nodes(config)
        return {"seed": config.seed, "config": config}

    @abstractmethod
    def make_network(self, schema: GraphSchema) -> "torch.nn.Module":
        """A fresh network for graphs of this schema."""

    @property
    def recipe(self) -> GraphRecipe:
        """How graphs are built."""
        return GraphRecipe(edges=TopK(self.config.edges_per_row), nodes=self.config.nodes)

    def fit(self, traces: Sequence[Trace], labels: Labels, split: Split) -> Detector:
        """Train on the valid labels of the training side, stop by those of the validation side.

        Traces whose graphs cannot be built are left out.
        """
        from graphhalu.detectors.graph_batches import collate
        from graphhalu.detectors.task import TrainingSettings, seeded, train_network

        layers = self._layers(traces)
        train = self._side(traces, labels, split.train, layers)
        validation = self._side(traces, labels, split.validation, layers)
        self._check_sides(train, validation)
        schema = _schema(traces[int(split.train[0])], layers, train.graphs[0][0])
        batches = collate(_shuffled(train.data(), self.config.seed), self.config.batch_size)
        with seeded(self.config.seed):
            network: Any = self.make_network(schema)
            network.standardise_by(batches)
            report = train_network(
                network,
                batches,
                collate(validation.data(), self.config.batch_size),
                positive_weight=train.n_correct / train.n_hallucinated,
                settings=TrainingSettings(
                    *(getattr(self.config, name) for name in TrainingSettings._fields)
                ),
            )
        self.schema, self.network = schema, network
        sides = {"n_train": len(train.labels), "n_validation": len(validation.labels)}
        self.training_report = {**sides, **report._asdict()}
        return self

    def score(self, traces: Sequence[Trace]) -> Scores:
        """Mean logit of each trace; every trace is scored alone, so others cannot change it.

        Raises:
            DetectorMismatchError: If a trace is of a model with other layers or heads.
        """
        return Scores.of(np.array([self._score(trace) for trace in traces], dtype=np.float64))

    def save(self, folder: Path) -> None:
        """Write weights with standardisation, the settings and the schema of the graphs."""
        schema, network = self._fitted()
        write_weights(folder, network.state_dict())
        values = {
            "config": self.config.model_dump(mode="json"),
            "graphs": vars(schema),
            "training": self.training_report,
        }
        write_description(folder, self.card.name, values)

    @classmethod
    def load(cls, folder: Path) -> Detector:
        """Read what :meth:`save` wrote."""
        values = read_description(folder, cls.card.name)
        stored = required(values, "config", folder), required(values, "graphs", folder)
        weights = read_weights(folder)
        try:
            detector = cls(**cls.settings(**stored[0]))
            schema = GraphSchema(**{name: _frozen(value) for name, value in stored[1].items()})
            network = detector.make_network(schema)
            network.load_state_dict(weights)
        except (RuntimeError, TypeError, ValueError) as error:
            raise damaged(folder, error) from None
        detector.schema, detector.network = schema, network.eval()
        detector.training_report = dict(values.get("training") or {})
        return detector

    def _score(self, trace: Trace) -> float:
        from graphhalu.detectors.graph_batches import collate, layer_graphs, to_data

        schema, network = self._fitted()
        _check_model(schema, trace)
        try:
            graphs = layer_graphs(trace, schema.layers, self.recipe)
        except GraphhaluError:
            return float("nan")
        _check_features(schema, graphs[0])
        with torch.inference_mode():
            return float(network(collate(to_data(graphs), len(graphs))[0]).mean())

    def _fitted(self) -> tuple[GraphSchema, torch.nn.Module]:
        if self.schema is None or self.network is None:
            message = f"{self.card.name} is not fitted: call fit first, or load a saved one"
            raise UsageError(message)
        return self.schema, self.network

    def _layers(self, traces: Sequence[Trace]) -> tuple[int, ...]:
        from graphhalu.graphs.dataset import default_layers

        if not len(traces):
            message = f"{self.card.name} needs traces to fit on, got none"
            raise NotEnoughDataError(message)
        shape = traces[0].shape
        layers = self.config.layers or default_layers(shape)
        missing = [layer for layer in layers if layer not in shape.attention_layers]
        if missing:
            message = (
                f"the traces keep no attention of layers {missing}; "
                f"they keep {list(shape.attention_layers)}\n  Choose others:  --set layers=[…]"
            )
            raise ConfigError(message)
        return tuple(layers)

    def _side(
        self,
        traces: Sequence[Trace],
        labels: Labels,
        indices: Int[np.ndarray, "side"],
        layers: tuple[int, ...],
    ) -> "_Side":
        from graphhalu.detectors.graph_batches import layer_graphs

        graphs, values, failures = [], [], []
        for index in indices[labels.is_valid[indices]].tolist():
            try:
                graphs.append(layer_graphs(traces[index], layers, self.recipe))
            except GraphhaluError as error:
                failures.append(str(error))
            else:
                values.append(int(labels.values[index]))
        return _Side(graphs, np.array(values, dtype=np.int64), failures)

    def _check_sides(self, train: "_Side", validation: "_Side") -> None:
        if not train.n_correct or not train.n_hallucinated or not len(validation.labels):
            failures = train.failures + validation.failures
            why = f"\n  {len(failures)} traces gave no graph: {failures[0]}" if failures else ""
            message = (
                f"{self.card.name} needs both classes on the training side and one trace on the "
                f"validation side, got {train.n_hallucinated} hallucinated and {train.n_correct} "
                f"correct to train on, {len(validation.labels)} to validate on{why}"
            )
            raise NotEnoughDataError(message)


@final
class GCNDetector(GraphDetector):
    """Graph convolution over the mean attention of the heads."""

    card: ClassVar[DetectorCard] = DetectorCard(
        name="gcn",
        summary="graph convolution over token graphs of three layers, heads averaged on the edges",
        source=(
            "Kipf and Welling 2017, arXiv:1609.02907, on attention graphs with directed, "
            "weighted edges. With nodes=…,hidden it reads hidden states too."
        ),
        inputs=("attention", "likelihood"),
        is_supervised=True,
    )

    def make_network(self, schema: GraphSchema) -> torch.nn.Module:
        """A GCN."""
        from graphhalu.detectors.networks.gcn import GCN

        return _made(GCN, schema, self.config)


@final
class GATDetector(GraphDetector):
    """Graph attention with every head of the language model on the edges."""

    card: ClassVar[DetectorCard] = DetectorCard(
        name="gat",
        summary="graph attention over token graphs of three layers, every head on the edges",
        source=(
            "Brody et al. 2022, arXiv:2105.14491 (GATv2), with edge features. "
            "With nodes=…,hidden it reads hidden states too."
        ),
        inputs=("attention", "likelihood"),
        is_supervised=True,
    )

    def make_network(self, schema: GraphSchema) -> torch.nn.Module:
        """A GAT."""
        from graphhalu.detectors.networks.gat import GAT

        return _made(GAT, schema, self.config)


@dataclass(frozen=True)
class _Side:
    """Graphs of the usable traces of one side, and why others are not."""

    graphs: list[list[TokenGraph]]
    labels: Int[np.ndarray, "trace"]
    failures: list[str]

    @property
    def n_hallucinated(self) -> int:
        return int(self.labels.sum())

    @property
    def n_correct(self) -> int:
        return len(self.labels) - self.n_hallucinated

    def data(self) -> list[Any]:
        """All graphs, the layers of a trace one after another."""
        return list(self._data())

    def _data(self) -> Iterator[Any]:
        from graphhalu.detectors.graph_batches import to_data

        for trace, (graphs, label) in enumerate(zip(self.graphs, self.labels, strict=True)):
            yield from to_data(graphs, trace, float(label))


def _made(
    network_class: "type[GraphNetwork]", schema: GraphSchema, config: GraphDetectorConfig
) -> torch.nn.Module:
    from graphhalu.detectors.networks.base import NetworkShape

    shape = NetworkShape(len(schema.layers), len(schema.node_feature_names), schema.n_heads)
    return network_class(shape, hidden_size=config.hidden_size, dropout=config.dropout)


def _schema(trace: Trace, layers: tuple[int, ...], graph: TokenGraph) -> GraphSchema:
    shape = trace.shape
    return GraphSchema(shape.n_layers, shape.n_heads, layers, tuple(graph.node_feature_names))


def _shuffled(data: list[Any], seed: int) -> list[Any]:
    """Batches keep their members in all epochs, so these must not be neighbours in the store."""
    return [data[index] for index in np.random.default_rng(seed).permutation(len(data))]


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check_nodes(config: GraphDetectorConfig) -> None:
    for name in config.nodes:
        if name not in NODE_BLOCKS:
            raise ConfigError(str(unknown_name("block of node features", name, NODE_BLOCKS)))


def _check_model(schema: GraphSchema, trace: Trace) -> None:
    came = (trace.shape.n_layers, trace.shape.n_heads)
    if came != (schema.n_layers, schema.n_heads):
        message = (
            f"the detector was fitted on a model with {schema.n_layers} layers and "
            f"{schema.n_heads} heads, trace {trace.trace_id!r} comes from one with {came[0]} and "
            f"{came[1]}\n  Train a detector on traces of that model"
        )
        raise DetectorMismatchError(message)


def _check_features(schema: GraphSchema, graph: TokenGraph) -> None:
    if tuple(graph.node_feature_names) != schema.node_feature_names:
        differing = sorted(set(graph.node_feature_names) ^ set(schema.node_feature_names))
        message = (
            f"the graphs of trace {graph.trace_id!r} have other node features than the detector "
            f"was fitted on: {', '.join(differing) or 'another order'}\n  Train it again"
        )
        raise DetectorMismatchError(message)
