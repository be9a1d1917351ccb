"""Views, channels, importance and stores, against loops over single pairs."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphhalu.core.errors import NonFiniteError, TraceNotFoundError, UsageError
from graphhalu.graphs.build import build_graph, build_graphs, iter_graphs
from graphhalu.graphs.edges import CumulativeMass, GraphRecipe, HeadRoles, Threshold, TopK
from graphhalu.labels.planted import PLANTED_SHAPE, planted_traces
from graphhalu.traces.trace import Trace

ROLES = HeadRoles(("first", "rest"), np.array([[[3, 0], [0, 1], [1, 1]]] * 5, dtype=float))
RECIPES = [
    GraphRecipe(TopK(3)),
    GraphRecipe(CumulativeMass(0.6), channels="mean", importance="max"),
    GraphRecipe(Threshold(0.1), channels="max", prompt_edges=False),
    GraphRecipe(Threshold(0.2, censor=True), importance="max"),
    GraphRecipe(TopK(2), channels="weighted", roles=ROLES, nodes=("roles", "span")),
    GraphRecipe(TopK(2), importance="weighted", roles=HeadRoles(("one",), ROLES.values[..., 0])),
]


def assert_same(ours, theirs):
    for name in ("edge_index", "edge_attr", "is_answer", "kept_mass", "x"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
    for name in ("layer", "layers", "trace_id", "node_feature_names", "edge_feature_names"):
        assert getattr(ours, name) == getattr(theirs, name)


def slow_graph(trace, layers, recipe):
    """Edges, channels and kept mass of a graph over some layers, pair by pair."""
    edges, kept_mass = {}, []
    attention = {layer: trace.censored_attention(layer).astype(np.float64) for layer in layers}
    first_row = recipe.first_row(trace.record)
    for query in range(trace.length):
        chosen = set()
        for layer in layers:
            keys = [slow_importance(attention[layer][:, query, key], layer, recipe) for key in range(query)]
            if query >= first_row:
                chosen |= slow_choice(keys, recipe.edges)
        for key in sorted(chosen):
            edges[key, query] = [
                slow_channels(attention[layer][:, query, key], layer, recipe) for layer in layers
            ]
        total = sum(attention[layer][:, query, :query].mean(0).sum() for layer in layers)
        total += sum(slow_dropped(trace, layer, query) for layer in layers)
        on_edges = sum(
            slow_censored(attention[layer][:, query, key], recipe).mean()
            for layer in layers
            for key in chosen
        )
        kept_mass.append(on_edges / total if total > 0 else 1.0)
    return edges, kept_mass


def slow_dropped(trace, layer, query):
    return 0 if trace.has_attention else trace.edges(layer).dropped[:, query].mean()


def slow_importance(heads, layer, recipe):
    if recipe.importance == "weighted":
        weights = recipe.roles.values[layer, :, 0]
        return sum(w * a for w, a in zip(weights, heads, strict=True)) / sum(weights)
    return max(heads) if recipe.importance == "max" else sum(heads) / len(heads)


def slow_choice(values, rule):
    ranked = sorted((key for key, value in enumerate(values) if value > 0), key=lambda k: (-values[k], k))
    if isinstance(rule, TopK):
        return set(ranked[: rule.k])
    if isinstance(rule, Threshold):
        return {key for key in ranked if values[key] > rule.tau}
    chosen, mass = set(), 0.0
    for key in ranked:
        if mass >= rule.p * sum(values):
            break
        chosen.add(key)
        mass += values[key]
    return chosen


def slow_censored(heads, recipe):
    if not recipe.censors:
        return heads
    return np.array([a if a > recipe.edges.tau else 0.0 for a in heads])


def slow_channels(heads, layer, recipe):
    heads = slow_censored(heads, recipe)
    if recipe.channels == "heads":
        return list(heads)
    if recipe.channels == "weighted":
        weights = recipe.roles.values[layer]
        return [
            sum(weights[head, role] * heads[head] for head in range(len(heads))) / weights[:, role].sum()
            for role in range(weights.shape[1])
        ]
    return [max(heads) if recipe.channels == "max" else sum(heads) / len(heads)]


def assert_is(graph, edges, kept_mass):
    assert list(zip(*graph.edge_index.tolist(), strict=True)) == sorted(edges, key=lambda e: e[::-1])
    expected = [np.concatenate(edges[edge]) for edge in zip(*graph.edge_index.tolist(), strict=True)]
    if expected:
        np.testing.assert_allclose(graph.edge_attr, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(graph.kept_mass, kept_mass, rtol=1e-5, atol=1e-7)
    assert graph.edge_attr.shape[1] == len(graph.edge_feature_names)
    assert graph.x.shape == (len(graph.is_answer), len(graph.node_feature_names))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: f"{r.edges}-{r.importance}-{r.channels}")
@pytest.mark.parametrize("kept", ["full", "edges"])
def test_both_views_equal_a_loop_over_pairs(recipe, kept, store_of, one_each):
    traces = store_of(one_each[0][:3], kept)
    layers = (4, 0, 3)

    for trace in traces:
        for layer, graph in zip(layers, build_graphs(trace, layers, recipe), strict=True):
            assert graph.layer == layer
            assert_is(graph, *slow_graph(trace, (layer,), recipe))
        (both,) = build_graphs(trace, layers, replace(recipe, view="multiplex"))
        assert (both.layer, both.layers) == (None, layers)
        assert both.edge_index.shape[1] > 0
        assert_is(both, *slow_graph(trace, layers, recipe))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: f"{r.edges}-{r.importance}-{r.channels}")
@pytest.mark.parametrize("kept", ["full", "fixed", "edges"])
@pytest.mark.parametrize("view", ["layers", "multiplex"])
def test_a_walk_over_a_store_gives_what_each_trace_alone_gives(recipe, kept, view, store_of, one_each):
    store = store_of(one_each[0][:9], kept)
    recipe = replace(recipe, view=view)

    walked = dict(iter_graphs(store, (3, 1), recipe, [8, 0, 1, 2, 5, 6, 7]))

    assert list(walked) == [8, 0, 1, 2, 5, 6, 7]
    for index, graphs in walked.items():
        alone = build_graphs(store[index], (3, 1), recipe)
        for ours, theirs in zip(graphs, alone, strict=True):
            assert_same(ours, theirs)


def test_traces_in_memory_give_what_the_store_gives(store, one_each):
    in_memory = dict(iter_graphs(one_each[0], (2, 4)))

    for index, graphs in iter_graphs(store, (2, 4)):
        for ours, theirs in zip(graphs, in_memory[index], strict=True):
            assert_same(ours, theirs)


def test_a_small_block_gives_the_same_graphs(store, monkeypatch):
    expected = dict(iter_graphs(store, (0, 2)))
    monkeypatch.setattr("graphhalu.graphs.build.BLOCK_ELEMENTS", 1500)

    for index, graphs in iter_graphs(store, (0, 2)):
        for ours, theirs in zip(graphs, expected[index], strict=True):
            assert_same(ours, theirs)


def test_columns_of_a_multiplex_graph_stand_layer_by_layer_those_of_no_layer_once(store):
    recipe = GraphRecipe(TopK(2), ("position", "instability"), view="multiplex", channels="max")
    (graph,) = build_graphs(store[3], (4, 1), recipe)

    assert graph.node_feature_names[:4] == (
        "position.relative",
        "position.is_answer",
        "position.from_prompt_end",
        "position.log_length",
    )
    assert graph.node_feature_names[4:] == tuple(
        f"layer{layer}.instability.{name}"
        for layer in (4, 1)
        for name in ("head_std", "bounded_std", "is_missing")
    )
    assert graph.edge_feature_names == ("layer4.attention_max", "layer1.attention_max")
    one = build_graph(store[3], 1, replace(recipe, view="layers"))
    np.testing.assert_array_equal(graph.x[:, 7:], one.x[:, 4:])


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    length=st.integers(2, 17),
    window=st.sampled_from([None, 1, 3]),
    rule=st.sampled_from([TopK(2), Threshold(0.15), CumulativeMass(0.8)]),
    view=st.sampled_from(["layers", "multiplex"]),
)
def test_permuting_heads_permutes_the_channels(trace_of, random_attention, seed, length, window, rule, view):
    generator = np.random.default_rng(seed)
    attention = random_attention(generator, (2, 3, length, length), window=window)
    order = [2, 0, 1]
    windows = (window,) * 2
    recipe = GraphRecipe(rule, ("span",), view=view, importance="max")
    graphs = build_graphs(trace_of(attention, 1, windows=windows), (0, 1), recipe)
    permuted = build_graphs(trace_of(attention[:, order], 1, windows=windows), (0, 1), recipe)

    for one, other in zip(graphs, permuted, strict=True):
        np.testing.assert_array_equal(one.edge_index, other.edge_index)
        channels = one.edge_attr.reshape(one.edge_attr.shape[0], one.edge_attr.shape[1] // 3, 3)[..., order]
        np.testing.assert_array_equal(other.edge_attr, channels.reshape(one.edge_attr.shape))


def test_rows_out_of_sight_say_that_they_are_missing(trace_of, random_attention):
    attention = random_attention(np.random.default_rng(0), (1, 3, 13, 13), window=7)
    graph = build_graph(trace_of(attention, 5, windows=(7,)), 0)

    column = graph.x[:, graph.node_feature_names.index("sink.is_missing")]
    paid = graph.x[:, [n.startswith("sink.paid") for n in graph.node_feature_names]]
    assert column.tolist() == [1] * 4 + [0] * 3 + [1] * 6
    assert not paid[column == 1].any()
    assert (paid[column == 0] > 0).all()


def test_a_graph_that_is_kept_does_not_keep_its_block(store):
    graph = next(iter_graphs(store, (0, 1)))[1][0]

    for name in ("x", "edge_index", "edge_attr", "is_answer", "kept_mass"):
        assert getattr(graph, name).base is None


def test_a_faulty_trace_is_met_in_its_place(one_each):
    traces = list(one_each[0][:4])
    broken = np.array(traces[2].arrays["attention"])
    broken[1, 2, 5] = np.nan
    traces[2] = Trace(traces[2].record, traces[2].shape, {**traces[2].arrays, "attention": broken})
    walk = iter_graphs(traces, (1,))

    assert [next(walk)[0], next(walk)[0]] == [0, 1]
    with pytest.raises(NonFiniteError, match=f"{traces[2].trace_id}.*layer 1"):
        next(walk)


def test_weights_of_heads_that_do_not_fit_are_refused(store):
    two_heads = HeadRoles(("one",), np.ones((5, 2)))
    with pytest.raises(UsageError, match="5 layers and 3 heads"):
        build_graph(store[0], 0, GraphRecipe(roles=two_heads, channels="weighted"))
    none_in_layer_0 = HeadRoles(("one",), np.eye(5, 3, k=-1))
    with pytest.raises(UsageError, match="layer 0 has a weight"):
        build_graph(store[0], 0, GraphRecipe(roles=none_in_layer_0, channels="weighted"))
    with pytest.raises(UsageError, match="not negative"):
        HeadRoles(("one",), -np.ones((5, 3)))
    with pytest.raises(UsageError, match="shape"):
        HeadRoles(("one", "two"), np.ones((5, 3)))


@pytest.mark.parametrize(
    "fields",
    [
        {"channels": "weighted"},
        {"importance": "weighted"},
        {"nodes": ("roles",)},
        {"importance": "weighted", "roles": ROLES},
        {"edges": Threshold(0.1, censor=True)},
    ],
)
def test_settings_that_do_not_go_together_are_refused(fields):
    with pytest.raises(UsageError):
        GraphRecipe(**fields)


def test_a_multiplex_recipe_has_no_graph_of_one_layer(store):
    with pytest.raises(UsageError, match="build_graphs"):
        build_graph(store[0], 0, GraphRecipe(view="multiplex"))
    with pytest.raises(UsageError, match="at least one layer"):
        build_graphs(store[0], ())


def test_equal_recipes_have_equal_digests_and_others_do_not():
    digests = {recipe.digest() for recipe in RECIPES}
    assert len(digests) == len(RECIPES)
    assert GraphRecipe(TopK(3)).digest() == RECIPES[0].digest()
    other = HeadRoles(ROLES.names, ROLES.values + 1)
    assert replace(RECIPES[4], roles=other).digest() not in digests
    assert replace(RECIPES[4], roles=HeadRoles(ROLES.names, ROLES.values)) == RECIPES[4]
    assert len({HeadRoles(ROLES.names, ROLES.values), ROLES}) == 1


def test_what_a_store_does_not_keep_is_named(store_of, one_each):
    edges = store_of(one_each[0][:2], "edges")
    with pytest.raises(TraceNotFoundError, match="hidden"):
        build_graph(edges[0], 0, GraphRecipe(nodes=("hidden",)))
    streams = Trace(edges[0].record, edges[0].shape, {"span_code": edges[0].arrays["span_code"]})
    with pytest.raises(TraceNotFoundError, match="attention"):
        build_graph(streams, 0, GraphRecipe(nodes=("span",)))


def test_traces_of_two_models_are_not_read_together(one_each):
    other, _ = planted_traces(1, shape=replace(PLANTED_SHAPE, n_heads=2, n_kv_heads=2))
    graphs = dict(iter_graphs([one_each[0][0], other[0]], (0,)))

    assert [graphs[index][0].edge_attr.shape[1] for index in (0, 1)] == [3, 2]
