"""Traces with a known answer: random causal attention, with or without a planted signal.

Every array is consistent with the others: the row statistics are computed from the attention. In a
store with a signal, hallucinated traces differ as :data:`SIGNALS` says, by default in the attention
that some heads pay to the first token; its twin has the same labels and no such difference, so a
detector that finds anything there is wrong.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from graphhalu.core.axes import N_SPANS, Span
from graphhalu.labels.labels import Labels, complete_labels
from graphhalu.traces.schema import (
    ARRAYS,
    CONTRAST,
    FIXED_STEPS,
    N_SINK_KEYS,
    TraceRecord,
    TraceShape,
    from_bfloat16_bits,
    pack_triangle,
    to_bfloat16_bits,
)
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
Attention = Float[np.ndarray, "layer head query key"]
SpanCode = UInt8[np.ndarray, "token"]
_ANSWER_HEAD, _SIGNAL_HEAD, _SELF_HEAD = range(3)
_SINK_LOGIT: Final = 2.0
SINK_SHIFT: Final = 3.0
"""Added to the logits of the first key by the signal ``sink``, and in the rows of marked tokens."""

Signal = Literal[
    "sink", "self", "lookback", "flat", "hidden", "shift", "likelihood", "text", "length", "context"
]
"""Ways in which hallucinated traces can differ from others:

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
    the answer is longer;
``context``
    the replay without context differs less from the one with it.
"""
SIGNALS: Final[tuple[Signal, ...]] = get_args(Signal)
_WORDS: Final = (("paris", "rome", "oslo", "bern"), ("perhaps", "maybe", "probably", "somewhat"))

TokenSignal = Literal["sink", "context", "copying", "runs"]
_WEAK_SHIFT: Final = 1.0
"""As :data:`SINK_SHIFT`, where a token alone says little."""

EdgeSignal = Literal["one hop", "two hops"]
EDGE_SIGNALS: Final[tuple[EdgeSignal, ...]] = get_args(EdgeSignal)
_EDGE_SPANS: Final = {Span.BOS: 1, Span.SYSTEM: 3, Span.CONTEXT: 6, Span.QUESTION: 6, Span.TEMPLATE: 1}
"""Spans of the prompt of traces whose edges hold the label, with their lengths; the first four
tokens are sinks, and the last one produces the answer."""
_N_HUBS: Final = 6
_EDGE_LAYER: Final = 2
_EDGE_LOGIT: Final = 4.0

_N_MARKED: Final = 4
"""Tokens of a hallucinated span."""
_WORD: Final = 4
"""Characters of a word with the space before it, which is a token of a given answer."""


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
        signals: How they differ.
    """
    how: dict[str, Any] = {"shape": shape, "signals": signals if signal else ()}

    def make(index: int, generator: np.random.Generator, is_hallucinated: bool) -> Trace:
        question, beam = divmod(index, traces_a_question)
        return planted_trace(question, generator, beam=beam, is_hallucinated=is_hallucinated, **how)

    return _labelled(n_traces, seed, signal, make)


def _labelled(
    n_traces: int, seed: int, signal: object, make: Callable[[int, np.random.Generator, bool], Trace]
) -> tuple[list[Trace], Labels]:
    generator = np.random.default_rng(seed)
    values: Int[np.ndarray, "trace"] = generator.permutation(np.arange(n_traces) % 2)
    traces = [make(index, generator, bool(value)) for index, value in enumerate(values.tolist())]
    ids, settings = [trace.trace_id for trace in traces], {"signal": signal, "seed": seed}
    return traces, complete_labels(ids, values, "planted", reason="planted", settings=settings)


