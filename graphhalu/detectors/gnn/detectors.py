"""Graph networks that are registered: each a network with its graphs and a card of ``cards.yaml``."""

from typing import Final

from graphhalu.detectors.gnn.config import CHARMConfig, TokenNetworkConfig
from graphhalu.detectors.gnn.detector import NetworkDetector
from graphhalu.detectors.gnn.networks import CHARM, GAT, GCN, MLP
from graphhalu.detectors.gnn.rewire import rewired, without_edges

_HERE: Final = {"__module__": __name__}

Gcn: Final = NetworkDetector.variant("gcn", network_class=GCN, **_HERE)
Gat: Final = NetworkDetector.variant("gat", network_class=GAT, **_HERE)
Charm: Final = NetworkDetector.variant("charm", network_class=CHARM, config_class=CHARMConfig, **_HERE)
Mlp: Final = NetworkDetector.variant("mlp", network_class=MLP, **_HERE)
GatRewired: Final = NetworkDetector.variant(
    "gat-rewired", network_class=GAT, transform=staticmethod(rewired), **_HERE
)
TokenGraph: Final = NetworkDetector.variant(
    "token-graph", network_class=CHARM, config_class=TokenNetworkConfig, **_HERE
)
TokenNoEdges: Final = NetworkDetector.variant(
    "token-no-edges",
    network_class=CHARM,
    config_class=TokenNetworkConfig,
    transform=staticmethod(without_edges),
    **_HERE,
)
