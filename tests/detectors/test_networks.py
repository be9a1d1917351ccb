import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from graphhalu.detectors.graph_batches import collate, mean_by_trace, readout_mask
from graphhalu.detectors.networks.base import NetworkShape
from graphhalu.detectors.networks.gat import GAT
from graphhalu.detectors.networks.gcn import GCN, normalised_edges

SHAPE = NetworkShape(n_layers=2, n_node_features=5, n_heads=3)
N_EDGES = 17
every_network = pytest.mark.parametrize("network_class", [GCN, GAT])


def graph(seed, n_nodes, layer=0):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randint(1, n_nodes, (N_EDGES,), generator=generator).sort().values
    key = (torch.rand(N_EDGES, generator=generator) * query).long()
    return Data(
        x=torch.randn(n_nodes, 5, generator=generator),
        edge_index=torch.stack([key, query]),
        edge_attr=torch.rand(N_EDGES, 3, generator=generator),
        is_readout=torch.arange(n_nodes) >= n_nodes - 4,
        layer=torch.tensor([layer]),
        trace=torch.tensor([seed]),
        y=torch.tensor([float(seed % 2)]),
    )


def network(network_class):
    torch.manual_seed(0)
    return network_class(SHAPE, hidden_size=8).eval()


@every_network
def test_a_network_gives_one_logit_a_graph_in_order(network_class):
    graphs = [graph(0, 7), graph(1, 11, layer=1), graph(2, 13)]
    net = network(network_class)
    with torch.no_grad():
        together = net(collate(graphs, 3)[0])
        alone = torch.cat([net(collate([one], 1)[0]) for one in graphs])
    assert together.shape == (3,)
    torch.testing.assert_close(together, alone)


@every_network
@pytest.mark.parametrize("field", ["x", "edge_attr", "layer"])
def test_every_input_reaches_the_logit(network_class, field):
    changed = graph(0, 11)
    net = network(network_class)
    before = net(collate([changed], 1)[0])
    changed[field] = 1 - changed[field]
    assert not torch.equal(net(collate([changed], 1)[0]), before)


@every_network
def test_messages_flow_from_key_to_query_only(network_class):
    """The last token is read out alone; nothing downstream of it may change its state."""
    one = graph(0, 5)
    one.edge_index = torch.tensor([[0, 2], [2, 4]])
    one.edge_attr = one.edge_attr[:2]
    one.is_readout = torch.tensor([False, False, True, False, False])
    net = network(network_class)
    before = net(collate([one], 1)[0])
    one.x[4] += 1
    assert torch.equal(net(collate([one], 1)[0]), before)
    one.x[0] += 1
    assert not torch.equal(net(collate([one], 1)[0]), before)


@every_network
def test_standardisation_makes_the_scale_of_inputs_irrelevant(network_class):
    graphs = [graph(seed, 11, layer=seed % 2) for seed in range(7)]
    scaled = [one.clone() for one in graphs]
    for one in scaled:
        one.x = 100 * one.x + 7
    logits = []
    for some in (graphs, scaled):
        net, batches = network(network_class), collate(some, 3)
        net.standardise_by(batches)
        logits.append(torch.cat([net(batch) for batch in batches]))
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


def test_standardisation_is_that_of_numpy_in_each_layer():
    graphs = [graph(seed, 11, layer=seed % 2) for seed in range(7)]
    net = network(GAT)
    net.standardise_by(collate(graphs, 3))
    for layer in (0, 1):
        x = np.concatenate([one.x.numpy() for one in graphs[layer::2]])
        edges = np.concatenate([one.edge_attr.numpy() for one in graphs[layer::2]])
        np.testing.assert_allclose(net.node_mean[layer], x.mean(0), atol=1e-6)
        np.testing.assert_allclose(net.node_scale[layer], x.std(0), rtol=1e-5)
        np.testing.assert_allclose(net.edge_mean[layer], edges.mean(0), rtol=1e-5)
        np.testing.assert_allclose(net.edge_scale[layer], edges.std(0), rtol=1e-5)


def test_a_constant_feature_keeps_the_scale_one():
    graphs = [graph(seed, 11, layer=seed % 2) for seed in range(4)]
    for one in graphs:
        one.x[:, 3] = 0.1
    net = network(GCN)
    net.standardise_by(collate(graphs, 4))
    assert net.node_scale[:, 3].tolist() == [1.0, 1.0]


def test_edges_are_normalised_as_the_dense_matrix_is():
    one = graph(3, 7)
    weight = one.edge_attr.mean(1)
    edge_index, found = normalised_edges(one.edge_index, weight, 7)
    adjacency = np.eye(7)
    np.add.at(adjacency, tuple(one.edge_index.numpy()), weight.numpy())
    root = np.diag(adjacency.sum(0) ** -0.5)
    dense = np.zeros((7, 7))
    np.add.at(dense, tuple(edge_index.numpy()), found.numpy())
    np.testing.assert_allclose(dense, root @ adjacency @ root, rtol=1e-5)


def test_the_readout_begins_at_the_last_prompt_token():
    is_answer = np.array([False, False, False, True, True])
    assert readout_mask(is_answer).tolist() == [False, False, True, True, True]


def test_the_trace_score_is_the_mean_over_its_graphs():
    means = mean_by_trace(torch.tensor([1.0, 5.0, 3.0]), torch.tensor([1, 0, 1]), 2)
    assert means.tolist() == [5.0, 2.0]


def test_hidden_channels_must_divide_among_the_heads():
    with pytest.raises(ValueError, match="multiple of 4"):
        GAT(SHAPE, hidden_size=6)
