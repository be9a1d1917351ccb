"""A bucket of a real S3 server process, and traces to put there."""

import os
from types import SimpleNamespace

import numpy as np
import pytest

from graphhalu.labels.planted import PLANTED_SHAPE, planted_traces
from graphhalu.traces.store import TraceStore, open_traces
from tests.faults.servers import BUCKET, ENVIRONMENT, Wire, s3_server

ARRAYS = ("token_ids", "span_code", "attention", "row_entropy", "hidden")


@pytest.fixture(scope="session")
def s3():
    """Address of a server with an empty bucket."""
    pytest.importorskip("moto", reason="needs moto, which scripts/test installs")
    pytest.importorskip("obstore", reason="needs obstore (pip install 'graphhalu[cloud]')")
    with s3_server() as address:
        yield address


@pytest.fixture
def wire(s3):
    """A way to the server that can be cut and slowed."""
    line = Wire(s3)
    yield line
    line.close()


@pytest.fixture
def url(request, wire, monkeypatch, tmp_path):
    """Address of a store that is not there yet, in the environment of a user."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT", wire.address)
    monkeypatch.setenv("GRAPHHALU_CACHE", str(tmp_path / "cache"))
    return f"s3://{BUCKET}/{abs(hash(request.node.nodeid))}/toys.zarr"


@pytest.fixture(scope="session")
def traces():
    """Eleven traces."""
    found, _ = planted_traces(11, seed=3)
    return found


def create(place):
    """An empty store."""
    return TraceStore.create(
        place, configuration={"model": {"name": "tiny"}}, shape=PLANTED_SHAPE, arrays=ARRAYS, provenance={}
    )


def add(store, index, traces, writer=None):
    """Commit a part."""
    names = [trace.record.question_id for trace in traces]
    if writer is not None:
        writer.write_part(index, traces, names)
        return
    with store.writer() as held:
        held.write_part(index, traces, names)


def content(place):
    """Everything that a reader sees of a store, by trace."""
    return {
        trace.trace_id: (trace.record, {n: np.asarray(trace.arrays[n][:]).tobytes() for n in ARRAYS})
        for trace in open_traces(place)
    }


@pytest.fixture(scope="session")
def toys():
    """What the tests of this room are made of."""
    return SimpleNamespace(create=create, add=add, content=content, arrays=ARRAYS)
