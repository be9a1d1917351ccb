"""Graph networks that are registered, each with its graphs and a card of ``cards.yaml``.

Edges of controls say nothing of who is attended to, or there are none.
"""

import hashlib
from typing import Final

import numpy as np
import torch
from torch_geometric.data import Data

from graphhalu.detectors.gnn.config import CHARMConfig, TokenNetworkConfig
from graphhalu.detectors.gnn.detector import NetworkDetector
from graphhalu.detectors.gnn.networks import CHARM, GAT, GCN, MLP
from graphhalu.traces.schema import N_SINK_KEYS

STRATA: Final = (1, 9, 33)
"""Smallest distance of query and key in each stratum."""


def rewired(data: Data) -> Data:
    """Give every edge another key at about the same distance from its query.

    The tokens of each stratum of distance are permuted for each query, and edges go along with
    their attention. The first four tokens, which are sinks, stay as they are. So every query
    keeps how many edges end in it, what they carry, and about how far they reach. The same graph
    is always rewired alike.
    """
    seed = hashlib.sha256(f"{data.question_id} {data.trace_index}".encode()).digest()
    generator = np.random.default_rng(list(seed))
    n_tokens = int((data.layer_index == 0).sum())
    moved = data.clone()
    key, query = data.edge_index % n_tokens
    permuted = torch.from_numpy(_permutation(n_tokens, generator))
    moved.edge_index = torch.stack([data.edge_index[0] - key + permuted[query, key], data.edge_index[1]])
    return moved


def without_edges(data: Data) -> Data:
    """The same nodes without edges."""
    alone = data.clone()
    alone.edge_index, alone.edge_attr = data.edge_index[:, :0], data.edge_attr[:0]
    return alone


def _permutation(n_tokens: int, generator: np.random.Generator) -> np.ndarray:
    """New key of each query and key; only keys of one stratum change places."""
    token = np.arange(n_tokens)
    distance = token[:, None] - token
    stratum = np.searchsorted(STRATA, distance, side="right").astype(np.float64)
    stratum[:, :N_SINK_KEYS] = -1 - token[:N_SINK_KEYS]  # each in a stratum of its own
    natural = np.argsort(stratum, axis=1, kind="stable")
    shuffled = np.argsort(stratum + generator.uniform(0, 0.5, stratum.shape), axis=1)
    permuted = np.empty_like(natural)
    np.put_along_axis(permuted, natural, shuffled, axis=1)
    return permuted


Gcn: Final = NetworkDetector.variant("gcn", __name__, network_class=GCN)
Gat: Final = NetworkDetector.variant("gat", __name__, network_class=GAT)
Charm: Final = NetworkDetector.variant("charm", __name__, network_class=CHARM, config_class=CHARMConfig)
Mlp: Final = NetworkDetector.variant("mlp", __name__, network_class=MLP)
GatRewired: Final = NetworkDetector.variant("gat-rewired", __name__, network_class=GAT, transform=rewired)
_TOKENS: Final = {"network_class": CHARM, "config_class": TokenNetworkConfig}
TokenGraph: Final = NetworkDetector.variant("token-graph", __name__, **_TOKENS)
TokenNoEdges: Final = NetworkDetector.variant("token-no-edges", __name__, **_TOKENS, transform=without_edges)