def planted_trace(
    question: int,
    generator: np.random.Generator,
    *,
    shape: TraceShape = PLANTED_SHAPE,
    beam: int = 0,
    signals: Sequence[Signal] = (),
    is_hallucinated: bool = False,
    prompt_lengths: tuple[int, int] = (5, 11),
) -> Trace:
    """One random trace.

    Texts and lengths say nothing of the label unless ``signals`` says so. A signal changes no
    random draw but where its size does, as a longer answer.
    """
    differs = frozenset(signals) if is_hallucinated else frozenset[Signal]()
    prompt_length = int(generator.integers(*prompt_lengths))
    length = prompt_length + int(generator.integers(3, 9)) + 9 * ("length" in differs)
    logits = _logits(generator, length, shape)
    places, rows = np.arange(length), logits[:, _ANSWER_HEAD, prompt_length - 1 :]
    if "sink" in differs:
        logits[:, _SIGNAL_HEAD, :, 0] += SINK_SHIFT
    if "self" in differs:
        logits[:, _SELF_HEAD, places, places] += 2.0
    if "lookback" in differs:
        rows[..., 1 : prompt_length - 2] += 3.0
    if "flat" in differs:
        rows *= 0.1
    attention = _softmax(logits, shape)
    answer = "yes" if (question + beam) % 2 else "no"
    if "text" in signals:
        words = _WORDS[int(is_hallucinated)]
        answer = f"it is {words[question % 4]} {words[length % 3]}"
    span_code = np.full(length, Span.QUESTION, dtype=np.uint8)
    span_code[0] = Span.BOS
    span_code[prompt_length - 2 : prompt_length] = Span.TEMPLATE
    span_code[prompt_length:] = Span.ANSWER
    arrays = _arrays(generator, attention, span_code, shape)
    if "likelihood" in differs:
        is_answer = (span_code == Span.ANSWER).astype(np.float32)
        arrays["token_logprob"] = arrays["token_logprob"] - 4 * is_answer
        arrays["token_entropy"] = arrays["token_entropy"] + 4 * is_answer
        arrays["top1_margin"] = arrays["top1_margin"] * np.where(is_answer, 0.3, 1).astype(np.float32)
    hidden = from_bfloat16_bits(arrays["hidden"]).copy()
    if "shift" in signals and "shift" not in differs:
        mean_attention = attention.mean(axis=1).astype(np.float32)
        for place in range(len(hidden) - 1):
            followed = mean_attention[place] @ hidden[place]
            hidden[place + 1] = hidden[place] + 2 * followed + 0.3 * hidden[place + 1]
    if "hidden" in differs:
        hidden[2:, prompt_length:, 3] += 4.0
    arrays["hidden"] = arrays["hidden_rows"] = to_bfloat16_bits(hidden)
    is_used = "context" in signals and "context" not in differs
    arrays |= _contrast_arrays(arrays, hidden, np.full(length, 1.0 if is_used else 0.0), prompt_length)
    return Trace(_record(question, beam, answer, prompt_length, length), shape, arrays)


def _contrast_arrays(
    arrays: Mapping[str, Any],
    hidden: Float[np.ndarray, "hidden_layer token feature"],
    used: Float[np.ndarray, "token"],
    prompt_length: int,
) -> dict[str, np.ndarray]:
    """A replay without context: random, and further from the one with it where a token used the context."""
    generator = np.random.default_rng(arrays["token_ids"].tolist())
    n_tokens, is_prompt = len(used), np.arange(len(used)) < prompt_length
    noise = generator.normal(scale=0.3, size=hidden.shape)
    noise[..., -1] -= 2 * used
    drop = 0.3 * generator.exponential(size=n_tokens) + 3 * used
    found = {
        "contrast_logprob": arrays["token_logprob"] - drop,
        "contrast_entropy": generator.exponential(size=n_tokens),
        "output_shift": 0.1 * generator.uniform(size=n_tokens) + 0.4 * used,
    }
    columns = {name: np.where(is_prompt, np.nan, v).astype(np.float32) for name, v in found.items()}
    ranks = generator.integers(0, 97, (len(hidden), n_tokens))
    return {
        **columns,
        "lens_rank": np.where(is_prompt, -1, ranks).astype(np.int32),
        "contrast_hidden": to_bfloat16_bits((hidden + noise).astype(np.float32)),
    }


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
    generator: np.random.Generator, attention: Attention, span_code: SpanCode, shape: TraceShape
) -> dict[str, np.ndarray]:
    """Every array of a trace: those that follow from the attention, and the rest at random."""
    length = len(span_code)
    arrays: dict[str, np.ndarray] = {
        "token_ids": generator.integers(0, 97, length).astype(np.int32),
        "span_code": span_code,
        "token_logprob": -generator.exponential(size=length).astype(np.float32),
        "token_entropy": generator.exponential(size=length).astype(np.float32),
        "top1_margin": generator.uniform(size=length).astype(np.float32),
        **attention_streams(attention, span_code, n_edges=shape.n_edges),
    }
    for name in ("token_logprob", "token_entropy", "top1_margin"):
        arrays[name][0] = np.nan
    hidden = generator.normal(size=(len(shape.hidden_layers), length, shape.hidden_size))
    norms = generator.exponential(size=(len(shape.attention_layers), shape.n_kv_heads, length))
    arrays["hidden"] = arrays["hidden_rows"] = to_bfloat16_bits(hidden.astype(np.float32))
    arrays["value_norm"] = norms.astype(np.float16)
    return {name: arrays[name] for name in ARRAYS if name not in CONTRAST}


