"""What the README shows works, and what it names is there."""

import json
import re
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from graphhalu.cli.main import app, run
from graphhalu.detectors.saved import load_detector
from graphhalu.labels.planted import PLANTED_SHAPE, planted_traces
from graphhalu.labels.registry import make_labeller
from graphhalu.labels.run import label_store
from graphhalu.traces.schema import ARRAYS, TraceShape
from graphhalu.traces.store import TraceStore

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMOLLM2_SHAPE = TraceShape(
    n_layers=30,
    n_heads=9,
    n_kv_heads=3,
    hidden_size=576,
    attention_layers=tuple(range(30)),
    hidden_layers=(0, 30),
    layer_windows=(None,) * 30,
)


def code_with(text):
    """The Python block of the README that holds a text."""
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    (found,) = [block for block in blocks if text in block]
    return found


def planted_store(n_traces, shape):
    traces, _ = planted_traces(n_traces, shape=shape)
    store = TraceStore.create(
        "data/traces/smollm2_worldfacts.zarr", configuration={}, shape=shape, arrays=tuple(ARRAYS)
    )
    with store.writer() as writer:
        writer.write_part(0, traces, [trace.record.question_id for trace in traces])
    label_store(TraceStore.open(store.path), make_labeller("match"))
    return TraceStore.open(store.path)


def test_the_python_example_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = planted_store(11, SMOLLM2_SHAPE)
    names: dict[str, object] = {}
    exec(compile(code_with("AttentionGraphs"), "README.md", "exec"), names)
    assert len(names["graphs"]) == 3 * len(store)
    assert sum(len(names[side]) for side in ("train", "validation", "test")) == 3 * len(store)


def test_the_scores_of_the_readme_are_given(capsys):
    exec(compile(code_with('load_detector("smollm2")'), "README.md", "exec"), {})
    first, *tokens = capsys.readouterr().out.splitlines()
    assert 0 <= float(first) <= 1
    assert len(tokens) >= 3


def test_a_network_of_ones_own_is_trained_compared_loaded_and_explained_by_commands(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_gnn", raising=False)
    Path("my_gnn.py").write_text(code_with("class MyGNN"), encoding="utf-8")
    store = planted_store(61, PLANTED_SHAPE)
    quick = ["--set", "epochs=2", "--set", "n_folds=2", "--threads", "1"]
    assert run(["train", "--network", "my_gnn:MyGNN", "--set", "network.hidden=8", *quick]) == 0
    (folder,) = Path("data/runs").glob("MyGNN-*")
    assert list(folder.glob("logs/**/metrics.csv"))
    loaded = load_detector(folder / "detector", store, detector_class="my_gnn:MyGNN")
    assert loaded.networks[0].inward.out_features == 8
    assert loaded.score(store).is_valid.all()
    assert loaded.attribute(store[0]).edges
    compared = ["compare", "--quick", "--network", "my_gnn:MyGNN", "--detectors", "length"]
    settings = 'settings={"MyGNN": {"epochs": 2, "n_folds": 2}}'
    assert run([*compared, "--seeds", "0", "--set", settings, "--threads", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out.rpartition("\n{\n")[2].join(("{\n", "")))
    assert {row["detector"]: row["failure"] for row in rows["detectors"]} == {"MyGNN": None, "length": None}


def test_every_command_of_the_readme_exists():
    known = set(get_command(app).commands)
    used = set(re.findall(r"(?:^|`)graphhalu ([a-z]+)", README, flags=re.MULTILINE)) - {"finds"}
    assert {"extract", "score", "serve", "train", "compare"} <= used & known
    assert used - known == set()


@pytest.mark.parametrize("name", ["scripts/quickstart", "scripts/test", "scripts/bench", ".ci/run"])
def test_the_scripts_are_there_and_can_be_run(name):
    assert (ROOT / name).stat().st_mode & 0o111


def test_every_folder_of_the_package_has_its_line_in_the_architecture():
    folders = {path.parent.name for path in (ROOT / "graphhalu").glob("*/__init__.py")}
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert folders
    assert folders == set(re.findall(r"`([a-z]+)/`", text))


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_every_figure_in_the_text_stands_in_the_measured_figures():
    text = re.sub(r"```.*?```|Python \d\.\d+", "", README, flags=re.DOTALL)
    figures = set(re.findall(r"(?<![\w.\d])\d?\.\d{2,3}(?![\d.])", text))
    assert len(figures) >= 5
    measured = (ROOT / "tests/benchmarks/RESULTS.md").read_text(encoding="utf-8")
    known = {number.removeprefix("0") for number in re.findall(r"\d?\.\d{2,3}", measured)}
    rounded = {f"{float(number):.2f}".removeprefix("0") for number in known}
    assert {f.removeprefix("0") for f in figures} <= known | rounded
