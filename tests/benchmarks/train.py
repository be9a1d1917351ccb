"""Training a GAT against the plain way, and what scoring a trace costs as it grows.

Traces are random, of the shape of SmolLM2 on short questions: nine heads, the layers view with
three layers, the eight strongest keys a row, every head on the edges. Each way of training runs in
a process of its own (``parts/train_cost.py``). The classes differ a little in one head, so that
the AUROC of the ways can be compared; it says nothing about real answers.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from graphhalu.detectors.graph_memory import MEMORY

from graphhalu.detectors.base import Detector
from graphhalu.detectors.registry import DETECTORS
from graphhalu.detectors.saved import load_detector
from graphhalu.labels.labels import Labels
from graphhalu.splits import Split
from graphhalu.traces.trace import Trace

COST = Path(__file__).with_name("parts") / "train_cost.py"
WAYS = ("ours", "gatv2", "gat")
N_ANSWER = 20
N_LAYERS = 30
"""Layers whose attention the traces of the scoring part keep, as SmolLM2 has; 3 at 800 tokens."""


def figures(quick: bool) -> dict[str, Any]:
    """Seconds, ratios, milliseconds, bytes and megabytes."""
    torch.set_num_threads(1)
    found = _training(WAYS[:1], 40, 1) if quick else _training(WAYS, 1000, 6)
    lengths = (50,) if quick else (50, 200, 800)
    for n_tokens in lengths:
        n_layers = 3 if quick or n_tokens > 200 else N_LAYERS
        for name in ("gat",) if quick or n_tokens > 200 else ("gat", "gcn", "mlp", "charm"):
            found |= _scoring(name, n_tokens, n_layers)
    return found


def _training(alone: tuple[str, ...], n_traces: int, n_epochs: int) -> dict[str, Any]:
    found: dict[str, Any] = {"traces": n_traces, "epochs": n_epochs}
    for way in alone:
        cost = _part(way, n_traces, n_epochs)
        found |= {f"{way}_{key}": value for key, value in cost.items()}
    found |= _part("together", n_traces, max(1, n_epochs // 2))
    for way in WAYS[1:]:
        ratio = found[f"{way}_together_epoch_cpu_s"] / found["ours_together_epoch_cpu_s"]
        found[f"plain_{way}_over_ours"] = ratio
    return found


def _part(way: str, n_traces: int, n_epochs: int) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", str(COST), way, str(n_traces), str(n_epochs)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    cost: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return cost


def _scoring(name: str, n_tokens: int, n_layers: int) -> dict[str, Any]:
    """Median milliseconds for a trace in memory, as after its replay."""
    traces = _traces(n_tokens, n_layers)
    detector = _saved_and_loaded(name, traces)
    key = f"t{n_tokens}_{name}"
    built, known = [], []
    for trace in traces:
        MEMORY.clear()
        built.append(_seconds(lambda one=trace: detector.score([one])))
        n_bytes = MEMORY.n_bytes
        known.append(_seconds(lambda one=trace: detector.score([one])))
    return {
        f"{key}_score_ms": 1000 * statistics.median(built),
        f"{key}_score_known_graphs_ms": 1000 * statistics.median(known),
        f"{key}_graph_bytes_a_trace": n_bytes,
    }


def _traces(n_tokens: int, n_layers: int) -> list[Trace]:
    sys.path.insert(0, str(COST.parent))
    from train_cost import random_trace

    generator = np.random.default_rng(0)
    n_traces = 12 if n_tokens <= 200 else 6
    return [
        random_trace(generator, n_tokens - N_ANSWER, N_ANSWER, n_layers=n_layers)
        for _ in range(n_traces)
    ]


def _saved_and_loaded(name: str, traces: list[Trace]) -> Detector:
    values = np.arange(len(traces)) % 2
    labels = Labels(
        tuple(trace.trace_id for trace in traces), values, np.ones(len(traces), dtype=bool),
        ("random",) * len(traces), "random", {},
    )  # fmt: skip
    everything = np.arange(len(traces))
    detector_class: Any = DETECTORS.get(name)
    detector = detector_class(**detector_class.settings(epochs=1))
    detector.fit(traces, labels, Split(everything, everything, everything))
    with tempfile.TemporaryDirectory() as folder:
        detector.save(Path(folder))
        return load_detector(Path(folder))


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
