"""Planted traces hold what they promise: consistent arrays, a signal, and a twin without it."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from graphhalu.core.axes import Span
from graphhalu.labels.planted import PLANTED_SHAPE, planted_traces
from graphhalu.traces.schema import ARRAYS, TraceShape, n_pairs, stored_shape

HALF = {"rtol": 2**-10, "atol": 1e-6}
PRIME_SHAPE = TraceShape(
    n_layers=11,
    n_heads=7,
    n_kv_heads=1,
    hidden_size=13,
    attention_layers=(2, 7, 9),
    hidden_layers=(0, 11),
    layer_windows=(None, 5, None),
)


@pytest.fixture(scope="module")
def traces():
    return planted_traces(6, seed=3, shape=PRIME_SHAPE)[0]


def squares(trace):
    return np.stack([trace.attention(layer) for layer in trace.shape.attention_layers])


def test_every_array_has_the_shape_and_format_of_the_schema(traces):
    for trace in traces:
        assert set(trace.arrays) == set(ARRAYS)
        for name, spec in ARRAYS.items():
            assert trace.arrays[name].shape == stored_shape(spec, PRIME_SHAPE, trace.record)
            assert trace.arrays[name].dtype == np.dtype(spec.dtype)


def test_attention_is_causal_and_its_rows_sum_to_one(traces):
    for trace in traces:
        assert trace.arrays["attention"].shape[-1] == n_pairs(trace.length)
        np.testing.assert_allclose(squares(trace).sum(-1), 1, atol=4e-3)


def test_a_layer_with_a_window_sees_no_further(traces):
    for trace in traces:
        row, key = np.indices((trace.length, trace.length))
        is_hidden = row - key >= 5
        assert is_hidden.any()
        assert (trace.attention(7)[:, is_hidden] == 0).all()
        assert (trace.attention(9)[:, is_hidden] > 0).any()


def test_the_streams_are_those_of_the_attention(traces):
    for trace in traces:
        square = squares(trace).astype(np.float64)
        for span in Span:
            expected = square[..., trace.span_code == span].sum(-1)
            np.testing.assert_allclose(trace.stream("span_mass")[..., span], expected, rtol=2e-3, atol=2e-3)
        diagonal = np.einsum("lhqq->lhq", square)
        np.testing.assert_allclose(trace.stream("self_attention"), diagonal, **HALF)
        np.testing.assert_allclose(trace.stream("sink_keys"), square[..., :4], **HALF)
        np.testing.assert_allclose(trace.stream("received"), square.sum(2), rtol=2e-3, atol=1e-5)
        entropy = -(square * np.log(np.where(square > 0, square, 1))).sum(-1)
        np.testing.assert_allclose(trace.stream("row_entropy"), entropy, rtol=4e-3, atol=4e-3)


def test_the_largest_key_holds_the_largest_weight(traces):
    for trace in traces:
        square, largest = squares(trace), trace.stream("argmax_key")
        picked = np.take_along_axis(square, largest[..., None].astype(np.int64), axis=-1)[..., 0]
        np.testing.assert_array_equal(picked, square.max(-1))


def test_span_mass_sums_to_one(traces):
    for trace in traces:
        np.testing.assert_allclose(trace.stream("span_mass").sum(-1), 1, atol=4e-3)


def test_nothing_is_said_of_the_first_token_and_something_of_all_others(traces):
    for trace in traces:
        for name in ("token_logprob", "token_entropy", "top1_margin"):
            assert np.isnan(trace.stream(name)[0])
            assert np.isfinite(trace.stream(name)[1:]).all()


def test_the_answer_span_is_the_answer(traces):
    for trace in traces:
        assert (trace.is_answer == (np.arange(trace.length) >= trace.prompt_length)).all()


def sink_in_signal_head(trace):
    return float(trace.stream("sink_keys")[:, 1, :, 0].mean())


def test_a_planted_signal_separates_and_its_twin_does_not():
    scores = {}
    for signal in (True, False):
        traces, labels = planted_traces(101, seed=1, signal=signal)
        values = [sink_in_signal_head(trace) for trace in traces]
        scores[signal] = roc_auc_score(labels.values, values)
    assert scores[True] > 0.9
    assert scores[False] == pytest.approx(0.5, abs=0.12)


def test_texts_and_lengths_say_nothing_of_the_label():
    traces, labels = planted_traces(401, seed=2)
    is_yes = [trace.record.answer == "yes" for trace in traces]
    assert 0.4 < np.mean(is_yes) < 0.6
    assert roc_auc_score(labels.values, is_yes) == pytest.approx(0.5, abs=0.06)
    lengths = [trace.length for trace in traces]
    assert roc_auc_score(labels.values, lengths) == pytest.approx(0.5, abs=0.07)


def test_both_classes_are_there_and_labels_name_the_traces():
    traces, labels = planted_traces(7)
    assert labels.trace_ids == tuple(trace.trace_id for trace in traces)
    assert sorted(labels.values) == [0, 0, 0, 0, 1, 1, 1]
    assert labels.is_valid.all()


def test_beams_of_a_question_share_its_group_and_have_their_rank():
    traces, _ = planted_traces(5, traces_a_question=2)
    named = [(t.trace_id, t.record.group_id, t.record.beam_index) for t in traces]
    assert named[:3] == [("q0#0", "q0", 0), ("q0#1", "q0", 1), ("q1#0", "q1", 0)]
    assert named[3:] == [("q1#1", "q1", 1), ("q2#0", "q2", 0)]


def test_the_seed_decides_everything():
    first, again, other = (planted_traces(2, seed=seed)[0] for seed in (5, 5, 6))
    for name in ARRAYS:
        np.testing.assert_array_equal(first[1].arrays[name], again[1].arrays[name])
    assert not np.array_equal(first[0].arrays["received"], other[0].arrays["received"])


def test_a_shape_without_all_layers_is_planted_too():
    shape = replace(PLANTED_SHAPE, attention_layers=(3,), layer_windows=(None,))
    (trace,), _ = planted_traces(1, shape=shape)
    assert trace.arrays["attention"].shape[0] == 1
