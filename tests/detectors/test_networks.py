from dataclasses import replace

import numpy as np
import pytest
import torch
from graphhalu.detectors.graph_pack import GraphPack
from graphhalu.detectors.graph_pieces import graph_piece
from graphhalu.detectors.networks.base import NetworkShape, NetworkSize, Standard
from graphhalu.detectors.networks.charm import CHARM
from graphhalu.detectors.networks.edge_attention import EdgeAttention
from graphhalu.detectors.networks.gat import GAT
from graphhalu.detectors.networks.gcn import GCN, normalised_weights, weighted_sum
from graphhalu.detectors.networks.mlp import MLP
from graphhalu.detectors.networks.residual import ResidualNetwork
from torch_geometric.nn import GATv2Conv, GCNConv

from graphhalu.graphs.build import TokenGraph

SHAPE = NetworkShape(n_layers=2, n_node_features=5, n_channels=3)
FLAT = SHAPE._replace(n_layers=1)
SIZE = NetworkSize(hidden_size=8)
N_EDGES = 17
every_network = pytest.mark.parametrize("network_class", [GCN, GAT, MLP, CHARM, ResidualNetwork])
with_messages = pytest.mark.parametrize("network_class", [GCN, GAT, CHARM, ResidualNetwork])


def graph(seed, n_nodes, layer=0, n_answer=3):
    """Random edges from earlier to later tokens."""
    generator = np.random.default_rng(seed)
    pairs = [(query, key) for query in range(1, n_nodes) for key in range(query)]
    chosen = sorted(generator.permutation(len(pairs))[:N_EDGES])
    query, key = np.array([pairs[place] for place in chosen]).T
    return TokenGraph(
        x=generator.normal(size=(n_nodes, 5)).astype(np.float32),
        edge_index=np.stack([key, query]),
        edge_attr=generator.uniform(size=(len(query), 3)).astype(np.float32),
        is_answer=np.arange(n_nodes) >= n_nodes - n_answer,
        layer=layer,
        layers=(layer,),
        trace_id=f"t{seed}",
        question_id=f"q{seed}",
        group_id=f"q{seed}",
        kept_mass=np.ones(n_nodes, dtype=np.float32),
        node_feature_names=tuple("abcde"),
        edge_feature_names=tuple("xyz"),
    )


def layers(seed, n_nodes):
    return [graph(10 * seed + layer, n_nodes, layer) for layer in range(2)]


def pack(traces, n_hops=2):
    return GraphPack.of([graph_piece(graphs, n_hops) for graphs in traces])


def batch(traces, n_hops=2):
    return pack(traces, n_hops).batch(torch.arange(len(traces)))


def network(network_class, shape=SHAPE, size=SIZE):
    torch.manual_seed(0)
    net = network_class(shape, size).eval()
    if network_class is ResidualNetwork:  # which begins as zero
        torch.nn.init.normal_(net.head[-1].weight)
    return net


TRACES = [layers(0, 7), layers(1, 11), layers(2, 13)]


@every_network
def test_a_batch_gives_the_logits_of_its_traces_alone(network_class):
    net = network(network_class)
    with torch.no_grad():
        together = net(batch(TRACES))
        alone = torch.cat([net(batch([one])) for one in TRACES], dim=1)
    assert together.shape == ((1, 3) if network_class is ResidualNetwork else (2, 3))
    torch.testing.assert_close(together, alone)


@every_network
def test_the_order_of_traces_in_a_batch_changes_nothing(network_class):
    net, all_traces = network(network_class), pack(TRACES)
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        torch.testing.assert_close(
            net(all_traces.batch(order)), net(all_traces.batch(torch.arange(3)))[:, order]
        )


@every_network
def test_the_order_of_edges_changes_nothing(network_class):
    order = np.random.default_rng(0).permutation(N_EDGES)
    turned = [
        [replace(one, edge_index=one.edge_index[:, order], edge_attr=one.edge_attr[order])
         for one in graphs]
        for graphs in TRACES
    ]  # fmt: skip
    net = network(network_class)
    with torch.no_grad():
        torch.testing.assert_close(net(batch(turned)), net(batch(TRACES)))


@every_network
def test_the_order_of_nodes_changes_nothing(network_class):
    one = TRACES[1]
    order = np.random.default_rng(0).permutation(11 - 4)
    order = np.concatenate([order, np.arange(7, 11)])  # the readout is told by its neighbours
    place = np.argsort(order)
    turned = [replace(each, x=each.x[order], edge_index=place[each.edge_index]) for each in one]
    net = network(network_class)
    with torch.no_grad():
        torch.testing.assert_close(net(batch([turned])), net(batch([one])))


@every_network
def test_a_cut_graph_gives_the_logits_of_the_whole_one(network_class):
    """With more hops than there are tokens nothing is cut, and every round is for all of them."""
    net = network(network_class)
    with torch.no_grad():
        torch.testing.assert_close(net(batch(TRACES)), net(batch(TRACES, n_hops=13)))


