"""``graphhalu report``, and the report that a comparison writes."""

import json
from dataclasses import replace

import pytest

from graphhalu.cli.main import run
from graphhalu.labels.planted import PLANTED_SHAPE, planted_traces
from graphhalu.traces.schema import ARRAYS
from graphhalu.traces.store import TraceStore

SIMPLE = ("--detectors", "sink-mass,length", "--seeds", "0", "--set", "n_resamples=100", "--quick")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A store, and a comparison on it."""
    folder = tmp_path_factory.mktemp("report")
    traces, _ = planted_traces(61)
    named = [
        replace(t, record=replace(t.record, question=f"{t.record.question} {n}"))
        for n, t in enumerate(traces)
    ]
    store = TraceStore.create(folder / "a.zarr", configuration={}, shape=PLANTED_SHAPE, arrays=tuple(ARRAYS))
    with store.writer() as writer:
        writer.write_part(0, named, [trace.record.question_id for trace in named])
    assert run(["compare", str(folder / "a.zarr"), *SIMPLE, "--out", str(folder / "run")]) == 0
    return folder


def test_a_comparison_writes_its_report_with_the_maps_of_heads(work):
    text = (work / "run" / "report.html").read_text()
    assert "AUROC of single heads" in text
    names = {path.name for path in (work / "run").iterdir()}
    assert {"report.md", "maps.json", "roc.png", "forest.png", "maps.png"} <= names


def test_the_report_is_written_again_elsewhere_on_request(work, capsys):
    out = work / "again" / "page.html"
    assert run(["report", str(work / "run"), "--out", str(out), "--svg", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["html"] == str(out)
    assert str(out.with_name("page-roc.svg")) in said["figures"]
    assert out.read_text() == (work / "run" / "report.html").read_text()


def test_maps_are_added_from_a_store(work, capsys):
    (work / "run" / "maps.json").unlink()
    assert run(["report", str(work / "run"), "--maps", str(work / "a.zarr")]) == 0
    assert capsys.readouterr().out.strip() == str(work / "run" / "report.html")
    assert (work / "run" / "maps.json").exists()


def test_a_folder_without_a_result_is_named_and_nothing_is_written(tmp_path, capsys):
    assert run(["report", str(tmp_path)]) != 0
    assert "no result in" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
