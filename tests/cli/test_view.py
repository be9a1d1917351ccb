"""``graphhalu view``."""

import json

import pytest

from graphhalu.cli.main import run
from graphhalu.labels.planted import PLANTED_SHAPE, planted_traces
from graphhalu.traces.schema import ARRAYS
from graphhalu.traces.store import TraceStore


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    traces, _ = planted_traces(11)
    store = TraceStore.create(
        tmp_path_factory.mktemp("view") / "a.zarr",
        configuration={},
        shape=PLANTED_SHAPE,
        arrays=tuple(ARRAYS),
    )
    with store.writer() as writer:
        writer.write_part(0, traces, [trace.record.question_id for trace in traces])
    return store.path


def test_a_page_is_written_beside_the_store(store, capsys):
    assert run(["view", str(store), "--limit", "3", "--edges", "2", "--features", "sink_rate"]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(store.with_name("a-view.html"))
    assert "3 answers, 2 edges a row" in said.err
    assert "8 more" in said.err
    assert "tokens of the prompt are shown as numbers" in said.err


def test_what_was_written_is_said_as_json(store, tmp_path, capsys):
    out = tmp_path / "page.html"
    options = ["--trace", "q4", "--out", str(out), "--json", "--labeller", "none"]
    assert run(["view", str(store), *options]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["n_traces"] == 1
    assert said["bytes"] == out.stat().st_size
    assert said["edges_a_row"] == 16


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--trace", "nobody"], "no trace for question 'nobody'"),
        (["--features", "sink_raet"], "Did you mean 'sink_rate'"),
        (["--serve", "--out", "x.html"], "--serve writes no page"),
        (["--detector", "nowhere"], "no saved detector"),
        (["--tokenizer", "no-such-model"], "no-such-model"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_text(store, options, said, capsys):
    assert run(["view", str(store), *options]) != 0
    assert said in capsys.readouterr().err