def attention_streams(
    attention: Attention, span_code: Sequence[int] | np.ndarray, *, n_edges: int = 0
) -> dict[str, np.ndarray]:
    """Every stored row statistic of complete attention, and the packed attention itself."""
    length = attention.shape[-1]
    is_span = np.eye(N_SPANS)[np.asarray(span_code)]
    safe = np.where(attention > 0, attention, 1.0)
    first_keys = attention[..., :N_SINK_KEYS]
    sink_keys = np.pad(first_keys, ((0, 0),) * 3 + ((0, N_SINK_KEYS - first_keys.shape[-1]),))
    others = attention * ~np.eye(length, dtype=bool)
    padded = np.pad(others, ((0, 0),) * 3 + ((0, max(0, n_edges - length)),))
    edge_key = np.argsort(-padded, axis=-1, kind="stable")[..., :n_edges]
    edge_weight = np.take_along_axis(padded, edge_key, axis=-1)
    packed = pack_triangle(attention)
    return {
        "span_mass": (attention @ is_span).astype(np.float16),
        "self_attention": np.diagonal(attention, axis1=2, axis2=3).astype(np.float16),
        "row_entropy": -(attention * np.log(safe)).sum(-1).astype(np.float16),
        "argmax_key": attention.argmax(-1).astype(np.int32),
        "sink_keys": sink_keys.astype(np.float16),
        "received": attention.sum(2).astype(np.float32),
        "edge_key": np.where(edge_weight > 0, edge_key, -1).astype(np.int32),
        "edge_weight": edge_weight.astype(np.float16),
        "dropped_mass": np.maximum(others.sum(-1) - edge_weight.sum(-1), 0).astype(np.float16),
        "attention": packed.astype(np.float16),
        "attention_fixed": np.rint(packed * FIXED_STEPS).astype(np.uint16),
    }


def _logits(generator: np.random.Generator, length: int, shape: TraceShape) -> Attention:
    logits = generator.normal(size=(len(shape.attention_layers), shape.n_heads, length, length))
    logits[..., 0] += _SINK_LOGIT
    return logits


def _softmax(logits: Attention, shape: TraceShape) -> Attention:
    length = logits.shape[-1]
    distance = np.arange(length)[:, None] - np.arange(length)
    windows = [length if window is None else window for window in shape.layer_windows]
    is_seen = (distance >= 0) & (distance < np.reshape(windows, (-1, 1, 1)))
    weights = np.where(is_seen[:, None], np.exp(logits), 0.0)
    return np.divide(weights, weights.sum(-1, keepdims=True))


def planted_token_traces(
    n_traces: int,
    *,
    seed: int = 0,
    signal: bool = True,
    shape: TraceShape = PLANTED_SHAPE,
    traces_a_question: int = 2,
    evidence: TokenSignal = "sink",
) -> list[Trace]:
    """Random given answers; in every second one some tokens running are marked as hallucinated.

    By default one head attends more to the first token in the rows that produce marked tokens; the twin
    (``signal=False``) has the same spans and no such difference. Spans begin anywhere and lie
    within the answer, so that its ends are marked a little less often than its middle.

    Args:
        n_traces: How many.
        seed: Seed of everything.
        signal: Whether marked tokens differ from others at all.
        shape: Sizes of the model.
        traces_a_question: Answers that share a context and its group.
        evidence: What holds the label: ``"sink"``, ``"context"`` (only what the context changes),
            ``"copying"`` (other tokens repeat those of the prompt that they attend to), or ``"runs"`` (as
            ``"sink"``, so weakly that a token alone says little).
    """
    generator, traces = np.random.default_rng(seed), []
    # the signal "length" makes all answers long
    how: dict[str, Any] = {"shape": shape, "signals": ("length",), "is_hallucinated": True}
    if evidence == "copying":
        how["prompt_lengths"] = (11, 17)  # tokens to copy beside the sinks
    for index in range(n_traces):
        question, beam = divmod(index, traces_a_question)
        trace = planted_trace(question, generator, beam=beam, **how)
        start = int(generator.integers(0, trace.answer_length - _N_MARKED))
        marked = start + np.arange(_N_MARKED * ((question + index) % 2))
        traces.append(_with_marked_tokens(trace, marked, evidence if signal else None))
    return traces


