"""Token graphs from a store against the usual double loop into networkx and a loop over Data.

All ways make the same graphs (the 8 strongest keys of a row by the mean over heads, every head on
the edges, all node blocks that need no weights of heads) of the same traces of a store that was
just opened, in one process. The rivals get complete attention of one layer at a time and compute
features from it; networkx as most notebooks do, token by token; the other with whole tensors and
``dense_to_sparse``. Set GRAPHHALU_BENCH_STORE to measure on a store of your own.
"""

import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import torch
from torch_geometric.data import Data
from torch_geometric.utils import dense_to_sparse

from graphhalu.core.axes import N_SPANS
from graphhalu.graphs.build import iter_graphs
from graphhalu.graphs.dataset import AttentionGraphs, default_layers
from graphhalu.graphs.edges import DEFAULT_NODES, GraphRecipe, TopK
from graphhalu.graphs.topology import topology
from graphhalu.labels.planted import planted_traces
from graphhalu.traces.part import ChunkCache
from graphhalu.traces.store import TraceStore
from graphhalu.traces.trace import Trace

N_EDGES = 8


def figures(quick: bool) -> dict[str, Any]:
    """Milliseconds a graph, ratios and megabytes."""
    given = os.environ.get("GRAPHHALU_BENCH_STORE")
    folder = Path(tempfile.mkdtemp())
    try:
        path = Path(given) if given and not quick else _store(folder, quick=quick)
        return _figures(path, folder, quick=quick)
    finally:
        shutil.rmtree(folder)


