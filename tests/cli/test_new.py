"""Files of a new detector, feature or data set: written into a checkout, and their tests pass."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from graphhalu.cli.main import run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "graphhalu", tmp_path / "graphhalu", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("detectors", "features", "datasets"):
        (tmp_path / "tests" / folder).mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


KINDS = {"detector": "my-own", "feature": "own_surprise", "dataset": "my_set"}


def test_what_is_written_passes_its_test_and_the_linter(checkout):
    for kind, name in KINDS.items():
        assert run(["new", kind, name]) == 0
    modules = [name.replace("-", "_") for name in KINDS.values()]
    tests = [str(path) for module in modules for path in checkout.rglob(f"test_{module}.py")]
    assert len(tests) == len(KINDS)
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    written = [str(path) for module in modules for path in checkout.rglob(f"*{module}.py")]
    linter = [sys.executable, "-m", "ruff", "check", *written]
    linted = subprocess.run(linter, capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["detector", "Bad Name"], "small letters"), (["detector", "../x"], "small letters")],
)
def test_a_name_that_cannot_be_is_refused(checkout, arguments, said, capsys):
    assert run(["new", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_nothing_is_written_over(checkout, capsys):
    assert run(["new", "feature", "own_surprise"]) == 0
    assert run(["new", "feature", "own_surprise"]) == 2
    assert "is there already" in capsys.readouterr().err


def test_it_wants_a_checkout(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["new", "feature", "x"]) == 2
    assert "no checkout of graphhalu" in capsys.readouterr().err
