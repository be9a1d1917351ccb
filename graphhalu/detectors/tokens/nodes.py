"""Graph networks with a logit on every answer token."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar, Final, final

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field

from graphhalu.detectors.base import Detector, DetectorCard, Scores
from graphhalu.detectors.graph_pieces import GraphPiece
from graphhalu.detectors.graph_schema import GraphSchema
from graphhalu.detectors.identity import check_identity
from graphhalu.detectors.networks.base import NetworkShape, NetworkSize
from graphhalu.detectors.networks.node_head import NodeHead
from graphhalu.detectors.token_samples import labelled_traces
from graphhalu.detectors.tokens.pieces import NodeRecipe, node_pieces, token_count
from graphhalu.detectors.trained import TrainedConfig, TrainedDetector
from graphhalu.errors import ConfigError, NotEnoughDataError
from graphhalu.labels.labels import Labels
from graphhalu.splits import Split
from graphhalu.traces.schema import TraceShape
from graphhalu.traces.trace import Trace

_LAYERS: Final = 6


class NodeHeadConfig(TrainedConfig):
    """Settings of a node head."""

    epochs: Annotated[int, Field(ge=1)] = 20
    """Epochs at most."""
    patience: Annotated[int, Field(ge=1)] = 4
    """Epochs without a higher AUROC over validation tokens before training stops."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 3e-3
    """Step size of AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    """Weight decay of AdamW."""
    hidden_size: Annotated[int, Field(ge=4)] = 32
    """Channels of every layer."""
    n_convolutions: Annotated[int, Field(ge=1, le=4)] = 2
    """Rounds of message passing."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Share of activations that training drops."""
    layers: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    """Layers whose heads are on nodes and edges; by default six, spread evenly."""
    tau: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Attention that a head must pass to make an edge; below, its weight counts as 0."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Traces a step."""


@dataclass(frozen=True)
class _Side:
    """Graphs of the usable traces of a side with the labels of their tokens."""

    pieces: list[GraphPiece]
    labels: list[Float[torch.Tensor, "_"]]
    failures: list[str]


