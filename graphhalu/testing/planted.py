"""Traces with a known answer: random causal attention, with or without a planted signal.

Every array is consistent with the others: the streams are computed from the attention. In a
store with a signal, hallucinated traces differ in what :data:`SIGNALS` names, by default in the
attention that some heads pay to the first token; its twin has the same labels and no such
difference, so a detector that finds anything there is wrong.
"""

from collections.abc import Sequence
from typing import Final, Literal, get_args

import numpy as np
from jaxtyping import Float, Int, UInt8

from graphhalu.core.axes import N_SPANS, Span
from graphhalu.core.numerics import FIXED_STEPS, from_bfloat16_bits, pack_triangle, to_bfloat16_bits
from graphhalu.labels.labels import Labels, complete_labels
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

Signal = Literal["sink", "self", "lookback", "flat", "hidden", "shift", "likelihood", "text", "length"]
"""What can tell hallucinated traces from others:

``sink``
    some heads attend more to the first token;
``self``
    a head attends more to a row's own token;
``lookback``
    a head's answer rows attend more to the question;
``flat``
    a head's answer rows spread evenly, so that entropy and spanning tree grow;
``hidden``
    states of the answer lie further along one direction, from layer 2 on;
``shift``
    hidden states change at random from layer to layer, and else follow attention;
``likelihood``
    the answer's tokens are less likely, the model less decided;
``text``
    the answer uses other words;
``length``
    the answer is longer.
"""
SIGNALS: Final[tuple[Signal, ...]] = get_args(Signal)
_SELF_HEAD: Final = 2
_ANSWER_HEAD: Final = 0
_WORDS: Final = (("paris", "rome", "oslo", "bern"), ("perhaps", "maybe", "probably", "somewhat"))


def planted_traces(
    n_traces: int,
    *,
    seed: int = 0,
    signal: bool = True,
    shape: TraceShape = PLANTED_SHAPE,
    traces_a_question: int = 1,
    signals: Sequence[Signal] = ("sink",),
) -> tuple[list[Trace], Labels]:
    """Random traces, half of them hallucinated, and their labels.

    Args:
        n_traces: How many.
        seed: Seed of everything.
        signal: Whether hallucinated traces differ from others at all.
        shape: Sizes of the model.
        traces_a_question: Traces that share a question and its group, as beams do.
        signals: In what they differ.
    """
    planted = signals if signal else ()
    generator = np.random.default_rng(seed)
    values = generator.permutation(np.arange(n_traces) % 2)
    traces = [
        planted_trace(
            index // traces_a_question,
            generator,
            sink_shift=SINK_SHIFT * float(values[index]) if "sink" in planted else 0.0,
            shape=shape,
            beam=index % traces_a_question,
            signals=planted,
            is_hallucinated=bool(values[index]),
        )
        for index in range(n_traces)
    ]
    return traces, _planted_labels(traces, values, signal, seed)


def _planted_labels(
    traces: Sequence[Trace], values: Int[np.ndarray, "trace"], signal: object, seed: int
) -> Labels:
    ids, settings = (trace.trace_id for trace in traces), {"signal": signal, "seed": seed}
    return complete_labels(ids, values, "planted", reason="planted", settings=settings)


def planted_trace(
    question: int,
    generator: np.random.Generator,
    *,
    sink_shift: float = 0.0,
    shape: TraceShape = PLANTED_SHAPE,
    beam: int = 0,
    signals: Sequence[Signal] = (),
    is_hallucinated: bool = False,
) -> Trace:
    """One random trace; ``sink_shift`` is added to the logits of the first key in some heads.

    Texts and lengths say nothing of the label unless ``signals`` says so. A signal changes no
    random draw but where its size does, as a longer answer.
    """
    differs = frozenset(signals) if is_hallucinated else frozenset[Signal]()
    prompt_length = int(generator.integers(5, 11))
    length = prompt_length + int(generator.integers(3, 9)) + 9 * ("length" in differs)
    logits = _planted_logits(_logits(generator, length, sink_shift, shape), prompt_length, differs)
    attention = _softmax(logits, shape)
    answer = "yes" if (question + beam) % 2 else "no"
    if "text" in signals:
        words = _WORDS[int(is_hallucinated)]
        answer = f"it is {words[question % 4]} {words[length % 3]}"
    span_code = np.full(length, Span.QUESTION, dtype=np.uint8)
    span_code[0] = Span.BOS
    span_code[prompt_length - 2 : prompt_length] = Span.TEMPLATE
    span_code[prompt_length:] = Span.ANSWER
    record = _record(question, beam, answer, prompt_length, length)
    arrays = _arrays(generator, attention, span_code, shape)
    if "likelihood" in differs:
        arrays |= _unlikely(arrays, prompt_length)
    if {"hidden", "shift"} & set(signals):
        arrays |= _planted_hidden(arrays, attention, prompt_length, signals, differs)
    return Trace(record, shape, arrays)


