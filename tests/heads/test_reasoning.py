"""Reasoning heads: shares against slow loops, missing rows, gates, contrast, kinds of stores."""

from dataclasses import replace

import numpy as np
import pytest

from graphhalu.core.axes import Span
from graphhalu.core.errors import NotEnoughDataError, TraceNotFoundError, UnknownNameError, UsageError
from graphhalu.heads.reasoning import (
    attention_share,
    find_reasoning_heads,
    generated_keys,
    trace_shares,
    uniform_share,
)
from graphhalu.heads.settings import ReasoningSettings
from graphhalu.labels.planted import PLANTED_SHAPE, planted_traces
from graphhalu.traces.schema import ARRAYS
from graphhalu.traces.store import TraceStore
from graphhalu.traces.trace import Trace

SETTINGS = ReasoningSettings(local_window=1, n_sink=2)
EDGES = ("edge_key", "edge_weight", "dropped_mass")
FULL = ("attention", "attention_fixed")


def slow_shares(trace, layer, kind, window=None):
    """The formula of section 0.4, weight by weight."""
    attention = trace.attention(layer).astype(np.float64)
    by_head = []
    for head in attention:
        rows = []
        for i in range(trace.prompt_length - 1, trace.length - 1):
            if kind == "reasoning":
                keys = [j for j in range(trace.prompt_length, i - 1) if j >= 2]
            else:
                keys = [j for j in range(trace.length) if trace.span_code[j] == Span.QUESTION and j >= 2]
            if not keys or (window and min(keys) < i - window + 1):
                continue
            rows.append(sum(head[i, j] for j in keys) / (head[i].sum() - head[i, :2].sum()))
        by_head.append(np.mean(rows) if rows else np.nan)
    return np.array(by_head)


@pytest.mark.parametrize("window", [None, 6])
def test_shares_of_a_trace_equal_a_slow_loop(window):
    shape = replace(PLANTED_SHAPE, layer_windows=(None, window, None, window, None))
    traces, _ = planted_traces(5, seed=3, shape=shape)
    for trace in traces:
        found = trace_shares(trace, SETTINGS)
        for layer, width in enumerate(shape.layer_windows):
            for role, shares in found.items():
                expected = slow_shares(trace, layer, role, width)
                np.testing.assert_allclose(shares.score[layer], expected, atol=5e-3)


def test_a_head_that_attends_evenly_has_the_chance_level():
    rows, n_keys = np.arange(8, 13), 14
    attention = np.zeros((1, len(rows), n_keys))
    for place, row in enumerate(rows):
        attention[0, place, max(0, row - 8) : row + 1] = 1 / min(9, row + 1)
    span_code = np.full(n_keys, Span.QUESTION, dtype=np.uint8)
    span_code[9:] = Span.ANSWER
    span_code[:6] = Span.TEMPLATE
    asked = (
        generated_keys(rows, n_keys, prompt_length=9, local_window=1),
        np.broadcast_to(span_code == Span.QUESTION, (len(rows), n_keys)),
    )
    chances = [uniform_share(each, rows, n_sink=2, window=9) for each in asked]
    for is_asked, level in zip(asked, chances, strict=True):
        share, chance = attention_share(attention, is_asked, level, n_sink=2)
        np.testing.assert_allclose(share[0], chance)
    # of rows 8 … 12, those from 11 on have a token before their local window; all see 6, 7, 8
    assert np.isnan(chances[0]).tolist() == [True, True, True, False, False]
    assert not np.isnan(chances[1]).any()


def test_the_own_token_the_window_and_the_sink_do_not_count():
    rows = np.array([9])
    is_asked = generated_keys(rows, 10, prompt_length=5, local_window=2)
    assert np.flatnonzero(is_asked[0]).tolist() == [5, 6]
    chance = uniform_share(is_asked, rows, n_sink=1, window=None)
    attention = np.zeros((1, 1, 10))
    attention[0, 0, [0, 5, 6, 7, 8, 9]] = [0.5, 0.1, 0.05, 0.1, 0.05, 0.2]
    np.testing.assert_allclose(attention_share(attention, is_asked, chance, n_sink=1).score, 0.15 / 0.5)


def test_a_head_that_sinks_everything_counts_as_a_zero():
    is_asked = generated_keys(np.array([9]), 10, prompt_length=5, local_window=2)
    chance = uniform_share(is_asked, np.array([9]), n_sink=1, window=None)
    attention = np.zeros((1, 1, 10))
    attention[0, 0, [0, 5]] = [0.999, 0.001]
    assert attention_share(attention, is_asked, chance, n_sink=1).score.tolist() == [[0.0]]


def kept(trace, left_out):
    return {name: values for name, values in trace.arrays.items() if name not in left_out}


def test_edges_give_a_lower_bound_and_streams_the_question_only():
    shape = replace(PLANTED_SHAPE, n_edges=3)
    trace = planted_traces(1, seed=5, shape=shape)[0][0]
    full = trace_shares(trace, SETTINGS)
    edges = trace_shares(Trace(trace.record, shape, kept(trace, FULL)), SETTINGS)
    streams = trace_shares(Trace(trace.record, shape, kept(trace, FULL + EDGES)), SETTINGS)
    assert (edges["reasoning"].score <= full["reasoning"].score + 2e-3).all()
    assert edges["reasoning"].score.max() > 0
    np.testing.assert_array_equal(edges["question"].score, full["question"].score)
    np.testing.assert_array_equal(streams["question"].score, full["question"].score)
    assert np.isnan(streams["reasoning"].score).all()


