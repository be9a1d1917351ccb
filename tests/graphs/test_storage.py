from dataclasses import replace

import numpy as np
import pytest
import torch

from graphhalu.core.errors import GraphhaluError, UsageError
from graphhalu.graphs import storage as storage_module
from graphhalu.graphs.build import build_graphs
from graphhalu.graphs.dataset import AttentionGraphs
from graphhalu.graphs.edges import GraphRecipe, TopK
from graphhalu.graphs.storage import BLOCK_TRACES, GraphStorage, storage_of
from graphhalu.labels.planted import planted_traces
from graphhalu.traces.trace import Trace

LAYERS = (3, 1)
RECIPE = GraphRecipe(TopK(3))


def assert_same(ours, theirs):
    assert set(ours.keys()) == set(theirs.keys())
    for name, value in ours.to_dict().items():
        other = theirs[name]
        if isinstance(value, torch.Tensor):
            assert value.dtype == other.dtype, name
            assert torch.equal(value, other), name
        else:
            assert value == other, name


def all_graphs(storage, traces):
    return [
        storage.get(traces, index, place)
        for index in range(len(traces))
        for place in range(storage.graphs_per_trace)
    ]


@pytest.fixture
def never_build(monkeypatch):
    def switch():
        def refuse(*_):
            raise AssertionError("built, although it is kept")

        monkeypatch.setattr(storage_module, "iter_graphs", refuse)

    return switch


@pytest.fixture(scope="module")
def many():
    """Traces of two blocks, the second of which is not full."""
    return planted_traces(BLOCK_TRACES + 5, seed=2)[0]


@pytest.mark.parametrize("view", ["layers", "multiplex"])
def test_a_kept_graph_is_the_one_that_was_built(many, view):
    recipe = GraphRecipe(TopK(3), view=view)
    storage = GraphStorage(LAYERS, recipe)
    for index in (0, BLOCK_TRACES - 1, BLOCK_TRACES, len(many) - 1):
        for place, expected in enumerate(build_graphs(many[index], LAYERS, recipe)):
            found = storage.get(many, index, place)
            np.testing.assert_array_equal(found.x, expected.x)
            np.testing.assert_array_equal(found.edge_index, expected.edge_index)
            np.testing.assert_array_equal(found.edge_attr, expected.edge_attr)
            np.testing.assert_array_equal(found.is_answer, expected.is_answer)
            np.testing.assert_array_equal(found.span, expected.span)
            np.testing.assert_array_equal(found.kept_mass, expected.kept_mass)
            assert (found.trace_index, found.question_id) == (index, expected.question_id)
            assert found.x.dtype == found.edge_attr.dtype == torch.float32
            assert found.is_sorted(sort_by_row=False)
            assert storage.names == (expected.node_feature_names, expected.edge_feature_names)


def test_a_stacked_graph_has_the_graphs_of_the_layers_side_by_side(many):
    stacked = GraphStorage(LAYERS, GraphRecipe(TopK(3), view="stacked")).get(many, 5)
    parts = build_graphs(many[5], LAYERS, RECIPE)
    n_tokens = many[5].length
    np.testing.assert_array_equal(stacked.x, np.concatenate([part.x for part in parts]))
    edges = [part.edge_index + place * n_tokens for place, part in enumerate(parts)]
    np.testing.assert_array_equal(stacked.edge_index, np.concatenate(edges, axis=1))
    assert stacked.layer_index.tolist() == [0] * n_tokens + [1] * n_tokens
    assert stacked.is_sorted(sort_by_row=False)


def test_answer_rows_and_the_one_before_them_are_read_out(many):
    found = GraphStorage(LAYERS, RECIPE).get(many, 4)
    first = many[4].prompt_length
    assert found.is_answer.nonzero()[:, 0].tolist() == list(range(first, many[4].length))
    assert found.is_readout.nonzero()[:, 0].tolist() == list(range(first - 1, many[4].length))


