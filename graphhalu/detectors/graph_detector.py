"""Graph networks as detectors.

Lightning takes seconds to import, so it is imported where a detector is fitted.
A new network is a subclass of :class:`GraphDetector` with a card, its settings and
:meth:`GraphDetector.make_network`, and a line in the registry.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from jaxtyping import Float, Int

from graphhalu.config import validate
from graphhalu.detectors.attribution import Attribution
from graphhalu.detectors.base import Detector, Scores
from graphhalu.detectors.graph_build import PieceRecipe, graph_pieces
from graphhalu.detectors.graph_pieces import GraphPiece
from graphhalu.detectors.graph_schema import GraphDetectorConfig, GraphSchema, NetworkConfig
from graphhalu.detectors.identity import check_identity
from graphhalu.detectors.networks.base import GraphNetwork, NetworkShape, NetworkSize
from graphhalu.detectors.saved import (
    damaged,
    read_description,
    read_weights,
    required,
    write_description,
    write_weights,
)
from graphhalu.errors import ConfigError, NotEnoughDataError, UsageError
from graphhalu.labels.labels import Labels
from graphhalu.splits import Split
from graphhalu.traces.schema import TraceShape
from graphhalu.traces.trace import Trace


class GraphDetector(Detector):
    """A graph network over the graphs of a trace; the score is the mean of their logits.

    Args:
        seed: Seed of weights, dropout and order; by default that of the configuration.
        config: Settings.
    """

    config_class: ClassVar[type[NetworkConfig]] = GraphDetectorConfig
    is_rewired: ClassVar[bool] = False
    """Whether neighbours are random, with the same degrees."""
    half_edges: ClassVar[bool] = False
    """Whether attention on edges is kept in half precision."""

    def __init__(self, seed: int | None = None, config: NetworkConfig | None = None) -> None:
        config = config or self.config_class()
        self.config = config if seed is None else config.model_copy(update={"seed": seed})
        self.schema: GraphSchema | None = None
        self.network: GraphNetwork | None = None
        self.training_report: dict[str, Any] = {}

    @classmethod
    def settings(cls, **values: Any) -> dict[str, Any]:
        """Arguments of the constructor from plain values, as YAML or ``--set`` gives them.

        Raises:
            ConfigError: If a field is unknown or a value does not validate.
        """
        config = validate(cls.config_class, values, source=f"settings of {cls.card.name}")
        return {"seed": config.seed, "config": config}

    @abstractmethod
    def make_network(self, shape: NetworkShape, size: NetworkSize) -> GraphNetwork:
        """A fresh network."""

    def fit_start(
        self, traces: Sequence[Trace], labels: Labels, split: Split
    ) -> Callable[[Sequence[int]], list[float]]:
        """Fit what the network adds to; gives the logit that each trace of either side starts from.

        A trace of the training side must start from what was learnt without it. By default there
        is nothing to start from.
        """
        return lambda indices: [0.0] * len(indices)

    def starting_logits(self, traces: Sequence[Trace]) -> Float[np.ndarray, "trace"]:
        """Logits of new traces that the network adds to; NaN where there is none."""
        return np.zeros(len(traces))

    def check_devices(self) -> None:
        """See whether this machine has the devices to train on.

        Raises:
            UsageError: If it lacks some.
        """
        from graphhalu.detectors.ranks import training_device

        config = self.config
        training_device(config.devices, config.accelerator, config.batch_size)

    def check(self, traces: Sequence[Trace]) -> None:
        """Refuse devices that this machine lacks and layers that the traces do not keep.

        Raises:
            UsageError: If the machine lacks the devices.
            ConfigError: If the traces keep no attention of a layer.
            NotEnoughDataError: If there is no trace.
        """
        self.check_devices()
        self._layers(traces)

    def fit(self, traces: Sequence[Trace], labels: Labels, split: Split) -> Detector:
        """Train on the valid labels of the training side, stop by those of the validation side.

        Traces whose graphs cannot be built are left out.
        """
        from graphhalu.detectors.graph_pack import GraphPack
        from graphhalu.detectors.task import TrainingSettings, seeded, train_network

        self.check_devices()  # before graphs are built, which takes long
        recipe = self._recipe(self._layers(traces))
        train = _side(traces, labels, split.train, recipe)
        validation = _side(traces, labels, split.validation, recipe)
        self._check_sides(train, validation)
        start = self.fit_start(traces, labels, split)
        schema = GraphSchema.of(traces[int(split.train[0])], recipe.layers, train.pieces[0])
        pack = GraphPack.of(train.pieces, train.labels, start(train.indices))
        with seeded(self.config.seed):
            network = self._network(schema)
            network.standardise_by(list(pack.x), pack.edges_of_layers())
            report = train_network(
                network,
                pack,
                GraphPack.of(validation.pieces, validation.labels, start(validation.indices)),
                positive_weight=train.n_correct / train.n_hallucinated,
                settings=TrainingSettings(
                    *(getattr(self.config, name) for name in TrainingSettings._fields)
                ),
            )
        self.schema, self.network = schema, network
        self.training_report = {
            "n_train": len(train.labels),
            "n_validation": len(validation.labels),
            "n_parameters": network.n_parameters,
            **report._asdict(),
        }
        return self

    def score(self, traces: Sequence[Trace]) -> Scores:
        """Mean logit of each trace; every trace is scored alone, so others cannot change it.

        Raises:
            DetectorMismatchError: If a trace is of a model with other layers or heads, or the
                traces are of another model, quantisation or prompt than a loaded detector's.
        """
        check_identity(self.identity, traces)
        schema, network = self._fitted()
        for trace in traces:
            schema.check_model(trace)
        pieces = graph_pieces(traces, range(len(traces)), self._recipe(schema.layers))
        values = [
            _logit(schema, network, trace, piece) if isinstance(piece, GraphPiece) else float("nan")
            for trace, piece in zip(traces, pieces, strict=True)
        ]
        return Scores.of(np.array(values, dtype=np.float64) + self.starting_logits(traces))

    def attribute(self, trace: Trace) -> Attribution | None:
        """Effect of each edge, and of each head on the edges; ``None`` without graphs."""
        from graphhalu.detectors.graph_attribution import attribute_graph

        schema, network = self._fitted()
        schema.check_model(trace)
        piece = next(graph_pieces([trace], [0], self._recipe(schema.layers)))
        if not isinstance(piece, GraphPiece):
            return None
        return attribute_graph(network, piece, schema, (trace.shape.n_layers, trace.shape.n_heads))

    @property
    def n_parameters(self) -> int | None:
        """Weights of the network."""
        return None if self.network is None else self.network.n_parameters

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
            network = detector._network(schema)
            network.load_state_dict(weights)
        except (RuntimeError, TypeError, ValueError) as error:
            raise damaged(folder, error) from None
        detector.schema, detector.network = schema, network.eval()
        detector.training_report = dict(values.get("training") or {})
        return detector

    def _network(self, schema: GraphSchema) -> GraphNetwork:
        shape = NetworkShape(schema.n_graphs, len(schema.node_feature_names), schema.n_channels)
        config = self.config
        size = NetworkSize(config.hidden_size, config.n_convolutions, config.dropout)
        return self.make_network(shape, size)

    def _recipe(self, layers: tuple[int, ...]) -> PieceRecipe:
        return PieceRecipe(
            self.config.recipe,
            layers,
            self.config.n_convolutions,
            is_rewired=self.is_rewired,
            half_edges=self.half_edges,
        )

    def _fitted(self) -> tuple[GraphSchema, GraphNetwork]:
        if self.schema is None or self.network is None:
            message = f"{self.card.name} is not fitted: call fit first, or load a saved one"
            raise UsageError(message)
        return self.schema, self.network

    def _layers(self, traces: Sequence[Trace]) -> tuple[int, ...]:
        if not len(traces):
            message = f"{self.card.name} needs traces to fit on, got none"
            raise NotEnoughDataError(message)
        shape: TraceShape = traces[0].shape
        layers = self.config.layers or self.config.default_layers(shape)
        missing = [layer for layer in layers if layer not in shape.attention_layers]
        if missing:
            message = (
                f"the traces keep no attention of layers {missing}; "
                f"they keep {list(shape.attention_layers)}\n  Choose others:  --set layers=[…]"
            )
            raise ConfigError(message)
        return tuple(layers)

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


@dataclass(frozen=True)
class _Side:
    """Graphs of the usable traces of one side, and why others are not."""

    indices: list[int]
    pieces: list[GraphPiece]
    labels: list[float]
    failures: list[str]

    @property
    def n_hallucinated(self) -> int:
        return int(sum(self.labels))

    @property
    def n_correct(self) -> int:
        return len(self.labels) - self.n_hallucinated


def _side(
    traces: Sequence[Trace],
    labels: Labels,
    indices: Int[np.ndarray, "side"],
    recipe: PieceRecipe,
) -> _Side:
    # in the order of the store, neighbours are read together
    usable = np.sort(indices[labels.is_valid[indices]]).tolist()
    side = _Side([], [], [], [])
    for index, piece in zip(usable, graph_pieces(traces, usable, recipe), strict=True):
        if isinstance(piece, GraphPiece):
            side.indices.append(index)
            side.pieces.append(piece)
            side.labels.append(float(labels.values[index]))
        else:
            side.failures.append(str(piece))
    return side


def _logit(schema: GraphSchema, network: GraphNetwork, trace: Trace, piece: GraphPiece) -> float:
    from graphhalu.detectors.graph_pack import GraphPack

    schema.check_features(trace, piece)
    with torch.inference_mode():
        batch = GraphPack.of([piece]).batch(torch.zeros(1, dtype=torch.int64))
        return float(cast("torch.Tensor", network(batch)).mean())


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
