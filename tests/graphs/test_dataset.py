import subprocess
import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch_geometric.loader import DataLoader

from graphhalu.core.errors import NotEnoughDataError, UnknownNameError, UsageError
from graphhalu.graphs.build import build_graph
from graphhalu.graphs.dataset import AttentionGraphs, default_layers
from graphhalu.graphs.edges import GraphRecipe, Threshold
from graphhalu.labels.planted import PLANTED_SHAPE, planted_token_traces
from graphhalu.labels.stated import label_tokens
from graphhalu.traces.schema import ARRAYS
from graphhalu.traces.trace import Trace


@pytest.fixture
def graphs(planted):
    traces, labels = planted
    return AttentionGraphs(traces, labels=labels)


@pytest.fixture
def some_invalid(planted):
    traces, labels = planted
    is_valid = labels.is_valid.copy()
    is_valid[[2, 11]] = False
    values = np.where(is_valid, labels.values, 0)
    return AttentionGraphs(traces, labels=replace(labels, is_valid=is_valid, values=values))


def test_the_layers_of_a_trace_follow_each_other(graphs):
    assert len(graphs) == 23 * 3
    assert [graphs[i].trace_index for i in range(5)] == [0, 0, 0, 1, 1]
    assert [graphs[i].layer for i in range(5)] == [1, 2, 3, 1, 2]
    assert graphs[-1].trace_index == 22


def test_a_graph_is_the_token_graph_of_its_trace_and_layer(planted, graphs):
    data, expected = graphs[7], build_graph(planted[0][2], 2)

    np.testing.assert_array_equal(data.x.numpy(), expected.x)
    np.testing.assert_array_equal(data.edge_index.numpy(), expected.edge_index)
    np.testing.assert_array_equal(data.edge_attr.numpy(), expected.edge_attr)
    np.testing.assert_array_equal(data.is_answer.numpy(), expected.is_answer)
    np.testing.assert_array_equal(data.kept_mass.numpy(), expected.kept_mass)
    assert data.question_id == planted[0][2].record.question_id
    assert graphs.node_feature_names == expected.node_feature_names
    assert graphs.edge_feature_names == expected.edge_feature_names
    assert data.is_sorted(sort_by_row=False)
    assert data.validate()


def test_the_settings_reach_the_graph(planted):
    graphs = AttentionGraphs(
        planted[0], layers=[4, 0], edges=Threshold(0.2), nodes=["sink", "hidden"], prompt_edges=False
    )
    recipe = GraphRecipe(Threshold(0.2), ("sink", "hidden"), prompt_edges=False)

    expected = build_graph(planted[0][1], 0, recipe)
    np.testing.assert_array_equal(graphs[3].x.numpy(), expected.x)
    np.testing.assert_array_equal(graphs[3].edge_index.numpy(), expected.edge_index)


def test_iterating_ends_after_the_last_graph(graphs):
    view = graphs.select(np.array([5, 3]))

    assert [data.trace_index for data in view] == [5, 5, 5, 3, 3, 3]
    with pytest.raises(IndexError):
        view[6]


@pytest.mark.parametrize(
    ("n_layers", "kept", "expected"),
    [
        (30, range(30), (10, 15, 20)),
        (5, range(5), (1, 2, 3)),
        (32, (0, 8, 17, 31), (8, 17, 31)),
        (7, (2, 5), (2, 5)),
        (3, (1,), (1,)),
    ],
)
def test_default_layers_are_the_kept_ones_nearest_to_the_thirds_and_the_middle(n_layers, kept, expected):
    shape = replace(PLANTED_SHAPE, n_layers=n_layers, attention_layers=tuple(kept))

    assert default_layers(shape) == expected


def test_without_a_kept_layer_there_is_no_default():
    with pytest.raises(UsageError, match="no layer"):
        default_layers(replace(PLANTED_SHAPE, attention_layers=()))


def test_a_batch_shifts_edges_and_leaves_trace_numbers_alone(graphs):
    picked = [graphs[index] for index in (3, 10, 68)]
    batch = next(iter(DataLoader(picked, batch_size=3)))

    sizes = [data.num_nodes for data in picked]
    assert batch.trace_index.tolist() == [1, 3, 22]
    assert batch.layer.tolist() == [1, 2, 3]
    assert batch.question_id == [data.question_id for data in picked]
    assert batch.y.tolist() == [data.y.item() for data in picked]
    assert batch.num_nodes == sum(sizes)
    last = batch.edge_index[:, -picked[2].num_edges :]
    assert torch.equal(last, picked[2].edge_index + sizes[0] + sizes[1])


