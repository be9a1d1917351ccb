from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphhalu.core.errors import NonFiniteError, TraceNotFoundError, UnknownNameError, UsageError
from graphhalu.graphs.build import build_graph, build_graphs
from graphhalu.graphs.edges import CumulativeMass, GraphRecipe, Threshold, TopK
from graphhalu.traces.trace import Trace

# Row sums are 1; every value is exact in half precision.
HEAD_0 = [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25, 0.5, 0.25, 0], [0.5, 0.125, 0.25, 0.125]]
HEAD_1 = [[1, 0, 0, 0], [0.75, 0.25, 0, 0], [0.5, 0, 0.5, 0], [0, 0.125, 0.5, 0.375]]


@pytest.fixture(scope="module")
def four_tokens(trace_of):
    return trace_of(np.array([[HEAD_0, HEAD_1]], dtype=np.float64), 2, question="capital")


def edges_of(graph):
    return list(zip(*graph.edge_index.tolist(), strict=True))


def test_a_graph_of_four_tokens_is_the_one_drawn_by_hand(four_tokens):
    graph = build_graph(four_tokens, 0, GraphRecipe(edges=TopK(2), nodes=("self_attention",)))

    # means of row 3 are .25 .125 .375, so its two best keys are 0 and 2
    assert edges_of(graph) == [(0, 1), (0, 2), (1, 2), (0, 3), (2, 3)]
    np.testing.assert_array_equal(
        graph.edge_attr, [[0.5, 0.75], [0.25, 0.5], [0.5, 0], [0.5, 0], [0.25, 0.5]]
    )
    np.testing.assert_allclose(graph.kept_mass, [1, 1, 1, 0.625 / 0.75])
    expected_x = np.log([[1, 1], [0.5, 0.25], [0.25, 0.5], [0.125, 0.375]])
    np.testing.assert_allclose(graph.x, expected_x, rtol=1e-6)
    assert graph.is_answer.tolist() == [False, False, True, True]
    assert (graph.trace_id, graph.question_id, graph.group_id) == ("capital#0",) + ("capital",) * 2
    assert graph.node_feature_names == ("self_attention.log_head0", "self_attention.log_head1")
    assert graph.edge_feature_names == ("attention_head0", "attention_head1")


def test_the_largest_head_can_decide_instead_of_the_mean(four_tokens):
    mean = GraphRecipe(edges=Threshold(0.3), nodes=("span",))
    largest = replace(mean, importance="max")

    assert edges_of(build_graph(four_tokens, 0, mean)) == [(0, 1), (0, 2), (2, 3)]
    assert edges_of(build_graph(four_tokens, 0, largest)) == [(0, 1), (0, 2), (1, 2), (0, 3), (2, 3)]


def test_without_prompt_edges_they_begin_at_the_row_that_produces_the_answer(trace):
    full = build_graph(trace, 0, GraphRecipe(edges=TopK(3)))
    cut = build_graph(trace, 0, GraphRecipe(edges=TopK(3), prompt_edges=False))

    is_left = full.edge_index[1] >= trace.prompt_length - 1
    np.testing.assert_array_equal(cut.edge_index, full.edge_index[:, is_left])
    np.testing.assert_array_equal(cut.edge_attr, full.edge_attr[is_left])
    assert cut.kept_mass[1 : trace.prompt_length - 1].tolist() == [0] * (trace.prompt_length - 2)
    np.testing.assert_array_equal(cut.kept_mass[6:], full.kept_mass[6:])


def test_edge_features_are_the_attention_of_every_head_on_that_edge(trace):
    graph = build_graph(trace, 1, GraphRecipe(edges=CumulativeMass(0.7)))
    attention = trace.attention(1)

    assert len(graph.edge_attr) > 0
    for (key, query), weights in zip(edges_of(graph), graph.edge_attr, strict=True):
        np.testing.assert_array_equal(weights, attention[:, query, key])


def test_kept_mass_is_the_share_of_a_row_that_lies_on_its_edges(trace):
    graph = build_graph(trace, 0, GraphRecipe(edges=TopK(2)))
    mean = trace.attention(0).mean(0).astype(np.float64)

    for row in range(1, trace.length):
        kept = sum(mean[row, key] for key, query in edges_of(graph) if query == row)
        total = sum(mean[row, key] for key in range(row))
        assert graph.kept_mass[row] == pytest.approx(kept / total, rel=1e-6)
    assert graph.kept_mass[0] == 1


