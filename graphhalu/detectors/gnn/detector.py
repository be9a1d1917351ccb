"""Graph networks as detectors: graphs of traces, a network on each inner fold, mean logits.

Lightning takes seconds to import, so it is imported where a detector is fitted. A network of a
user needs no code here: :func:`network_detector` makes a detector of any PyG module. A registered
one is a subclass of :class:`NetworkDetector` with a card.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader

from graphhalu.core.config import load_config
from graphhalu.core.errors import (
    ConfigError,
    DetectorMismatchError,
    GraphhaluError,
    NotEnoughDataError,
    UsageError,
)
from graphhalu.core.numerics import auroc
from graphhalu.core.registry import class_path
from graphhalu.core.splits import Split, inner_folds
from graphhalu.detectors.base import Attribution, Detector, DetectorCard, Scores
from graphhalu.detectors.columns import check_shape, describe_shape
from graphhalu.detectors.gnn.config import LOSS, NetworkConfig
from graphhalu.detectors.gnn.inputs import InputScaler, ScaledGraphs, hidden_columns
from graphhalu.detectors.gnn.modules import check_network, make_network, network_arguments
from graphhalu.detectors.gnn.networks import n_parameters
from graphhalu.detectors.identity import check_identity
from graphhalu.detectors.saved import (
    damaged,
    read_description,
    read_weights,
    require_this_edition,
    required,
    write_description,
    write_weights,
)
from graphhalu.detectors.trained import ConfiguredDetector, TrainedConfig
from graphhalu.graphs.dataset import AttentionGraphs
from graphhalu.labels.labels import Labels, Level, question_groups
from graphhalu.traces.trace import Trace

SCORED_AT_ONCE: Final = 32
"""Traces of a batch when scoring."""


@dataclass(frozen=True)
class GraphSchema:
    """The graphs that a network was fitted on; it reads only such graphs.

    Attributes:
        layers: Layers of the language model.
        node_feature_names: Columns of ``x``.
        edge_feature_names: Columns of ``edge_attr``.
        model_shape: Sizes of the language model.
    """

    layers: tuple[int, ...]
    node_feature_names: tuple[str, ...]
    edge_feature_names: tuple[str, ...]
    model_shape: Mapping[str, Any]


class NetworkDetector(ConfiguredDetector):
    """A graph network on each inner fold of the training side; the score is their mean logit.

    Early stopping looks at the part of the training side that a fold's network does not see, so
    the validation side is left to calibration.

    Args:
        seed: Seed of folds, weights, dropout and order; by default that of the configuration.
        config: Settings.
    """

    config_class: ClassVar[type[TrainedConfig]] = NetworkConfig
    network_class: ClassVar[type[nn.Module]]
    """A PyG module; see :func:`~graphhalu.detectors.gnn.modules.make_network` for its arguments."""
    transform: ClassVar[Callable[[Data], Data] | None] = None
    """Changes every graph before it is read, as a control does."""

    config: NetworkConfig

    def __init__(self, seed: int | None = None, config: TrainedConfig | None = None) -> None:
        super().__init__(seed, config)
        self.schema: GraphSchema | None = None
        self.scaler: InputScaler | None = None
        self.networks: list[nn.Module] = []
        self.out_of_fold: dict[int, Float[np.ndarray, "_"]] = {}
        """Logits of each training trace from networks that never saw its question."""
        self.log_folder: Path | None = None
        """Where Lightning's logger writes; nothing is logged without."""

    @classmethod
    def settings(cls, **values: Any) -> dict[str, Any]:
        """Arguments of the constructor from plain values, as YAML or ``--set`` gives them.

        Raises:
            ConfigError: If a field is unknown or a value does not validate.
        """
        config = load_config(cls.config_class, None, values)
        return {"seed": config.seed, "config": config}

    def check(self, traces: Sequence[Trace]) -> None:
        """Refuse devices, networks and layers that cannot be, before anything is built.

        Raises:
            UsageError: If this machine lacks the devices.
            ConfigError: If the traces keep no attention of a layer, or the network does not take
                a setting.
        """
        from graphhalu.detectors.gnn.task import accelerator

        accelerator(self.config)
        self._layers(traces)
        network_arguments(self.network_class, {}, self.config.network)

    def fit(self, traces: Sequence[Trace], labels: Labels, split: Split) -> Detector:
        """Train on the valid labels of the training side; validation takes no part.

        Traces whose graphs cannot be built are left out.

        Raises:
            NotEnoughDataError: If the training side lacks a class.
        """
        from graphhalu.detectors.gnn.task import seeded

        _check_level(labels, self.card.level)
        self.schema = None  # layers of an earlier fit say nothing of these traces
        self.check(traces)
        layers = self._layers(traces)
        graphs = self._graphs(traces, layers, labels)
        used, failures = _buildable(graphs, np.sort(split.train[labels.is_valid[split.train]]))
        self._check_classes(labels, used, failures)
        self.schema = GraphSchema(
            layers, graphs.node_feature_names, graphs.edge_feature_names, describe_shape(traces[0].shape)
        )
        folds = self._folds(traces, labels, used)
        self.scaler = self._scaler(self.schema).fit(graphs.select(used), self.config.seed)
        scaled = ScaledGraphs(graphs.select(used), self.scaler)
        with seeded(self.config.seed):
            found = [self._trained(scaled, used, labels, folds, point) for point in self._points()]
        best = min(found, key=lambda trained: trained.loss)
        self.networks, self.config = best.networks, best.config
        self.out_of_fold = best.out_of_fold
        self.training_report = {
            "n_train": len(used),
            "n_without_graph": len(failures),
            "n_folds": len(folds),
            "n_parameters": n_parameters(self.networks[0]),
            "inner_loss": best.loss,
            "inner_auroc": best.auroc(labels),
            "networks": best.reports,
            "chosen": {name: getattr(self.config, name) for name in self.config.search},
        }
        return self

    def score(self, traces: Sequence[Trace]) -> Scores:
        """Mean logit of each trace, or of each answer token; NaN for a trace without a graph.

        Raises:
            DetectorMismatchError: If a trace is of a model of another shape, or the traces are of
                another model, quantisation or prompt than a loaded detector's.
        """
        check_identity(self.identity, traces)
        schema = self._fitted()
        is_token = self.card.level == "token"
        lengths = [trace.answer_length if is_token else 1 for trace in traces]
        found = [np.full(length, np.nan) for length in lengths]
        if len(traces):
            for index, logits in self._logits(traces, schema).items():
                found[index] = logits
        return Scores.ragged(found) if is_token else Scores.of(np.array(found).reshape(-1))

    def attribute(self, trace: Trace) -> Attribution | None:
        """Effect of each edge, and of each head on the edges; ``None`` without a graph."""
        from graphhalu.detectors.gnn.attribution import attribute_graph

        schema = self._fitted()
        check_shape(trace, schema.model_shape)
        try:
            data = self._graphs([trace], schema.layers, None)[0]
        except GraphhaluError:
            return None
        shape = (trace.shape.n_layers, trace.shape.n_heads)
        channels = schema.edge_feature_names
        return attribute_graph(self._mean_logits, data, schema.layers, channels, shape)

    @property
    def n_parameters(self) -> int | None:
        """Weights of all networks."""
        return sum(n_parameters(network) for network in self.networks) if self.networks else None

    def save(self, folder: Path) -> None:
        """Write weights with standardisation, the settings and the schema of the graphs."""
        schema = self._fitted()
        assert self.scaler is not None
        weights = {
            f"{number}.{name}": value
            for number, module in enumerate([self.scaler, *self.networks])
            for name, value in module.state_dict().items()
        }
        write_weights(folder, weights)
        values = {
            "config": self.config.model_dump(mode="json"),
            "graphs": asdict(schema),
            "n_networks": len(self.networks),
            "training": self.training_report,
        }
        write_description(folder, self.card.name, values)

    @classmethod
    def load(cls, folder: Path) -> Detector:
        """Read what :meth:`save` wrote.

        Raises:
            DataFileError: If the files do not fit each other, or are of the first edition.
        """
        values = read_description(folder, cls.card.name)
        require_this_edition(values, "n_networks", cls.card.name, folder)
        config, graphs = required(values, "config", folder), required(values, "graphs", folder)
        weights = read_weights(folder)
        try:
            detector = cls(**cls.settings(**config))
            schema = GraphSchema(**{name: _frozen(value) for name, value in graphs.items()})
            detector.scaler = detector._scaler(schema)
            networks = [detector._made(schema) for _ in range(int(values["n_networks"]))]
            for number, module in enumerate([detector.scaler, *networks]):
                _load_weights(module, weights, f"{number}.")
        except (RuntimeError, TypeError, ValueError, KeyError) as error:
            raise damaged(folder, error) from None
        detector.schema, detector.networks = schema, networks
        detector.training_report = dict(values.get("training") or {})
        return detector

    def _points(self) -> list[NetworkConfig]:
        """Every combination of the values to choose from."""
        names = list(self.config.search)
        return [
            self.config.model_copy(update=dict(zip(names, values, strict=True)))
            for values in product(*self.config.search.values())
        ]

    def _trained(
        self,
        graphs: ScaledGraphs,
        used: Int[np.ndarray, "used"],
        labels: Labels,
        folds: Sequence[tuple[Int[np.ndarray, "_"], Int[np.ndarray, "_"]]],
        config: NetworkConfig,
    ) -> "_Trained":
        """A network on each fold, with the logits of what it did not see."""
        from graphhalu.detectors.gnn.task import train

        assert self.schema is not None
        assert self.scaler is not None
        trained = _Trained(config, [], [], {})
        for train_indices, held_out in folds:
            training, stopping = (
                Subset(graphs, np.searchsorted(used, side).tolist()) for side in (train_indices, held_out)
            )
            network = self._made(self.schema, config, training)
            weight = _positive_weight(labels, train_indices)
            report = train(network, training, stopping, weight, config, log_folder=self.log_folder)
            trained.networks.append(network)
            trained.reports.append(report)
            logits = _batched(network, stopping)
            trained.out_of_fold.update(zip(held_out.tolist(), logits, strict=True))
        return trained

    def _scaler(self, schema: GraphSchema) -> InputScaler:
        is_hidden = hidden_columns(schema.node_feature_names)
        edge_dim = len(schema.edge_feature_names)
        return InputScaler(is_hidden, edge_dim, self._n_layers(schema), self.config.n_components)

    def _n_layers(self, schema: GraphSchema) -> int:
        return len(schema.layers) if self.config.view == "stacked" else 1

    def _made(
        self, schema: GraphSchema, config: NetworkConfig | None = None, training: Subset[Data] | None = None
    ) -> nn.Module:
        """A fresh network, tried on two scaled graphs where some are given."""
        assert self.scaler is not None
        config = config or self.config
        sizes = {
            "in_channels": self.scaler.n_features,
            "edge_dim": len(schema.edge_feature_names),
            "n_layers": self._n_layers(schema),
            "hidden_channels": config.hidden_size,
            "n_rounds": config.n_convolutions,
            "dropout": config.dropout,
            "level": self.card.level,
        }
        network = make_network(self.network_class, sizes, config.network)
        if training is not None:
            batch = Batch.from_data_list([training[0], training[min(1, len(training) - 1)]])
            check_network(network, batch, self.card.level)
        return network

    def _graphs(
        self, traces: Sequence[Trace], layers: tuple[int, ...], labels: Labels | None
    ) -> AttentionGraphs:
        recipe = self.config.recipe(layers, traces[0].shape)
        graphs = AttentionGraphs.of_recipe(traces, layers, recipe, labels)
        graphs.transform = type(self).transform
        return graphs

    def _layers(self, traces: Sequence[Trace]) -> tuple[int, ...]:
        if self.schema is not None:
            return self.schema.layers
        if not len(traces):
            message = f"{self.card.name} needs traces to fit on, got none"
            raise NotEnoughDataError(message)
        shape = traces[0].shape
        layers = tuple(self.config.layers or self.config.default_layers(shape))
        missing = [layer for layer in layers if layer not in shape.attention_layers]
        if missing:
            message = (
                f"the traces keep no attention of layers {missing}; "
                f"they keep {list(shape.attention_layers)}\n  Choose others:  --set layers=[…]"
            )
            raise ConfigError(message)
        return layers

    def _folds(
        self, traces: Sequence[Trace], labels: Labels, used: Int[np.ndarray, "used"]
    ) -> list[tuple[Int[np.ndarray, "_"], Int[np.ndarray, "_"]]]:
        """Grouped folds of the training side; all of it as one fold if there are few questions."""
        groups = np.full(len(labels.values), "", dtype=object)
        groups[used] = question_groups([traces[int(index)] for index in used])
        try:
            folds = inner_folds(
                labels.values, groups.astype(str), used, n_folds=self.config.n_folds, seed=self.config.seed
            )
        except NotEnoughDataError:
            return [(used, used)]
        both = [
            (fold.train, fold.held_out)
            for fold in folds
            if _has_both(labels, fold.train) and len(fold.held_out)
        ]
        return both or [(used, used)]

    def _check_classes(self, labels: Labels, used: Int[np.ndarray, "used"], failures: Sequence[str]) -> None:
        if len(used) and _has_both(labels, used):
            return
        n_positive = int(labels.values[used].sum())
        why = f"\n  {len(failures)} traces gave no graph: {failures[0]}" if failures else ""
        message = (
            f"{self.card.name} needs both classes on the training side, got {n_positive} "
            f"hallucinated and {len(used) - n_positive} correct traces{why}"
        )
        raise NotEnoughDataError(message)

    def _logits(self, traces: Sequence[Trace], schema: GraphSchema) -> dict[int, Float[np.ndarray, "_"]]:
        """Mean logits of the traces that have a graph."""
        for trace in traces:
            check_shape(trace, schema.model_shape)
        whole, indices = _unwrapped(traces)
        graphs = self._graphs(whole, schema.layers, None)
        usable, _ = _buildable(graphs, indices)
        if not len(usable):
            return {}
        self._check_names(graphs, schema)
        view = graphs.select(usable)
        logits = _batched(self._mean_logits, view)
        found = dict(zip(usable.tolist(), logits, strict=True))
        return {place: found[index] for place, index in enumerate(indices.tolist()) if index in found}

    def _check_names(self, graphs: AttentionGraphs, schema: GraphSchema) -> None:
        for kind in ("node_feature_names", "edge_feature_names"):
            came, expected = getattr(graphs, kind), getattr(schema, kind)
            if came != expected:
                differing = sorted(set(came) ^ set(expected))
                message = (
                    f"these traces give other {kind.replace('_', ' ')} than the detector was "
                    f"fitted on: {', '.join(differing[:5]) or 'another order'}\n  Train it again"
                )
                raise DetectorMismatchError(message)

    def _mean_logits(self, batch: Batch) -> Tensor:
        assert self.scaler is not None
        with torch.inference_mode():
            scaled = self.scaler(batch)
            return torch.stack([network(scaled) for network in self.networks]).mean(0)

    def _fitted(self) -> GraphSchema:
        if self.schema is None or not self.networks:
            raise self.unfitted()
        return self.schema


