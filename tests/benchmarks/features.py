"""A table of features against a loop over full matrices, and against reading the streams.

``GRAPHHALU_BENCH_STORE`` names a store that keeps full attention; without it random traces of a
small model's size are stored first. All ways run in one process, on one thread, on warm files.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from graphhalu.core.axes import Span
from graphhalu.features.matrix import FeatureCache, feature_matrix
from graphhalu.features.table import feature_table, write_features
from graphhalu.labels.planted import planted_traces
from graphhalu.traces.schema import TraceShape
from graphhalu.traces.store import TraceStore, open_traces
from graphhalu.traces.trace import Trace

STORE = "GRAPHHALU_BENCH_STORE"
FEATURES = [
    "sink_mass_k1",
    "sink_mass_k4",
    "self_attention_mean",
    "self_attention_log",
    "lookback_ratio",
    "attention_entropy_mean",
    "attention_entropy_std",
    "received_top",
]
STREAMS = ("span_code", "sink_keys", "self_attention", "span_mass", "row_entropy", "received")
N_TRACES = 500
PART = 64
TOP_K = 10


def figures(quick: bool) -> dict[str, Any]:
    """Seconds and ratios."""
    with _store(quick) as path:
        traces = open_traces(path)[: 12 if quick else N_TRACES]
        repeats = 1 if quick else 3
        _read_streams(traces)
        # the three ways take turns, as other work on the machine comes and goes
        rounds = [_round(path, len(traces)) for _ in range(repeats)]
        best = {name: min(each[name] for each in rounds) for name in rounds[0]}
        loop_s, loop = _timed(lambda: np.stack([_by_loop(trace) for trace in traces]))
        error = _largest_error(loop, feature_table(traces, FEATURES).values)
    return {
        "n_traces": len(traces),
        "n_columns": loop.shape[1],
        **{f"{name}_s": round(seconds, 3) for name, seconds in best.items()},
        "loop_s": round(loop_s, 3),
        "loop_over_table": round(loop_s / best["table"], 2),
        "table_over_reading": round(best["table"] / best["reading"], 2),
        "table_over_remembered": round(best["table"] / best["remembered"], 1),
        "largest_error": round(error, 6),
    }


def _round(path: Path, n_traces: int) -> dict[str, float]:
    traces = open_traces(path)[:n_traces]
    reading = _timed(lambda: _read_streams(traces))[0]
    table = _timed(lambda: feature_table(traces, FEATURES))[0]
    cache = FeatureCache()
    matrix = _timed(lambda: feature_matrix(traces, FEATURES, cache=cache))[0]
    remembered = _timed(lambda: feature_matrix(traces, FEATURES, cache=cache))[0]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "table.parquet"
        parquet = _timed(lambda: write_features(traces, FEATURES, out))[0]
    return {
        "reading": reading,
        "table": table,
        "matrix": matrix,
        "remembered": remembered,
        "parquet": parquet,
    }


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = run()
    return time.perf_counter() - started, result


def _read_streams(traces: TraceStore) -> int:
    """Every stream that the features need, of every part that holds one of the traces."""
    parts = {place for place, _ in traces.places}
    return sum(traces.parts[place].read(name).nbytes for place in parts for name in STREAMS)


def _by_loop(trace: Trace) -> np.ndarray:
    """The same features of one trace from its full matrices, in the order of ``FEATURES``."""
    layers = [_of_layer(trace, layer) for layer in trace.shape.attention_layers]
    stacked = [np.stack(values) for values in zip(*layers, strict=True)]
    return np.concatenate([values.reshape(-1) for values in stacked])


def _of_layer(trace: Trace, layer: int) -> list[np.ndarray]:
    weights = trace.attention(layer)
    prompt, length = trace.prompt_length, trace.length
    rows = np.arange(prompt - 1, length - 1)
    answer = weights[:, rows]
    own = answer[:, np.arange(len(rows)), rows]
    entropy = -(answer * np.log(np.where(answer > 0, answer, 1))).sum(-1) / np.log(rows + 1)
    return [
        answer[:, :, 0][:, rows >= 1].mean(-1),
        answer[:, :, :4].sum(-1)[:, rows >= 4].mean(-1),
        own.mean(-1),
        np.log(np.maximum(own, 1e-12)).mean(-1),
        _lookback(answer[:, 1:], rows[1:], trace.span_code != Span.ANSWER),
        entropy.mean(-1),
        entropy.std(-1),
        _received(weights),
    ]


def _lookback(answer: np.ndarray, rows: np.ndarray, is_prompt: np.ndarray) -> np.ndarray:
    if not len(rows):
        return np.full(len(answer), np.nan)
    prompt = answer[..., is_prompt].sum(-1) / is_prompt.sum()
    new = answer[..., ~is_prompt].sum(-1) / (rows + 1 - is_prompt.sum())
    return (prompt / (prompt + new)).mean(-1)


def _received(weights: np.ndarray) -> np.ndarray:
    n_keys = weights.shape[-1]
    received = weights.sum(1) / np.arange(n_keys, 0, -1)
    top = -np.sort(-received, axis=-1)[:, :TOP_K]
    return np.pad(top, ((0, 0), (0, TOP_K - top.shape[1])), constant_values=np.nan)


def _largest_error(loop: np.ndarray, table: np.ndarray) -> float:
    """Largest difference where both ways have a value; logarithms relative to their size."""
    difference = np.abs(loop - table) / np.maximum(np.abs(loop), 1.0)
    return float(np.nanmax(difference))


@contextmanager
def _store(quick: bool) -> Iterator[Path]:
    named = os.environ.get(STORE)
    if named and not quick:
        yield Path(named)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield _made_store(Path(folder) / "random.zarr", 12 if quick else N_TRACES, quick)


def _made_store(path: Path, n_traces: int, quick: bool) -> Path:
    n_layers, n_heads = (3, 5) if quick else (30, 9)
    shape = TraceShape(
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=1,
        hidden_size=8,
        attention_layers=tuple(range(n_layers)),
        hidden_layers=(0,),
        layer_windows=(None,) * n_layers,
    )
    traces, _ = planted_traces(n_traces, shape=shape)
    kept = ("token_ids", "attention", *STREAMS)
    store = TraceStore.create(path, configuration={}, shape=shape, arrays=kept)
    with store.writer() as writer:
        for start in range(0, n_traces, PART):
            part = traces[start : start + PART]
            questions = [trace.record.question_id for trace in part]
            writer.write_part(start // PART, part, questions)
    return path
