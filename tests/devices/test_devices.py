"""The package on a simulated CUDA device: mixed devices, foreign generators and copies are refused there.

The simulation lies beside the checkout and is no part of the project. The checks run in a process of
their own, since it changes what torch says of the machine.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SIMULATION = ROOT.parent / "shared" / "devices"
CHECKS = (
    *("load:falcon", "extraction:llama", "recording:llama", "training:gat"),
    *("steps:gat", "spread:gemma3_text", "streaming:llama", "decoding:llama"),
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def states():
    """Name of each check: ``green``, or where it failed."""
    if not (SIMULATION / "simulated_device.py").is_file():
        pytest.skip(f"the simulated device is not at {SIMULATION}")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(SIMULATION), str(ROOT)]),
        "HF_DEACTIVATE_ASYNC_LOAD": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("checks.py")), *CHECKS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=880)
    if "g++" in done.stderr and done.returncode:
        pytest.skip("there is no g++ to build the simulation with")
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"check"')]
    return {each["check"]: each["state"] for each in found}


@pytest.mark.parametrize("check", CHECKS)
def test_a_check_is_green_on_the_simulated_device(check, states):
    assert states[check] == "green"
