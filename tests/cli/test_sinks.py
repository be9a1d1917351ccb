"""The command of sinks: clear text and an exit code for each mistake, JSON where asked."""

import json

import pytest

from graphhalu.cli.main import run
from graphhalu.labels.planted import PLANTED_SHAPE, planted_traces
from graphhalu.traces.schema import ARRAYS
from graphhalu.traces.store import TraceStore


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    traces, _ = planted_traces(7)
    store = TraceStore.create(folder / "s.zarr", configuration={}, shape=PLANTED_SHAPE, arrays=tuple(ARRAYS))
    with store.writer() as writer:
        writer.write_part(0, traces, [trace.record.question_id for trace in traces])
    return folder


@pytest.fixture(autouse=True)
def _here(folder, monkeypatch):
    monkeypatch.chdir(folder)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["measure", "--ablate", "chta"], 2, "Did you mean 'chat'"),
        (["measure", "--k", "x"], 2, "numbers with commas"),
        (["measure", "--k", "0"], 2, "from 1 on"),
        (["measure", "--queries", "first"], 2, "modes"),
        (["measure", "--traces", "s.zarr", "--ablate", "chat"], 2, "Leave one of them out"),
        (["measure", "--traces", "s.zarr", "--k", "7"], 2, "first 4 tokens"),
        (["measure", "--traces", "none.zarr"], 1, "no trace store"),
        (["analyze", "nothing"], 2, "no file or folder"),
        (["analyze"], 2, "data/runs/sinks"),
        (["analyze", ".", "--label", "wrong"], 2, "meanings"),
        (["plot", "nothing"], 1, "nothing"),
    ],
)
def test_a_mistake_has_one_clear_text_and_its_exit_code(arguments, code, text, capsys):
    assert run(["sinks", *arguments]) == code
    assert text in capsys.readouterr().err


def test_a_store_is_measured_and_what_is_too_little_is_said(capsys):
    code = run(["sinks", "measure", "--traces", "s.zarr", "--k", "1,4", "--out", "records", "--json"])
    assert code == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [each["n_records"] for each in runs] == [7, 7]
    assert run(["sinks", "analyze", "records", "--out", "found"]) == 0
    assert "an analysis needs 15 of each" in capsys.readouterr().err
    assert run(["sinks", "plot", "found"]) == 1
    assert "no run could be analysed" in capsys.readouterr().err
