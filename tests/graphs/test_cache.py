from dataclasses import replace

import numpy as np
import pytest
from graphhalu.graphs.cache import GraphCache

from graphhalu.errors import UsageError
from graphhalu.graphs import cache as cache_module
from graphhalu.graphs.build import GraphRecipe, build_graphs
from graphhalu.graphs.dataset import AttentionGraphs
from graphhalu.graphs.edges import TopK

LAYERS = (3, 1)


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        for name, value in vars(one).items():
            np.testing.assert_array_equal(value, getattr(other, name), err_msg=name)
            assert type(value) is type(getattr(other, name))
            if isinstance(value, np.ndarray):
                assert value.dtype == getattr(other, name).dtype


@pytest.fixture
def never_build(monkeypatch):
    def switch():
        def refuse(*_):
            raise AssertionError("built, although it is cached")

        monkeypatch.setattr(cache_module, "build_graphs", refuse)

    return switch


@pytest.mark.parametrize("view", ["layers", "multiplex"])
def test_a_cached_graph_is_the_one_that_was_built(store, tmp_path, never_build, view):
    recipe = GraphRecipe(TopK(3), view=view)
    cache = GraphCache(tmp_path, LAYERS, recipe)
    expected = build_graphs(store[2], LAYERS, recipe)
    assert_same(cache.graphs(store[2]), expected)
    never_build()
    assert_same(GraphCache(tmp_path, LAYERS, recipe).graphs(store[2]), expected)
    assert not list(tmp_path.rglob(".writing-*"))


def test_another_recipe_layer_or_trace_has_another_file(store, tmp_path):
    recipe = GraphRecipe(TopK(3))
    caches = [
        GraphCache(tmp_path, LAYERS, recipe),
        GraphCache(tmp_path, (1, 3), recipe),
        GraphCache(tmp_path, LAYERS, replace(recipe, prompt_edges=False)),
    ]
    paths = {cache.path(trace) for cache in caches for trace in store[:3]}
    assert len(paths) == 9


def test_another_extraction_of_the_same_question_has_another_file(
    store, store_of, one_each, tmp_path
):
    cache = GraphCache(tmp_path, LAYERS, GraphRecipe())
    again = store_of(one_each[0], "fixed")
    assert cache.path(again[0]) != cache.path(store[0])


@pytest.mark.parametrize("place", [3, 40, 700, -1])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_file_is_built_again_never_served(store, tmp_path, place, damage):
    cache = GraphCache(tmp_path, LAYERS, GraphRecipe(TopK(3)))
    expected = cache.graphs(store[4])
    path = cache.path(store[4])
    whole = path.read_bytes()
    content = bytearray(whole)
    content[place] ^= 0x11
    path.write_bytes({"flip": bytes(content), "cut": whole[:place], "empty": b""}[damage])

    assert_same(cache.graphs(store[4]), expected)
    assert_same(cache_module._read(path), expected)


def test_every_flipped_byte_of_the_arrays_is_noticed(store, tmp_path):
    cache = GraphCache(tmp_path, (1,), GraphRecipe(TopK(1), ("span",)))
    cache.graphs(store[0])
    path = cache.path(store[0])
    whole = path.read_bytes()
    for place in range(8, len(whole), 41):
        content = bytearray(whole)
        content[place] ^= 0x01
        path.write_bytes(bytes(content))
        found = cache_module._read(path)
        if found is not None:
            assert_same(found, build_graphs(store[0], (1,), cache.recipe))


def test_graphs_of_a_data_set_come_from_the_cache(store, one_each, tmp_path, never_build):
    plain = AttentionGraphs(store, layers=LAYERS, labels=one_each[1])
    cached = AttentionGraphs(store, layers=LAYERS, labels=one_each[1], cache=tmp_path)
    list(cached)
    never_build()
    for ours, theirs in zip(cached, plain, strict=True):
        assert ours.keys() == theirs.keys()
        np.testing.assert_array_equal(ours.x, theirs.x)
    np.testing.assert_array_equal(cached[3].edge_attr, plain[3].edge_attr)


def test_traces_in_memory_are_not_cached(one_each, tmp_path):
    with pytest.raises(UsageError, match="in memory"):
        GraphCache(tmp_path, (0,), GraphRecipe()).graphs(one_each[0][0])


def test_a_folder_that_cannot_be_written_is_an_error_that_names_it(store, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file"):
        GraphCache(tmp_path / "file", (0,), GraphRecipe()).graphs(store[0])