def test_workers_yield_the_same_batches(graphs):
    view = graphs.select(np.arange(5))
    alone = list(DataLoader(view, batch_size=4))
    shared = list(DataLoader(view, batch_size=4, num_workers=2))

    assert len(alone) == len(shared) == 4
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.edge_index, other.edge_index)
        assert torch.equal(one.trace_index, other.trace_index)


def test_a_split_shares_no_group_and_loses_no_trace(graphs):
    sides = graphs.split(seed=3)

    groups = [set(side.groups.tolist()) for side in sides]
    assert all(groups)
    assert len(set.union(*groups)) == sum(map(len, groups))
    found = np.concatenate([side.trace_indices for side in sides])
    assert sorted(found.tolist()) == list(range(23))
    assert sum(map(len, sides)) == len(graphs)


def test_the_same_question_under_two_ids_stays_on_one_side(planted):
    traces, labels = planted
    texts = [f"What is {number // 2}?" for number in range(len(traces))]
    twice = [
        Trace(replace(trace.record, question=text), trace.shape, trace.arrays)
        for trace, text in zip(traces, texts, strict=True)
    ]
    sides = AttentionGraphs(twice, labels=labels).split(seed=0)
    found = [{texts[index] for index in side.trace_indices} for side in sides]
    assert sum(map(len, found)) == len(set.union(*found))


def test_a_split_repeats_with_its_seed_and_changes_with_another(graphs):
    first, again, other = (graphs.split(seed=seed)[0].trace_indices for seed in (0, 0, 1))

    np.testing.assert_array_equal(first, again)
    assert first.tolist() != other.tolist()


def test_graphs_without_labels_split_too_and_have_no_y(planted):
    graphs = AttentionGraphs(planted[0])

    assert graphs[0].y is None
    assert all(len(side) for side in graphs.split())


def test_a_split_of_a_view_keeps_the_numbers_of_the_traces(graphs):
    view = graphs.select(np.arange(7, 23))

    for side in view.split():
        assert side[0].trace_index == side.trace_indices[0] >= 7


def test_labels_become_floats_and_an_invalid_one_nan(planted, some_invalid):
    assert some_invalid[0].y.tolist() == [float(planted[1].values[0])]
    assert some_invalid[0].y.dtype == torch.float32
    assert some_invalid[2 * 3].y.isnan().all()


def test_the_labelled_view_drops_traces_without_a_valid_label(some_invalid):
    view = some_invalid.labelled()

    assert view.trace_indices.tolist() == [i for i in range(23) if i not in (2, 11)]
    assert len(some_invalid) == 69
    assert not any(data.y.isnan().any() for data in view)


def test_without_labels_there_is_no_labelled_view(planted):
    with pytest.raises(UsageError, match="no labels"):
        AttentionGraphs(planted[0]).labelled()


def test_stats_are_means_over_the_graphs(some_invalid, planted):
    view = some_invalid.select(np.array([1, 2, 4]))
    graphs = [view.token_graph(index) for index in range(9)]

    stats = view.stats()

    kept = [mass for graph in graphs for mass in graph.kept_mass[1:]]
    assert (stats["n_graphs"], stats["n_traces"]) == (9, 3)
    assert stats["nodes_mean"] == pytest.approx(np.mean([len(graph.x) for graph in graphs]))
    assert stats["edges_mean"] == pytest.approx(np.mean([len(g.edge_attr) for g in graphs]))
    assert stats["kept_mass_mean"] == pytest.approx(np.mean(kept), rel=1e-5)
    assert stats["prevalence"] == planted[1].values[[1, 4]].mean()


def test_kept_mass_is_taken_over_the_rows_that_may_have_edges(planted):
    graphs = AttentionGraphs(planted[0][:1], edges=Threshold(0.0), prompt_edges=False)

    assert graphs.stats()["kept_mass_mean"] == pytest.approx(1)
    assert graphs.stats()["prevalence"] is None


def test_an_empty_view_has_no_means(graphs):
    with pytest.raises(NotEnoughDataError, match="no graph"):
        graphs.select(np.array([], dtype=np.int64)).stats()


def test_an_unknown_view_is_refused_with_the_known_one(planted):
    with pytest.raises(UnknownNameError, match="layers"):
        AttentionGraphs(planted[0], view="tokens")


@pytest.mark.parametrize("layers", [[2, 7], []])
def test_layers_that_are_not_kept_are_refused(planted, layers):
    with pytest.raises(UsageError, match="0, 1, 2, 3, 4"):
        AttentionGraphs(planted[0], layers=layers)


