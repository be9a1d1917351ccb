"""Settings of graph detectors."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import Field, field_validator

from graphhalu.detectors.saved import TrainedConfig
from graphhalu.graphs.edges import DEFAULT_NODES, EdgeRule, GraphRecipe, Threshold, TopK
from graphhalu.graphs.nodes import check_blocks
from graphhalu.traces.schema import TraceShape
from graphhalu.traces.trace import Trace

SEARCHED: Final = (
    *("epochs", "patience", "learning_rate", "weight_decay", "batch_size"),
    *("hidden_size", "n_convolutions", "dropout", "network"),
)
"""Settings that a search can choose; all others decide on graphs, folds or machines."""
QUICK: Final[Mapping[str, Any]] = {"n_folds": 2, "patience": 3}
"""Settings of a quick comparison: fewer trainings than by default, on less data, and stopped earlier."""
LOSS: Final = "validation_loss"
"""Name of the loss that decides between settings, and by default when to stop."""
PRECISION: Final = "validation_average_precision"
"""Name of the average precision."""
StopBy = Literal["validation_loss", "validation_average_precision"]
"""What can decide which epoch is the best."""


class NetworkConfig(TrainedConfig):
    """Settings of a detector that trains a graph network.

    By default a graph a trace: the strongest attention of three layers, at 1/3, 1/2 and 2/3 of
    the depth, with every head of all three on the edges.
    """

    network: Mapping[str, Any] = {}
    """Arguments of the network that are not settings here, by the names of its signature."""
    epochs: Annotated[int, Field(ge=1)] = 30
    """Epochs at most."""
    patience: Annotated[int, Field(ge=1)] = 5
    """Epochs without a better one on the held-out inner fold before training stops."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 3e-3
    """Step size of AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    """Weight decay of AdamW."""
    hidden_size: Annotated[int, Field(ge=4)] = 32
    """Channels of every layer of the network."""
    n_convolutions: Annotated[int, Field(ge=1, le=4)] = 2
    """Rounds of message passing; of blocks, where there are no messages."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Share of activations that training drops."""
    n_folds: Annotated[int, Field(ge=2)] = 3
    """Folds within the training side. A network is trained on each, stopped by the part that it
    did not see, and the score is the mean of their logits."""
    search: Mapping[str, tuple[Any, ...]] = {}
    """Settings of networks and their training (``SEARCHED``) with the values to choose from, by the loss on
    the inner folds: each combination is trained."""
    view: Literal["stacked", "multiplex"] = "multiplex"
    """One graph a trace: with the heads of all layers on its edges, or the graphs of the layers
    side by side."""
    layers: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    """Layers of the language model; by default what suits the detector."""
    nodes: Annotated[tuple[str, ...], Field(min_length=1)] = (*DEFAULT_NODES, "hidden")
    """Blocks of node features. ``hidden@LAYER`` is one layer's hidden states in every graph;
    ``hidden`` is that of the middle one of the layers, left out where the traces keep none."""
    n_components: Annotated[int, Field(ge=1)] = 16
    """Principal components, fitted on the training side, that stand for hidden states."""
    edges_per_row: Annotated[int, Field(ge=1)] = 8
    """Strongest keys of each query that become edges."""
    sinks: Literal["keep", "remove", "renormalise"] = "remove"
    """Whether the first four tokens, which most attention goes to, send messages."""
    prompt_edges: bool = True
    """Whether tokens of the prompt receive messages too; by default not where only rows of the answer
    are kept."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Traces a step."""
    balance: Annotated[float, Field(ge=0, le=1)] = 1.0
    """1: the loss weighs both classes alike, however rare one is; 0: all items alike; between them the
    weight of hallucinated ones is this power of correct over hallucinated."""
    stop_by: StopBy = LOSS
    """What decides which epoch is the best."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of folds, weights, dropout and the order of batches."""
    devices: Annotated[int, Field(ge=1)] = 1
    """Processes that share every step: GPUs, or parts of the CPU."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """What they train on; by default the GPU if there is one."""
    logger: Literal["csv", "tensorboard", "wandb", "none"] = "csv"
    """Lightning's logger of a training that is kept; a comparison logs nothing."""

    @property
    def edges(self) -> EdgeRule:
        """Rule that chooses edges."""
        return TopK(self.edges_per_row)

    def for_rows(self, traces: Sequence[Trace]) -> "NetworkConfig":
        """Without edges of the prompt where no trace keeps its rows, unless they are asked for."""
        is_asked = "prompt_edges" in self.model_fields_set
        keeps_prompt = any(each.record.row_start < each.prompt_length - 1 for each in traces)
        return self if is_asked or keeps_prompt else self.model_copy(update={"prompt_edges": False})

    def recipe(self, layers: tuple[int, ...], trace: Trace) -> GraphRecipe:
        """How graphs of these layers are built.

        Args:
            layers: Model layers.
            trace: One of those that are read; hidden states that it does not keep are left out.
        """
        middle = layers[len(layers) // 2]
        keeps_hidden = middle + 1 in trace.shape.hidden_layers
        nodes = [name for name in self.nodes if name != "hidden" or keeps_hidden]
        return GraphRecipe(
            edges=self.edges,
            nodes=tuple(f"hidden@{middle}" if name == "hidden" else name for name in nodes),
            prompt_edges=self.prompt_edges,
            importance="max" if isinstance(self.edges, Threshold) else "mean",
            view=self.view,
            sinks=self.sinks,
        )

    def default_layers(self, shape: TraceShape) -> tuple[int, ...]:
        """Layers of the language model where none are given: three."""
        from graphhalu.graphs.dataset import default_layers

        return default_layers(shape)

    @field_validator("nodes")
    @classmethod
    def _known(cls, nodes: tuple[str, ...]) -> tuple[str, ...]:
        check_blocks(nodes)
        return nodes

    @field_validator("search")
    @classmethod
    def _are_settings(cls, search: Mapping[str, tuple[Any, ...]]) -> Mapping[str, tuple[Any, ...]]:
        for name, values in search.items():
            if name not in cls.model_fields or not values:
                raise ValueError(f"expected settings with the values to try, got {name}={list(values)}")
            if name not in SEARCHED:
                raise ValueError(
                    f"{name} cannot be searched: graphs and folds are made once for all candidates; compare "
                    f"two detectors instead. What can be searched: {', '.join(SEARCHED)}"
                )
        return search


class CHARMConfig(NetworkConfig):
    """Settings of CHARM: one graph a trace, every layer and head on its edges."""

    view: Literal["multiplex"] = "multiplex"
    """Every layer and head on the edges of one graph."""
    nodes: Annotated[tuple[str, ...], Field(min_length=1)] = ("diagonal", "span")
    """Blocks of node features. The paper's second form has ``hidden`` beside the diagonal."""
    tau: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Attention that a head must pass; below, its weight counts as 0. An edge exists where any
    head of any layer passes."""
    sinks: Literal["keep", "remove", "renormalise"] = "keep"
    """Whether the first four tokens, which most attention goes to, send messages."""
    prompt_edges: bool = False
    """Whether tokens of the prompt receive messages too."""

    @property
    def edges(self) -> EdgeRule:
        """A threshold on single heads."""
        return Threshold(self.tau, censor=True)

    def default_layers(self, shape: TraceShape) -> tuple[int, ...]:
        """Every layer that is kept."""
        return shape.attention_layers


class TokenNetworkConfig(CHARMConfig):
    """Settings of a graph network with a logit on every answer token."""

    answer_loss: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the loss of an answer, whose logit is the largest of its tokens."""
    epochs: Annotated[int, Field(ge=1)] = 20
    """Epochs at most."""
    patience: Annotated[int, Field(ge=1)] = 4
    """Epochs without a better one on the held-out inner fold before training stops."""
    nodes: Annotated[tuple[str, ...], Field(min_length=1)] = ("span", "diagonal", "sink", "entropy")
    """Blocks of node features."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Traces a step."""

    def default_layers(self, shape: TraceShape) -> tuple[int, ...]:
        """Six layers, spread evenly."""
        kept = shape.attention_layers
        n_layers = min(6, len(kept))
        places = [round(i * (len(kept) - 1) / max(n_layers - 1, 1)) for i in range(n_layers)]
        return tuple(kept[place] for place in sorted(set(places)))
