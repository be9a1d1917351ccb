"""Features, graphs and comparisons from workers elsewhere are those of one process."""

from dataclasses import replace

import numpy as np
import pytest

from graphhalu.evaluation.compare import RunOptions, compare
from graphhalu.evaluation.settings import CompareConfig
from graphhalu.evaluation.univariate import compare_topology
from graphhalu.features.table import feature_table, read_features, write_features
from graphhalu.labels.planted import planted_traces
from graphhalu.traces.store import TraceStore
from tests.engine.remote_executor import RemoteExecutor

FEATURES = ["sink_mass_k4", "received_top[k=3,head=mean]", "perplexity"]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A store of three parts, and labels."""
    traces, labels = planted_traces(43, seed=3)
    store = TraceStore.create(
        tmp_path_factory.mktemp("spread") / "a.zarr",
        configuration={},
        shape=traces[0].shape,
        arrays=tuple(traces[0].arrays),
    )
    with store.writer() as writer:
        for index, first in enumerate((0, 17, 36)):
            part = traces[first : (17, 36, 43)[index]]
            writer.write_part(index, part, [trace.record.question_id for trace in part])
    return TraceStore.open(store.path), labels


def test_a_table_of_features_is_the_same(planted, tmp_path):
    store, _ = planted
    turned = store.select(np.arange(len(store))[::-1])
    for traces in (store, turned, list(store)):
        here = feature_table(traces, FEATURES)
        there = feature_table(traces, FEATURES, engine=RemoteExecutor())
        assert (here.trace_ids, here.columns) == (there.trace_ids, there.columns)
        np.testing.assert_array_equal(here.values, there.values)
    write_features(store, FEATURES, tmp_path / "a.parquet", engine=RemoteExecutor())
    again = read_features(tmp_path / "a.parquet")
    assert again.trace_ids == store.trace_ids
    assert again.metadata["provenance"] == store.provenance


def test_topology_of_graphs_is_the_same(planted):
    store, labels = planted
    seen = []
    here = compare_topology(store, labels, layers=(1, 3), n_resamples=100)
    there = compare_topology(
        store,
        labels,
        layers=(1, 3),
        n_resamples=100,
        engine=RemoteExecutor(),
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert here == there
    assert seen[-1] == (43, 43)


def test_a_comparison_has_the_same_scores(planted):
    store, labels = planted
    config = CompareConfig(seeds=(0, 1), n_folds=3, n_resamples=100, detectors=("sink-mass", "perplexity"))
    here = compare(store, labels, config=config)
    there = compare(store, labels, config=config, options=RunOptions(engine=RemoteExecutor()))
    assert [row.failure for row in there.rows] == [None, None]
    assert here.samples.equals(there.samples)
    timeless = {"fit_s": None, "score_ms": None}
    assert [replace(row, **timeless) for row in here.rows] == [replace(row, **timeless) for row in there.rows]
