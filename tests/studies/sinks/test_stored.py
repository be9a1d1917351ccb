"""Records from a trace store equal the features of the same traces."""

import numpy as np
import pytest

from graphhalu.features.block import block_of
from graphhalu.features.sinks import mean_sink_mass
from graphhalu.labels.labels import Labels
from graphhalu.labels.planted import PLANTED_SHAPE, planted_traces
from graphhalu.studies.sinks.measure import block_mass, measure_store, store_runs
from graphhalu.studies.sinks.records import read_run
from graphhalu.studies.sinks.settings import SinkMeasureConfig
from graphhalu.traces.schema import ARRAYS
from graphhalu.traces.store import TraceStore


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    traces, labels = planted_traces(23)
    path = tmp_path_factory.mktemp("stored") / "s.zarr"
    configuration = {"model": {"name": "m"}, "dataset": {"name": "triviaqa"}, "prompt": {"chat": True}}
    made = TraceStore.create(path, configuration=configuration, shape=PLANTED_SHAPE, arrays=tuple(ARRAYS))
    with made.writer() as writer:
        writer.write_part(0, traces, [trace.record.question_id for trace in traces])
    return TraceStore.open(path), labels


@pytest.mark.parametrize("k", [1, 4])
def test_the_mode_range_is_the_feature_sink_mass(store, k):
    traces, labels = store
    run = next(iter(store_runs(traces, labels, SinkMeasureConfig(ks=(k,), modes=("range",)))))
    for record, trace in zip(run.records, traces, strict=True):
        expected = mean_sink_mass(block_of([trace]).all_rows, k)[0]
        np.testing.assert_allclose(record.by_head, expected, atol=1e-6)
        assert record.sink_mass == pytest.approx(np.nanmean(expected), abs=1e-6)
    assert (run.first.chat_mode, run.first.task, run.first.model) == ("on", "triviaqa", "m")


def test_the_mode_last_is_the_row_that_begins_the_answer(store):
    traces, labels = store
    run = next(iter(store_runs(traces, labels, SinkMeasureConfig(ks=(2,), modes=("last",)))))
    for record, trace in zip(run.records, traces, strict=True):
        row = trace.prompt_length - 1
        expected = [trace.attention(layer)[:, row, :2].sum(-1) for layer in trace.shape.attention_layers]
        np.testing.assert_allclose(record.by_head, expected, atol=1e-3)
        assert record.seq_len == trace.prompt_length
        assert record.entropy == pytest.approx(trace.stream("token_entropy")[trace.prompt_length])


def test_labels_of_the_input_are_no_labels_of_the_output(store):
    traces, labels = store
    other = Labels(**{**vars(labels), "meaning": "input"})
    run = next(iter(store_runs(traces, other, SinkMeasureConfig(ks=(1,)))))
    assert all(record.labels["hallucinated"] is None for record in run.records)
    run = next(iter(store_runs(traces, labels, SinkMeasureConfig(ks=(1,)))))
    assert [r.labels["hallucinated"] for r in run.records] == labels.values.tolist()


def test_a_store_becomes_files_of_records(store, tmp_path):
    traces, _ = store
    config = SinkMeasureConfig(ks=(1, 4), modes=("last", "range"))
    runs = measure_store(traces.path, tmp_path, config)
    assert len(runs) == 4
    assert read_run(runs[0].path).meta["labeller"] == "match"
    assert not (traces.path / "labels").exists()


def test_query_start_leaves_out_the_rows_before_it(store):
    from graphhalu.features.block import block_of

    trace = store[0][0]
    late = block_mass(block_of([trace]), 1, "range", trace.length - 1)[0]
    expected = trace.attention(0)[:, -1, 0]
    np.testing.assert_allclose(late["by_head"][0], expected, atol=1e-3)