@dataclass(frozen=True)
class _Trained:
    """The networks of one point of the search."""

    config: NetworkConfig
    networks: list[nn.Module]
    reports: list[dict[str, Any]]
    out_of_fold: dict[int, Float[np.ndarray, "_"]]

    @property
    def loss(self) -> float:
        """Mean loss over the folds on what their networks did not see."""
        return float(np.mean([report[LOSS] for report in self.reports]))

    def auroc(self, labels: Labels) -> float | None:
        """AUROC over the answers of the training side, out of fold; ``None`` for one class."""
        indices = list(self.out_of_fold)
        truth = labels.values[indices]
        if not 0 < truth.sum() < len(truth):
            return None
        values = [float(np.max(self.out_of_fold[index])) for index in indices]
        return auroc(np.array(values), truth)


def network_detector(network_class: type[nn.Module]) -> type[NetworkDetector]:
    """A detector that trains a PyG module: its class, named as the module.

    Args:
        network_class: ``forward(batch)`` gives one logit a graph, ``[graph]``; it is
            made with the arguments of :func:`~graphhalu.detectors.gnn.modules.make_network`.
    """
    name = network_class.__name__
    summary = next(iter((network_class.__doc__ or "").strip().splitlines()), "")
    card = DetectorCard(
        name=name,
        summary=summary or f"the graph network {name}",
        source=f"The network {class_path(network_class)} on the graphs of gat.",
        inputs=("attention", "hidden", "likelihood"),
        is_supervised=True,
        is_graph=True,
    )
    # a saved one is found again by where its network is
    members = {
        "card": card,
        "network_class": network_class,
        "__doc__": summary,
        "__module__": network_class.__module__,
        "__qualname__": network_class.__qualname__,
    }
    return type(name, (NetworkDetector,), members)


