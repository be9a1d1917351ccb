"""Traces with a known answer: random causal attention, with or without a planted signal.

Every array is consistent with the others: the streams are computed from the attention. In a
store with a signal, hallucinated traces pay more attention to the first token in some heads; its
twin has the same labels and no such difference, so a detector that finds anything there is wrong.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Float

from graphhalu.axes import N_SPANS, Span
from graphhalu.labels.labels import Labels
from graphhalu.numerics import FIXED_STEPS, pack_triangle, to_bfloat16_bits
from graphhalu.traces.schema import ARRAYS, N_SINK_KEYS, TraceRecord, TraceShape
from graphhalu.traces.trace import Trace

PLANTED_SHAPE: Final = TraceShape(
    n_layers=5,
    n_heads=3,
    n_kv_heads=3,
    hidden_size=7,
    attention_layers=(0, 1, 2, 3, 4),
    hidden_layers=(0, 1, 2, 3, 4, 5),
    layer_windows=(None,) * 5,
    n_edges=2,
)
_SIGNAL_HEADS: Final = (1,)
_SINK_LOGIT: Final = 2.0
SINK_SHIFT: Final = 3.0
"""What a planted signal adds to the logits of the first key, in the heads that carry it."""


def planted_traces(
    n_traces: int,
    *,
    seed: int = 0,
    signal: bool = True,
    shape: TraceShape = PLANTED_SHAPE,
    traces_a_question: int = 1,
) -> tuple[list[Trace], Labels]:
    """Random traces, half of them hallucinated, and their labels.

    Args:
        n_traces: How many.
        seed: Seed of everything.
        signal: Whether hallucinated traces have a stronger sink in some heads.
        shape: Sizes of the model.
        traces_a_question: Traces that share a question and its group, as beams do.
    """
    generator = np.random.default_rng(seed)
    values = generator.permutation(np.arange(n_traces) % 2)
    traces = [
        planted_trace(
            index // traces_a_question,
            generator,
            sink_shift=SINK_SHIFT * float(values[index]) if signal else 0.0,
            shape=shape,
            beam=index % traces_a_question,
        )
        for index in range(n_traces)
    ]
    labels = Labels(
        trace_ids=tuple(trace.trace_id for trace in traces),
        values=values,
        is_valid=np.ones(n_traces, dtype=bool),
        reasons=("planted",) * n_traces,
        labeller="planted",
        settings={"signal": signal, "seed": seed},
    )
    return traces, labels


def planted_trace(
    question: int,
    generator: np.random.Generator,
    *,
    sink_shift: float = 0.0,
    shape: TraceShape = PLANTED_SHAPE,
    beam: int = 0,
) -> Trace:
    """One random trace; ``sink_shift`` is added to the logits of the first key in some heads.

    Texts and lengths say nothing of the label.
    """
    prompt_length = int(generator.integers(5, 11))
    length = prompt_length + int(generator.integers(3, 9))
    attention = _attention(generator, length, sink_shift, shape)
    name = f"q{question}"
    record = TraceRecord(
        trace_id=f"{name}#{beam}",
        question_id=name,
        group_id=name,
        question=f"Question {name}?",
        answers=("yes",),
        answer="yes" if (question + beam) % 2 else "no",
        prompt=f"Question {name}? Answer:",
        prompt_length=prompt_length,
        length=length,
        beam_index=beam,
        beam_score=-1.0 - beam,
    )
    span_code = np.full(length, Span.QUESTION, dtype=np.uint8)
    span_code[0] = Span.BOS
    span_code[prompt_length - 2 : prompt_length] = Span.TEMPLATE
    span_code[prompt_length:] = Span.ANSWER
    arrays: dict[str, np.ndarray] = {
        "token_ids": generator.integers(0, 97, length).astype(np.int32),
        "span_code": span_code,
        **_token_streams(generator, length),
        **attention_streams(attention, span_code, n_edges=shape.n_edges),
        **_value_and_hidden(generator, length, shape),
    }
    return Trace(record, shape, {name: arrays[name] for name in ARRAYS})


def attention_streams(
    attention: Float[np.ndarray, "layer head query key"],
    span_code: Sequence[int] | np.ndarray,
    *,
    n_edges: int = 0,
) -> dict[str, np.ndarray]:
    """Every stored reduction of complete attention, and the packed attention itself."""
    is_span = np.eye(N_SPANS)[np.asarray(span_code)]
    safe = np.where(attention > 0, attention, 1.0)
    n_sink = min(N_SINK_KEYS, attention.shape[-1])
    sink_keys = np.zeros((*attention.shape[:3], N_SINK_KEYS))
    sink_keys[..., :n_sink] = attention[..., :n_sink]
    diagonal = np.diagonal(attention, axis1=2, axis2=3)
    return {
        "span_mass": (attention @ is_span).astype(np.float16),
        "self_attention": diagonal.astype(np.float16),
        "row_entropy": -(attention * np.log(safe)).sum(-1).astype(np.float16),
        "argmax_key": attention.argmax(-1).astype(np.int32),
        "sink_keys": sink_keys.astype(np.float16),
        "received": attention.sum(2).astype(np.float32),
        **_edges(attention, n_edges),
        "attention": pack_triangle(attention).astype(np.float16),
        "attention_fixed": np.rint(pack_triangle(attention) * FIXED_STEPS).astype(np.uint16),
    }


def _edges(
    attention: Float[np.ndarray, "layer head query key"], n_edges: int
) -> dict[str, np.ndarray]:
    others = attention * ~np.eye(attention.shape[-1], dtype=bool)
    n_missing = max(0, n_edges - attention.shape[-1])
    padded = np.pad(others, ((0, 0),) * 3 + ((0, n_missing),))
    key = np.argsort(-padded, axis=-1, kind="stable")[..., :n_edges]
    weight = np.take_along_axis(padded, key, axis=-1)
    return {
        "edge_key": np.where(weight > 0, key, -1).astype(np.int32),
        "edge_weight": weight.astype(np.float16),
        "dropped_mass": np.maximum(others.sum(-1) - weight.sum(-1), 0).astype(np.float16),
    }


def _attention(
    generator: np.random.Generator, length: int, sink_shift: float, shape: TraceShape
) -> Float[np.ndarray, "layer head query key"]:
    n_layers, n_heads = len(shape.attention_layers), shape.n_heads
    logits = generator.normal(size=(n_layers, n_heads, length, length))
    logits[..., 0] += _SINK_LOGIT
    logits[:, list(_SIGNAL_HEADS), :, 0] += sink_shift
    distance = np.arange(length)[:, None] - np.arange(length)
    windows = [length if window is None else window for window in shape.layer_windows]
    is_seen = (distance >= 0) & (distance < np.reshape(windows, (-1, 1, 1)))
    weights = np.where(is_seen[:, None], np.exp(logits), 0.0)
    normalised: Float[np.ndarray, "layer head query key"] = weights / weights.sum(-1, keepdims=True)
    return normalised


def _token_streams(generator: np.random.Generator, length: int) -> dict[str, np.ndarray]:
    streams = {
        "token_logprob": -generator.exponential(size=length),
        "token_entropy": generator.exponential(size=length),
        "top1_margin": generator.uniform(size=length),
    }
    for values in streams.values():
        values[0] = np.nan
    return {name: values.astype(np.float32) for name, values in streams.items()}


def _value_and_hidden(
    generator: np.random.Generator, length: int, shape: TraceShape
) -> dict[str, np.ndarray]:
    hidden = generator.normal(size=(len(shape.hidden_layers), length, shape.hidden_size))
    norms = generator.exponential(size=(len(shape.attention_layers), shape.n_kv_heads, length))
    return {
        "value_norm": norms.astype(np.float16),
        "hidden": to_bfloat16_bits(hidden.astype(np.float32)),
        "hidden_rows": to_bfloat16_bits(hidden.astype(np.float32)),
    }
