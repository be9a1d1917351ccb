"""Random traces with whole matrices, of prime sizes, for the features that read them.

7 layers (three with a window), 5 heads, 13 units; token ids repeat; the last units are large.
"""

from dataclasses import replace

import numpy as np

from graphhalu.core.axes import Span
from graphhalu.labels.planted import attention_streams
from graphhalu.traces.schema import (
    ARRAYS,
    TraceRecord,
    TraceShape,
    array_spec,
    pack_triangle,
    to_bfloat16_bits,
)
from graphhalu.traces.trace import Trace

SHAPE = TraceShape(
    n_layers=7,
    n_heads=5,
    n_kv_heads=5,
    hidden_size=13,
    attention_layers=tuple(range(7)),
    hidden_layers=tuple(range(8)),
    layer_windows=(None, None, 11, 11, None, 7, None),
    n_edges=3,
)
SIZES = [(7, 11), (5, 1), (13, 6), (3, 2), (11, 17)]
"""Prompt and answer lengths of the traces of :func:`some_traces`."""


def whole_trace(
    generator, prompt=11, answer=6, *, name="q0", beam=0, row_start=0, shape=SHAPE, on_policy=True
):
    """A random trace; rows and states before ``row_start`` are not kept."""
    length = prompt + answer
    attention = _attention(generator, length, shape)
    code = np.full(length, Span.QUESTION, dtype=np.uint8)
    code[0], code[1], code[prompt - 1] = Span.BOS, Span.SYSTEM, Span.TEMPLATE
    code[prompt:] = Span.ANSWER
    streams = attention_streams(attention, code, n_edges=shape.n_edges)
    kept = {
        key: values[:, :, row_start:] if array_spec(key).axes[2:3] == ("row",) else values
        for key, values in streams.items()
    }
    packed = pack_triangle(attention[:, :, row_start:], row_start)
    states = generator.normal(size=(len(shape.hidden_layers), length, shape.hidden_size))
    # states of one sequence point the same way, as those of a model do
    states = np.cumsum(states, axis=0) + 2.0
    states[..., -1] *= 20.0
    hidden = to_bfloat16_bits(states.astype(np.float32))
    arrays = {
        "token_ids": generator.integers(0, 5, length).astype(np.int32),
        "span_code": code,
        "token_logprob": -generator.exponential(size=length).astype(np.float32),
        "token_entropy": generator.exponential(size=length).astype(np.float32),
        **kept,
        "attention": packed.astype(np.float16),
        "attention_fixed": np.rint(packed * 65_535).astype(np.uint16),
        "hidden": hidden,
        "hidden_rows": hidden[:, row_start:],
    }
    record = TraceRecord(
        trace_id=f"{name}#{beam}",
        question_id=name,
        group_id=name,
        question="?",
        answers=("a",),
        answer="a",
        prompt="?",
        prompt_length=prompt,
        length=length,
        row_start=row_start,
        beam_index=beam,
        is_on_policy=on_policy,
    )
    return Trace(record, shape, {key: arrays[key] for key in ARRAYS if key in arrays})


def some_traces(seed=0, shape=SHAPE, *, only_answer_rows=False):
    """Traces of five sizes, one of them with a one-token answer."""
    generator = np.random.default_rng(seed)
    return [
        whole_trace(
            generator,
            prompt,
            answer,
            name=f"q{index}",
            shape=shape,
            row_start=prompt - 1 if only_answer_rows else 0,
        )
        for index, (prompt, answer) in enumerate(SIZES)
    ]


def without(trace, *names):
    """The trace without some arrays."""
    return replace(trace, arrays={k: v for k, v in trace.arrays.items() if k not in names})


def with_arrays(trace, **arrays):
    """The trace with other arrays."""
    return replace(trace, arrays={**trace.arrays, **arrays})


def answer_rows(trace):
    """Tokens whose rows produce the answer."""
    return range(trace.prompt_length - 1, trace.length - 1)


def visible(trace, layer, row):
    """Keys that a row can see."""
    window = trace.shape.layer_windows[layer] or trace.length
    return range(max(0, row + 1 - window), row + 1)


def square(trace, layer):
    """Attention of a layer in double, ``[head][token of the row - row_start][key]``."""
    return trace.attention(trace.shape.attention_layers[layer]).astype(np.float64)


def row_of(trace, weights, token):
    """The row of a token, of attention as :func:`square` gives it."""
    return weights[:, token - trace.record.row_start]


def _attention(generator, length, shape):
    n_layers = len(shape.attention_layers)
    logits = generator.normal(size=(n_layers, shape.n_heads, length, length)) * 1.5
    distance = np.arange(length)[:, None] - np.arange(length)
    windows = [length if w is None else w for w in shape.layer_windows]
    is_seen = (distance >= 0) & (distance < np.reshape(windows, (-1, 1, 1)))
    weights = np.where(is_seen[:, None], np.exp(logits), 0)
    return weights / weights.sum(-1, keepdims=True)
