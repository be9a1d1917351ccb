"""The commands that label a store, and look at its labels."""

import json
from dataclasses import replace

import pytest

from graphhalu.cli.main import run
from graphhalu.labels.planted import PLANTED_SHAPE, planted_traces
from graphhalu.traces.schema import ARRAYS
from graphhalu.traces.store import TraceStore
from graphhalu.traces.trace import Trace


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    traces, _ = planted_traces(31)
    labelled = [
        Trace(
            replace(
                trace.record,
                is_on_policy=i % 2 == 0,
                given_label=int(i % 3 == 0),
                metadata={"category": "abc"[i % 3]},
            ),
            trace.shape,
            trace.arrays,
        )
        for i, trace in enumerate(traces)
    ]
    made = TraceStore.create(
        "data/traces/s.zarr", configuration={}, shape=PLANTED_SHAPE, arrays=tuple(ARRAYS)
    )
    with made.writer() as writer:
        writer.write_part(0, labelled, [trace.record.question_id for trace in labelled])
    return "data/traces/s.zarr"


def said(capsys, arguments, code=0):
    assert run(arguments) == code
    return capsys.readouterr()


def test_a_store_is_labelled_under_two_names_and_both_are_looked_at(store, capsys):
    label = ["label", store, "--labeller", "rouge", "--json"]
    first = json.loads(said(capsys, label).out)
    strict = ["--set", "metric=rouge1_recall", "--set", "threshold=0.9", "--as", "strict"]
    second = json.loads(said(capsys, [*label, *strict]).out)
    assert (first["labeller"], first["meaning"]) == ("rouge", "hallucinated")
    assert (second["labeller"], second["settings"]["threshold"]) == ("strict", 0.9)
    found = json.loads(said(capsys, ["labels", store, "--json", "--examples", "2"]).out)
    assert set(found["labellers"]) == {"rouge", "strict"}
    assert found["labellers"]["rouge"]["prevalence"] == first["prevalence"]
    assert len(found["agreement"]) == 1
    assert set(found["labellers"]["rouge"]["categories"]) == {"a", "b", "c"}


@pytest.mark.parametrize("n_cut", [0, 3])
def test_answers_that_were_cut_name_the_option_for_longer_ones(n_cut, tmp_path, capsys):
    traces, _ = planted_traces(7)
    ended = [replace(trace.record, is_finished=i >= n_cut, answer="so") for i, trace in enumerate(traces)]
    made = TraceStore.create(tmp_path / "a.zarr", configuration={}, shape=PLANTED_SHAPE, arrays=tuple(ARRAYS))
    with made.writer() as writer:
        parts = [
            Trace(record, trace.shape, trace.arrays) for record, trace in zip(ended, traces, strict=True)
        ]
        writer.write_part(0, parts, [record.question_id for record in ended])
    out = said(capsys, ["label", str(tmp_path / "a.zarr")]).out
    assert ("3  cut by the token limit" in out) == ("--max-new-tokens" in out) == bool(n_cut)


def test_missing_labels_are_made_and_shown_as_tables_with_examples(store, capsys):
    arguments = ["labels", "--labellers", "match, rouge,given", "--examples", "1"]
    text = said(capsys, arguments).out
    for expected in ("match", "rouge", "given", "kappa", "at other thresholds", "by category"):
        assert expected in text
    assert "what the data set says of its input" in text
    assert text.count("  question  ") == 2
    assert "hallucinated (no alias)" in text


def test_no_example_is_shown_when_none_is_asked_for(store, capsys):
    text = said(capsys, ["labels", "--labellers", "match", "--examples", "0"]).out
    assert "  question  " not in text


def test_a_text_of_a_model_cannot_move_the_cursor(tmp_path, monkeypatch, capsys, store):
    from graphhalu.labels import summary

    monkeypatch.setattr(summary, "_verdict_texts", lambda labels: ["\x1b[2J"] * len(labels.values))
    assert "\x1b" not in said(capsys, ["labels", "--labellers", "match"]).out


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["labels"], 1, "graphhalu label "),
        (["labels", "--labellers", "mach"], 2, "Did you mean 'match'"),
        (["labels", "missing.zarr"], 1, "no trace store"),
        (["labels", "--labellers", "match", "--examples", "-1"], 2, "examples"),
        (["label", "--labeller", "rouge", "--as", "match"], 2, "another rule's name"),
        (["label", "--labeller", "rouge", "--set", "metric=bleu"], 2, "metric of rouge"),
        (["label", "--labeller", "judge", "--set", "dtype=int4"], 2, "dtype"),
    ],
)
def test_a_mistake_is_one_clear_text(arguments, code, text, store, capsys):
    printed = said(capsys, arguments, code).err
    assert text in printed
    assert "Traceback" not in printed


def test_a_comparison_says_which_labels_it_used_and_what_a_1_means(store, capsys):
    arguments = ["compare", "--labeller", "given", "--detectors", "length", "--quick", "--json"]
    printed = said(capsys, [*arguments, "--seeds", "0"])
    assert "these labels do not judge the model" in printed.err
    assert "15 of 31 answers labelled by 'given'" in printed.err
    labeller = json.loads(printed.out)["labeller"]
    assert (labeller["name"], labeller["meaning"]) == ("given", "input")