def _figures(path: Path, folder: Path, *, quick: bool) -> dict[str, Any]:
    n_traces = min(len(TraceStore.open(path)), 6 if quick else 64)
    store = TraceStore.open(path)
    layers = tuple(store.shape.attention_layers)
    three = default_layers(store.shape)
    lengths = [record.length for record in store.records[:n_traces]]
    repeats = 1 if quick else 3

    def of(layers: Sequence[int], **settings: Any) -> Callable[[], int]:
        return lambda: sum(
            1 for _ in AttentionGraphs(TraceStore.open(path)[:n_traces], layers=layers, **settings)
        )

    def arrays() -> int:
        opened = TraceStore.open(path)[:n_traces]
        return sum(len(graphs) for _, graphs in iter_graphs(opened, layers))

    warm = TraceStore.open(path)[:n_traces]
    _read(warm, layers)  # as in every epoch but the first

    def open_arrays() -> int:
        return sum(len(graphs) for _, graphs in iter_graphs(warm, layers))

    hidden = tuple(n + 1 in store.shape.hidden_layers for n in layers)
    ways: dict[str, tuple[Callable[[], int], int]] = {
        "reading_alone": (lambda: _read(TraceStore.open(path)[:n_traces], layers), repeats),
        "arrays": (arrays, repeats),
        "arrays_open_store": (open_arrays, repeats),
        "data": (of(layers), repeats),
        "data_three_layers": (of(three), repeats),
        "multiplex": (of(layers, view="multiplex"), repeats),
        "dense_to_sparse": (lambda: _looped(TraceStore.open(path)[:n_traces], layers, _dense), repeats),
        "dense_to_sparse_three_layers": (
            lambda: _looped(TraceStore.open(path)[:n_traces], three, _dense),
            repeats,
        ),
        "dense_to_sparse_open_store": (lambda: _looped(warm, layers, _dense), repeats),
        "networkx_open_store": (lambda: _looped(warm[: max(2, n_traces // 8)], layers, _double_loop), 1),
        "networkx": (lambda: _looped(TraceStore.open(path)[:n_traces], layers, _double_loop), 1),
        "networkx_three_layers": (lambda: _looped(TraceStore.open(path)[:n_traces], three, _double_loop), 1),
    }
    if all(hidden):
        ways["data_with_hidden"] = (of(layers, nodes=(*DEFAULT_NODES, "hidden")), repeats)
    found: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "traces": n_traces,
        "layers": len(layers),
        "tokens_mean": float(np.mean(lengths)),
    }
    seconds = {name: _best(way, times) for name, (way, times) in ways.items()}
    for name, (wall, cpu, n_graphs) in seconds.items():
        found[f"{name}_ms_a_graph"] = 1000 * wall / n_graphs
        found[f"{name}_cpu_ms_a_graph"] = 1000 * cpu / n_graphs
    for rival in ("networkx", "dense_to_sparse"):
        found |= _ratios(found, rival, "arrays")
        found |= _ratios(found, rival, "data")
        found |= _ratios(found, f"{rival}_open_store", "arrays_open_store")
        found |= _ratios(found, f"{rival}_three_layers", "data_three_layers")
    return found | _cache(path, n_traces, three, folder) | _memory(path, quick=quick)


def _read(traces: Sequence[Trace], layers: Sequence[int]) -> int:
    """Read what graphs are made of, and do nothing with it."""
    for trace in traces:
        for name in ("self_attention", "row_entropy", "sink_keys", "received", "span_code"):
            trace.arrays[name][:]
        for place in range(len(layers)):
            trace.arrays["attention"][place]
    return len(traces) * len(layers)


def _ratios(found: dict[str, Any], rival: str, ours: str) -> dict[str, float]:
    return {
        f"{rival}_over_{ours}{what}": found[f"{rival}{what}_ms_a_graph"] / found[f"{ours}{what}_ms_a_graph"]
        for what in ("", "_cpu")
    }


def _best(way: Callable[[], int], repeats: int) -> tuple[float, float, int]:
    """Wall and processor seconds of the quickest run, each, and how many graphs it made."""
    walls, cpus, n_graphs = [], [], 0
    for _ in range(repeats):
        started, cpu = time.perf_counter(), time.process_time()
        n_graphs = way()
        walls.append(time.perf_counter() - started)
        cpus.append(time.process_time() - cpu)
    return min(walls), min(cpus), n_graphs


def _looped(traces: Sequence[Trace], layers: Sequence[int], build: Callable[[Trace, int], Any]) -> int:
    n_graphs = 0
    for trace in traces:
        for layer in layers:
            build(trace, layer)
            n_graphs += 1
    return n_graphs


def _double_loop(trace: Trace, layer: int) -> nx.DiGraph:
    attention, length = trace.attention(layer), trace.length
    mean, n_heads = attention.mean(0), len(attention)
    span_code, prompt_length = trace.span_code, trace.prompt_length
    likelihood = [trace.stream(n) for n in ("token_logprob", "token_entropy", "top1_margin")]
    graph = nx.DiGraph()
    for i in range(length):
        paid = [float(attention[h, i, :4].sum()) for h in range(n_heads)]
        share = float(np.mean(paid))
        features = [i / (length - 1), float(i >= prompt_length), (i - prompt_length + 1) / length]
        features += [math.log(length), *(float(span_code[i] == code) for code in range(N_SPANS))]
        features += [float(attention[h, i:, i].mean()) for h in range(n_heads)]
        features += [*paid, float(np.std(paid))]
        features += [float(np.std(paid)) / math.sqrt(max(share * (1 - share), 1e-9))]
        features += [math.log(max(float(attention[h, i, i]), 1e-6)) for h in range(n_heads)]
        for h in range(n_heads):
            row = attention[h, i, : i + 1]
            features.append(float(-(row * np.log(row + 1e-12)).sum()) / math.log(i + 2))
        features += [float(values[i]) for values in likelihood]
        graph.add_node(i, x=features)
    for i in range(length):
        weights = []
        for j in range(i):
            weights.append((float(mean[i, j]), j))
        for weight, j in sorted(weights, reverse=True)[:N_EDGES]:
            if weight > 0:
                heads = [float(attention[h, i, j]) for h in range(n_heads)]
                graph.add_edge(j, i, weight=weight, heads=heads)
    return graph


def _dense(trace: Trace, layer: int) -> Data:
    attention, length = torch.from_numpy(trace.attention(layer)), trace.length
    mean = attention.mean(0).tril(-1)
    best = mean.topk(min(N_EDGES, length), dim=1)
    kept = torch.zeros_like(mean).scatter_(1, best.indices, best.values)
    edge_index, _ = dense_to_sparse(kept)
    query, key = edge_index
    token = torch.arange(length)
    paid = attention[:, :, :4].sum(-1)
    share = paid.mean(0)
    entropy = -(attention * (attention + 1e-12).log()).sum(-1) / (token + 2).log()
    is_span = torch.nn.functional.one_hot(torch.from_numpy(trace.span_code).long(), N_SPANS)
    streams = ("token_logprob", "token_entropy", "top1_margin")
    x = torch.cat(
        [
            (token / (length - 1))[:, None],
            (token >= trace.prompt_length)[:, None].float(),
            ((token - trace.prompt_length + 1) / length)[:, None],
            torch.full((length, 1), math.log(length)),
            is_span.float(),
            (attention.sum(1) / (length - token)).T,
            paid.T,
            torch.stack([paid.std(0), paid.std(0) / (share * (1 - share)).clamp(1e-9).sqrt()]).T,
            attention.diagonal(dim1=1, dim2=2).clamp(1e-6).log().T,
            entropy.T,
            torch.stack([torch.from_numpy(trace.stream(name)) for name in streams], dim=1),
        ],
        dim=1,
    )
    return Data(x=x, edge_index=torch.stack([key, query]), edge_attr=attention[:, query, key].T.contiguous())


def _cache(path: Path, n_traces: int, layers: Sequence[int], folder: Path) -> dict[str, float]:
    """Reading built graphs against building them, from a store that was just opened."""

    def walk() -> int:
        opened = TraceStore.open(path)[:n_traces]
        return sum(1 for _ in AttentionGraphs(opened, layers=layers, cache=folder / "cache"))

    first, again = _best(walk, 1), _best(walk, 3)
    files = list((folder / "cache").rglob("*.safetensors"))
    opened = TraceStore.open(path)[:n_traces]
    drawn = [graph for _, graphs in iter_graphs(opened, layers[:1]) for graph in graphs]
    started = time.perf_counter()
    for graph in drawn:
        topology(graph)
    return {
        "cache_write_ms_a_graph": 1000 * first[0] / first[2],
        "cache_read_ms_a_graph": 1000 * again[0] / again[2],
        "cache_read_cpu_ms_a_graph": 1000 * again[1] / again[2],
        "cache_bytes_a_graph": sum(file.stat().st_size for file in files) / first[2],
        "topology_ms_a_graph": 1000 * (time.perf_counter() - started) / len(drawn),
    }


def _memory(path: Path, *, quick: bool) -> dict[str, float]:
    """Resident memory after the first tenth of many graphs, and after all of them."""
    n_graphs = 200 if quick else 10_000
    store = TraceStore.open(path)
    # decoded chunks fill their cache only slowly, which would look as if memory grew
    store.cache = ChunkCache(32 * 2**20)
    recipe = GraphRecipe(TopK(N_EDGES))

    def endless() -> Any:
        while True:
            for _, graphs in iter_graphs(store, store.shape.attention_layers, recipe):
                yield from graphs

    graphs = endless()
    seen = sum(1 for _ in islice(graphs, n_graphs // 10))
    before = _resident_mb()
    peak = before
    for _ in range(9):
        seen += sum(1 for _ in islice(graphs, n_graphs // 10))
        peak = max(peak, _resident_mb())
    return {
        "memory_graphs": seen,
        "memory_mb_after_a_tenth": before,
        "memory_mb_growth_to_the_end": _resident_mb() - before,
        "memory_mb_growth_at_most": peak - before,
    }


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _store(folder: Path, *, quick: bool) -> Path:
    path = folder / "a.zarr"
    if quick:
        traces, _ = planted_traces(7)
        store = TraceStore.create(
            path,
            configuration={},
            shape=traces[0].shape,
            arrays=[name for name in traces[0].arrays if name != "attention_fixed"],
        )
        with store.writer() as writer:
            writer.write_part(0, traces, [trace.record.question_id for trace in traces])
        return path
    from graphhalu.datasets.registry import load_questions
    from graphhalu.extract.extraction import Extraction
    from graphhalu.extract.run import question_batches
    from graphhalu.extract.settings import ExtractConfig
    from graphhalu.extract.worker import Worker, extract_batch
    from graphhalu.models.cards import ModelSpec
    from graphhalu.models.load import load_model

    loaded = load_model(ModelSpec(name="smollm2"))
    extraction = Extraction(ExtractConfig(model=loaded.spec), loaded)
    questions = load_questions("worldfacts", num_samples=128)
    store = TraceStore.create(path, configuration={}, shape=extraction.shape, arrays=extraction.arrays)
    with store.writer() as holder:
        worker = Worker(extraction, store.name, holder.name)
        with worker.parts:
            for batch in question_batches(questions, extraction.config):
                extract_batch(worker, batch)
    return path