@pytest.fixture
def make_store(tmp_path):
    def make(traces, arrays=tuple(ARRAYS), shape=PLANTED_SHAPE, name="s"):
        store = TraceStore.create(
            tmp_path / f"{name}.zarr",
            configuration={"model": {"name": "planted"}},
            shape=shape,
            arrays=arrays,
        )
        with store.writer() as writer:
            writer.write_part(0, traces, [trace.record.question_id for trace in traces])
        return TraceStore.open(store.path)

    return make


def test_right_answers_are_accepted_and_the_others_give_the_contrast(make_store):
    traces, _ = planted_traces(29, seed=1)
    store = make_store(traces)
    seen = []
    reasoning, question = find_reasoning_heads(
        store, SETTINGS, lambda done, total: seen.append((done, total))
    )
    right = [t for t in traces if t.record.answer == "yes"]
    assert (reasoning.role, question.role) == ("reasoning", "question")
    assert seen[-1] == (29, 29)
    assert [trial_id for trial_id, _ in question.trials] == [t.trace_id for t in right]
    assert {reason for _, reason in question.rejected} == {"ROUGE-1 recall is not above 50 %"}
    assert len(question.rejected) == 29 - len(right)
    assert question.model == {"name": "planted"}
    means = [trace_shares(trace, SETTINGS)["question"].score for trace in traces]
    is_right = np.array([trace.record.answer == "yes" for trace in traces])
    difference = np.mean(np.stack(means)[is_right], 0) - np.mean(np.stack(means)[~is_right], 0)
    np.testing.assert_allclose(question.columns["contrast"], difference, atol=1e-6)
    assert (question.columns["contrast_q"] >= question.columns["contrast_p"] - 1e-12).all()


def test_a_planted_difference_is_found_in_its_head(make_store):
    traces, _ = planted_traces(60, seed=2)
    records = [replace(t.record, answer="yes" if i % 2 else "no") for i, t in enumerate(traces)]
    changed = []
    for i, (trace, record) in enumerate(zip(traces, records, strict=True)):
        mass = trace.stream("span_mass").copy()
        if i % 2:
            mass[3, 2, :, Span.QUESTION] *= 2.5
            mass[3, 2] /= mass[3, 2].sum(-1, keepdims=True)
        arrays = {**trace.arrays, "span_mass": mass.astype(np.float16)}
        changed.append(Trace(record, PLANTED_SHAPE, arrays))
    question = find_reasoning_heads(make_store(changed), ReasoningSettings(n_sink=0))[-1]
    q_value = question.columns["contrast_q"]
    assert np.unravel_index(np.argmin(q_value), q_value.shape) == (3, 2)
    assert q_value[3, 2] < 0.001
    assert question.columns["contrast"][3, 2] > 0


def test_a_labeller_takes_the_place_of_the_gate_and_nothing_is_written(make_store):
    traces, _ = planted_traces(13, seed=1)
    store = make_store(traces)
    by_label = find_reasoning_heads(store, ReasoningSettings(n_sink=0, local_window=1, labeller="match"))[1]
    assert not store.labels_folder.exists()
    assert {reason for _, reason in by_label.rejected} == {"match: no alias"}
    with pytest.raises(UnknownNameError, match="no labeller named 'mach'"):
        find_reasoning_heads(store, ReasoningSettings(labeller="mach"))
    given = [Trace(replace(t.record, given_label=1), t.shape, t.arrays) for t in traces]
    with pytest.raises(UsageError, match="need labels of the model's own answers"):
        find_reasoning_heads(make_store(given, name="g"), ReasoningSettings(labeller="premise"))


def test_no_accepted_trace_is_an_error_with_counts(make_store):
    traces, _ = planted_traces(5)
    wrong = [Trace(replace(t.record, answer="no"), t.shape, t.arrays) for t in traces]
    with pytest.raises(NotEnoughDataError, match=r"no trial of 5 counts.*5 x ROUGE-1"):
        find_reasoning_heads(make_store(wrong), SETTINGS)


def test_short_answers_are_rejected_for_reasoning_and_counted_for_the_question(make_store):
    traces, _ = planted_traces(11, seed=1)
    with pytest.raises(NotEnoughDataError, match="no row can see"):
        find_reasoning_heads(make_store(traces), ReasoningSettings(local_window=50))


def test_stores_of_edges_and_of_streams_say_what_they_gave(make_store):
    traces, _ = planted_traces(7, seed=1)
    edges = tuple(name for name in ARRAYS if name not in FULL)
    streams = tuple(name for name in edges if name not in EDGES)
    found = find_reasoning_heads(make_store(traces, edges, name="e"), SETTINGS)
    assert [t.settings["source"] for t in found] == ["edges", "edges"]
    found = find_reasoning_heads(make_store(traces, streams, name="t"), SETTINGS)
    assert [(t.role, t.settings["source"]) for t in found] == [("question", "streams")]
    bare = tuple(name for name in streams if name != "span_mass")
    with pytest.raises(TraceNotFoundError, match="need the streams span_mass"):
        find_reasoning_heads(make_store(traces, bare, name="b"), SETTINGS)
