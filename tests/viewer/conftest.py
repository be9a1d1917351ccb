"""Stores to look at: planted traces whose texts try to be markup."""

from dataclasses import replace

import numpy as np
import pytest

from graphhalu.labels.planted import PLANTED_SHAPE, planted_traces
from graphhalu.traces.schema import ARRAYS
from graphhalu.traces.store import TraceStore
from graphhalu.viewer.view import View

HOSTILE = "<img src=x onerror=alert(1)>"
ALL = tuple(ARRAYS)
MATRICES = {"attention", "attention_fixed", "hidden", "hidden_rows"}
EDGES = {"edge_key", "edge_weight", "dropped_mass"}
KEPT = {
    "full": tuple(n for n in ALL if n not in {"attention_fixed", *EDGES}),
    "fixed16": tuple(n for n in ALL if n not in {"attention", *EDGES}),
    "edges": tuple(n for n in ALL if n not in MATRICES),
    "streams": tuple(n for n in ALL if n not in MATRICES | EDGES),
}


def hostile(trace):
    """The first answer token is a whole tag; the others are a letter each."""
    answer = HOSTILE + "abcdefghijklmnopqrstuvwxyz"[: trace.answer_length - 1]
    offsets = [(0, len(HOSTILE))]
    offsets += [(at, at + 1) for at in range(len(HOSTILE), len(answer))]
    record = replace(
        trace.record, answer=answer, answer_offsets=tuple(offsets), question=f"{HOSTILE}</script>?"
    )
    return replace(trace, record=record)


def created(path, kept, traces):
    store = TraceStore.create(path, configuration={}, shape=PLANTED_SHAPE, arrays=KEPT[kept], provenance={})
    with store.writer() as writer:
        writer.write_part(0, traces, [trace.record.question_id for trace in traces])
    return store


@pytest.fixture(scope="session")
def planted():
    traces, _ = planted_traces(7, seed=3)
    return [hostile(trace) for trace in traces]


@pytest.fixture(scope="session")
def stores(tmp_path_factory, planted):
    """One store for each way of keeping attention, all of the same traces."""
    folder = tmp_path_factory.mktemp("view")
    return {kept: created(folder / f"{kept}.zarr", kept, planted) for kept in KEPT}


@pytest.fixture(scope="session")
def attention():
    """The attention that a trace in memory has, as whole matrices of float64."""

    def whole(trace):
        layers = trace.shape.attention_layers
        return np.stack([trace.attention(layer) for layer in layers]).astype(np.float64)

    return whole


@pytest.fixture(scope="session")
def plain_view():
    """A view without anything that is not asked for."""
    return lambda store, **changes: View(**{"store": store, "features": (), "n_edges": 3} | changes)
