"""Traces made of given attention; sizes are chosen by the test."""

import warnings
from dataclasses import replace

import numpy as np
import pytest

from graphhalu.core.axes import Span
from graphhalu.labels.planted import attention_streams, planted_traces
from graphhalu.traces.schema import TraceRecord, TraceShape, to_bfloat16_bits
from graphhalu.traces.store import TraceStore
from graphhalu.traces.trace import Trace

with warnings.catch_warnings():
    # PyG calls torch.jit.script at import, which torch deprecates
    warnings.simplefilter("ignore", DeprecationWarning)
    import torch_geometric  # noqa: F401


def causal_softmax(generator, shape, *, window=None):
    """Random attention; a row sees only ``window`` keys where one is given."""
    length = shape[-1]
    rows, keys = np.indices((length, length))
    is_seen = (keys <= rows) & (rows - keys < (window or length))
    weights = np.where(is_seen, np.exp(2 * generator.normal(size=shape)), 0.0)
    return weights / weights.sum(-1, keepdims=True)


def contrast_of(generator, hidden, prompt_length):
    """Tokens of a small vocabulary, and a replay without context."""
    n_layers, length, _ = hidden.shape
    is_prompt = np.arange(length) < prompt_length
    columns = generator.uniform(size=(3, length)).astype(np.float32)
    columns[:, is_prompt] = np.nan
    ranks = np.where(is_prompt, -1, generator.integers(0, 50, (n_layers, length)))
    return {
        "token_ids": generator.integers(0, 3, length).astype(np.int32),
        "contrast_logprob": -columns[0],
        "contrast_entropy": columns[1],
        "output_shift": columns[2],
        "lens_rank": ranks.astype(np.int32),
        "contrast_hidden": to_bfloat16_bits(
            (hidden + generator.normal(size=hidden.shape)).astype(np.float32)
        ),
    }


@pytest.fixture(scope="session")
def random_attention():
    return causal_softmax


@pytest.fixture(scope="session")
def trace_of():
    """A trace of ``attention[layer, head, query, key]`` with streams that fit it."""

    def make(attention, prompt_length, *, windows=None, question="q0", **record):
        n_layers, n_heads, length, _ = attention.shape
        shape = TraceShape(
            n_layers=n_layers,
            n_heads=n_heads,
            n_kv_heads=n_heads,
            hidden_size=5,
            attention_layers=tuple(range(n_layers)),
            hidden_layers=tuple(range(n_layers + 1)),
            layer_windows=windows or (None,) * n_layers,
        )
        span_code = np.full(length, Span.QUESTION, dtype=np.uint8)
        span_code[0] = Span.BOS
        span_code[prompt_length:] = Span.ANSWER
        generator = np.random.default_rng(length)
        tokens = generator.uniform(size=(3, length)).astype(np.float32)
        tokens[:, 0] = np.nan
        hidden = generator.normal(size=(n_layers + 1, length, 5)).astype(np.float32)
        arrays = {
            "span_code": span_code,
            "token_logprob": -tokens[0],
            "token_entropy": tokens[1],
            "top1_margin": tokens[2],
            "hidden": to_bfloat16_bits(hidden),
            **attention_streams(attention, span_code),
        }
        arrays |= contrast_of(generator, hidden, prompt_length)
        made = TraceRecord(
            trace_id=f"{question}#0",
            question_id=question,
            group_id=question,
            question="?",
            answers=("a",),
            answer="a",
            prompt="?",
            prompt_length=prompt_length,
            length=length,
        )
        return Trace(replace(made, **record), shape, arrays)

    return make


@pytest.fixture(scope="session")
def trace(trace_of):
    """2 layers, 3 heads, 13 tokens, 7 of them prompt; layer 1 has a window of 11."""
    generator = np.random.default_rng(2)
    full = causal_softmax(generator, (1, 3, 13, 13))
    windowed = causal_softmax(generator, (1, 3, 13, 13), window=11)
    return trace_of(np.concatenate([full, windowed]), 7, windows=(None, 11))


@pytest.fixture(scope="session")
def planted():
    """23 traces of 13 questions, with labels."""
    return planted_traces(23, seed=1, traces_a_question=2)


KEPT = {
    "full": ("attention", "hidden"),
    "fixed": ("attention_fixed",),
    "edges": ("edge_key", "edge_weight", "dropped_mass"),
}
STREAMS = (
    "token_ids",
    "span_code",
    "token_logprob",
    "token_entropy",
    "top1_margin",
    "span_mass",
    "self_attention",
    "row_entropy",
    "argmax_key",
    "sink_keys",
    "received",
    "value_norm",
)


@pytest.fixture(scope="session")
def store_of(tmp_path_factory):
    """A store of given traces in parts of 7, keeping ``"full"``, ``"fixed"`` or ``"edges"``."""

    def make(traces, kept="full"):
        path = tmp_path_factory.mktemp("store") / "a.zarr"
        arrays = (*STREAMS, *KEPT[kept])
        store = TraceStore.create(path, configuration={}, shape=traces[0].shape, arrays=arrays)
        with store.writer() as writer:
            for index, start in enumerate(range(0, len(traces), 7)):
                part = [
                    Trace(t.record, t.shape, {name: t.arrays[name] for name in arrays})
                    for t in traces[start : start + 7]
                ]
                writer.write_part(index, part, [t.record.question_id for t in part])
        return TraceStore.open(path)

    return make


@pytest.fixture(scope="session")
def one_each():
    """17 traces of 17 questions, with labels."""
    return planted_traces(17, seed=5)


@pytest.fixture(scope="session")
def store(store_of, one_each):
    return store_of(one_each[0])
