"""Seconds of an epoch and peak memory of training a GAT, in a process of its own.

``python train_cost.py N_TRACES N_TURNS`` prints one JSON object. ``ours`` is what the detector
does: its network on an ``AttentionGraphs`` under Lightning. ``plain`` is the same network in a
loop of its own over a list of ``Data`` with PyG's ``DataLoader``; both read one graph a trace with
the graphs of three layers side by side. They take turns, so that other work on the machine weighs
on both alike, and the median turn of each counts.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch_geometric.loader import DataLoader

from graphhalu.core.axes import Span
from graphhalu.detectors.gnn.config import NetworkConfig
from graphhalu.detectors.gnn.inputs import InputScaler, wide_blocks
from graphhalu.detectors.gnn.networks import GAT
from graphhalu.detectors.gnn.task import seeded, train
from graphhalu.graphs.dataset import AttentionGraphs
from graphhalu.labels.labels import Labels
from graphhalu.labels.planted import attention_streams
from graphhalu.traces.schema import TraceRecord, TraceShape
from graphhalu.traces.trace import Trace

N_HEADS = 9
LAYERS = (0, 1, 2)
EPOCHS = 5
"""Epochs of a turn."""
SIGNAL = 0.5
"""What a hallucinated trace adds to the logits of the first key in one head."""


def main(n_traces: int, n_turns: int) -> dict[str, float]:
    """Both ways in turn; an epoch trains on all traces and validates on a fifth of as many."""
    torch.set_num_threads(1)
    training, stopping = graphs_of(n_traces, seed=0), graphs_of(max(20, n_traces // 5), seed=1)
    lists = [list(training), list(stopping)]
    ways = {
        "ours": lambda network, n: _ours(network, training, stopping, n),
        "plain": lambda network, n: _plain(network, *lists, n),
    }
    for way in ways.values():
        way(_network(training), 1)  # what is made once is not counted
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _memory_mb("VmRSS")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(n_turns):
        for name, way in ways.items():
            network, started = _network(training), time.process_time()
            way(network, EPOCHS)
            seconds[name].append((time.process_time() - started) / EPOCHS)
    found = {f"{name}_epoch_cpu_s": float(np.median(each)) for name, each in seconds.items()}
    found["plain_over_ours"] = found["plain_epoch_cpu_s"] / found["ours_epoch_cpu_s"]
    found["peak_mb"] = _memory_mb("VmHWM") - before
    return found


def graphs_of(n_traces: int, seed: int) -> AttentionGraphs:
    """Graphs of random traces with the lengths of short questions, and their labels."""
    generator = np.random.default_rng(seed)
    values = np.arange(n_traces) % 2
    traces = [
        random_trace(
            generator, int(generator.integers(24, 45)), int(generator.integers(10, 31)), signal=SIGNAL * value
        )
        for value in values.tolist()
    ]
    labels = labels_of(traces, values)
    return AttentionGraphs(traces, view="stacked", layers=LAYERS, labels=labels, sinks="remove")


def labels_of(traces: list[Trace], values: np.ndarray) -> Labels:
    """Random labels of random traces."""
    valid = np.ones(len(traces), dtype=bool)
    return Labels(
        tuple(trace.trace_id for trace in traces), values, valid, ("random",) * len(traces), "random"
    )


def random_trace(
    generator: np.random.Generator, n_prompt: int, n_answer: int, *, signal: float = 0.0, n_layers: int = 3
) -> Trace:
    """A trace whose attention is random, with a sink."""
    length = n_prompt + n_answer
    logits = generator.normal(size=(n_layers, N_HEADS, length, length)).astype(np.float32)
    logits[..., 0] += 2
    logits[:, 1, :, 0] += signal
    weights = np.exp(logits) * np.tri(length, dtype=bool)
    attention = weights / weights.sum(-1, keepdims=True)
    layers = tuple(range(n_layers))
    shape = TraceShape(
        n_layers=n_layers,
        n_heads=N_HEADS,
        n_kv_heads=3,
        hidden_size=7,
        attention_layers=layers,
        hidden_layers=(),
        layer_windows=(None,) * n_layers,
    )
    span_code = np.full(length, Span.QUESTION, dtype=np.uint8)
    span_code[0] = Span.BOS
    span_code[n_prompt:] = Span.ANSWER
    streams = {
        name: -generator.exponential(size=length).astype(np.float32)
        for name in ("token_logprob", "token_entropy", "top1_margin")
    }
    name = f"q{generator.integers(1 << 40)}"
    record = TraceRecord(
        trace_id=f"{name}#0",
        question_id=name,
        group_id=name,
        question=name,
        answers=("yes",),
        answer="no",
        prompt=name,
        prompt_length=n_prompt,
        length=length,
        beam_index=0,
        beam_score=0.0,
    )
    arrays = {"span_code": span_code, **streams, **attention_streams(attention, span_code)}
    return Trace(record, shape, arrays)


def _network(graphs: AttentionGraphs) -> nn.Module:
    with seeded(0):
        scaler = InputScaler(wide_blocks(graphs.node_feature_names), N_HEADS, len(LAYERS), 16)
        scaler.fit(graphs.select(np.arange(20)), 0)
        return nn.Sequential(scaler, GAT(scaler.n_features, N_HEADS, len(LAYERS)))


def _ours(network: nn.Module, training: AttentionGraphs, stopping: AttentionGraphs, n_epochs: int) -> None:
    config = NetworkConfig(epochs=n_epochs, patience=n_epochs, accelerator="cpu")
    train(network, training, stopping, 1.0, config)


def _plain(network: nn.Module, training: list[Any], stopping: list[Any], n_epochs: int) -> None:
    torch.manual_seed(0)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    loss_of = nn.functional.binary_cross_entropy_with_logits
    for _ in range(n_epochs):
        network.train()
        for batch in DataLoader(training, 32, shuffle=True):
            optimiser.zero_grad()
            loss_of(network(batch), batch.y).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
        network.eval()
        with torch.no_grad():
            for batch in DataLoader(stopping, 32):
                loss_of(network(batch), batch.y)


def _memory_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]))))
