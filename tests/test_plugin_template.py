"""The template of a plug-in, installed as another package would be, and a broken one beside it."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from graphhalu.labels.planted import PLANTED_SHAPE, planted_traces
from graphhalu.traces.schema import ARRAYS
from graphhalu.traces.store import TraceStore

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "tests" / "plugin_template"
PROJECT = tomllib.loads((TEMPLATE / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def install(folder, name, entry_points):
    """What an installer writes beside the package: no build backend and no network is needed."""
    info = folder / f"{name.replace('-', '_')}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    lines = [
        line
        for group, points in entry_points.items()
        for line in (f"[{group}]", *(f"{key} = {value}" for key, value in points.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(TEMPLATE / "graphhalu_template", folder / "graphhalu_template")
    install(folder, PROJECT["name"], PROJECT["entry-points"])
    (folder / "broken_sister.py").write_text("raise RuntimeError('no licence for this machine')\n")
    points = {"sister": "broken_sister:Sister"}
    groups = ("graphhalu.detectors", "graphhalu.features", "graphhalu.datasets")
    install(folder, "broken-sister", dict.fromkeys(groups, points))
    return folder


def run(installed, folder, *arguments):
    path = os.pathsep.join([str(installed), str(ROOT)])
    found = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found


def test_the_tests_of_the_template_pass(installed, tmp_path):
    shutil.copytree(TEMPLATE / "tests", tmp_path / "tests")
    found = run(installed, tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
    assert "14 passed" in found.stdout


COMMANDS = """
import sys
from graphhalu.cli.main import run

compare = ["compare", "store.zarr", "--quick", "--seeds", "0", "--set", "n_resamples=100"]
codes = [
    *(run(["show", kind]) for kind in ("detectors", "features", "datasets")),
    run([*compare, "--detectors", "sink-network,length,sister", "--out", "run"]),
]
sys.exit(max(codes))
"""


def test_the_template_is_listed_and_compared_and_a_broken_plugin_fails_alone(installed, tmp_path):
    traces, _ = planted_traces(61)
    store = TraceStore.create(
        tmp_path / "store.zarr", configuration={}, shape=PLANTED_SHAPE, arrays=tuple(ARRAYS)
    )
    with store.writer() as writer:
        writer.write_part(0, traces, [trace.record.question_id for trace in traces])
    found = run(installed, tmp_path, "-c", COMMANDS)
    assert "sink-network" in found.stdout
    for kind in ("detector", "feature", "dataset"):
        assert (
            f"failed: sister: {kind} 'sister' of the plug-in broken_sister:Sister cannot be "
            f"imported: RuntimeError: no licence for this machine\n"
        ) in found.stdout
    rows = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))["rows"]
    failures = {row["detector"]: row["failure"] for row in rows}
    assert failures.keys() == {"sink-network", "length", "sister"}
    assert failures["sink-network"] is failures["length"] is None
    assert "no licence for this machine" in failures["sister"]
