import networkx as nx
import numpy as np
import pytest

from graphhalu.graphs.build import build_graph
from graphhalu.graphs.edges import GraphRecipe, Threshold, TopK
from graphhalu.graphs.topology import MEASURES, betweenness, clustering, pagerank, to_networkx, topology

GRAPHS = [(TopK(3), 0), (TopK(1), 3), (Threshold(0.3), 5), (Threshold(0.9), 7)]


@pytest.fixture(params=GRAPHS, ids=str)
def pair(request, planted):
    rule, index = request.param
    graph = build_graph(planted[0][index], 2, GraphRecipe(rule))
    return graph, to_networkx(graph)


def test_pagerank_is_that_of_networkx_on_reversed_edges(pair):
    graph, drawn = pair
    expected = nx.pagerank(drawn.reverse(), tol=1e-12, max_iter=1000)
    np.testing.assert_allclose(pagerank(graph), list(expected.values()), atol=1e-7)


def test_betweenness_is_that_of_networkx(pair):
    graph, drawn = pair
    np.testing.assert_allclose(
        betweenness(graph), list(nx.betweenness_centrality(drawn).values()), atol=1e-12
    )


def test_clustering_is_that_of_networkx_without_directions(pair):
    graph, drawn = pair
    expected = list(nx.clustering(drawn.to_undirected()).values())
    np.testing.assert_allclose(clustering(graph), expected, atol=1e-12)


def test_degrees_are_those_of_networkx(pair):
    graph, drawn = pair
    values = topology(graph)
    assert values["degree"] == np.mean([n for _, n in drawn.in_degree()])
    received = np.sort([n for _, n in drawn.out_degree(weight="weight")])
    apart = np.abs(received[:, None] - received).mean()
    expected = apart / (2 * received.mean()) if received.any() else np.nan
    assert values["degree_gini"] == pytest.approx(expected, nan_ok=True)


def test_components_are_those_of_networkx_without_the_first_token(pair):
    graph, drawn = pair
    drawn.remove_node(0)
    expected = nx.number_weakly_connected_components(drawn) / len(graph.x)
    assert topology(graph)["components"] == expected


def test_every_measure_has_a_meaning_and_lies_where_it_should(pair):
    values = topology(pair[0])
    assert list(values) == list(MEASURES)
    bounded = [value for name, value in values.items() if name != "degree"]
    assert all(np.isnan(value) or 0 <= value <= 1 + 1e-9 for value in bounded)


def test_measures_of_a_graph_by_hand(trace_of):
    """Token 1 attends to 0, 2 to 1, 3 to 2: a chain, half of each row on the edge."""
    chain = np.eye(4) / 2 + np.eye(4, k=-1) / 2
    chain[0, 0] = 1
    values = topology(build_graph(trace_of(np.tile(chain, (1, 2, 1, 1)), 2), 0))

    # the middle tokens lie on 2 of 6 ordered pairs of others each
    assert values["betweenness_max"] == pytest.approx(2 / 6)
    assert values["degree"] == 3 / 4
    assert values["clustering"] == 0
    assert values["components"] == 1 / 4
    assert values["answer_to_answer"] == 1 / 2
    assert values["edge_length"] == 1 / 4
    assert values["degree_gini"] == pytest.approx(1 / 4)
    assert values["kept_mass"] == 1


def test_a_graph_without_edges_has_no_edge_measures(trace_of):
    values = topology(build_graph(trace_of(np.tile(np.eye(5), (1, 2, 1, 1)), 3), 0))

    assert [name for name, value in values.items() if np.isnan(value)] == [
        "degree_gini",
        "answer_to_answer",
        "edge_length",
    ]
    assert values["components"] == 4 / 5
