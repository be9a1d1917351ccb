import inspect

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch_geometric.data import Batch

from graphhalu.detectors.gnn import networks as networks_module
from graphhalu.detectors.gnn.inputs import InputScaler, wide_blocks
from graphhalu.detectors.gnn.networks import CHARM, GAT, GCN, MLP, CHARMConv
from graphhalu.graphs.storage import TokenGraphData

SIZES = {"in_channels": 5, "edge_dim": 3, "hidden_channels": 8}
N_EDGES = 17
every_network = pytest.mark.parametrize("kind", [GCN, GAT, MLP, CHARM])
with_messages = pytest.mark.parametrize("kind", [GCN, GAT, CHARM])
at_every_level = pytest.mark.parametrize("level", ["answer", "token"])


def graph(seed, n_tokens, n_layers=1, n_answer=3):
    """Random edges from earlier to later tokens in each layer, the layers side by side."""
    generator = np.random.default_rng(seed)
    pairs = [(key, query) for query in range(1, n_tokens) for key in range(query)]
    edges = [
        np.array(pairs)[np.sort(generator.permutation(len(pairs))[:N_EDGES])].T + layer * n_tokens
        for layer in range(n_layers)
    ]
    edge_index = np.concatenate(edges, axis=1)
    n_nodes = n_tokens * n_layers
    token = np.tile(np.arange(n_tokens), n_layers)
    first = n_tokens - n_answer
    x = generator.normal(size=(n_nodes, 5)).astype(np.float32)
    edge_attr = generator.uniform(size=(edge_index.shape[1], 3)).astype(np.float32)
    return TokenGraphData(
        x=torch.from_numpy(x),
        edge_index=torch.from_numpy(edge_index),
        edge_attr=torch.from_numpy(edge_attr),
        is_answer=torch.from_numpy(token >= first),
        is_readout=torch.from_numpy(token >= first - 1),
        span=torch.from_numpy(generator.integers(0, 5, n_nodes)),
        layer_index=torch.arange(n_layers).repeat_interleave(n_tokens),
    )


def network(kind, **changes):
    """A network in use, its gates open; CHARM takes graphs of one layer alone."""
    parameters = inspect.signature(kind).parameters
    sizes = {"n_layers": 1, **SIZES, **changes}
    torch.manual_seed(0)
    made = kind(**{name: value for name, value in sizes.items() if name in parameters}).eval()
    for name, value in made.named_parameters():
        if name.endswith("gate") or (
            name.startswith("norms.") and name.endswith("weight")
        ):  # 0 before training
            torch.nn.init.uniform_(value, 0.5, 1)
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm1d):  # as after a training
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return made


def changed(data, **fields):
    other = data.clone()
    for name, value in fields.items():
        other[name] = value
    return other


def edges_of(one):
    return Batch.from_data_list([one])


def logits(net, graphs):
    with torch.no_grad():
        return net(Batch.from_data_list(list(graphs)))


GRAPHS = [graph(0, 7), graph(1, 11), graph(2, 13)]
STACKED = [graph(3, 7, 2), graph(4, 11, 2), graph(5, 13, 2)]


def cases(kind, level="answer"):
    """A network of one layer and, where there is one, of two layers, each with its graphs."""
    found = [(network(kind, level=level), GRAPHS)]
    if kind is not CHARM and level == "answer":
        found.append((network(kind, n_layers=2), STACKED))
    return found


@every_network
@at_every_level
def test_a_batch_gives_the_logits_of_its_traces_alone(kind, level):
    for net, graphs in cases(kind, level):
        together = logits(net, graphs)
        alone = torch.cat([logits(net, [one]) for one in graphs])
        assert together.shape == ((3,) if level == "answer" else (9,))
        torch.testing.assert_close(together, alone)


@every_network
def test_the_order_of_traces_in_a_batch_changes_nothing(kind):
    order = [2, 0, 1]
    for net, graphs in cases(kind):
        torch.testing.assert_close(
            logits(net, [graphs[place] for place in order]), logits(net, graphs)[order]
        )


@every_network
def test_the_order_of_edges_changes_nothing(kind):
    for net, graphs in cases(kind):
        turned = []
        for one in graphs:
            order = torch.from_numpy(np.random.default_rng(0).permutation(one.num_edges))
            turned.append(changed(one, edge_index=one.edge_index[:, order], edge_attr=one.edge_attr[order]))
        torch.testing.assert_close(logits(net, turned), logits(net, graphs))


