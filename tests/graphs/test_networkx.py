import networkx as nx
import numpy as np
import pytest
from torch_geometric.utils import to_networkx as pyg_to_networkx

from graphhalu.graphs.dataset import AttentionGraphs
from graphhalu.graphs.edges import TopK
from graphhalu.graphs.topology import to_networkx


@pytest.fixture(scope="module")
def graphs(planted):
    return AttentionGraphs(planted[0], edges=TopK(3))


def test_networkx_and_pyg_have_the_same_nodes_and_edges(graphs):
    ours = to_networkx(graphs.token_graph(4))
    theirs = pyg_to_networkx(graphs[4], to_undirected=False)

    assert list(ours.nodes) == list(theirs.nodes)
    assert ours.number_of_edges() > 0
    assert set(ours.edges) == set(theirs.edges)


def test_an_edge_weighs_the_mean_attention_of_the_heads(graphs):
    graph = graphs.token_graph(4)
    attention = graphs.traces[1].attention(graph.layer)

    for key, query, weight in to_networkx(graph).edges(data="weight"):
        assert weight == pytest.approx(attention[:, query, key].mean(), rel=1e-6)


def test_nodes_say_which_tokens_are_the_answer(graphs):
    graph = graphs.token_graph(0)

    answer = nx.get_node_attributes(to_networkx(graph), "is_answer")
    assert list(answer.values()) == graph.is_answer.tolist()


def test_a_graph_without_edges_keeps_its_nodes(trace_of):
    graphs = AttentionGraphs([trace_of(np.tile(np.eye(5), (1, 2, 1, 1)), 3)])

    drawn = to_networkx(graphs.token_graph(0))
    assert (drawn.number_of_nodes(), drawn.number_of_edges()) == (5, 0)