@with_messages
@pytest.mark.parametrize("field", ["x", "edge_attr"])
def test_every_input_reaches_the_logit(network_class, field):
    net = network(network_class)
    changed = [replace(each, **{field: 1 - getattr(each, field)}) for each in TRACES[0]]
    assert not torch.equal(net(batch([changed])), net(batch([TRACES[0]])))


def test_without_messages_edges_change_nothing():
    net = network(MLP)
    changed = [replace(each, edge_attr=1 - each.edge_attr) for each in TRACES[0]]
    torch.testing.assert_close(net(batch([changed])), net(batch([TRACES[0]])))


@with_messages
def test_messages_flow_from_key_to_query_only(network_class):
    """Tokens 2 and 3 are read out; 3 hears of 2, and 2 of 0."""
    one = graph(0, 4, n_answer=1)
    one = replace(one, edge_index=np.array([[0, 2], [2, 3]]), edge_attr=one.edge_attr[:2])
    net = network(network_class, FLAT)
    before = net(batch([[one]]))
    one.x[1] += 1
    assert torch.equal(net(batch([[one]])), before)
    one.x[0] += 1
    assert not torch.equal(net(batch([[one]])), before)


@with_messages
def test_a_graph_without_edges_has_a_logit(network_class):
    none = [
        replace(each, edge_index=each.edge_index[:, :0], edge_attr=each.edge_attr[:0])
        for each in TRACES[0]
    ]
    assert torch.isfinite(network(network_class)(batch([none, TRACES[1]]))).all()


@every_network
def test_standardisation_makes_the_scale_of_inputs_irrelevant(network_class):
    scaled = [[replace(each, x=100 * each.x + 7) for each in graphs] for graphs in TRACES]
    logits = []
    for some in (TRACES, scaled):
        net, graphs = network(network_class), pack(some)
        net.standardise_by(list(graphs.x), graphs.edges_of_layers())
        logits.append(net(graphs.batch(torch.arange(3))))
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


def test_standardisation_is_that_of_numpy_in_each_layer():
    net, graphs = network(GAT), pack(TRACES, n_hops=13)
    net.standardise_by(list(graphs.x), graphs.edges_of_layers())
    for layer in (0, 1):
        x = graphs.x[layer].numpy()
        edges = np.concatenate([each[layer].edge_attr for each in TRACES])
        np.testing.assert_allclose(net.node_standard.mean[layer], x.mean(0), atol=1e-6)
        np.testing.assert_allclose(net.node_standard.scale[layer], x.std(0), rtol=1e-5)
        if graphs.degree[layer].sum() == len(edges):
            np.testing.assert_allclose(net.edge_standard.mean[layer], edges.mean(0), rtol=1e-5)


def test_a_linear_map_of_standardised_values_is_folded_exactly():
    standard, linear = Standard(2, 5), torch.nn.Linear(5, 7)
    values = [torch.randn(11, 5) * 3 + 2, torch.randn(13, 5)]
    standard.take(values)
    runs = [(1, 3), (0, 11), (1, 10)]
    rows = torch.cat([values[1][:3], values[0], values[1][3:]])
    torch.testing.assert_close(
        standard.linear(linear, rows, runs), linear(standard(rows, runs)), rtol=1e-4, atol=1e-5
    )


def test_a_constant_feature_keeps_the_scale_one():
    standard = Standard(1, 2)
    standard.take([torch.tensor([[0.1, 1.0], [0.1, 3.0]])])
    assert standard.scale.tolist() == [[1.0, 1.0]]
    assert standard.mean[0].tolist() == pytest.approx([0.1, 2.0])


def whole(one):
    """A batch in which every token comes in order: all of them are read out."""
    all_read = replace(one, is_answer=np.arange(len(one.x)) > 0)
    return batch([[all_read]], n_hops=1)