def _batched(logits_of: Callable[[Batch], Tensor], graphs: Dataset[Data]) -> list[Float[np.ndarray, "_"]]:
    """Logits of each trace, batch by batch."""
    found: list[Float[np.ndarray, "_"]] = []
    with torch.inference_mode():
        for batch in DataLoader(graphs, SCORED_AT_ONCE):
            logits = logits_of(batch).double().cpu().numpy()
            if len(logits) == batch.num_graphs:
                found += list(logits[:, None])
            else:
                n_tokens = torch.bincount(batch.batch[batch.is_answer], minlength=batch.num_graphs)
                found += np.split(logits, n_tokens.cumsum(0)[:-1].tolist())
    return found


def _unwrapped(traces: Sequence[Trace]) -> tuple[Sequence[Trace], Int[np.ndarray, "trace"]]:
    """The whole sequence that a view was taken from, whose graphs may be built already."""
    indices = np.arange(len(traces))
    while hasattr(traces, "traces") and hasattr(traces, "indices"):
        indices = np.asarray(traces.indices, dtype=np.int64)[indices]
        traces = traces.traces
    return traces, indices


def _buildable(
    graphs: AttentionGraphs, indices: Int[np.ndarray, "side"]
) -> tuple[Int[np.ndarray, "usable"], list[str]]:
    """Traces that have a graph, and why others have none."""
    usable, failures = [], []
    for index in indices.tolist():
        try:
            graphs.get(index)
        except GraphhaluError as error:
            failures.append(str(error))
        else:
            usable.append(index)
    return np.array(usable, dtype=np.int64), failures


def _check_level(labels: Labels, level: Level) -> None:
    if level == "token" and labels.tokens is None:
        message = "a token detector needs labels of tokens: label_tokens(records)"
        raise UsageError(message)


def _items(labels: Labels, indices: Int[np.ndarray, "side"]) -> Int[np.ndarray, "item"]:
    """Labels of some traces, or of their answer tokens."""
    if labels.tokens is None:
        return labels.values[indices]
    return np.concatenate([np.zeros(0, dtype=np.int64), *(labels.tokens[i] for i in indices)])


def _has_both(labels: Labels, indices: Int[np.ndarray, "side"]) -> bool:
    return len(np.unique(_items(labels, indices))) > 1


def _positive_weight(labels: Labels, indices: Int[np.ndarray, "side"]) -> float:
    values = _items(labels, indices)
    return float((len(values) - values.sum()) / values.sum())


def _load_weights(network: nn.Module, weights: Mapping[str, Tensor], prefix: str) -> None:
    own = {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}
    network.load_state_dict(own)
    network.eval()


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
