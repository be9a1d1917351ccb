"""What the README shows works, and what it names is there."""

import re
from pathlib import Path

import pytest

from graphhalu.cli.main import app
from graphhalu.labels.registry import make_labeller
from graphhalu.labels.run import label_store
from graphhalu.testing.planted import planted_traces
from graphhalu.traces.schema import ARRAYS, TraceShape
from graphhalu.traces.store import TraceStore

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMOLLM2_SHAPE = TraceShape(
    n_layers=30, n_heads=9, n_kv_heads=3, hidden_size=576,
    attention_layers=tuple(range(30)), hidden_layers=(0, 30), layer_windows=(None,) * 30,
)  # fmt: skip


def test_the_python_example_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    traces, _ = planted_traces(11, shape=SMOLLM2_SHAPE)
    store = TraceStore.create(
        "data/traces/smollm2_worldfacts.zarr", configuration={}, shape=SMOLLM2_SHAPE,
        arrays=tuple(ARRAYS),
    )  # fmt: skip
    with store.writer() as writer:
        writer.write_part(0, traces, [trace.record.question_id for trace in traces])
    label_store(TraceStore.open(store.path), make_labeller("match"))
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert len(names["graphs"]) == 3 * len(traces)
    assert sum(len(names[side]) for side in ("train", "validation", "test")) == 3 * len(traces)


def test_every_command_of_the_readme_exists():
    known = {command.name for command in app.registered_commands}
    known |= {group.name for group in app.registered_groups}
    used = set(re.findall(r"(?:^|`)graphhalu ([a-z]+)", README, flags=re.MULTILINE)) - {"finds"}
    assert {"extract", "label", "train", "compare"} <= used & known
    assert used - known == set()


@pytest.mark.parametrize("name", ["scripts/quickstart", "scripts/test", "scripts/bench", ".ci/run"])
def test_the_scripts_are_there_and_can_be_run(name):
    assert (ROOT / name).stat().st_mode & 0o111


def test_every_folder_of_the_package_has_its_line_in_the_tree():
    folders = {path.parent.name for path in (ROOT / "graphhalu").glob("*/__init__.py")}
    assert folders
    assert folders == set(re.findall(r"^  ([a-z]+)/ ", README, flags=re.MULTILINE))
