"""Lazy arrays: any index gives what numpy gives, and no chunk is decoded twice in a walk."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphhalu.traces import write
from graphhalu.traces.part import ChunkCache, Part
from graphhalu.traces.schema import ARRAYS
from graphhalu.traces.store import open_traces


@pytest.fixture(scope="module")
def chunky(toys, tmp_path_factory):
    """A part whose every array has several chunks along its ragged axis."""
    path = tmp_path_factory.mktemp("stores") / "chunky.zarr"
    traces = [toys.trace(f"q{n}", length) for n, length in enumerate((7, 2, 13, 3, 11, 5))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "CHUNK_ELEMENTS", 97)
        toys.add(toys.create(path), traces)
    return path, traces


@pytest.fixture
def decoded(monkeypatch):
    """How often each chunk was decoded."""
    counter = Counter()
    read_chunk = Part.read_chunk

    def counted(part, name, first, ragged):
        counter[name, first, ragged] += 1
        return read_chunk(part, name, first, ragged)

    monkeypatch.setattr(Part, "read_chunk", counted)
    return counter


def test_traces_that_lie_across_chunks_come_back_exactly(toys, chunky):
    path, traces = chunky
    part = open_traces(path).parts[0]
    for name in ("attention", "hidden", "span_mass", "received"):
        dim = ARRAYS[name].ragged_dim
        assert part.size(name)[dim] > 2 * part.chunk(name)[dim]
    for found, expected in zip(open_traces(path), traces, strict=True):
        toys.assert_same(found, expected)


@settings(max_examples=60, deadline=None)
@given(
    place=st.integers(0, 5),
    name=st.sampled_from(sorted(ARRAYS)),
    index=st.one_of(st.integers(-6, 5), st.slices(6)),
)
def test_any_index_of_the_first_axis_gives_what_numpy_gives(chunky, place, name, index):
    path, traces = chunky
    stored, given_ = open_traces(path)[place].arrays[name], traces[place].arrays[name]
    try:
        expected = given_[index]
    except IndexError:
        with pytest.raises(IndexError):
            stored[index]
        return
    assert stored[index].tobytes() == expected.tobytes()
    assert stored[index].shape == expected.shape


def test_a_walk_over_all_traces_decodes_each_chunk_once(chunky, decoded):
    for trace in open_traces(chunky[0]):
        for name in trace.arrays:
            trace.stream(name)
        for layer in trace.shape.attention_layers:
            trace.attention(layer)
    assert set(decoded.values()) == {1}
    assert {name for name, *_ in decoded} == set(ARRAYS)


def test_a_cache_for_the_chunks_of_one_trace_is_enough_for_the_walk(chunky, decoded):
    store = open_traces(chunky[0])
    # the longest trace touches five chunks a layer, the part has seven
    n_layers, chunk_bytes = 5, store.parts[0].read_chunk("attention", 0, 0).nbytes
    store.cache = ChunkCache(limit_bytes=n_layers * 5 * chunk_bytes)
    decoded.clear()
    for trace in store:
        for layer in trace.shape.attention_layers:
            trace.attention(layer)
    assert set(decoded.values()) == {1}
    assert store.cache.n_bytes <= store.cache.limit_bytes
    assert store.parts[0].read("attention").nbytes > store.cache.limit_bytes


def test_one_layer_of_one_trace_decodes_only_its_own_chunks(chunky, decoded):
    open_traces(chunky[0])[1].attention(3)
    assert {(name, first) for name, first, _ in decoded} == {("attention", 2)}
    assert len(decoded) <= 2


def test_the_cache_lets_the_least_recently_used_go(chunky, decoded):
    part = open_traces(chunky[0]).parts[0]
    one = part.read_chunk("attention", 0, 0).nbytes
    decoded.clear()
    cache = ChunkCache(limit_bytes=2 * one)
    for layer in (0, 1, 0, 2, 0, 1):
        cache.get(part, "attention", layer, 0)
    assert decoded == {("attention", 0, 0): 1, ("attention", 1, 0): 2, ("attention", 2, 0): 1}
    assert cache.n_bytes == 2 * one


def test_a_chunk_larger_than_the_cache_is_still_read(chunky):
    part = open_traces(chunky[0]).parts[0]
    cache = ChunkCache(limit_bytes=1)
    for _ in range(3):
        assert cache.get(part, "hidden", 1, 0).size
    assert cache.n_bytes == part.read_chunk("hidden", 1, 0).nbytes


def test_changing_what_was_read_does_not_change_what_is_read_next(chunky):
    store = open_traces(chunky[0])
    first = store[2].stream("received")
    kept = first.copy()
    first[:] = 7
    assert store[2].stream("received").tobytes() == kept.tobytes()


def test_a_whole_array_of_a_part_holds_its_traces_one_after_another(chunky):
    path, traces = chunky
    part = open_traces(path).parts[0]
    for name, spec in ARRAYS.items():
        whole = np.concatenate([trace.arrays[name] for trace in traces], axis=spec.ragged_dim)
        assert part.read(name).tobytes() == whole.tobytes()
    assert part.read("attention", 3).tobytes() == part.read("attention")[3].tobytes()
    assert part.offsets["token"].tolist() == [0, 7, 9, 22, 25, 36, 41]
