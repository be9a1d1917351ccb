"""Random traces of any length, and stores made of them."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from graphhalu.traces.schema import ARRAYS, TraceRecord, TraceShape, stored_shape
from graphhalu.traces.store import TraceStore, open_traces
from graphhalu.traces.trace import Trace

# sizes that differ, so that a swapped axis cannot pass
SHAPE = TraceShape(
    n_layers=11,
    n_heads=3,
    n_kv_heads=1,
    hidden_size=7,
    attention_layers=(0, 2, 3, 5, 10),
    hidden_layers=(0, 11),
    layer_windows=(None, 5, None, None, 5),
    n_edges=2,
)


def random_trace(question, length, row_start=0, *, seed=0, text="Why?", beam=0):
    """A trace whose arrays hold any bits that their number format can, attention only finite."""
    generator = np.random.default_rng([seed, length, row_start, beam])
    record = TraceRecord(
        trace_id=f"{question}#{beam}",
        question_id=question,
        group_id=question,
        question=text,
        answers=(text, "b"),
        answer=text,
        prompt=text,
        prompt_length=length - 1,
        length=length,
        row_start=row_start,
        context=None if length % 2 else text,
        beam_index=beam,
        beam_score=-0.25,
        metadata={"category": text, "rank": [1, None, {"deep": 2.5}]},
    )
    arrays = {name: _random(spec, record, generator) for name, spec in ARRAYS.items()}
    return Trace(record, SHAPE, arrays)


def _random(spec, record, generator):
    shape = stored_shape(spec, SHAPE, record)
    if spec.name == "attention":
        return generator.uniform(size=shape).astype(np.float16)
    n_bytes = int(np.prod(shape)) * np.dtype(spec.dtype).itemsize
    return np.frombuffer(generator.bytes(n_bytes), dtype=spec.dtype).reshape(shape)


def create(path, arrays=tuple(ARRAYS)):
    return TraceStore.create(
        path, configuration={"model": {"name": "tiny"}}, shape=SHAPE, arrays=arrays, provenance={}
    )


def add(store, traces, *, index=None, failures=()):
    """Commit one part; its questions are those of the traces and of the failures."""
    questions = list(dict.fromkeys(trace.record.question_id for trace in traces))
    questions += [failure["question_id"] for failure in failures]
    with store.writer() as writer:
        index = writer.store.next_part_index() if index is None else index
        writer.write_part(index, traces, questions, failures)


def assert_same(found, expected, names=tuple(ARRAYS)):
    """Records and all bits of the arrays agree; bits, since NaN is not a number."""
    assert found.record == expected.record
    assert set(found.arrays) == set(names)
    for name in names:
        stored, given = found.arrays[name], expected.arrays[name]
        assert stored.shape == given.shape
        assert stored[:].dtype == given.dtype
        assert stored[:].tobytes() == given.tobytes()


@pytest.fixture(scope="session")
def toys():
    """What the tests of this room are made of."""
    return SimpleNamespace(SHAPE=SHAPE, trace=random_trace, create=create, add=add, assert_same=assert_same)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Two parts with traces of lengths 2 … 13, some of them without their first rows."""
    path = tmp_path_factory.mktemp("made") / "toys.zarr"
    store = create(path)
    add(store, [random_trace(f"q{n}", n) for n in (2, 7, 13)])
    add(store, [random_trace("q5", 5, 3), random_trace("q11", 11, 4)])
    return path


@pytest.fixture
def store(made, tmp_path):
    """A copy that a test may change."""
    return open_traces(shutil.copytree(made, tmp_path / "toys.zarr"))
