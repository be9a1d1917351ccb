"""Message passing over attention, against its formula edge by edge."""

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch

from graphhalu.core.axes import N_SPANS
from graphhalu.detectors.gnn.networks import MAX_RANK, AttentionMass, edges_read_out
from graphhalu.graphs.storage import TokenGraphData

CHANNELS = 5


def graph(n_tokens, n_layers, edge_dim, seed=0):
    generator = np.random.default_rng(seed)
    n_nodes = n_tokens * n_layers
    pairs = [
        (layer * n_tokens + key, layer * n_tokens + query)
        for layer in range(n_layers)
        for query in range(1, n_tokens)
        for key in generator.permutation(query)[:3].tolist()
    ]
    data = TokenGraphData(
        x=torch.from_numpy(generator.normal(size=(n_nodes, CHANNELS)).astype(np.float32)),
        edge_index=torch.tensor(pairs).T,
        edge_attr=torch.from_numpy(generator.uniform(size=(len(pairs), edge_dim)).astype(np.float32)),
        span=torch.from_numpy(generator.integers(0, N_SPANS, n_nodes)),
        layer_index=torch.arange(n_layers).repeat_interleave(n_tokens),
        is_readout=torch.arange(n_nodes) % n_tokens >= n_tokens - 3,
    )
    return Batch.from_data_list([data])


def slow_mass(layer, one):
    """``W_l vec_s(sum_{j in span s} P_l e_ij) + b_l``."""
    rank = layer.heads.weight.shape[-1]
    new = []
    for i in range(one.num_nodes):
        place = int(one.layer_index[i])
        sums = torch.zeros(N_SPANS, rank)
        for (j, query), e in zip(one.edge_index.T.tolist(), one.edge_attr, strict=True):
            if query == i:
                sums[one.span[j]] += e @ layer.heads.weight[place]
        new.append(sums.flatten() @ layer.of_span.weight[place] + layer.of_span.bias[place])
    return torch.stack(new)


@pytest.mark.parametrize(("n_layers", "edge_dim"), [(1, 3), (2, 3), (3, MAX_RANK + 7)])
def test_attention_mass_is_its_formula_in_a_slow_loop(n_layers, edge_dim):
    torch.manual_seed(0)
    layer = AttentionMass(CHANNELS, edge_dim, n_layers)
    one = graph(11, n_layers, edge_dim)
    with torch.no_grad():
        found, expected = layer(one), slow_mass(layer, one)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_attention_mass_grows_with_the_attention_and_a_softmax_would_not():
    torch.manual_seed(0)
    layer, one = AttentionMass(CHANNELS, 3, 1), graph(7, 1, 3)
    twice = one.clone()
    twice.edge_attr = 2 * one.edge_attr
    with torch.no_grad():
        bias = layer.of_span.bias[0]
        found = [layer(each) - bias for each in (one, twice)]
    torch.testing.assert_close(found[1], 2 * found[0], rtol=1e-4, atol=1e-5)


def test_the_last_round_keeps_only_edges_of_rows_that_are_read():
    one = graph(7, 2, 3)
    edges = edges_read_out(one)
    is_kept = one.is_readout[one.edge_index[1]]
    assert 0 < int(is_kept.sum()) < one.num_edges
    assert torch.equal(edges.edge_index, one.edge_index[:, is_kept])
    assert torch.equal(edges.edge_attr, one.edge_attr[is_kept])
