"""Signals that only edges hold: what graph networks find, and what a control must not."""

import numpy as np
import pytest

from graphhalu.core.axes import Span
from graphhalu.core.errors import NotEnoughDataError
from graphhalu.core.numerics import auroc
from graphhalu.core.splits import grouped_split
from graphhalu.detectors.gnn.config import CHARMConfig, NetworkConfig
from graphhalu.detectors.registry import DETECTORS
from graphhalu.evaluation.controls import FOUND, NOT_FOUND, control_rows, question_mass
from graphhalu.evaluation.settings import detector_spec
from graphhalu.graphs.build import build_graph
from graphhalu.graphs.edges import GraphRecipe, TopK
from graphhalu.labels.labels import question_groups
from graphhalu.labels.planted import EDGE_SIGNALS, planted_edge_traces

# graph networks of PyG are made of layers that torch deprecates at import
pytestmark = pytest.mark.slow


def found(name, signal, n_traces, *, fractions=(0.6, 0.2, 0.2), **settings):
    traces, labels = planted_edge_traces(n_traces, signal, seed=3)
    groups = question_groups(traces)
    split = grouped_split(labels.values, groups, fractions=fractions, seed=1)
    kind = DETECTORS.get(name)
    detector = kind(**kind.settings(n_folds=2, **settings)).fit(traces, labels, split)
    scores = detector.score([traces[index] for index in split.test.tolist()]).values
    return auroc(scores, labels.values[split.test])


@pytest.mark.parametrize("signal", EDGE_SIGNALS)
def test_gat_finds_what_only_edges_hold(signal):
    assert found("gat", signal, 307) > FOUND


@pytest.mark.parametrize("signal", EDGE_SIGNALS)
def test_the_control_without_messages_does_not(signal):
    # many answers to test on, so that chance stays near a half
    assert found("mlp", signal, 509, fractions=(0.4, 0.1, 0.5), epochs=6) <= NOT_FOUND


def test_charm_finds_what_is_one_hop_away():
    assert found("charm", "one hop", 307) > FOUND


def test_planted_edges_differ_in_one_head_and_in_nothing_that_a_row_says():
    traces, labels = planted_edge_traces(101, "one hop", seed=5)
    of_label = []
    for trace in traces:
        rows = slice(trace.prompt_length - 1, None)
        mass = trace.layer_stream("span_mass", 2)[1, rows]
        entropy = trace.layer_stream("row_entropy", 2)[1, rows].mean()
        sink = trace.layer_stream("sink_keys", 2)[1, rows].sum(-1).mean()
        difference = mass[:, Span.QUESTION].mean() - mass[:, Span.CONTEXT].mean()
        of_label.append((difference, entropy, sink))
    values = np.array(of_label)
    aurocs = [auroc(column, labels.values) for column in values.T]
    assert aurocs[0] == 1.0
    assert max(abs(value - 0.5) for value in aurocs[1:]) < 0.15


def test_question_mass_on_edges_is_that_of_a_slow_loop():
    traces, _ = planted_edge_traces(31, "one hop", seed=7)
    labels, on_edges = next(question_mass(traces, NetworkConfig()))
    layer, head = labels.settings["layer"], labels.settings["head"]
    graph = build_graph(traces[4], layer, GraphRecipe(TopK(8), ("span",), sinks="remove"))
    first = traces[4].prompt_length - 1
    total = sum(
        weight[head]
        for key, query, weight in zip(*graph.edge_index, graph.edge_attr, strict=True)
        if query >= first and graph.span[key] == Span.QUESTION
    )
    assert on_edges[4] == pytest.approx(total / (traces[4].length - first), rel=1e-5)
    assert labels.values.sum() == 15


def test_question_mass_of_charm_is_that_of_weights_above_its_threshold():
    traces, _ = planted_edge_traces(31, "one hop", seed=7)
    labels, on_edges = next(question_mass(traces, CHARMConfig(tau=0.1)))
    trace, layer, head = traces[4], labels.settings["layer"], labels.settings["head"]
    rows = trace.attention(layer)[head, trace.prompt_length - 1 :]
    to_question = rows[:, np.asarray(trace.span_code) == Span.QUESTION]
    total = to_question[to_question > 0.1].sum() / len(rows)
    assert on_edges[4] == pytest.approx(float(total), rel=1e-3)


def test_a_row_says_whether_the_control_passes():
    traces, _ = planted_edge_traces(61, "one hop", seed=7)
    seen = []
    rows = control_rows(
        [detector_spec("length")], traces, n_answers=61, on_progress=lambda *step: seen.append(step[:2])
    )
    assert [row["control"] for row in rows] == [*EDGE_SIGNALS, "question mass"]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert rows[2]["reference"] > 0.8
    assert all(row["detector"] == "length" for row in rows)


def test_a_few_answers_are_not_enough():
    traces, _ = planted_edge_traces(29, "one hop")
    with pytest.raises(NotEnoughDataError, match="30"):
        control_rows([detector_spec("length")], traces, n_answers=61)
