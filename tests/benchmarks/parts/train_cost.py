"""Time, peak memory and AUROC of training a GAT, in a process of its own.

``python train_cost.py WAY N_TRACES N_EPOCHS`` prints one JSON object. ``ours`` is what the detector
does. The plain ways keep one ``Data`` a layer graph with its edges in no order, collate them in
Python every epoch, and use a layer of PyG: ``gatv2``, the same mathematics as ours, or ``gat``. All
have the same sizes, residuals, readout, optimiser, weight of classes and number of steps, and the
plain ways have no framework around their loop. ``together`` takes turns, two epochs a turn, so that
other work on the machine weighs on all ways alike, and gives the median turn of each.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from graphhalu.detectors.graph_pack import GraphPack
from graphhalu.detectors.graph_pieces import graph_piece, readout_mask
from graphhalu.detectors.networks.base import NetworkShape, NetworkSize
from graphhalu.detectors.networks.gat import GAT
from graphhalu.detectors.task import TrainingSettings, auroc_or_nan, seeded, train_network
from torch import Tensor, nn

from graphhalu.axes import Span
from graphhalu.graphs.build import GraphRecipe, TokenGraph, build_graphs
from graphhalu.testing.planted import attention_streams
from graphhalu.traces.schema import TraceRecord, TraceShape
from graphhalu.traces.trace import Trace

WAYS = ("ours", "gatv2", "gat")
N_HEADS = 9
LAYERS = (0, 1, 2)
BATCH = 32
SIGNAL = 0.5
"""What a hallucinated trace adds to the logits of the first key in one head."""


def main(way: str, n_traces: int, n_epochs: int) -> dict[str, float]:
    """Train one way and measure it."""
    torch.set_num_threads(1)
    train, validation = graphs_of(n_traces, seed=0), graphs_of(max(50, n_traces // 5), seed=1)
    ours = way == "ours"
    make = _ours if ours else _plain
    prepared = _pack(train, validation) if ours else _data_lists(train, validation)
    if ours:
        del train, validation
    make(way, _few(prepared, ours=ours), 1)  # what is made once is not counted
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before, wall_s, cpu_s = _memory_mb("VmRSS"), time.perf_counter(), time.process_time()
    found = make(way, prepared, n_epochs)
    return {
        "epoch_wall_s": (time.perf_counter() - wall_s) / n_epochs,
        "epoch_cpu_s": (time.process_time() - cpu_s) / n_epochs,
        "peak_mb": _memory_mb("VmHWM") - before,
        "validation_auroc": found,
    }


def together(n_traces: int, n_turns: int) -> dict[str, float]:
    """Seconds of an epoch of each way, with turns taken."""
    torch.set_num_threads(1)
    train, validation = graphs_of(n_traces, seed=0), graphs_of(max(50, n_traces // 5), seed=1)
    prepared = {True: _pack(train, validation), False: _data_lists(train, validation)}
    cpu_s: dict[str, list[float]] = {way: [] for way in WAYS}
    for way in WAYS:
        ours = way == "ours"
        (_ours if ours else _plain)(way, _few(prepared[ours], ours=ours), 1)
    for _ in range(n_turns):
        for way in WAYS:
            ours = way == "ours"
            started = time.process_time()
            (_ours if ours else _plain)(way, prepared[ours], 2)
            cpu_s[way].append((time.process_time() - started) / 2)
    return {f"{way}_together_epoch_cpu_s": float(np.median(cpu_s[way])) for way in WAYS}


def graphs_of(n_traces: int, seed: int) -> list[tuple[list[TokenGraph], float]]:
    """Graphs of random traces with the lengths of short questions, and their labels."""
    generator = np.random.default_rng(seed)
    made = []
    for number in range(n_traces):
        label = float(number % 2)
        n_prompt, n_answer = int(generator.integers(24, 45)), int(generator.integers(10, 31))
        trace = random_trace(generator, n_prompt, n_answer, signal=SIGNAL * label)
        made.append((build_graphs(trace, LAYERS, GraphRecipe()), label))
    return made


def random_trace(
    generator: np.random.Generator,
    n_prompt: int,
    n_answer: int,
    *,
    signal: float = 0.0,
    n_layers: int = 3,
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
        n_layers=n_layers, n_heads=N_HEADS, n_kv_heads=3, hidden_size=7,
        attention_layers=layers, hidden_layers=(), layer_windows=(None,) * n_layers,
    )  # fmt: skip
    span_code = np.full(length, Span.QUESTION, dtype=np.uint8)
    span_code[0] = Span.BOS
    span_code[n_prompt:] = Span.ANSWER
    streams = {
        name: -generator.exponential(size=length).astype(np.float32)
        for name in ("token_logprob", "token_entropy", "top1_margin")
    }
    name = f"q{generator.integers(1 << 40)}"
    record = TraceRecord(
        trace_id=f"{name}#0", question_id=name, group_id=name, question=name, answers=("yes",),
        answer="no", prompt=name, prompt_length=n_prompt, length=length, beam_index=0,
        beam_score=0.0,
    )  # fmt: skip
    arrays = {"span_code": span_code, **streams, **attention_streams(attention, span_code)}
    return Trace(record, shape, arrays)


def _pack(train: list, validation: list) -> tuple[GraphPack, GraphPack]:
    packs = [
        GraphPack.of([graph_piece(graphs, 2) for graphs, _ in side], [label for _, label in side])
        for side in (train, validation)
    ]
    return packs[0], packs[1]


def _few(prepared: Any, *, ours: bool) -> Any:
    train, validation = prepared
    if not ours:
        return train[:12], validation
    few = {
        name: getattr(train, name)[..., :4] if name in {"node_starts", "node_counts"} else value
        for name, value in vars(train).items()
    }
    return replace(train, **{**few, "y": train.y[:4]}), validation


def _ours(_way: str, prepared: tuple[GraphPack, GraphPack], n_epochs: int) -> float:
    train, validation = prepared
    with seeded(0):
        shape = NetworkShape(len(LAYERS), train.x.shape[2], N_HEADS)
        network = GAT(shape, NetworkSize())
        network.standardise_by(list(train.x), train.edges_of_layers())
        settings = TrainingSettings(n_epochs, n_epochs, 3e-3, 1e-2, BATCH, 0)
        report = train_network(network, train, validation, 1.0, settings)
    return float(report.validation_auroc or 0.0)


def _data_lists(train: list, validation: list) -> tuple[list, list]:
    from torch_geometric.data import Data

    generator = np.random.default_rng(0)
    both = []
    for side in (train, validation):
        data = []
        for number, (graphs, label) in enumerate(side):
            for layer, graph in enumerate(graphs):
                order = generator.permutation(len(graph.edge_attr))
                data.append(
                    Data(
                        x=torch.from_numpy(graph.x),
                        edge_index=torch.from_numpy(graph.edge_index[:, order]),
                        edge_attr=torch.from_numpy(graph.edge_attr[order]),
                        is_readout=torch.from_numpy(readout_mask(graph.is_answer)),
                        layer=torch.tensor([layer]),
                        trace=torch.tensor([number]),
                        y=torch.tensor([label]),
                    )
                )
        both.append(data)
    return both[0], both[1]


class _PlainGAT(nn.Module):
    def __init__(self, way: str, data: list) -> None:
        super().__init__()
        from torch_geometric.nn import GATConv, GATv2Conv

        x, edges = (torch.cat([getattr(d, n) for d in data]) for n in ("x", "edge_attr"))
        self.moments = [(v.mean(0), v.std(0).clamp(min=1e-4)) for v in (x, edges)]
        self.project, self.layer = nn.Linear(x.shape[1], 32), nn.Embedding(len(LAYERS), 32)
        make = {"gat": GATConv, "gatv2": GATv2Conv}[way]
        self.convolutions = nn.ModuleList(
            make(32, 8, heads=4, edge_dim=N_HEADS, add_self_loops=False) for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(2))
        self.dropout = nn.Dropout(0.25)
        self.head = nn.Sequential(nn.Linear(96, 32), nn.ReLU(), nn.Dropout(0.25), nn.Linear(32, 1))

    def forward(self, batch: Any) -> Tensor:
        from torch_geometric.nn import global_max_pool, global_mean_pool

        (x_mean, x_scale), (edge_mean, edge_scale) = self.moments
        hidden = self.dropout(torch.relu(self.project((batch.x - x_mean) / x_scale)))
        edges = (batch.edge_attr - edge_mean) / edge_scale
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            message = torch.nn.functional.elu(convolution(hidden, batch.edge_index, edges))
            hidden = norm(hidden + self.dropout(message))
        answer, graph = hidden[batch.is_readout], batch.batch[batch.is_readout]
        n_graphs = len(batch.layer)
        pooled = [pool(answer, graph, n_graphs) for pool in (global_mean_pool, global_max_pool)]
        return self.head(torch.cat([*pooled, self.layer(batch.layer)], dim=1)).squeeze(1)


def _plain(way: str, prepared: tuple[list, list], n_epochs: int) -> float:
    from torch_geometric.loader import DataLoader

    train, validation = prepared
    torch.manual_seed(0)
    network, best = _PlainGAT(way, train), 0.0
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    loader = DataLoader(train, batch_size=BATCH * len(LAYERS), shuffle=True)
    check = DataLoader(validation, batch_size=BATCH * len(LAYERS))
    for _ in range(n_epochs):
        network.train()
        for batch in loader:
            optimiser.zero_grad()
            logits = network(batch)
            nn.functional.binary_cross_entropy_with_logits(logits, batch.y).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
        network.eval()
        with torch.no_grad():
            seen = [(network(batch), batch.y) for batch in check]
        logits, labels = (
            torch.cat(each).view(-1, len(LAYERS)).mean(1) for each in zip(*seen, strict=True)
        )
        best = max(best, auroc_or_nan(logits.double().numpy(), labels.double().numpy()))
    return best


def _memory_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


if __name__ == "__main__":
    sizes = int(sys.argv[2]), int(sys.argv[3])
    print(json.dumps(together(*sizes) if sys.argv[1] == "together" else main(sys.argv[1], *sizes)))
