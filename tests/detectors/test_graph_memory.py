import numpy as np
import pytest

from graphhalu.detectors.graph_memory import GraphMemory
from graphhalu.detectors.graph_pieces import GraphPiece
from graphhalu.testing.planted import planted_traces
from graphhalu.traces.schema import ARRAYS
from graphhalu.traces.store import TraceStore


def piece(n_bytes=1000):
    empty = np.zeros((1, 0), dtype=np.int64)
    x = np.zeros((1, n_bytes // 4, 1), dtype=np.float32)
    none = np.zeros((0, 1), dtype=np.float32)
    return GraphPiece(
        x, empty.astype(np.float32), empty, empty[0], none, (0,), (0,), ("a",), empty[0]
    )


@pytest.fixture
def traces():
    return planted_traces(5)[0]


def test_a_piece_comes_back_for_the_same_trace_and_recipe(traces):
    memory, one = GraphMemory(), piece()
    memory.put(traces[0], "a", one)
    assert memory.get(traces[0], "a") is one
    assert memory.get(traces[0], "b") is None
    assert memory.get(traces[1], "a") is None


def test_the_one_used_longest_ago_is_let_go(traces):
    memory = GraphMemory(limit_bytes=2500)
    for trace in traces[:2]:
        memory.put(trace, "a", piece())
    memory.get(traces[0], "a")
    memory.put(traces[2], "a", piece())
    assert [memory.get(trace, "a") is not None for trace in traces[:3]] == [True, False, True]
    assert memory.n_bytes == 2000


def test_a_piece_over_the_limit_is_not_kept(traces):
    memory = GraphMemory(limit_bytes=500)
    memory.put(traces[0], "a", piece())
    assert memory.get(traces[0], "a") is None
    assert memory.n_bytes == 0


def test_a_trace_that_is_gone_is_not_mistaken_for_another():
    memory = GraphMemory()
    seen = set()
    for seed in range(50):
        (trace,), _ = planted_traces(1, seed=seed)
        assert memory.get(trace, "a") is None
        memory.put(trace, "a", piece())
        seen.add(id(trace))
        del trace
    assert len(seen) < 50, "no address was used twice: this test saw nothing"


def test_a_stored_trace_is_known_after_it_was_opened_again(traces, tmp_path):
    path = tmp_path / "a.zarr"
    store = TraceStore.create(path, configuration={}, shape=traces[0].shape, arrays=list(ARRAYS))
    with store.writer() as writer:
        writer.write_part(0, traces, [trace.record.question_id for trace in traces])
    memory, one = GraphMemory(), piece()
    memory.put(TraceStore.open(path)[3], "a", one)
    assert memory.get(TraceStore.open(path)[3], "a") is one
    assert memory.get(TraceStore.open(path)[2], "a") is None