def test_permuting_heads_permutes_the_columns_of_heads_and_nothing_else(trace_of, random_attention):
    attention = random_attention(np.random.default_rng(4), (1, 5, 11, 11))
    order = [3, 0, 4, 1, 2]
    graph = build_graph(trace_of(attention, 7), 0)
    permuted = build_graph(trace_of(attention[:, order], 7), 0)

    np.testing.assert_array_equal(permuted.edge_index, graph.edge_index)
    np.testing.assert_array_equal(permuted.edge_attr, graph.edge_attr[:, order])
    names = list(graph.node_feature_names)
    for column, name in enumerate(names):
        before, _, head = name.rpartition("head")
        source = f"{before}head{order[int(head)]}" if head.isdigit() else name
        np.testing.assert_allclose(
            permuted.x[:, column], graph.x[:, names.index(source)], rtol=1e-5, atol=1e-6
        )
    assert sum("head" in name.split("_")[-1] for name in names) == 5 * 4


RULES = st.one_of(
    st.integers(1, 9).map(TopK), st.floats(0, 0.9).map(Threshold), st.floats(0.01, 1).map(CumulativeMass)
)


@settings(max_examples=50, deadline=None)
@given(
    rule=RULES,
    seed=st.integers(0, 2**16),
    length=st.integers(2, 19),
    n_heads=st.integers(1, 5),
    window=st.sampled_from([None, 1, 3]),
    prompt_edges=st.booleans(),
    importance=st.sampled_from(["mean", "max"]),
)
def test_every_graph_is_causal_sorted_and_finite(
    trace_of, random_attention, rule, seed, length, n_heads, window, prompt_edges, importance
):
    generator = np.random.default_rng(seed)
    attention = random_attention(generator, (1, n_heads, length, length), window=window)
    prompt_length = int(generator.integers(1, length))
    trace = trace_of(attention, prompt_length, windows=(window,))
    recipe = GraphRecipe(rule, prompt_edges=prompt_edges, importance=importance)

    graph = build_graph(trace, 0, recipe)

    key, query = graph.edge_index
    assert (key < query).all()
    places = query * length + key
    assert (np.diff(places) > 0).all()
    assert (graph.edge_attr.max(1, initial=0) > 0).all()
    assert ((graph.kept_mass >= 0) & (graph.kept_mass <= 1)).all()
    assert np.isfinite(graph.x).all()
    assert graph.x.shape == (length, len(graph.node_feature_names))
    assert graph.edge_attr.shape == (graph.edge_index.shape[1], n_heads)


def test_a_trace_without_its_first_rows_is_refused(trace):
    late = Trace(replace(trace.record, row_start=3), trace.shape, trace.arrays)

    with pytest.raises(UsageError, match="rows from 3 on"):
        build_graph(late, 0)


def test_attention_that_is_not_finite_is_an_error_that_names_the_layer(trace):
    broken = np.array(trace.arrays["attention"])
    broken[1, 2, 5] = np.nan
    faulty = Trace(trace.record, trace.shape, {**trace.arrays, "attention": broken})

    with pytest.raises(NonFiniteError, match="layer 1"):
        build_graph(faulty, 1)


def test_a_layer_that_is_not_kept_is_refused(trace):
    with pytest.raises(TraceNotFoundError, match="no attention of layer 7"):
        build_graph(trace, 7)


def test_an_unknown_importance_is_refused():
    with pytest.raises(UnknownNameError, match="mean"):
        GraphRecipe(importance="median")


def test_without_sinks_every_head_is_divided_by_what_it_leaves_to_others(trace):
    recipe = GraphRecipe(edges=TopK(3), sinks="renormalise")
    graph = build_graph(trace, 1, recipe)
    attention = trace.attention(1).astype(np.float64)
    mean = attention.mean(0)

    expected = []
    for row in range(5, trace.length):
        keys = sorted(range(4, row), key=lambda key: (-mean[row, key], key))[:3]
        expected += [(key, row) for key in sorted(keys)]
        total = sum(mean[row, key] for key in range(4, row))
        kept = sum(mean[row, key] for key in keys)
        assert graph.kept_mass[row] == pytest.approx(kept / total, rel=1e-5)
    assert edges_of(graph) == expected
    for (key, query), weights in zip(expected, graph.edge_attr, strict=True):
        rest = 1 - attention[:, query, :4].sum(1)
        np.testing.assert_allclose(weights, attention[:, query, key] / rest, rtol=5e-3)


def test_a_multiplex_graph_is_renormalised_layer_by_layer(trace):
    recipe = GraphRecipe(edges=TopK(2), sinks="renormalise")
    both = build_graphs(trace, (0, 1), replace(recipe, view="multiplex"))[0]
    for place, graph in enumerate(build_graphs(trace, (0, 1), recipe)):
        n_heads = graph.edge_attr.shape[1]
        of_layer = both.edge_attr[:, place * n_heads : (place + 1) * n_heads]
        weights = dict(zip(edges_of(both), of_layer.tolist(), strict=True))
        for edge, expected in zip(edges_of(graph), graph.edge_attr, strict=True):
            np.testing.assert_allclose(weights[edge], expected, rtol=1e-6)


def test_an_unknown_treatment_of_sinks_is_refused():
    with pytest.raises(UnknownNameError, match="renormalise"):
        GraphRecipe(sinks="drop")