@every_network
def test_the_order_of_nodes_changes_nothing(kind):
    for net, graphs in cases(kind):
        one = graphs[1]
        order = torch.from_numpy(np.random.default_rng(0).permutation(one.num_nodes))
        place = order.argsort()
        names = ("x", "is_answer", "is_readout", "span", "layer_index")
        turned = changed(one, edge_index=place[one.edge_index], **{name: one[name][order] for name in names})
        torch.testing.assert_close(logits(net, [turned]), logits(net, [one]))


@pytest.mark.parametrize("kind", [GCN, GAT, MLP, CHARM])
@at_every_level
def test_rows_that_are_not_read_need_no_messages_in_the_last_round(kind, level, monkeypatch):
    for net, graphs in cases(kind, level):
        cut = logits(net, graphs)
        with monkeypatch.context() as patch:
            patch.setattr(networks_module, "edges_read_out", lambda batch: batch)
            torch.testing.assert_close(cut, logits(net, graphs))


@with_messages
@at_every_level
@pytest.mark.parametrize("field", ["x", "edge_attr"])
def test_every_input_reaches_the_logit(kind, field, level):
    for net, graphs in cases(kind, level):
        other = changed(graphs[0], **{field: 1 - graphs[0][field]})
        assert (logits(net, [other]) != logits(net, graphs[:1])).all()


@at_every_level
def test_without_messages_edges_change_nothing(level):
    for net, graphs in cases(MLP, level):
        one = graphs[0]
        none = changed(one, edge_index=one.edge_index[:, :0], edge_attr=one.edge_attr[:0])
        for other in (changed(one, edge_attr=1 - one.edge_attr), none):
            torch.testing.assert_close(logits(net, [other]), logits(net, [one]))


@with_messages
def test_messages_flow_from_key_to_query_only(kind):
    """Tokens 2 and 3 are read out; 3 hears of 2, and 2 of 0."""
    one = graph(0, 4, n_answer=1)
    one = changed(one, edge_index=torch.tensor([[0, 2], [2, 3]]), edge_attr=one.edge_attr[:2])
    net = network(kind)
    before = logits(net, [one])
    for token, is_heard in ((1, False), (0, True)):
        x = one.x.clone()
        x[token] += 1
        assert torch.equal(logits(net, [changed(one, x=x)]), before) != is_heard


@every_network
@at_every_level
def test_a_graph_without_edges_has_a_logit(kind, level):
    for net, graphs in cases(kind, level):
        one = graphs[0]
        none = changed(one, edge_index=one.edge_index[:, :0], edge_attr=one.edge_attr[:0])
        assert torch.isfinite(logits(net, [none, graphs[1]])).all()
        assert torch.isfinite(logits(net, [none])).all()


@every_network
def test_a_token_is_read_from_its_own_row_and_the_one_that_produces_it(kind):
    """Without edges nothing else can reach it."""
    one = graph(1, 11)
    one = changed(one, edge_index=one.edge_index[:, :0], edge_attr=one.edge_attr[:0])
    net = network(kind, level="token")
    before = logits(net, [one])
    for token in range(11):
        x = one.x.clone()
        x[token] += 1
        is_other = logits(net, [changed(one, x=x)]) != before
        assert is_other.tolist() == [token in (own - 1, own) for own in (8, 9, 10)]


def gcn_by_hand(convolution, hidden, one):
    """``D^-1/2 (A + I) D^-1/2 H W + b`` with ``A[query, key]`` the mean attention."""
    n_nodes = len(hidden)
    adjacency = np.eye(n_nodes)
    for (key, query), weights in zip(one.edge_index.T.tolist(), one.edge_attr, strict=True):
        adjacency[query, key] += float(weights.mean())
    root = np.diag(1 / np.sqrt(adjacency.sum(axis=1)))
    weight = convolution.lin.weight.detach().numpy().astype(np.float64)
    bias = convolution.bias.detach().numpy()
    return root @ adjacency @ root @ hidden.numpy() @ weight.T + bias