def test_no_trace_is_refused():
    with pytest.raises(NotEnoughDataError, match="no trace"):
        AttentionGraphs([])


def test_labels_of_other_traces_are_refused(planted):
    traces, labels = planted

    with pytest.raises(UsageError, match="each of 22"):
        AttentionGraphs(traces[1:], labels=labels)
    with pytest.raises(UsageError, match="trace 0 is"):
        AttentionGraphs(traces[::-1], labels=labels)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_read_the_same_graphs_from_a_store(store, start):
    view = AttentionGraphs(store, layers=[1, 3])
    alone = list(DataLoader(view.select(np.arange(6)), batch_size=5))
    # what is decoded here must neither be sent nor be shared
    view[0]
    loader = DataLoader(view.select(np.arange(6)), batch_size=5, num_workers=1, multiprocessing_context=start)

    for one, other in zip(alone, loader, strict=True):
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.edge_index, other.edge_index)
        assert one.question_id == other.question_id


def test_a_worker_gets_no_decoded_chunks(store):
    graphs = AttentionGraphs(store, edges=Threshold(0.123))
    graphs[0]

    assert store.cache.n_bytes > 0
    assert graphs.__getstate__()["traces"].cache.n_bytes == 0


def test_several_graphs_asked_for_together_are_those_asked_for_alone(store):
    graphs = AttentionGraphs(store, layers=[0, 4])
    wanted = [7, 2, 2, 33, 6, 0]
    view = graphs[wanted]

    for index, data in zip(wanted, view, strict=True):
        alone = graphs[index]
        assert (data.layer, data.trace_index) == (alone.layer, alone.trace_index)
        assert torch.equal(data.edge_attr, alone.edge_attr)


def test_slices_and_masks_give_views(graphs):
    view = graphs[2:5]
    assert [(data.trace_index, data.layer) for data in view] == [(0, 3), (1, 1), (1, 2)]
    assert view.trace_indices.tolist() == [0, 1]
    assert [data.trace_index for data in graphs[[1, 3]]] == [0, 1]
    assert len(graphs[torch.tensor([4, 2, 0])]) == 3
    is_wanted = torch.zeros(len(graphs), dtype=torch.bool)
    is_wanted[-1] = True
    assert [data.trace_index for data in graphs[is_wanted]] == [22]
    assert [data.trace_index for data in graphs[30:60][3:5]] == [11, 11]
    with pytest.raises(IndexError):
        view[3]


def test_a_data_set_says_how_many_features_its_graphs_have(graphs):
    assert graphs.num_node_features == graphs.num_features == len(graphs.node_feature_names)
    assert graphs.num_edge_features == len(graphs.edge_feature_names) == 3


def test_a_transform_changes_a_graph_when_it_is_asked_for(planted):
    def doubled(data):
        data.x = 2 * data.x
        return data

    plain = AttentionGraphs(planted[0])
    changed = AttentionGraphs(planted[0], transform=doubled)
    for _ in range(2):
        assert torch.equal(changed[4].x, 2 * plain[4].x)
    assert torch.equal(changed[3:5][1].x, 2 * plain[4].x)


def test_a_path_is_opened(store):
    graphs = AttentionGraphs(store.path, layers=[2])
    again = AttentionGraphs(str(store.path), layers=[2])
    assert len(graphs) == len(again) == 17
    assert torch.equal(graphs[3].x, again[3].x)


def test_a_data_set_is_named_in_one_short_line(graphs):
    assert repr(graphs) == ("AttentionGraphs(69 graphs of 23 traces, view='layers', layers=[1, 2, 3])")
    assert repr(graphs[2:5]).startswith("AttentionGraphs(3 graphs of 2 traces")


WRONG_TYPES = """
from graphhalu.core.errors import UsageError
from graphhalu.graphs.dataset import AttentionGraphs
from graphhalu.labels.planted import planted_traces

traces, labels = planted_traces(2)
for given in ((7,), (["a"],), ({"a": 1},), (traces, labels.values)):
    try:
        AttentionGraphs(given[0], labels=(given[1:] or (None,))[0])
    except UsageError as error:
        print(str(error).splitlines()[0])
"""


