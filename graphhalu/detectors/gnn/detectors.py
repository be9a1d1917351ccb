"""The graph networks that are registered: what each reads, where it comes from, its network."""

from collections.abc import Callable
from typing import ClassVar, Final, final

from torch import nn
from torch_geometric.data import Data

from graphhalu.detectors.base import DetectorCard
from graphhalu.detectors.gnn.config import CHARMConfig, TokenNetworkConfig
from graphhalu.detectors.gnn.detector import NetworkDetector
from graphhalu.detectors.gnn.networks import CHARM, GAT, GCN, MLP
from graphhalu.detectors.gnn.rewire import rewired, without_edges
from graphhalu.detectors.trained import TrainedConfig

_READS: Final = (
    "attention",
    "hidden",
    "span_code",
    "received",
    "sink_keys",
    "self_attention",
    "row_entropy",
    "token_logprob",
    "token_entropy",
    "top1_margin",
)
"""Arrays that graphs with the default blocks of node features are made of."""
_TRAINING: Final = (
    " Nodes carry principal components of the middle layer's hidden states, fitted on the training "
    "side. The score is the mean of three networks, each stopped by an inner fold that it did not "
    "see."
)


@final
class GCNDetector(NetworkDetector):
    """Graph convolution over the mean attention of the heads."""

    network_class: ClassVar[type[nn.Module]] = GCN
    card: ClassVar[DetectorCard] = DetectorCard(
        name="gcn",
        summary="graph convolution over the attention of three layers, averaged on the edges",
        source=(
            "Kipf and Welling 2017, arXiv:1609.02907, on attention graphs with directed, weighted "
            "edges, without edges from the first four tokens." + _TRAINING
        ),
        inputs=("attention", "hidden", "likelihood"),
        is_supervised=True,
        reads=_READS,
        is_graph=True,
    )


@final
class GATDetector(NetworkDetector):
    """Graph attention, and sums of absolute mass, with every head on the edges."""

    network_class: ClassVar[type[nn.Module]] = GAT
    card: ClassVar[DetectorCard] = DetectorCard(
        name="gat",
        summary="graph attention and sums of attention over three layers, every head on the edges",
        source=(
            "Shi et al. 2021, arXiv:2009.03509 (attention with edge features), plus sums of "
            "attention that keep absolute mass, by head, layer and span of the key; without edges "
            "from the first four tokens." + _TRAINING
        ),
        inputs=("attention", "hidden", "likelihood"),
        is_supervised=True,
        reads=_READS,
        is_graph=True,
    )


@final
class CHARMDetector(NetworkDetector):
    """CHARM on all layers and heads at once."""

    config_class: ClassVar[type[TrainedConfig]] = CHARMConfig
    network_class: ClassVar[type[nn.Module]] = CHARM
    card: ClassVar[DetectorCard] = DetectorCard(
        name="charm",
        summary="message passing on one graph a trace, every layer and head on nodes and edges",
        source=(
            "Frasca et al., CHARM, OpenReview 4twbqwV4br (attention only). Different from it: "
            "features are standardised, hallucinated answers are the positive class and weighted "
            "by their share, mean and maximum of the answer are read out, and the score is the "
            "mean of three networks, each stopped by an inner fold. "
            "nodes=[diagonal,hidden] is its second form, with one layer's hidden states."
        ),
        inputs=("attention",),
        is_supervised=True,
        reads=("attention", "span_code", "self_attention"),
        is_graph=True,
    )


@final
class MLPDetector(NetworkDetector):
    """The GAT without messages: as many parameters on the same nodes."""

    network_class: ClassVar[type[nn.Module]] = MLP
    card: ClassVar[DetectorCard] = DetectorCard(
        name="mlp",
        summary="the nodes of gat without edges: no messages, as many parameters",
        source=(
            "control: the ablation 'no graph' of CHARM. Nodes, readout, training and number of "
            "parameters are those of gat, so what gat adds comes from edges."
        ),
        inputs=("attention", "hidden", "likelihood"),
        is_supervised=True,
        is_control=True,
        reads=_READS,
    )


@final
class RewiredGATDetector(NetworkDetector):
    """The GAT on graphs whose neighbours are random."""

    network_class: ClassVar[type[nn.Module]] = GAT
    transform: ClassVar[Callable[[Data], Data] | None] = staticmethod(rewired)
    card: ClassVar[DetectorCard] = DetectorCard(
        name="gat-rewired",
        summary="gat on rewired graphs: every edge comes from another token about as far away",
        source=(
            "control: keys beside the first four tokens are permuted within strata of distance; "
            "the attention of an edge stays at its query. What gat adds to this comes from who is "
            "attended to."
        ),
        inputs=("attention", "hidden", "likelihood"),
        is_supervised=True,
        is_control=True,
        reads=_READS,
    )


@final
class TokenGraphDetector(NetworkDetector):
    """CHARM with a logit on every answer token."""

    config_class: ClassVar[type[TrainedConfig]] = TokenNetworkConfig
    network_class: ClassVar[type[nn.Module]] = CHARM
    card: ClassVar[DetectorCard] = DetectorCard(
        name="token-graph",
        summary="message passing over attention, a logit on every answer token",
        source=(
            "Frasca et al., CHARM, OpenReview 4twbqwV4br, its token-level form. Different from "
            "it: six layers in place of all; beside its own weight a node has sink share, received "
            "mass and entropy of every head and its named span; a token is read from the row that "
            "produces it and from its own; features are standardised."
        ),
        inputs=("attention",),
        is_supervised=True,
        reads=("edge_key", "edge_weight", "received", "self_attention", "sink_keys", "row_entropy"),
        is_graph=True,
        level="token",
    )


@final
class TokenNoEdges(NetworkDetector):
    """The same network without messages."""

    config_class: ClassVar[type[TrainedConfig]] = TokenNetworkConfig
    network_class: ClassVar[type[nn.Module]] = CHARM
    transform: ClassVar[Callable[[Data], Data] | None] = staticmethod(without_edges)
    card: ClassVar[DetectorCard] = DetectorCard(
        name="token-no-edges",
        summary="the nodes of token-graph without edges",
        source=(
            "Control: the ablation 'no graph' of CHARM. Nodes, head and training are those of "
            "token-graph, so what that adds comes from edges."
        ),
        inputs=("attention",),
        is_supervised=True,
        is_control=True,
        reads=("received", "self_attention", "sink_keys", "row_entropy"),
        level="token",
    )