def test_a_convolution_has_the_normalised_weights_done_by_hand():
    one, net = graph(3, 11), network(GCN)
    hidden = torch.randn(11, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        net.rounds[0].convolution.bias.add_(0.3)
        found = net.messages(net.rounds[0], hidden, edges_of(one))
    expected = gcn_by_hand(net.rounds[0].convolution, hidden, one)
    expected = np.where(expected > 0, expected, np.expm1(expected))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def normalised(norm, value):
    """Batch normalisation in use, by the statistics of training."""
    deviation = (norm.running_var + norm.eps).sqrt()
    return (value - norm.running_mean) / deviation * norm.weight + norm.bias


def slow_charm(net, one):
    """The formula, token by token and edge by edge, with one linear map of what is joined."""
    is_read = one.is_readout.tolist()
    h = list(one.x)
    for each in net.rounds:
        joined = torch.cat([each.of_node.weight, each.of_edge.weight, each.of_type.weight.T], dim=1)
        new = []
        for i in range(len(h)):
            messages = []
            for (j, query), e in zip(one.edge_index.T.tolist(), one.edge_attr, strict=True):
                if query == i:
                    kind = torch.eye(2)[int(is_read[j])]
                    inner = joined @ torch.cat([h[j], e, kind]) + each.of_node.bias
                    messages.append(each.last(inner))
            m = torch.stack(messages).mean(0) if messages else torch.zeros(8)
            *maps, norm = each.update_state
            new.append(
                normalised(
                    norm, torch.nn.Sequential(*maps)(torch.cat([h[i], normalised(each.norm_received, m)]))
                )
            )
        h = new
    read = torch.stack([state for state, is_one in zip(h, is_read, strict=True) if is_one])
    return net.readout.head(torch.cat([read.mean(0), read.amax(0)]))[0]


@pytest.mark.parametrize("n_rounds", [1, 2])
def test_charm_is_its_formula_in_a_slow_double_loop(n_rounds):
    net = network(CHARM, n_rounds=n_rounds)
    for seed in (3, 4):
        one = graph(seed, 11)
        with torch.no_grad():
            torch.testing.assert_close(logits(net, [one])[0], slow_charm(net, one))


def test_a_round_of_charm_averages_what_a_token_receives():
    """Twice the same edge gives the mean of one."""
    one = graph(3, 11)
    torch.manual_seed(0)
    layer = CHARMConv(5, 3, 8, 0.0).eval()
    twice = changed(
        one,
        edge_index=torch.cat([one.edge_index, one.edge_index], dim=1),
        edge_attr=torch.cat([one.edge_attr, one.edge_attr]),
    )
    with torch.no_grad():
        found = [layer(each.x, edges_of(each)) for each in (one, twice)]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("hidden_channels", [8, 32, 128])
@pytest.mark.parametrize("edge_dim", [3, 9, 32])
@pytest.mark.parametrize("n_layers", [1, 3])
def test_the_network_without_messages_is_as_large_as_the_gat(hidden_channels, edge_dim, n_layers):
    counts = {
        kind: sum(
            each.numel()
            for each in kind(61, edge_dim, n_layers, hidden_channels=hidden_channels).parameters()
        )
        for kind in (GAT, MLP)
    }
    assert counts[MLP] == pytest.approx(counts[GAT], rel=0.05)


def test_matching_sizes_draws_no_weights():
    states = []
    for _ in range(2):
        network(MLP)
        states.append(torch.rand(1))
    assert torch.equal(*states)


@pytest.mark.parametrize("hidden_channels", [4, 6, 7])
def test_any_number_of_channels_divides_among_the_heads(hidden_channels):
    assert torch.isfinite(logits(network(GAT, hidden_channels=hidden_channels), GRAPHS)).all()


def scaler(n_layers=1, is_hidden=(False,) * 5, n_components=2):
    return InputScaler(np.array(is_hidden), 3, n_layers, n_components)


@every_network
def test_standardisation_makes_the_scale_of_inputs_irrelevant(kind):
    for net, graphs in cases(kind):
        n_layers = 1 if graphs is GRAPHS else 2
        found = []
        for some in (graphs, [changed(one, x=100 * one.x + 7) for one in graphs]):
            fitted = scaler(n_layers).fit(some, seed=0)
            with torch.no_grad():
                found.append(net(fitted(Batch.from_data_list(some))))
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_standardisation_is_that_of_numpy_in_each_layer():
    fitted = scaler(n_layers=2).fit(STACKED, seed=0)
    scaled = fitted(Batch.from_data_list(STACKED))
    for layer in (0, 1):
        is_here = [one.layer_index == layer for one in STACKED]
        x = torch.cat([one.x[here] for one, here in zip(STACKED, is_here, strict=True)]).numpy()
        edges = np.concatenate(
            [one.edge_attr[here[one.edge_index[1]]] for one, here in zip(STACKED, is_here, strict=True)]
        )
        np.testing.assert_allclose(fitted.mean[layer], x.mean(0), atol=1e-6)
        np.testing.assert_allclose(fitted.deviation[layer], x.std(0), rtol=1e-5)
        root = np.sqrt((edges.astype(np.float64) ** 2).mean(0))
        np.testing.assert_allclose(fitted.edge_scale[layer], root, rtol=1e-5)
        found = scaled.x[scaled.layer_index == layer].numpy()
        np.testing.assert_allclose(found, (x - x.mean(0)) / x.std(0), rtol=1e-4, atol=1e-5)
        of_edge = scaled.layer_index[scaled.edge_index[1]] == layer
        np.testing.assert_allclose(scaled.edge_attr[of_edge], edges / root, rtol=1e-5)


def test_no_attention_stays_none_and_the_given_graphs_stay_as_they_are():
    given = changed(GRAPHS[0], edge_attr=GRAPHS[0].edge_attr * (GRAPHS[0].edge_attr > 0.5))
    batch = Batch.from_data_list([given])
    scaled = scaler().fit([given], seed=0)(batch)
    assert torch.equal(scaled.edge_attr == 0, given.edge_attr == 0)
    assert torch.equal(batch.x, given.x)
    assert torch.equal(batch.edge_attr, given.edge_attr)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_a_constant_feature_keeps_the_scale_one(value):
    x = GRAPHS[0].x.clone()
    x[:, 1] = value
    fitted = scaler().fit([changed(GRAPHS[0], x=x)], seed=0)
    assert fitted.deviation[0, 1] == 1
    assert fitted.mean[0, 1] == pytest.approx(value)
    assert (fitted.deviation[0, [0, 2, 3, 4]] != 1).all()


def test_a_channel_without_attention_keeps_the_scale_one():
    attr = GRAPHS[0].edge_attr.clone()
    attr[:, 2] = 0
    fitted = scaler().fit([changed(GRAPHS[0], edge_attr=attr)], seed=0)
    assert fitted.edge_scale[0, 2] == 1


def test_a_feature_far_away_counts_as_eight_deviations():
    fitted = scaler().fit(GRAPHS, seed=0)
    far = changed(GRAPHS[0], x=GRAPHS[0].x + 1e4)
    assert fitted(Batch.from_data_list([far])).x.tolist() == [[8.0] * 5] * 7


def test_hidden_states_become_the_principal_components_of_scikit_learn():
    is_hidden = [True, False, True, True, False]
    fitted = scaler(is_hidden=is_hidden).fit(GRAPHS, seed=0)
    x = np.concatenate([one.x for one in GRAPHS])
    hidden = x[:, [0, 2, 3]]
    expected = PCA(2, whiten=True, svd_solver="full").fit(hidden).transform(hidden)
    scaled = fitted(Batch.from_data_list(GRAPHS)).x.numpy()
    assert fitted.n_features == scaled.shape[1] == 4
    np.testing.assert_allclose(np.abs(scaled[:, 2:]), np.abs(expected), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(scaled[:, 2:].std(0, ddof=1), 1, rtol=1e-4)
    plain = x[:, [1, 4]]
    np.testing.assert_allclose(scaled[:, :2], (plain - plain.mean(0)) / plain.std(0), rtol=1e-4, atol=1e-5)


def test_fewer_tokens_than_components_leave_the_others_empty():
    few = changed(
        GRAPHS[0],
        x=GRAPHS[0].x[:2],
        layer_index=GRAPHS[0].layer_index[:2],
        edge_index=torch.tensor([[0], [1]]),
        edge_attr=GRAPHS[0].edge_attr[:1],
        is_answer=GRAPHS[0].is_answer[:2],
        is_readout=GRAPHS[0].is_readout[:2],
        span=GRAPHS[0].span[:2],
    )
    fitted = scaler(is_hidden=(True,) * 5, n_components=3).fit([few], seed=0)
    assert fitted.n_features == 3
    assert not fitted.components[:, 2].any()
    assert torch.isfinite(fitted(Batch.from_data_list([few])).x).all()


def test_hidden_columns_are_found_by_their_block():
    names = ("sink.head0", "hidden@3.component0", "hidden.4", "layer2.hidden.1", "x.hidden", "row.h")
    assert wide_blocks(names).tolist() == [0, 1, 2, 2, 0, 0]