class NodeDetector(TrainedDetector):
    """A node head on the graph of a trace; every token is scored with its trace alone."""

    config_class: ClassVar[type[TrainedConfig]] = NodeHeadConfig
    saved_fields: ClassVar[tuple[str, ...]] = ("graphs",)
    has_edges: ClassVar[bool] = True
    """Whether messages are passed at all."""

    config: NodeHeadConfig

    def __init__(self, seed: int | None = None, config: TrainedConfig | None = None) -> None:
        super().__init__(seed, config)
        self.schema: GraphSchema | None = None
        self.network: NodeHead | None = None

    def fit(self, traces: Sequence[Trace], labels: Labels, split: Split) -> Detector:
        """Train on the labelled tokens of the training side, stop by those of validation.

        Traces whose graphs cannot be made are left out.
        """
        from graphhalu.detectors.graph_pack import GraphPack
        from graphhalu.detectors.task import seeded
        from graphhalu.detectors.tokens.training import NodeTraining, TokenPack, train_nodes

        chosen = labelled_traces(labels, split.train, self.card.name)
        held_out = np.sort(split.validation[labels.is_valid[split.validation]]).tolist()
        first = traces[chosen[0]]
        recipe = self._recipe(_layers(self.config, first.shape))
        tokens = labels.token_labels(self.card.name)
        train, validation = (_side(traces, tokens, side, recipe) for side in (chosen, held_out))
        _check(train, validation, self.card.name)
        schema = GraphSchema.of(first, recipe.layers, train.pieces[0])
        packs = [
            TokenPack(GraphPack.of(side.pieces), tuple(side.labels)) for side in (train, validation)
        ]
        with seeded(self.config.seed):
            network = self._network(schema)
            network.standardise_by(list(packs[0].graphs.x))
            values = (getattr(self.config, name) for name in NodeTraining._fields)
            report = train_nodes(network, packs[0], packs[1], NodeTraining(*values))
        self.schema, self.network = schema, network
        self.training_report = {
            "n_train": len(train.labels), "n_validation": len(validation.labels),
            "n_tokens": sum(len(each) for each in train.labels),
            "n_parameters": network.n_parameters, "layers": list(recipe.layers), **report,
        }  # fmt: skip
        return self

    def score(self, traces: Sequence[Trace]) -> Scores:
        """Logit of each answer token; NaN for the tokens of a trace without a graph.

        Raises:
            DetectorMismatchError: If a trace is of a model of another shape.
        """
        if self.schema is None or self.network is None:
            raise self.unfitted()
        check_identity(self.identity, traces)
        found: list[Float[np.ndarray, "_"]] = []
        pieces = node_pieces(traces, range(len(traces)), self._recipe(self.schema.layers))
        for trace, piece in zip(traces, pieces, strict=True):
            self.schema.check_model(trace)
            if isinstance(piece, GraphPiece):
                self.schema.check_features(trace, piece)
                found.append(_logits(self.network, piece))
            else:
                found.append(np.full(trace.answer_length, np.nan))
        return Scores.ragged(found)

    def arrays(self) -> dict[str, np.ndarray]:
        """Weights with standardisation."""
        if self.network is None:
            raise self.unfitted()
        return {name: value.numpy() for name, value in self.network.state_dict().items()}

    def description(self) -> dict[str, Any]:
        """What the graphs are made of."""
        assert self.schema is not None
        return {"graphs": asdict(self.schema)}

    def restore(self, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """Take over the graphs and weights of a saved network."""
        graphs = {name: _frozen(value) for name, value in values["graphs"].items()}
        self.schema = GraphSchema(**graphs)
        self.network = self._network(self.schema)
        weights = {name: torch.from_numpy(value) for name, value in arrays.items()}
        self.network.load_state_dict(weights)
        self.network.eval()

    def _network(self, schema: GraphSchema) -> NodeHead:
        config = self.config
        shape = NetworkShape(schema.n_graphs, len(schema.node_feature_names), schema.n_channels)
        size = NetworkSize(config.hidden_size, config.n_convolutions, config.dropout)
        return NodeHead(shape, size)

    def _recipe(self, layers: tuple[int, ...]) -> NodeRecipe:
        return NodeRecipe(layers, self.config.tau, self.config.n_convolutions, self.has_edges)


@final
class TokenGraphDetector(NodeDetector):
    """CHARM with a logit on every answer token."""

    card: ClassVar[DetectorCard] = DetectorCard(
        name="token-graph",
        summary="message passing over attention, a logit on every answer token",
        source=(
            "Frasca et al., CHARM, OpenReview 4twbqwV4br, its token-level form. Different from "
            "it: six layers in place of all; beside its own weight a node has sink share and "
            "entropy of every head and its named span, a prompt token the span alone; a token is "
            "read from the row that produces it and from its own; features are standardised."
        ),
        inputs=("attention",),
        is_supervised=True,
        level="token",
        reads=("edge_key", "edge_weight", "self_attention", "sink_keys", "row_entropy"),
        is_graph=True,
    )


@final
class TokenNoEdges(NodeDetector):
    """The same network without messages."""

    has_edges: ClassVar[bool] = False
    card: ClassVar[DetectorCard] = DetectorCard(
        name="token-no-edges",
        summary="the nodes of token-graph without edges",
        source=(
            "Control: the ablation 'no graph' of CHARM. Nodes, head and training are those of "
            "token-graph, so what that adds comes from edges."
        ),
        inputs=("attention",),
        is_supervised=True,
        level="token",
        is_control=True,
        reads=("self_attention", "sink_keys", "row_entropy"),
    )


def _side(
    traces: Sequence[Trace],
    tokens: Sequence[Int[np.ndarray, "_"]],
    indices: Sequence[int],
    recipe: NodeRecipe,
) -> _Side:
    side = _Side([], [], [])
    for index, piece in zip(indices, node_pieces(traces, indices, recipe), strict=True):
        if isinstance(piece, GraphPiece):
            side.pieces.append(piece)
            side.labels.append(_targets(tokens[index], piece))
        else:
            side.failures.append(str(piece))
    return side


def _targets(values: Int[np.ndarray, "token"], piece: GraphPiece) -> Float[torch.Tensor, "token"]:
    assert token_count(piece) == len(values)
    return torch.from_numpy(values.astype(np.float32))


def _check(train: _Side, validation: _Side, name: str) -> None:
    values = np.concatenate([each.numpy() for each in train.labels] or [np.zeros(0)])
    if len(np.unique(values)) < 2 or not validation.labels:  # noqa: PLR2004
        failures = train.failures + validation.failures
        why = f"\n  {len(failures)} traces gave no graph: {failures[0]}" if failures else ""
        message = (
            f"{name} needs tokens of both classes to train on and one answer to validate on, got "
            f"{int(values.sum())} hallucinated of {len(values)} tokens and "
            f"{len(validation.labels)} answers{why}"
        )
        raise NotEnoughDataError(message)


def _layers(config: NodeHeadConfig, shape: TraceShape) -> tuple[int, ...]:
    kept = shape.attention_layers
    if config.layers is None:
        places = np.linspace(0, len(kept) - 1, min(_LAYERS, len(kept)))
        return tuple(kept[place] for place in np.unique(np.rint(places).astype(int)).tolist())
    missing = [layer for layer in config.layers if layer not in kept]
    if missing:
        message = (
            f"the traces keep no attention of layers {missing}; they keep {list(kept)}\n"
            f"  Choose others:  --set layers=[…]"
        )
        raise ConfigError(message)
    return config.layers


def _logits(network: NodeHead, piece: GraphPiece) -> Float[np.ndarray, "token"]:
    from graphhalu.detectors.graph_pack import GraphPack

    with torch.inference_mode():
        batch = GraphPack.of([piece]).batch(torch.zeros(1, dtype=torch.int64))
        logits: Float[np.ndarray, "token"] = network(batch).numpy().astype(np.float64)
    return logits


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