def test_attention_is_that_of_pyg_on_the_same_weights():
    torch.manual_seed(0)
    ours, theirs = (
        EdgeAttention(8, 3, 4),
        GATv2Conv(8, 2, heads=4, edge_dim=3, add_self_loops=False),
    )
    theirs.lin_l.load_state_dict(ours.key.state_dict())
    theirs.lin_r.load_state_dict(ours.query.state_dict())
    theirs.lin_edge.load_state_dict(ours.edge.state_dict())
    theirs.att.data.copy_(ours.attention[None])
    one, graphs = graph(3, 11), whole(graph(3, 11))
    hidden = [torch.randn(11, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()]
    hidden.append(hidden[0].detach().clone().requires_grad_())
    found = ours(hidden[0], graphs.hop(0), Standard(1, 3))
    expected = theirs(hidden[1], torch.from_numpy(one.edge_index), torch.from_numpy(one.edge_attr))
    torch.testing.assert_close(found, expected)
    for each in (found, expected):
        (each**2).sum().backward()
    torch.testing.assert_close(hidden[0].grad, hidden[1].grad)
    torch.testing.assert_close(ours.attention.grad, theirs.att.grad[0])
    torch.testing.assert_close(ours.edge.weight.grad, theirs.lin_edge.weight.grad)
    torch.testing.assert_close(ours.key.weight.grad, theirs.lin_l.weight.grad)
    torch.testing.assert_close(ours.query.bias.grad, theirs.lin_r.bias.grad)


def test_convolution_is_that_of_pyg_on_the_same_weights():
    torch.manual_seed(0)
    one, graphs = graph(3, 11), whole(graph(3, 11))
    theirs = GCNConv(8, 8)
    hidden = torch.randn(11, 8, requires_grad=True)
    root = (1 + graphs.strength).rsqrt()
    summed = weighted_sum(hidden, normalised_weights(graphs, root), graphs.hop(0))
    found = theirs.lin(summed + hidden * root[:, None] ** 2) + theirs.bias
    expected = theirs(
        hidden, torch.from_numpy(one.edge_index), torch.from_numpy(one.edge_attr).mean(1)
    )
    torch.testing.assert_close(found, expected)
    gradients = [
        torch.autograd.grad((each**2).sum(), hidden, retain_graph=True)[0]
        for each in (found, expected)
    ]
    torch.testing.assert_close(*gradients)


def slow_charm(net, one):
    """The formula, token by token and edge by edge, with one linear map of what is joined."""
    first, last = len(one.x) - 4, len(one.x)
    h = list((torch.from_numpy(one.x) - net.node_standard.mean[0]) / net.node_standard.scale[0])
    for each in net.rounds:
        joined = torch.cat([each.of_node.weight, each.of_edge.weight, each.of_type.weight.T], dim=1)
        new = []
        for i in range(last):
            messages = []
            for (j, query), e in zip(
                one.edge_index.T, torch.from_numpy(one.edge_attr), strict=True
            ):
                if query == i:
                    kind = torch.eye(2)[int(j >= first)]
                    inner = torch.relu(joined @ torch.cat([h[j], e, kind]) + each.of_node.bias)
                    messages.append(each.message(inner))
            m = torch.stack(messages).mean(0) if messages else torch.zeros(net.size.hidden_size)
            new.append(each.update(torch.cat([h[i], m])))
        h = new
    return net.head(torch.stack(h[first:]).mean(0))[0]


@pytest.mark.parametrize("n_rounds", [1, 2])
def test_charm_is_its_formula_in_a_slow_double_loop(n_rounds):
    net = network(CHARM, FLAT, SIZE._replace(n_convolutions=n_rounds))
    net.standardise_by([torch.randn(7, 5)], [])
    for seed in (3, 4):
        one = graph(seed, 11)
        with torch.no_grad():
            torch.testing.assert_close(
                net(batch([[one]], n_hops=n_rounds))[0, 0], slow_charm(net, one)
            )


@pytest.mark.parametrize("hidden_size", [8, 32, 128])
@pytest.mark.parametrize("n_channels", [3, 9, 32])
def test_the_network_without_messages_is_as_large_as_the_gat(hidden_size, n_channels):
    shape = NetworkShape(3, 61, n_channels)
    size = NetworkSize(hidden_size)
    gat, mlp = GAT(shape, size), MLP(shape, size)
    assert mlp.n_parameters == pytest.approx(gat.n_parameters, rel=0.05)


def test_matching_sizes_draws_no_weights():
    torch.manual_seed(0)
    MLP(SHAPE, SIZE)
    after = torch.rand(1)
    torch.manual_seed(0)
    MLP(SHAPE, SIZE)
    assert torch.equal(torch.rand(1), after)


def test_hidden_channels_must_divide_among_the_heads():
    with pytest.raises(ValueError, match="multiple of 4"):
        GAT(SHAPE, NetworkSize(hidden_size=6))


def test_the_residual_network_begins_as_zero():
    net = ResidualNetwork(SHAPE, SIZE).eval()
    with torch.no_grad():
        assert torch.equal(net(batch(TRACES)), torch.zeros(1, 3))


def test_its_recurrence_and_its_layer_weights_are_those_done_by_hand():
    net, given = network(ResidualNetwork), batch(TRACES)
    answer = torch.randn(given.n_rows(0), SIZE.hidden_size)
    counts = given.readout_counts.tolist()
    with torch.no_grad():
        found = net.read_out(answer, given)[0]
        rows = iter(answer.split(counts * 2))
        first, second = ([next(rows) for _ in counts] for _ in range(2))
        for place, (one, two) in enumerate(zip(first, second, strict=True)):
            state, pooled = torch.zeros(1, len(one), SIZE.hidden_size), []
            for layer, tokens in enumerate((one, two)):
                _, state = net.recurrence(tokens[None], state)
                tokens = tokens + state[0]
                embedding = net.layer_embedding.weight[layer]
                pooled.append(torch.cat([tokens.mean(0), tokens.amax(0), embedding]))
            weight = torch.softmax(net.weigh(torch.stack(pooled)), 0)
            expected = net.head((weight * torch.stack(pooled)).sum(0))
            torch.testing.assert_close(found[place : place + 1], expected)
