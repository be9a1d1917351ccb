"""``graphhalu compare``: one store, many processes, resuming, and transfer between stores."""

import json
from dataclasses import replace

import pytest

from graphhalu.cli.main import run
from graphhalu.labels.planted import PLANTED_SHAPE, planted_traces
from graphhalu.traces.schema import ARRAYS
from graphhalu.traces.store import TraceStore

SIMPLE = ("--detectors", "sink-mass,length", "--seeds", "0", "--set", "n_resamples=100")


def write_store(path, *, seed=0, prefix="", shape=PLANTED_SHAPE):
    traces, _ = planted_traces(61, seed=seed, shape=shape)
    renamed = [
        replace(
            trace,
            record=replace(
                trace.record, group_id=prefix + trace.record.group_id, question=prefix + trace.record.question
            ),
        )
        for trace in traces
    ]
    store = TraceStore.create(path, configuration={}, shape=shape, arrays=tuple(ARRAYS))
    with store.writer() as writer:
        writer.write_part(0, renamed, [trace.record.question_id for trace in renamed])
    return str(path)


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_comparison_says_what_it_tested_against_and_can_be_added_to(work, capsys):
    store = write_store(work / "a.zarr")
    start = ["compare", store, *SIMPLE, "--out", "run", "--json"]
    assert run(start) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["baseline"]["detector"] in {"sink-mass", "length"}
    assert {row["detector"] for row in first["detectors"]} == {"sink-mass", "length"}
    more = [*start, "--resume", "--against", "length"]
    more[more.index("sink-mass,length")] = "perplexity,length"
    assert run(more) == 0
    second = json.loads(capsys.readouterr().out)
    assert {row["detector"] for row in second["detectors"]} == {"sink-mass", "length", "perplexity"}
    assert second["baseline"]["detector"] == "length"
    assert {test["detector"] for test in second["comparisons"]} == {"sink-mass", "perplexity"}
    names = {p.name for p in (work / "run").iterdir()}
    assert {"result.json", "table.csv", "scores.parquet", "report.html", "roc.png"} <= names
    assert "parts" not in names


def test_the_tests_are_printed_whole_with_their_baseline(work, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    store = write_store(work / "a.zarr")
    assert run(["compare", "--traces", store, "--quick", *SIMPLE]) == 0
    printed = capsys.readouterr()
    assert "Holm" in printed.out
    assert "…" not in printed.out
    assert "chosen on the same test scores" in printed.err


def test_going_on_with_other_settings_is_refused(work, capsys):
    store = write_store(work / "a.zarr")
    assert run(["compare", store, "--quick", *SIMPLE, "--out", "run"]) == 0
    capsys.readouterr()
    assert run(["compare", store, *SIMPLE, "--out", "run", "--resume"]) == 2
    assert "config.quick: True in the store, False asked for" in capsys.readouterr().err


def test_transfer_gives_a_matrix_and_says_why_a_cell_has_no_number(work, capsys):
    # more layers: a detector of one model cannot read the traces of the other
    other = replace(
        PLANTED_SHAPE,
        n_layers=7,
        attention_layers=tuple(range(7)),
        hidden_layers=tuple(range(8)),
        layer_windows=(None,) * 7,
    )
    stores = [
        write_store(work / "a.zarr"),
        write_store(work / "b.zarr", seed=1, prefix="Second "),
        write_store(work / "c.zarr", seed=2, prefix="Third ", shape=other),
    ]
    assert run(["compare", "--transfer", *stores, *SIMPLE, "--quick", "--out", "t", "--json"]) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert len(cells) == 18
    assert all(cell["n_dropped"] == 0 for cell in cells if cell["train"] != cell["test"])
    assert (work / "t" / "transfer.parquet").is_file()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--transfer", "a.zarr"], "two stores or more"),
        (["a.zarr", "b.zarr"], "one store is compared at a time"),
        (["a.zarr", "--against", "nobody", "--detectors", "length"], "to test against"),
        (["a.zarr", "--beams", "worst"], "beams"),
        (["a.zarr", "--resume"], "nothing to resume"),
    ],
)
def test_a_users_mistake_is_one_clear_text(work, capsys, arguments, text):
    write_store(work / "a.zarr")
    assert run(["compare", *arguments]) == 2
    assert text in capsys.readouterr().err
