"""Training and scoring of graph networks: against a plain PyG loop, and answers a second.

The traces are random; their two classes differ a little in one head. It says nothing about real
answers.
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

from graphhalu.core.splits import Split
from graphhalu.detectors.base import Detector
from graphhalu.detectors.registry import DETECTORS
from graphhalu.detectors.saved import load_detector
from graphhalu.traces.trace import Trace

COST = Path(__file__).with_name("parts") / "train_cost.py"
N_ANSWER = 20


def figures(quick: bool) -> dict[str, Any]:
    """Seconds of an epoch, their ratio, megabytes, milliseconds and answers a second."""
    torch.set_num_threads(1)
    sizes = ("24", "1") if quick else ("1000", "3")
    command = [sys.executable, "-W", "ignore", str(COST), *sizes]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    found["traces"] = int(sizes[0])
    for name in ("gat",) if quick else ("gat", "gcn", "mlp", "charm"):
        found |= _scoring(name, 24 if quick else 500)
    return found


def _scoring(name: str, n_traces: int) -> dict[str, Any]:
    """Answers a second, graphs built anew, and milliseconds for one answer alone."""
    traces = _traces(n_traces)
    detector = _saved_and_loaded(name, traces[:24])
    together = _seconds(lambda: detector.score(traces))
    alone = [_seconds(lambda one=trace: detector.score([one])) for trace in traces[:12]]
    return {
        f"{name}_answers_a_second": n_traces / together,
        f"{name}_one_answer_ms": 1000 * statistics.median(alone),
    }


def _traces(n_traces: int) -> list[Trace]:
    sys.path.insert(0, str(COST.parent))
    from train_cost import random_trace

    generator = np.random.default_rng(0)
    return [random_trace(generator, 30, N_ANSWER) for _ in range(n_traces)]


def _saved_and_loaded(name: str, traces: list[Trace]) -> Detector:
    from train_cost import labels_of

    labels = labels_of(traces, np.arange(len(traces)) % 2)
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
