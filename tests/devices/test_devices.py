"""The package on a simulated CUDA device: mixed devices, foreign generators and copies are refused there.

The simulation lies beside the checkout and is no part of the project. Each check runs in a process of its
own, since it changes what torch says of the machine.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SIMULATION = ROOT.parent / "shared" / "devices"
CHECKS = [
    ("load", "falcon"),
    ("extraction", "llama"),
    ("recording", "llama"),
    ("training", "gat"),
    ("steps", "gat"),
    ("spread", "gemma3_text"),
    ("streaming", "llama"),
    ("decoding", "llama"),
]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("check", "of"), CHECKS)
def test_a_check_is_green_on_the_simulated_device(check, of):
    if not (SIMULATION / "simulated_device.py").is_file():
        pytest.skip(f"the simulated device is not at {SIMULATION}")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(SIMULATION), str(ROOT)]),
        "HF_DEACTIVATE_ASYNC_LOAD": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("checks.py")), check, of]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=280)
    if "g++" in done.stderr and done.returncode:
        pytest.skip("there is no g++ to build the simulation with")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "green" in done.stdout
