"""Given answers with marked spans, whose tokens differ in their attention; and a twin without."""

from dataclasses import replace
from typing import Final

import numpy as np
from jaxtyping import Bool, Float

from graphhalu.testing.planted import PLANTED_SHAPE, attention_streams, planted_trace
from graphhalu.traces.schema import ARRAYS, TraceRecord, TraceShape
from graphhalu.traces.trace import Trace

TOKEN_SHIFT: Final = 3.0
"""What a planted signal adds to the logits of the first key in the rows of marked tokens."""
_SIGNAL_HEAD: Final = 1
_WORD: Final = 4
"""Characters of a word; a word is a token with the space before it."""


def planted_token_traces(
    n_traces: int,
    *,
    seed: int = 0,
    signal: bool = True,
    shape: TraceShape = PLANTED_SHAPE,
    traces_a_question: int = 2,
) -> list[Trace]:
    """Random given answers; in every second one some tokens running are marked as hallucinated.

    In the rows that produce marked tokens one head attends more to the first token; the twin
    (``signal=False``) has the same spans and no such difference. Spans begin anywhere and lie
    within the answer, so that its ends are marked a little less often than its middle.

    Args:
        n_traces: How many.
        seed: Seed of everything.
        signal: Whether marked tokens differ from others at all.
        shape: Sizes of the model.
        traces_a_question: Answers that share a context and its group.
    """
    generator = np.random.default_rng(seed)
    return [
        _given(index, generator, signal=signal, shape=shape, n_answers=traces_a_question)
        for index in range(n_traces)
    ]


def _given(
    index: int, generator: np.random.Generator, *, signal: bool, shape: TraceShape, n_answers: int
) -> Trace:
    """One given answer; ``length`` as a signal makes all answers long."""
    trace = planted_trace(
        index // n_answers,
        generator,
        shape=shape,
        beam=index % n_answers,
        signals=("length",),
        is_hallucinated=True,
    )
    n_tokens = trace.answer_length
    marked = np.zeros(n_tokens, dtype=bool)
    start = int(generator.integers(0, n_tokens - 4))
    if (index // n_answers + index) % 2:
        marked[start : start + 4] = True
    attention = np.stack([trace.attention(layer) for layer in shape.attention_layers])
    if signal:
        attention = _shifted(attention.astype(np.float64), marked, trace.prompt_length)
    streams = attention_streams(attention, trace.span_code, n_edges=shape.n_edges)
    arrays = {**trace.arrays, **streams}
    record = _record(trace.record, marked, start)
    return Trace(record, shape, {name: arrays[name] for name in ARRAYS})


def _shifted(
    attention: Float[np.ndarray, "layer head query key"],
    marked: Bool[np.ndarray, "token"],
    prompt_length: int,
) -> Float[np.ndarray, "layer head query key"]:
    rows = np.flatnonzero(marked) + prompt_length - 1
    changed = attention.copy()
    changed[:, _SIGNAL_HEAD, rows, 0] *= np.exp(TOKEN_SHIFT)
    normalised: Float[np.ndarray, "layer head query key"] = changed / changed.sum(-1, keepdims=True)
    return normalised


def _record(record: TraceRecord, marked: Bool[np.ndarray, "token"], start: int) -> TraceRecord:
    """Words of three letters with a space before each, and the span in characters."""
    n_tokens = len(marked)
    text = " ".join(f"w{place:02d}" for place in range(n_tokens))
    offsets = tuple((max(0, place * _WORD - 1), place * _WORD + _WORD - 1) for place in range(n_tokens))
    n_marked = int(marked.sum())
    span = (start * _WORD, (start + n_marked) * _WORD - 1)
    return replace(
        record,
        answer=text,
        answer_offsets=offsets,
        is_on_policy=False,
        beam_score=None,
        given_label=int(n_marked > 0),
        given_spans=(span,) if n_marked else (),
    )