def test_a_block_is_built_once(many, never_build):
    storage = GraphStorage(LAYERS, RECIPE)
    first = storage.get(many, 3)
    never_build()
    assert_same(storage.get(many, 3), first)
    storage.get(many, BLOCK_TRACES - 1)
    with pytest.raises(AssertionError, match="built"):
        storage.get(many, BLOCK_TRACES)


def test_what_is_changed_on_a_graph_stays_with_the_one_who_changed_it(many):
    storage = GraphStorage(LAYERS, RECIPE)
    storage.get(many, 3).x = None
    assert storage.get(many, 3).x is not None


@pytest.mark.parametrize("view", ["layers", "stacked", "multiplex"])
def test_blocks_beyond_the_limit_are_mapped_from_files_and_give_the_same_graphs(many, never_build, view):
    recipe = GraphRecipe(TopK(3), view=view)
    in_memory = GraphStorage(LAYERS, recipe)
    mapped = GraphStorage(LAYERS, recipe, memory_bytes=0)
    expected = all_graphs(in_memory, many)
    for _ in range(2):
        for one, other in zip(all_graphs(mapped, many), expected, strict=True):
            assert_same(one, other)
        never_build()
    assert mapped.n_bytes == 0
    assert in_memory.n_bytes > 0
    folder = mapped._temporary_folder()
    assert sorted(path.name for path in folder.iterdir()) == ["0.safetensors", "1.safetensors"]


def test_only_what_does_not_fit_goes_to_files(many):
    whole = GraphStorage(LAYERS, RECIPE)
    whole.get(many, 0)
    storage = GraphStorage(LAYERS, RECIPE, memory_bytes=whole.n_bytes)
    all_graphs(storage, many)
    assert storage.n_bytes == whole.n_bytes
    assert [path.name for path in storage._temporary_folder().iterdir()] == ["1.safetensors"]


def test_files_of_what_does_not_fit_go_with_the_storage(many):
    storage = GraphStorage(LAYERS, RECIPE, memory_bytes=0)
    storage.get(many, 0)
    folder = storage._temporary_folder()
    assert folder.is_dir()
    del storage
    assert not folder.exists()


def test_attention_that_half_precision_holds_is_kept_so(many):
    storage = GraphStorage(LAYERS, RECIPE)
    storage.get(many, 0)
    assert storage._blocks[0].data.edge_attr.dtype == torch.float16
    divided = GraphStorage(LAYERS, replace(RECIPE, sinks="renormalise"))
    found = divided.get(many, 0)
    assert divided._blocks[0].data.edge_attr.dtype == torch.float32
    expected = build_graphs(many[0], LAYERS, divided.recipe)[0]
    np.testing.assert_array_equal(found.edge_attr, expected.edge_attr)


@pytest.mark.parametrize("memory_bytes", [2**30, 0])
def test_a_trace_without_a_graph_says_why_and_takes_none_from_the_others(many, memory_bytes):
    broken = list(many)
    attention = np.array(broken[7].arrays["attention"])
    attention[:, 0, 3] = np.nan
    broken[7] = Trace(broken[7].record, broken[7].shape, {**broken[7].arrays, "attention": attention})
    storage = GraphStorage(LAYERS, RECIPE, memory_bytes=memory_bytes)
    whole = GraphStorage(LAYERS, RECIPE)
    for _ in range(2):
        with pytest.raises(GraphhaluError, match="layer 3"):
            storage.get(broken, 7)
    for index in (6, 8, 31, 33):
        assert_same(storage.get(broken, index), whole.get(many, index))


@pytest.mark.parametrize("view", ["layers", "multiplex"])
def test_a_cached_block_is_read_by_another_process(store, tmp_path, never_build, view):
    recipe = GraphRecipe(TopK(3), view=view)
    expected = all_graphs(GraphStorage(LAYERS, recipe), store)
    all_graphs(GraphStorage(LAYERS, recipe, folder=tmp_path), store)
    never_build()
    again = GraphStorage(LAYERS, recipe, folder=tmp_path)
    for one, other in zip(all_graphs(again, store), expected, strict=True):
        assert_same(one, other)
    assert again.names[1]
    assert len(list(tmp_path.iterdir())) == 1
    assert not list(tmp_path.rglob(".writing-*"))


