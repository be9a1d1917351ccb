"""Every benchmark runs in its quick form and gives flat, named, finite figures."""

import math
import os
import subprocess
import sys

import pytest

from tests.benchmarks.run import FOLDER, benchmarks


def test_there_are_benchmarks():
    assert "extraction" in benchmarks()


@pytest.mark.slow
@pytest.mark.parametrize("name", benchmarks())
def test_a_benchmark_gives_flat_finite_figures(name, tmp_path):
    import json

    out = tmp_path / "figures.json"
    command = [sys.executable, str(FOLDER / "run.py"), name, "--quick", "--json", str(out)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ})
    figures = json.loads(out.read_text())
    numbers = [v for v in figures.values() if isinstance(v, int | float)]
    assert len(numbers) >= 5
    assert all(math.isfinite(number) for number in numbers)