def _with_marked_tokens(
    trace: Trace, marked: Int[np.ndarray, "token"], evidence: TokenSignal | None
) -> Trace:
    """A given answer of words of three letters with a space before each; a word is a token."""
    attention = np.stack([trace.attention(layer) for layer in trace.shape.attention_layers])
    attention, arrays = attention.astype(np.float64), dict(trace.arrays)
    is_marked = np.zeros(trace.length, dtype=bool)
    is_marked[trace.prompt_length + marked] = True
    if evidence in ("sink", "runs"):
        shift = SINK_SHIFT if evidence == "sink" else _WEAK_SHIFT
        attention[:, _SIGNAL_HEAD, marked + trace.prompt_length - 1, 0] *= np.exp(shift)
    elif evidence == "context":
        hidden = trace.stream("hidden")
        used = 1.0 - is_marked.astype(np.float64)
        arrays |= _contrast_arrays(arrays, hidden, used, trace.prompt_length)
    elif evidence == "copying":
        ids = _with_copies(trace, attention, is_marked)
        arrays["token_ids"] = ids
    attention /= attention.sum(-1, keepdims=True)
    n_tokens = trace.answer_length
    is_hallucinated = len(marked) > 0
    record = replace(
        trace.record,
        answer=" ".join(f"w{place:02d}" for place in range(n_tokens)),
        answer_offsets=tuple((max(0, at * _WORD - 1), at * _WORD + _WORD - 1) for at in range(n_tokens)),
        is_on_policy=False,
        beam_score=None,
        given_label=int(is_hallucinated),
        given_spans=((int(marked[0]) * _WORD, int(marked[-1] + 1) * _WORD - 1),) if is_hallucinated else (),
    )
    streams = attention_streams(attention, trace.span_code, n_edges=trace.shape.n_edges)
    return Trace(record, trace.shape, {**arrays, **streams})


def _with_copies(
    trace: Trace, attention: Attention, is_marked: Bool[np.ndarray, "token"]
) -> Int[np.ndarray, "token"]:
    """Tokens of which each is one of the prompt; the row before attends to that one, or if marked to another.

    Which tokens the prompt has, and how much a row attends to one of them, says nothing of the label.
    """
    ids, start = np.array(trace.token_ids), trace.prompt_length
    seen = np.arange(N_SINK_KEYS, start)
    ids[seen] = np.unique(ids)[0] + 1 + np.arange(len(seen))
    generator = np.random.default_rng(ids.tolist())
    for token in range(start, trace.length):
        told, other = generator.choice(seen, 2, replace=False)
        ids[token] = ids[told]
        attention[:, _SIGNAL_HEAD, token - 1, other if is_marked[token] else told] *= np.exp(_EDGE_LOGIT)
    return ids


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
    return _labelled(n_traces, seed, signal, partial(_edge_trace, signal))


def _edge_trace(signal: EdgeSignal, index: int, generator: np.random.Generator, is_positive: bool) -> Trace:
    prompt = np.repeat([int(span) for span in _EDGE_SPANS], list(_EDGE_SPANS.values()))
    prompt_length, n_answer = len(prompt), _N_HUBS + int(generator.integers(5, 10))
    length = prompt_length + n_answer
    span_code = np.concatenate([prompt, np.full(n_answer, int(Span.ANSWER))]).astype(np.uint8)
    logits = _logits(generator, length, PLANTED_SHAPE)
    plane = logits[_EDGE_LAYER, _SIGNAL_HEAD]
    spans = [np.flatnonzero(span_code == span) for span in (Span.CONTEXT, Span.QUESTION)]
    if signal == "one hop":
        answer = np.arange(prompt_length - 1, length)
        plane[np.ix_(answer, spans[int(is_positive)])] += _EDGE_LOGIT
    else:
        hubs = generator.permutation(prompt_length + np.arange(_N_HUBS))
        kinds = (hubs[: _N_HUBS // 2], hubs[_N_HUBS // 2 :])
        for of_kind, attended in zip(kinds, spans, strict=True):
            plane[np.ix_(of_kind, attended)] += _EDGE_LOGIT
        others = np.arange(prompt_length + _N_HUBS, length)
        plane[np.ix_(others, kinds[int(is_positive)])] += _EDGE_LOGIT
    attention = _softmax(logits, PLANTED_SHAPE)
    record = _record(index, 0, "yes", prompt_length, length)
    return Trace(record, PLANTED_SHAPE, _arrays(generator, attention, span_code, PLANTED_SHAPE))