def test_what_is_no_traces_or_no_labels_is_refused():
    """In a process of its own: here the types are checked before."""
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WRONG_TYPES], capture_output=True, text=True, check=True
    )
    expected = ("got int", "list of str", "got dict", "expected Labels")
    for line, said in zip(told.stdout.splitlines(), expected, strict=True):
        assert said in line


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"nodes": ["sinc"]}, "sink"),
        ({"importance": "median"}, "mean"),
        ({"channels": "head"}, "heads"),
        ({"sinks": "drop"}, "renormalise"),
    ],
)
def test_an_unknown_name_is_refused_when_the_data_set_is_made(planted, setting, said):
    with pytest.raises(UnknownNameError, match=said):
        AttentionGraphs(planted[0], **setting)


def test_question_ids_choose_the_sides(graphs, planted):
    names = [trace.record.question_id for trace in planted[0]]
    sides = graphs.split(ids=[{names[0]}, [names[5], names[8]], {names[22]}])
    for side, wanted in zip(sides, [{0}, {5, 8}, {22}], strict=True):
        questions = {names[index] for index in wanted}
        expected = [index for index, name in enumerate(names) if name in questions]
        assert side.trace_indices.tolist() == expected


@pytest.mark.parametrize("ids", ["abc", [["q0"]], [["q0"], ["q1"]]])
def test_other_than_three_sides_are_refused(graphs, ids):
    with pytest.raises(UsageError, match="three sides"):
        graphs.split(ids=ids)


def test_a_question_on_two_sides_is_refused(graphs):
    with pytest.raises(UsageError, match="q0"):
        graphs.split(ids=[["q0", "q1"], ["q2"], ["q0"]])


def test_labels_of_tokens_give_one_value_an_answer_token():
    traces = planted_token_traces(7, seed=1)
    labels = label_tokens([trace.record for trace in traces])
    batch = next(iter(DataLoader(AttentionGraphs(traces, layers=[1], labels=labels), 7)))
    assert batch.y.tolist() == np.concatenate(labels.tokens).tolist()
    assert len(batch.y) == int(batch.is_answer.sum())


def answer_rows(trace):
    """What an extraction with ``--rows answer`` keeps."""
    first = trace.prompt_length - 1
    arrays = {}
    for name, values in trace.arrays.items():
        if name in ("attention", "attention_fixed"):
            skipped = first * (first + 1) // 2
            arrays[name] = values[..., skipped:]
        elif "row" in ARRAYS[name].axes:
            arrays[name] = np.take(values, range(first, trace.length), ARRAYS[name].axes.index("row"))
        else:
            arrays[name] = values
    return Trace(replace(trace.record, row_start=first), trace.shape, arrays)


def test_answer_rows_alone_make_graphs_without_prompt_edges(planted):
    traces, labels = planted
    settings = {"nodes": ["span", "sink", "entropy"], "prompt_edges": False, "layers": [0, 3]}
    cut = AttentionGraphs([answer_rows(trace) for trace in traces], labels=labels, **settings)
    whole = AttentionGraphs(traces, labels=labels, **settings)
    assert cut.node_feature_names == (*whole.node_feature_names, "row.is_missing")
    for trace, one, other in zip(np.repeat(np.arange(23), 2), cut, whole, strict=True):
        first = traces[trace].prompt_length - 1
        assert torch.equal(one.edge_index, other.edge_index)
        assert torch.equal(one.edge_attr, other.edge_attr)
        np.testing.assert_allclose(one.x[first:, :-1], other.x[first:], atol=1e-6)
        assert one.x[:, -1].tolist() == [1] * first + [0] * (len(one.x) - first)
        assert one.kept_mass[:first].isnan().all()
    with pytest.raises(UsageError, match="prompt_edges=False"):
        AttentionGraphs(cut.traces)[0]


def test_a_multiplex_view_has_one_graph_a_trace(store, one_each):
    graphs = AttentionGraphs(store, view="multiplex", layers=[0, 4], labels=one_each[1])
    batch = next(iter(DataLoader(graphs, batch_size=4)))

    assert len(graphs) == 17
    assert graphs[3].layers == (0, 4)
    assert "layer" not in graphs[3]
    assert graphs[3].num_edge_features == 2 * 3
    assert batch.num_graphs == 4
    assert graphs.stats()["n_graphs"] == 17
    assert sum(map(len, graphs.split())) == 17


def test_many_graphs_leave_memory_flat(store):
    graphs = AttentionGraphs(store, layers=[0, 2])
    sum(1 for _ in graphs)
    tracemalloc.start()
    try:
        sum(1 for _ in graphs)
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(3):
            sum(1 for _ in graphs)
        assert tracemalloc.get_traced_memory()[0] - before < 100_000
    finally:
        tracemalloc.stop()
