"""Graphs of controls: other neighbours at about the same distance, or none."""

import numpy as np
import pytest
import torch

from graphhalu.detectors.gnn.detectors import STRATA, rewired, without_edges
from graphhalu.graphs.dataset import AttentionGraphs
from graphhalu.graphs.edges import GraphRecipe, TopK
from graphhalu.graphs.storage import TokenGraphData
from graphhalu.traces.schema import N_SINK_KEYS


def random_graph(n_tokens, n_edges, n_layers=1, seed=0, trace_index=0):
    """A stacked graph with edges drawn alike in each layer."""
    pairs = [(key, query) for query in range(n_tokens) for key in range(query)]
    generator = np.random.default_rng(seed)
    chosen = [np.sort(generator.permutation(len(pairs))[:n_edges]) for _ in range(n_layers)]
    edges = [np.array(pairs)[each].T + layer * n_tokens for layer, each in enumerate(chosen)]
    return TokenGraphData(
        x=torch.zeros(n_tokens * n_layers, 1),
        edge_index=torch.from_numpy(np.concatenate(edges, axis=1)),
        edge_attr=torch.from_numpy(generator.uniform(size=(n_edges * n_layers, 3))),
        layer_index=torch.arange(n_layers).repeat_interleave(n_tokens),
        trace_index=trace_index,
        question_id="q0",
    )


SIZES = [(2, 1, 1), (7, 13, 1), (23, 101, 2), (41, 307, 3), (101, 997, 1)]


@pytest.mark.parametrize(("n_tokens", "n_edges", "n_layers"), SIZES)
def test_queries_attention_causality_and_distance_stay(n_tokens, n_edges, n_layers):
    data = random_graph(n_tokens, n_edges, n_layers)
    moved = rewired(data)
    assert torch.equal(moved.edge_index[1], data.edge_index[1])
    assert torch.equal(moved.edge_attr, data.edge_attr)
    key, query = moved.edge_index
    assert (key < query).all()
    assert torch.equal(data.layer_index[key], data.layer_index[query])
    pairs = set(zip(key.tolist(), query.tolist(), strict=True))
    assert len(pairs) == n_edges * n_layers
    strata = [
        np.searchsorted(STRATA, each[1] - each[0], side="right")
        for each in (data.edge_index.numpy(), moved.edge_index.numpy())
    ]
    np.testing.assert_array_equal(*strata)


@pytest.mark.parametrize(("n_tokens", "n_edges", "n_layers"), SIZES)
def test_edges_of_the_first_four_tokens_never_move(n_tokens, n_edges, n_layers):
    data = random_graph(n_tokens, n_edges, n_layers)
    before, after = data.edge_index[0] % n_tokens, rewired(data).edge_index[0] % n_tokens
    is_sink = before < N_SINK_KEYS
    assert torch.equal(before[is_sink], after[is_sink])
    assert (after[~is_sink] >= N_SINK_KEYS).all()


def test_layers_of_a_trace_are_rewired_alike():
    """The tokens that a query attends to in two layers stay the same ones."""
    data = random_graph(23, 101, 2)
    keys = [{}, {}]
    moved = rewired(data).edge_index % 23
    for place, (key, query) in enumerate((data.edge_index % 23).T.tolist()):
        keys[place >= 101][key, query] = int(moved[0, place])
    shared = keys[0].keys() & keys[1].keys()
    assert shared
    assert all(keys[0][pair] == keys[1][pair] for pair in shared)


def test_most_attention_that_is_not_of_sinks_goes_to_another_key(few):
    recipe = GraphRecipe(edges=TopK(8), nodes=("sink",), view="multiplex", sinks="remove")
    graphs = AttentionGraphs.of_recipe(few.traces[:31], (1, 2, 3), recipe)
    moved, total = 0.0, 0.0
    for data in graphs:
        weight = data.edge_attr.mean(1)
        # a query with one such token has no other to attend to
        has_choice = data.edge_index[1] > N_SINK_KEYS + 1
        is_other = rewired(data).edge_index[0] != data.edge_index[0]
        moved += float(weight[is_other & has_choice].sum())
        total += float(weight[has_choice].sum())
    assert moved / total >= 0.6


def test_a_graph_is_always_rewired_alike_and_another_one_otherwise():
    first, again = (rewired(random_graph(41, 307)) for _ in range(2))
    assert torch.equal(first.edge_index, again.edge_index)
    other = rewired(random_graph(41, 307, trace_index=1))
    assert not torch.equal(first.edge_index, other.edge_index)


def test_the_given_graph_stays_as_it_is():
    data = random_graph(41, 307)
    before = data.edge_index.clone()
    rewired(data)
    without_edges(data)
    assert torch.equal(data.edge_index, before)


@pytest.mark.parametrize("change", [rewired, without_edges])
def test_no_edges_stay_none(change):
    none = random_graph(7, 0)
    assert change(none).edge_index.shape == (2, 0)


def test_without_edges_the_nodes_stay():
    data = random_graph(7, 13)
    alone = without_edges(data)
    assert alone.num_edges == len(alone.edge_attr) == 0
    assert alone.edge_attr.shape == (0, 3)
    assert torch.equal(alone.x, data.x)