def test_another_recipe_layer_or_store_has_another_file(store, store_of, one_each, tmp_path):
    again = store_of(one_each[0], "fixed")
    for traces, layers, recipe in (
        (store, LAYERS, RECIPE),
        (store, (1, 3), RECIPE),
        (store, LAYERS, replace(RECIPE, prompt_edges=False)),
        (store[:3], LAYERS, RECIPE),
        (again, LAYERS, RECIPE),
    ):
        GraphStorage(layers, recipe, folder=tmp_path).get(traces, 0)
    assert len(list(tmp_path.iterdir())) == 5


@pytest.fixture(scope="module")
def whole_file(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    storage = GraphStorage(LAYERS, RECIPE, folder=folder)
    storage.get(store, 0)
    (path,) = folder.iterdir()
    return path.name, path.read_bytes()


@pytest.mark.parametrize("place", [3, 40, 700, -1])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_file_is_built_again_never_served(store, whole_file, tmp_path, place, damage):
    name, whole = whole_file
    content = bytearray(whole)
    content[place] ^= 0x11
    path = tmp_path / name
    path.write_bytes({"flip": bytes(content), "cut": whole[:place], "empty": b""}[damage])

    found = GraphStorage(LAYERS, RECIPE, folder=tmp_path).get(store, 4)
    assert_same(found, GraphStorage(LAYERS, RECIPE).get(store, 4))
    mended = storage_module._read(path)
    assert torch.equal(mended.graph(8).edge_attr, found.edge_attr)


def test_every_flipped_byte_of_the_arrays_is_noticed(store, whole_file, tmp_path):
    name, whole = whole_file
    path = tmp_path / name
    path.write_bytes(whole)
    expected = storage_module._read(path)
    for place in range(8, len(whole), max(1, len(whole) // 97)):
        content = bytearray(whole)
        content[place] ^= 0x01
        path.write_bytes(bytes(content))
        found = storage_module._read(path)
        if found is not None:  # a byte that says nothing, such as a space of the header
            assert found.names == expected.names
            for number in range(2 * len(store)):
                assert_same(found.graph(number), expected.graph(number))


def test_graphs_of_a_data_set_come_from_the_cache(store, one_each, tmp_path, never_build):
    plain = AttentionGraphs(store, layers=LAYERS, labels=one_each[1])
    expected = list(plain)
    list(AttentionGraphs(store, layers=LAYERS, labels=one_each[1], cache=tmp_path))
    never_build()
    cached = AttentionGraphs(store, layers=LAYERS, labels=one_each[1], cache=tmp_path)
    for ours, theirs in zip(cached, expected, strict=True):
        assert_same(ours, theirs)


def test_traces_in_memory_are_not_cached(one_each, tmp_path):
    with pytest.raises(UsageError, match="in memory"):
        GraphStorage((0,), GraphRecipe(), folder=tmp_path).get(one_each[0], 0)


def test_a_folder_that_cannot_be_written_is_an_error_that_names_it(store, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file"):
        GraphStorage((0,), GraphRecipe(), folder=tmp_path / "file").get(store, 0)


def test_data_sets_of_one_open_store_share_what_was_built(store, one_each, never_build):
    recipe = GraphRecipe(TopK(5))
    first = storage_of(store, LAYERS, recipe)
    assert storage_of(store, LAYERS, GraphRecipe(TopK(5))) is first
    assert storage_of(store, (1,), recipe) is not first
    assert storage_of(store, LAYERS, replace(recipe, view="multiplex")) is not first
    assert storage_of(one_each[0], LAYERS, recipe) is not storage_of(one_each[0], LAYERS, recipe)
    list(AttentionGraphs(store, layers=LAYERS, edges=TopK(5)))
    never_build()
    list(AttentionGraphs(store, layers=LAYERS, edges=TopK(5), labels=one_each[1]))