def _record(question: int, beam: int, answer: str, prompt_length: int, length: int) -> TraceRecord:
    name = f"q{question}"
    return TraceRecord(
        trace_id=f"{name}#{beam}",
        question_id=name,
        group_id=name,
        question=f"Question {name}?",
        answers=("yes",),
        answer=answer,
        prompt=f"Question {name}? Answer:",
        prompt_length=prompt_length,
        length=length,
        beam_index=beam,
        beam_score=-1.0 - beam,
    )


def _arrays(
    generator: np.random.Generator,
    attention: Float[np.ndarray, "layer head query key"],
    span_code: UInt8[np.ndarray, "token"],
    shape: TraceShape,
) -> dict[str, np.ndarray]:
    """Every array of a trace: what follows from the attention, the rest at random."""
    length = len(span_code)
    arrays: dict[str, np.ndarray] = {
        "token_ids": generator.integers(0, 97, length).astype(np.int32),
        "span_code": span_code,
        **_token_streams(generator, length),
        **attention_streams(attention, span_code, n_edges=shape.n_edges),
        **_value_and_hidden(generator, length, shape),
    }
    return {name: arrays[name] for name in ARRAYS}


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


def _edges(attention: Float[np.ndarray, "layer head query key"], n_edges: int) -> dict[str, np.ndarray]:
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


def _logits(
    generator: np.random.Generator, length: int, sink_shift: float, shape: TraceShape
) -> Float[np.ndarray, "layer head query key"]:
    n_layers, n_heads = len(shape.attention_layers), shape.n_heads
    logits = generator.normal(size=(n_layers, n_heads, length, length))
    logits[..., 0] += _SINK_LOGIT
    logits[:, list(_SIGNAL_HEADS), :, 0] += sink_shift
    return logits


def _planted_logits(
    logits: Float[np.ndarray, "layer head query key"], prompt_length: int, differs: frozenset[Signal]
) -> Float[np.ndarray, "layer head query key"]:
    places = np.arange(logits.shape[-1])
    if "self" in differs:
        logits[:, _SELF_HEAD, places, places] += 2.0
    answer = logits[:, _ANSWER_HEAD, prompt_length - 1 :]
    if "lookback" in differs:
        answer[..., 1 : prompt_length - 2] += 3.0
    if "flat" in differs:
        answer *= 0.1
    return logits


def _softmax(
    logits: Float[np.ndarray, "layer head query key"], shape: TraceShape
) -> Float[np.ndarray, "layer head query key"]:
    length = logits.shape[-1]
    distance = np.arange(length)[:, None] - np.arange(length)
    windows = [length if window is None else window for window in shape.layer_windows]
    is_seen = (distance >= 0) & (distance < np.reshape(windows, (-1, 1, 1)))
    weights = np.where(is_seen[:, None], np.exp(logits), 0.0)
    normalised: Float[np.ndarray, "layer head query key"] = weights / weights.sum(-1, keepdims=True)
    return normalised


def _unlikely(arrays: dict[str, np.ndarray], prompt_length: int) -> dict[str, np.ndarray]:
    is_answer = np.arange(len(arrays["token_logprob"])) >= prompt_length
    return {
        "token_logprob": arrays["token_logprob"] - 4 * is_answer.astype(np.float32),
        "token_entropy": arrays["token_entropy"] + 4 * is_answer.astype(np.float32),
        "top1_margin": arrays["top1_margin"] * np.where(is_answer, 0.3, 1).astype(np.float32),
    }


