"""Graph networks as detectors: graphs of traces, a network on each inner fold, mean logits.

Lightning takes seconds to import, so it is imported where a detector is fitted. A network of a
user needs no code here: :func:`network_detector` makes a detector of any PyG module. A registered
one is a subclass of :class:`NetworkDetector` with a card.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, product
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import ConfigDict
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader

from graphhalu.core.config import Config, validate
from graphhalu.core.errors import ConfigError, DetectorMismatchError, GraphhaluError, NotEnoughDataError
from graphhalu.core.numerics import auroc
from graphhalu.core.registry import class_path
from graphhalu.core.splits import InnerFold, Split, inner_folds
from graphhalu.detectors.base import Attribution, ChosenTraces, Detector, DetectorCard, Scores, check_classes
from graphhalu.detectors.columns import check_shape, describe_shape
from graphhalu.detectors.gnn.attribution import attribute_graph
from graphhalu.detectors.gnn.config import LOSS, QUICK, NetworkConfig
from graphhalu.detectors.gnn.inputs import InputScaler, ScaledGraphs, wide_blocks
from graphhalu.detectors.gnn.networks import check_network, make_network, n_parameters, network_arguments
from graphhalu.detectors.saved import TrainedConfig, TrainedDetector, read_weights, write_weights
from graphhalu.graphs.dataset import AttentionGraphs
from graphhalu.labels.labels import Labels, question_groups
from graphhalu.traces.trace import Trace

SCORED_AT_ONCE: Final = 32
"""Traces of a batch when scoring."""
TRIED: Final = 16
"""Traces that are looked at for what they keep."""


class GraphSchema(Config):
    """The graphs that a network was fitted on; it reads only such graphs."""

    model_config = ConfigDict(protected_namespaces=())

    layers: tuple[int, ...]
    """Layers of the language model."""
    node_feature_names: tuple[str, ...]
    """Columns of ``x``."""
    edge_feature_names: tuple[str, ...]
    """Columns of ``edge_attr``."""
    model_shape: dict[str, Any]
    """Sizes of the language model."""


class NetworkDetector(TrainedDetector):
    """A graph network on each inner fold of the training side; the score is their mean logit.

    Early stopping looks at the part of the training side that a fold's network does not see, so
    the validation side is left to calibration.

    Args:
        seed: Seed of folds, weights, dropout and order; by default that of the configuration.
        config: Settings.
    """

    config_class: ClassVar[type[TrainedConfig]] = NetworkConfig
    quick_settings: ClassVar[Mapping[str, Any]] = QUICK
    saved_fields: ClassVar[tuple[str, ...]] = ("config", "graphs")
    new_field: ClassVar[str] = "n_networks"
    network_class: ClassVar[type[nn.Module]]
    """A PyG module; see :func:`~graphhalu.detectors.gnn.networks.make_network` for its arguments."""
    transform: ClassVar[Callable[[Data], Data] | None] = None
    """Changes every graph before it is read, as a control does."""
    relations: ClassVar[tuple[str, ...]] = ()
    """Columns that it adds to ``edge_attr``."""
    node_relations: ClassVar[tuple[str, ...]] = ()
    """Columns that it adds to ``x``."""

    config: NetworkConfig

    schema: GraphSchema | None = None
    scaler: InputScaler | None = None
    networks: Sequence[nn.Module] = ()
    out_of_fold: Mapping[int, Float[np.ndarray, "_"]] = {}
    """Logits of each training trace from networks that never saw its question."""
    log_folder: Path | None = None
    """Where Lightning's logger writes; nothing is logged without."""

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

        if self.card.level == "token":
            labels.token_labels(self.card.name)
        self.schema = None  # layers of an earlier fit say nothing of these traces
        self.check(traces)
        self.config = self.config.for_rows(_tried(traces))
        points = self._points()
        layers = self._layers(traces)
        graphs = self._graphs(traces, layers, labels)
        used, failures = _buildable(graphs, np.sort(split.train[labels.is_valid[split.train]]))
        way_out = f"No graph: {failures[0]}" if failures else ""
        check_classes(labels.items[labels.places(used)], self.card, n_without=len(failures), way_out=way_out)
        self.schema = GraphSchema(
            layers=layers, **self._column_names(graphs), model_shape=describe_shape(traces[0].shape)
        )
        folds = self._folds(traces, labels, used)
        self.scaler = self._scaler(self.schema).fit(graphs.select(used), self.config.seed)
        scaled = ScaledGraphs(graphs.select(used), self.scaler)
        best_loss, reports = np.inf, []
        with seeded(self.config.seed):
            for config in points:
                trained = [self._trained(scaled, labels, used, fold, config) for fold in folds]
                loss = float(np.mean([report[LOSS] for _, report, _ in trained]))
                if loss < best_loss:
                    best_loss, self.config = loss, config
                    self.networks, reports, logits = map(list, zip(*trained, strict=True))
                    held_out = [used[fold.held_out].tolist() for fold in folds]
                    self.out_of_fold = dict(zip(chain(*held_out), chain(*logits), strict=True))
        self.training_report = {
            "n_train": len(used),
            "n_without_graph": len(failures),
            "n_folds": len(folds),
            "n_parameters": n_parameters(self.networks[0]),
            "inner_loss": best_loss,
            "inner_auroc": _answer_auroc(self.out_of_fold, labels),
            "networks": reports,
            "chosen": {name: getattr(self.config, name) for name in self.config.search},
        }
        return self

    def score(self, traces: Sequence[Trace]) -> Scores:
        """Mean logit of each trace, or of each answer token; NaN for a trace without a graph.

        Raises:
            DetectorMismatchError: If a trace is of a model of another shape, or the traces are of
                another model, quantisation or prompt than a loaded detector's.
        """
        schema = self._fitted(traces)
        is_token = self.card.level == "token"
        found = [np.full(trace.answer_length if is_token else 1, np.nan) for trace in traces]
        for place, logits in self._logits(traces, schema) if len(traces) else ():
            found[place] = logits
        return Scores.ragged(found) if is_token else Scores.of(np.array(found).reshape(-1))

    def attribute(self, trace: Trace) -> Attribution | None:
        """Effect of each edge, and of each head on the edges; ``None`` without a graph."""
        schema = self._fitted()
        check_shape(trace, schema.model_shape)
        try:
            data = self._graphs([trace], schema.layers, None)[0]
        except GraphhaluError:
            return None
        shape = (trace.shape.n_layers, trace.shape.n_heads)
        return attribute_graph(self._mean_logits, data, schema.layers, schema.edge_feature_names, shape)

    @property
    def n_parameters(self) -> int | None:
        """Weights of all networks."""
        return sum(n_parameters(network) for network in self.networks) if self.networks else None

    def write(self, folder: Path) -> dict[str, Any]:
        """Write weights with standardisation; describe the graphs."""
        schema = self._fitted()
        write_weights(folder, nn.ModuleList([self.fitted(self.scaler), *self.networks]).state_dict())
        return {"graphs": schema.model_dump(mode="json"), "n_networks": len(self.networks)}

    def restore(self, folder: Path, values: Mapping[str, Any]) -> None:
        """Take over weights and graphs of a saved detector."""
        self.schema = GraphSchema.model_validate(values["graphs"])
        self.scaler = self._scaler(self.schema)
        self.networks = [self._made(self.schema, self.config) for _ in range(int(values["n_networks"]))]
        modules = nn.ModuleList([self.scaler, *self.networks])
        modules.load_state_dict(read_weights(folder))
        modules.eval()

    def _points(self) -> list[NetworkConfig]:
        """Every combination of the values to choose from.

        Raises:
            ConfigError: If a value is none that the setting can have.
        """
        names, plain = list(self.config.search), self.config.model_dump()
        return [
            validate(type(self.config), {**plain, **dict(zip(names, values, strict=True))}, source="search")
            for values in product(*self.config.search.values())
        ]

    def _trained(
        self,
        graphs: ScaledGraphs,
        labels: Labels,
        used: Int[np.ndarray, "used"],
        fold: InnerFold,
        config: NetworkConfig,
    ) -> tuple[nn.Module, dict[str, Any], list[Float[np.ndarray, "_"]]]:
        """A network trained on one part of a fold, a report, and the logits of what it did not see."""
        from graphhalu.detectors.gnn.task import train

        assert self.schema is not None
        training, stopping = (Subset(graphs, part.tolist()) for part in fold)
        network = self._made(self.schema, config)
        # lazy layers get their sizes here
        first = Batch.from_data_list([training[0], training[min(1, len(training) - 1)]])
        check_network(network, first, self.card.level)
        learnt = labels.items[labels.places(used[fold.train])]
        weight = float((len(learnt) - learnt.sum()) / learnt.sum()) ** config.balance
        report = train(network, training, stopping, weight, config, log_folder=self.log_folder)
        return network, report, _batched(network, stopping)

    def _scaler(self, schema: GraphSchema) -> InputScaler:
        wide = wide_blocks(schema.node_feature_names)
        edge_dim = len(schema.edge_feature_names)
        return InputScaler(wide, edge_dim, self._n_layers(schema), self.config.n_components)

    def _n_layers(self, schema: GraphSchema) -> int:
        return len(schema.layers) if self.config.view == "stacked" else 1

    def _made(self, schema: GraphSchema, config: NetworkConfig) -> nn.Module:
        assert self.scaler is not None
        sizes = {
            "in_channels": self.scaler.n_features,
            "edge_dim": len(schema.edge_feature_names),
            "n_layers": self._n_layers(schema),
            "hidden_channels": config.hidden_size,
            "n_rounds": config.n_convolutions,
            "dropout": config.dropout,
            "level": self.card.level,
        }
        return make_network(self.network_class, sizes, config.network)

    def _graphs(
        self, traces: Sequence[Trace], layers: tuple[int, ...], labels: Labels | None
    ) -> AttentionGraphs:
        # one that keeps the most: a single one that cannot be read decides nothing
        recipe = self.config.recipe(layers, max(_tried(traces), key=lambda trace: len(trace.arrays)))
        graphs = AttentionGraphs.of_recipe(traces, layers, recipe, labels)
        graphs.transform = type(self).transform
        return graphs

    def _column_names(self, graphs: AttentionGraphs) -> dict[str, Any]:
        """Columns of ``x`` and ``edge_attr`` as networks get them, by their name in :class:`GraphSchema`."""
        return {
            "node_feature_names": (*graphs.node_feature_names, *self.node_relations),
            "edge_feature_names": (*graphs.edge_feature_names, *self.relations),
        }

    def _layers(self, traces: Sequence[Trace]) -> tuple[int, ...]:
        if self.schema is not None:
            return self.schema.layers
        if not len(traces):
            raise NotEnoughDataError(f"{self.card.name} needs traces to fit on, got none")
        shape = traces[0].shape
        layers = tuple(self.config.layers or self.config.default_layers(shape))
        missing = [layer for layer in layers if layer not in shape.attention_layers]
        if missing:
            raise ConfigError(
                f"the traces keep no attention of layers {missing}; "
                f"they keep {list(shape.attention_layers)}\n  Choose others:  --set layers=[…]"
            )
        return layers

    def _folds(
        self, traces: Sequence[Trace], labels: Labels, used: Int[np.ndarray, "used"]
    ) -> list[InnerFold]:
        """Grouped folds of the used traces; all of them as one fold if there are few questions."""
        groups = question_groups([traces[int(index)] for index in used])
        every, sizes = np.arange(len(used)), {"n_folds": self.config.n_folds, "seed": self.config.seed}
        try:
            folds = inner_folds(labels.values[used], groups, every, **sizes)
        except NotEnoughDataError:
            folds = []
        has_both = [len(np.unique(labels.items[labels.places(used[fold.train])])) > 1 for fold in folds]
        kept = [fold for fold, is_kept in zip(folds, has_both, strict=True) if is_kept and len(fold.held_out)]
        return kept or [InnerFold(every, every)]

    def _logits(
        self, traces: Sequence[Trace], schema: GraphSchema
    ) -> Iterator[tuple[int, Float[np.ndarray, "_"]]]:
        """Place and mean logits of each trace that has a graph."""
        for trace in traces:
            check_shape(trace, schema.model_shape)
        whole, indices = _unwrapped(traces)
        graphs = self._graphs(whole, schema.layers, None)
        usable, _ = _buildable(graphs, indices)
        if not len(usable):
            return
        for kind, came in self._column_names(graphs).items():
            expected = getattr(schema, kind)
            if came != expected:
                differing = sorted(set(came) ^ set(expected))
                raise DetectorMismatchError(
                    f"these traces give other {kind.replace('_', ' ')} than the detector was "
                    f"fitted on: {', '.join(differing[:5]) or 'another order'}\n  Train it again"
                )
        logits = _batched(self._mean_logits, graphs.select(usable))
        places = np.flatnonzero(np.isin(indices, usable))
        yield from zip(places.tolist(), logits, strict=True)

    def _mean_logits(self, batch: Batch) -> Tensor:
        assert self.scaler is not None
        with torch.inference_mode():
            scaled = self.scaler(batch)
            return torch.stack([network(scaled) for network in self.networks]).mean(0)

    def _fitted(self, traces: Sequence[Trace] = ()) -> GraphSchema:
        return self.fitted(self.schema if self.networks else None, traces)


def _answer_auroc(logits: Mapping[int, Float[np.ndarray, "_"]], labels: Labels) -> float | None:
    """AUROC over answers by their largest logit; ``None`` for one class."""
    truth = labels.values[list(logits)]
    if not 0 < truth.sum() < len(truth):
        return None
    return auroc(np.array([float(np.max(each)) for each in logits.values()]), truth)


def network_detector(network_class: type[nn.Module]) -> type[NetworkDetector]:
    """A detector that trains a PyG module: its class, named as the module.

    Args:
        network_class: ``forward(batch)`` gives one logit a graph, ``[graph]``; it is
            made with the arguments of :func:`~graphhalu.detectors.gnn.networks.make_network`.
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
    while isinstance(traces, ChosenTraces):
        indices = np.asarray(traces.indices, dtype=np.int64)[indices]
        traces = traces.traces
    return traces, indices


def _tried(traces: Sequence[Trace]) -> list[Trace]:
    """The first traces, which say how the others are."""
    return [traces[place] for place in range(min(len(traces), TRIED))]


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
