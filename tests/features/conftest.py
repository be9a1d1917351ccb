"""A planted trace whose axes have different prime sizes: 5 layers, 3 heads, 17 tokens."""

from dataclasses import replace

import numpy as np
import pytest

from graphhalu.labels.planted import planted_traces
from graphhalu.traces.store import TraceStore
from graphhalu.traces.trace import Trace
from tests.features.oracle import random_case


@pytest.fixture(scope="session")
def trace():
    traces, _ = planted_traces(40, seed=3)
    return next(found for found in traces if found.length == 17)


@pytest.fixture(scope="session")
def change():
    """The same trace with other arrays, another record or another shape."""

    def changed(trace, *, shape=None, record=None, **arrays):
        return Trace(
            replace(trace.record, **(record or {})),
            replace(trace.shape, **(shape or {})),
            {**trace.arrays, **arrays},
        )

    return changed


@pytest.fixture
def share():
    return np.random.default_rng(5).uniform(size=(5, 3, 17))


@pytest.fixture(scope="session")
def traces():
    """Ten random traces, two beams of each of five questions; see ``oracle.py``."""
    generator = np.random.default_rng(17)
    return [random_case(generator, f"q{n // 2}", beam=n % 2).trace for n in range(10)]


FEW_ARRAYS = (
    "token_ids",
    "span_code",
    "token_logprob",
    "span_mass",
    "self_attention",
    "sink_keys",
    "received",
)


def made_store(path, traces, arrays):
    """A store of traces in three parts."""
    store = TraceStore.create(
        path, configuration={"model": {"name": "random"}}, shape=traces[0].shape, arrays=arrays
    )
    with store.writer() as writer:
        for index, part in enumerate((traces[:4], traces[4:8], traces[8:])):
            writer.write_part(index, part, sorted({trace.record.question_id for trace in part}))
    return TraceStore.open(path)


@pytest.fixture
def make_store(tmp_path):
    return lambda traces: made_store(tmp_path / "store.zarr", traces, FEW_ARRAYS)


@pytest.fixture(scope="session")
def store_path(tmp_path_factory, traces):
    path = tmp_path_factory.mktemp("features") / "store.zarr"
    return made_store(path, traces, tuple(traces[0].arrays)).path


@pytest.fixture
def store(store_path):
    """The random traces in a store of three parts, opened anew."""
    return TraceStore.open(store_path)
