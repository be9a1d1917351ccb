import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from graphhalu.cli.main import run
from graphhalu.labels.planted import planted_traces
from graphhalu.traces.store import TraceStore

EXAMPLE = Path(__file__).resolve().parents[2] / "scripts" / "graph_example.py"
ARRAYS = (
    "token_ids",
    "span_code",
    "token_logprob",
    "token_entropy",
    "top1_margin",
    "span_mass",
    "self_attention",
    "row_entropy",
    "sink_keys",
    "received",
    "attention",
)
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    traces, _ = planted_traces(40)
    path = tmp_path_factory.mktemp("graphs") / "a.zarr"
    made = TraceStore.create(path, configuration={}, shape=traces[0].shape, arrays=ARRAYS)
    with made.writer() as writer:
        writer.write_part(0, traces, [trace.record.question_id for trace in traces])
    return path


def test_compare_prints_a_table_and_leaves_figure_and_json(store, tmp_path, capsys):
    command = ["graphs", "compare", str(store), "--resamples", "100", "--layers", "1,2"]
    assert run([*command, "--out", str(tmp_path), "--rows", "3"]) == 0

    printed = capsys.readouterr()
    assert "effects count" in printed.out
    assert "topology.png" in printed.err
    assert {path.name for path in tmp_path.iterdir()} == {"topology.png", "topology.svg", "topology.json"}
    values = json.loads((tmp_path / "topology.json").read_text())
    assert values["layers"] == [1, 2]
    assert values["labeller"] == "match"


def test_compare_prints_json_when_asked(store, tmp_path, capsys):
    command = ["graphs", "compare", str(store), "--resamples", "100", "--layers", "3", "--json"]
    assert run([*command, "--out", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["folder"] == str(tmp_path)


def test_layers_that_are_no_numbers_are_refused(store, capsys):
    assert run(["graphs", "compare", str(store), "--layers", "one"]) == 2
    assert "numbers with commas" in capsys.readouterr().err


@pytest.mark.slow
def test_the_example_of_a_model_of_ones_own_runs(store):
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(store), "--epochs", "2"],
        capture_output=True,
        text=True,
        env={**os.environ},
        check=True,
    )
    assert "AUROC over" in done.stdout
    assert "epoch 1" in done.stdout
