import numpy as np
import pytest
from graphhalu.detectors.graph_rewire import rewired, rewired_graph

from graphhalu.graphs.build import GraphRecipe, build_graph
from graphhalu.graphs.edges import TopK


def random_edges(n_nodes, n_edges, seed=0):
    pairs = [(key, query) for query in range(n_nodes) for key in range(query)]
    chosen = np.sort(np.random.default_rng(seed).permutation(len(pairs))[:n_edges])
    return np.array([pairs[place] for place in chosen]).T


@pytest.mark.parametrize(("n_nodes", "n_edges"), [(2, 1), (7, 13), (23, 101), (41, 307)])
def test_degrees_and_causality_stay(n_nodes, n_edges):
    before = random_edges(n_nodes, n_edges)
    key, query = rewired(before, n_nodes, np.random.default_rng(1))
    np.testing.assert_array_equal(query, before[1])
    assert sorted(key) == sorted(before[0])
    assert (key < query).all()
    assert len(set(zip(key.tolist(), query.tolist(), strict=True))) == n_edges


def test_most_neighbours_are_others():
    before = random_edges(41, 150)
    key, query = rewired(before, 41, np.random.default_rng(1))
    old = set(zip(*before.tolist(), strict=True))
    assert sum(pair in old for pair in zip(key.tolist(), query.tolist(), strict=True)) < 75


def test_a_graph_without_room_stays_as_it_is():
    full = random_edges(7, 21)
    np.testing.assert_array_equal(rewired(full, 7, np.random.default_rng(0)), full)


def test_no_edges_stay_none():
    none = np.zeros((2, 0), dtype=np.int64)
    assert rewired(none, 5, np.random.default_rng(0)).shape == (2, 0)


def test_attention_travels_with_its_edge_and_a_trace_is_always_rewired_alike(few):
    graph = build_graph(few.traces[0], 2, GraphRecipe(edges=TopK(2), nodes=("sink",)))
    first, second = rewired_graph(graph), rewired_graph(graph)
    np.testing.assert_array_equal(first.edge_index, second.edge_index)
    np.testing.assert_array_equal(first.edge_attr, graph.edge_attr)
    assert not np.array_equal(first.edge_index, graph.edge_index)
    other = rewired_graph(
        build_graph(few.traces[1], 2, GraphRecipe(edges=TopK(2), nodes=("sink",)))
    )
    assert other.trace_id != first.trace_id