def _planted_hidden(
    arrays: dict[str, np.ndarray],
    attention: Float[np.ndarray, "layer head query key"],
    prompt_length: int,
    signals: Sequence[Signal],
    differs: frozenset[Signal],
) -> dict[str, np.ndarray]:
    hidden = from_bfloat16_bits(arrays["hidden"]).copy()
    if "shift" in signals and "shift" not in differs:
        mean_attention = attention.mean(axis=1).astype(np.float32)
        for place in range(len(hidden) - 1):
            followed = mean_attention[place] @ hidden[place]
            hidden[place + 1] = hidden[place] + 2 * followed + 0.3 * hidden[place + 1]
    if "hidden" in differs:
        hidden[2:, prompt_length:, 3] += 4.0
    bits = to_bfloat16_bits(hidden)
    return {"hidden": bits, "hidden_rows": bits}


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


EdgeSignal = Literal["one hop", "two hops"]
EDGE_SIGNALS: Final[tuple[EdgeSignal, ...]] = get_args(EdgeSignal)
_EDGE_SPANS: Final = (
    (Span.BOS, 1),
    (Span.SYSTEM, 3),
    (Span.CONTEXT, 6),
    (Span.QUESTION, 6),
    (Span.TEMPLATE, 1),
)
"""Spans of the prompt of traces whose edges hold the label, with their lengths; the first four
tokens are sinks, and the last one produces the answer."""
_N_HUBS: Final = 6
_EDGE_LAYER: Final = 2
_EDGE_LOGIT: Final = 4.0


def planted_edge_traces(n_traces: int, signal: EdgeSignal, *, seed: int = 0) -> tuple[list[Trace], Labels]:
    """Traces whose label only edges hold: no row statistic and no node feature says it.

    ``"one hop"``: one head of one layer attends, in the rows of the answer, more to the question
    (label 1) or to the context (label 0), which are equally long. ``"two hops"``: the first six
    tokens of the answer attend to the question or to the context, three each, and the others
    attend to the three of the first kind (label 1) or of the second; which they are is random.

    Args:
        n_traces: How many; half of them have label 1.
        signal: What holds the label.
        seed: Seed of everything.
    """
    generator = np.random.default_rng(seed)
    values = generator.permutation(np.arange(n_traces) % 2)
    traces = [
        _edge_trace(number, generator, signal, is_positive=bool(value))
        for number, value in enumerate(values.tolist())
    ]
    return traces, _planted_labels(traces, values, signal, seed)


def _edge_trace(
    number: int, generator: np.random.Generator, signal: EdgeSignal, *, is_positive: bool
) -> Trace:
    prompt = np.repeat([int(span) for span, _ in _EDGE_SPANS], [n for _, n in _EDGE_SPANS])
    prompt_length, n_answer = len(prompt), _N_HUBS + int(generator.integers(5, 10))
    length = prompt_length + n_answer
    span_code = np.concatenate([prompt, np.full(n_answer, int(Span.ANSWER))]).astype(np.uint8)
    logits = _logits(generator, length, 0.0, PLANTED_SHAPE)
    plane = logits[_EDGE_LAYER, _SIGNAL_HEADS[0]]
    spans = [np.flatnonzero(span_code == span) for span in (Span.CONTEXT, Span.QUESTION)]
    answer = np.arange(prompt_length - 1, length)
    if signal == "one hop":
        plane[np.ix_(answer, spans[int(is_positive)])] += _EDGE_LOGIT
    else:
        hubs = generator.permutation(prompt_length + np.arange(_N_HUBS))
        kinds = (hubs[: _N_HUBS // 2], hubs[_N_HUBS // 2 :])
        for of_kind, attended in zip(kinds, spans, strict=True):
            plane[np.ix_(of_kind, attended)] += _EDGE_LOGIT
        others = np.arange(prompt_length + _N_HUBS, length)
        plane[np.ix_(others, kinds[int(is_positive)])] += _EDGE_LOGIT
    attention = _softmax(logits, PLANTED_SHAPE)
    record = _record(number, 0, "yes", prompt_length, length)
    return Trace(record, PLANTED_SHAPE, _arrays(generator, attention, span_code, PLANTED_SHAPE))
