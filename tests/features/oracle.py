"""Features by slow loops over complete attention, and the random traces they are tested on.

5 layers (two with a window), 6 heads on 2 key-value heads, all spans, or answer rows alone.
"""

import math
from dataclasses import dataclass

import numpy as np

from graphhalu.core.axes import N_SPANS, Span
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
    n_heads=6,
    n_kv_heads=2,
    hidden_size=3,
    attention_layers=(0, 1, 2, 3, 6),
    hidden_layers=(0, 1, 3, 7),
    layer_windows=(None, 11, None, None, 5),
    n_edges=2,
)


@dataclass(frozen=True)
class Case:
    """A trace and what it was made from."""

    trace: Trace
    A: np.ndarray
    norm: np.ndarray

    @property
    def P(self):
        return self.trace.prompt_length

    @property
    def S(self):
        return self.trace.length

    @property
    def stored(self):
        return range(self.trace.record.row_start, self.S)

    @property
    def answer(self):
        return range(self.P - 1, self.S - 1)

    @property
    def code(self):
        return self.trace.arrays["span_code"]

    def sees(self, layer, i, j):
        window = SHAPE.layer_windows[layer]
        return j <= i and (window is None or i - j < window)

    def seen(self, layer, i, where=lambda j: True):
        return [j for j in range(self.S) if self.sees(layer, i, j) and where(j)]

    def token(self, name, t):
        return float(self.trace.arrays[name][t])


def random_case(generator, name="q0", *, beam=0, only_answer_rows=False, spans=True):
    """A random trace with all spans, or only bos, question, template and answer."""
    lengths = [1, 3, 5, 4, 2] if spans else [1, 0, 0, 4, 2]
    lengths = [n + int(generator.integers(0, 3)) if n > 1 else n for n in lengths]
    prompt, answer = sum(lengths), int(generator.integers(1, 9))
    code = np.repeat(np.arange(N_SPANS), [*lengths, answer]).astype(np.uint8)
    length = prompt + answer
    row_start = prompt - 1 if only_answer_rows else 0
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
        beam_score=-1.0 - beam,
    )
    A = _attention(generator, length)
    norm = generator.exponential(size=(5, 2, length)).astype(np.float16)
    arrays = {
        "token_ids": generator.integers(0, 97, length).astype(np.int32),
        "span_code": code,
        **_token_streams(generator, length, row_start),
        **_kept_rows(A, code, row_start),
        "value_norm": norm,
        **_hidden(generator, length, row_start),
    }
    trace = Trace(record, SHAPE, {key: arrays[key] for key in ARRAYS if key in arrays})
    return Case(trace, A, norm.astype(np.float64))


def _attention(generator, length):
    logits = generator.normal(size=(5, 6, length, length)) * 1.5
    logits[..., 0] += 1.5
    # a located sink somewhere, in one head
    logits[:, 2, :, length - 2] += 5
    distance = np.arange(length)[:, None] - np.arange(length)
    windows = [length if w is None else w for w in SHAPE.layer_windows]
    is_seen = (distance >= 0) & (distance < np.reshape(windows, (-1, 1, 1)))
    weights = np.where(is_seen[:, None], np.exp(logits), 0)
    return weights / weights.sum(-1, keepdims=True)


def _kept_rows(A, code, row_start):
    streams = attention_streams(A, code, n_edges=2)
    kept = {}
    for name, values in streams.items():
        axes = array_spec(name).axes
        kept[name] = values[:, :, row_start:] if axes[2:3] == ("row",) else values
    packed = pack_triangle(A[:, :, row_start:], row_start)
    return {
        **kept,
        "received": A[:, :, row_start:].sum(2).astype(np.float32),
        "attention": packed.astype(np.float16),
        "attention_fixed": np.rint(packed * 65_535).astype(np.uint16),
    }


def _token_streams(generator, length, row_start):
    streams = {
        "token_logprob": -generator.exponential(size=length),
        "token_entropy": generator.exponential(size=length),
        "top1_margin": generator.uniform(size=length),
    }
    for values in streams.values():
        values[: row_start + 1] = np.nan
    return {name: values.astype(np.float32) for name, values in streams.items()}


def _hidden(generator, length, row_start):
    hidden = to_bfloat16_bits(generator.normal(size=(4, length, 3)).astype(np.float32))
    return {"hidden": hidden, "hidden_rows": hidden[:, row_start:]}


# -- small arithmetic; an empty list has no value


def mean(values):
    return sum(values) / len(values) if values else math.nan


def std(values):
    if not values:
        return math.nan
    centre = mean(values)
    return math.sqrt(mean([(value - centre) ** 2 for value in values]))


def top(values, k):
    found = sorted(values, reverse=True)[:k]
    return found + [math.nan] * (k - len(found))


# -- what a row or a key has


def span(c, layer, head, i, *spans):
    return sum(c.A[layer, head, i, j] for j in range(i + 1) if c.code[j] in spans)


def sink(c, layer, head, i, k):
    return sum(c.A[layer, head, i, j] for j in range(k))


def sink_rows(c, layer, k, rows):
    return [i for i in rows if i >= k and c.sees(layer, i, 0)]


def seers(c, layer, j, rows=None):
    return [i for i in (c.stored if rows is None else rows) if c.sees(layer, i, j)]


def alpha(c, layer, head, j, rows=None):
    found = seers(c, layer, j, rows)
    return mean([c.A[layer, head, i, j] for i in found])


def lookback(c, layer, head, i, is_source):
    source = c.seen(layer, i, is_source)
    new = c.seen(layer, i, lambda j: j >= c.P)
    if not source or not new:
        return None
    a = mean([c.A[layer, head, i, j] for j in source])
    b = mean([c.A[layer, head, i, j] for j in new])
    return a / (a + b)


def entropy(c, layer, head, i):
    seen = c.seen(layer, i)
    if len(seen) < 2:
        return None
    weights = [c.A[layer, head, i, j] for j in seen]
    return -sum(w * math.log(w) for w in weights) / math.log(len(seen))


def given(values):
    return [value for value in values if value is not None]


def half(value):
    """As the streams keep it: the log-odds of a share near 1 depend on its last bit."""
    return float(np.float16(value))


def target_share(c, layer, head, i, target):
    """Share of a row on the sink or a span; None where the row cannot see it."""
    if target == "sink":
        keys = [half(c.A[layer, head, i, j]) for j in range(4)]
        return sum(keys) if i in sink_rows(c, layer, 4, [i]) else None
    code = Span[target.upper()]
    if not c.seen(layer, i, lambda j: c.code[j] == code):
        return None
    share = half(span(c, layer, head, i, code))
    if target == "system":
        share /= sum(half(span(c, layer, head, i, each)) for each in range(5))
    return share


def spread(shares, form):
    if form == "logit":
        kept = [min(max(s, 1e-6), 1 - 1e-6) for s in shares]
        return std([math.log(s / (1 - s)) for s in kept])
    if form == "bounded":
        m = mean(shares)
        return std(shares) / math.sqrt(m * (1 - m)) if 0 < m < 1 else None
    return std(shares)


def row_spread(c, layer, i, target, form):
    shares = [target_share(c, layer, head, i, target) for head in range(6)]
    return None if None in shares else spread(shares, form)


def layer_spread(c, i):
    means = []
    for layer in range(5):
        shares = [target_share(c, layer, head, i, "sink") for head in range(6)]
        if None not in shares:
            means.append(mean(shares))
    return std(means) if len(means) > 1 else None


def located(c, layer, head, keys):
    kept = [j for j in keys if len(seers(c, layer, j)) >= 2]
    return kept, [j for j in kept if alpha(c, layer, head, j) > 0.3]


def n_located(c, layer, head, keys):
    judged, found = located(c, layer, head, keys)
    return len(found) if judged else math.nan


def largest_sink(c, layer, head):
    judged = located(c, layer, head, range(c.P, c.S))[0]
    return max([alpha(c, layer, head, j) for j in judged], default=math.nan)


def from_later(c, layer, head):
    later = [[i for i in c.stored if i > j] for j in range(c.S)]
    return [alpha(c, layer, head, j, later[j]) for j in range(c.S) if seers(c, layer, j, later[j])]


def mean_sink(c, layer, head, k, rows):
    return mean([sink(c, layer, head, i, k) for i in sink_rows(c, layer, k, rows)])


def located_share(c, layer, head, keys):
    judged, found = located(c, layer, head, keys)
    total = sum(c.A[layer, head, i, j] for i in c.stored for j in range(c.S))
    mass = sum(c.A[layer, head, i, j] for i in c.stored for j in found)
    return mass / total if judged else math.nan


def value_weights(c, layer, head):
    return {
        j: alpha(c, layer, head, j) * c.norm[layer, head // 3, j] for j in range(c.S) if seers(c, layer, j)
    }


def value_sink(c, layer, head, k):
    weights = value_weights(c, layer, head)
    if any(j not in weights for j in range(k)):
        return math.nan
    return sum(weights[j] for j in range(k)) / sum(weights.values())


def value_top(c, layer, head, k):
    weights = value_weights(c, layer, head).values()
    total = sum(weights)
    return top([weight / total for weight in weights], k)


def first_sink(c, layer, head):
    found = located(c, layer, head, range(c.P, c.S))[1]
    return (found[0] - c.P) / (c.S - c.P) if found else math.nan


def floor_log(weight):
    return math.log(max(weight, 1e-12))


def answer_tokens(c, name):
    return [c.token(name, t) for t in range(c.P, c.S)]


# -- one entry a feature: of a head, of a layer, or of a trace

OF_HEAD = {
    "sink_mass_k1": lambda c, la, h: mean_sink(c, la, h, 1, c.answer),
    "sink_mass_k4": lambda c, la, h: mean_sink(c, la, h, 4, c.answer),
    "sink_mass_k1_all": lambda c, la, h: mean_sink(c, la, h, 1, c.stored),
    "sink_mass_k4_all": lambda c, la, h: mean_sink(c, la, h, 4, c.stored),
    "span_mass": lambda c, la, h: [mean([span(c, la, h, i, s) for i in c.answer]) for s in range(6)],
    "span_mass_all": lambda c, la, h: [mean([span(c, la, h, i, s) for i in c.stored]) for s in range(6)],
    "sink_rate": lambda c, la, h: float(alpha(c, la, h, 0) > 0.3) if seers(c, la, 0) else math.nan,
    "sink_count": lambda c, la, h: n_located(c, la, h, range(c.S)),
    "sink_count_answer": lambda c, la, h: n_located(c, la, h, range(c.P, c.S)),
    "sink_share": lambda c, la, h: located_share(c, la, h, range(c.S)),
    "sink_share_answer": lambda c, la, h: located_share(c, la, h, range(c.P, c.S)),
    "sink_first_answer": first_sink,
    "sink_largest_answer": largest_sink,
    "received_top": lambda c, la, h: top([alpha(c, la, h, j) for j in range(c.S) if seers(c, la, j)], 10),
    "received_later_top": lambda c, la, h: top(from_later(c, la, h), 10),
    "value_received_top": lambda c, la, h: value_top(c, la, h, 10),
    "value_sink_k1": lambda c, la, h: value_sink(c, la, h, 1),
    "value_sink_k4": lambda c, la, h: value_sink(c, la, h, 4),
    "self_attention_log": lambda c, la, h: mean([floor_log(c.A[la, h, i, i]) for i in c.answer]),
    "self_attention_log_all": lambda c, la, h: mean([floor_log(c.A[la, h, i, i]) for i in c.stored]),
    "self_attention_clipped": lambda c, la, h: mean(
        [float(np.float16(c.A[la, h, i, i]) < 1e-12) for i in c.answer]
    ),
    "self_attention_mean": lambda c, la, h: mean([c.A[la, h, i, i] for i in c.answer]),
    "attneig_top": lambda c, la, h: top([c.A[la, h, i, i] for i in c.stored], 10),
    "lapeig_top": lambda c, la, h: top([alpha(c, la, h, j) - c.A[la, h, j, j] for j in c.stored], 10),
    "lapeig_top_cut": lambda c, la, h: top(
        [alpha(c, la, h, j, c.stored[:-1]) - c.A[la, h, j, j] for j in c.stored[:-1]], 10
    ),
    "lookback_ratio": lambda c, la, h: mean(
        given(lookback(c, la, h, i, lambda j: j < c.P) for i in c.answer)
    ),
    "lookback_ratio_context": lambda c, la, h: mean(
        given(lookback(c, la, h, i, lambda j: c.code[j] == Span.CONTEXT) for i in c.answer)
    ),
    "attention_entropy_mean": lambda c, la, h: mean(given(entropy(c, la, h, i) for i in c.answer)),
    "attention_entropy_std": lambda c, la, h: std(given(entropy(c, la, h, i) for i in c.answer)),
}

OF_LAYER = {
    f"head_{prefix}std_{target}": (
        lambda c, la, target=target, form=form: mean(
            given(row_spread(c, la, i, target, form) for i in c.answer)
        )
    )
    for form, prefix in (("std", ""), ("logit", "logit_"), ("bounded", "bounded_"))
    for target in ("sink", "system", "context", "question", "answer")
}

OF_TRACE = {
    "layer_std_sink": lambda c: mean(given(layer_spread(c, i) for i in c.answer)),
    "logprob_mean": lambda c: mean(answer_tokens(c, "token_logprob")),
    "logprob_min": lambda c: min(answer_tokens(c, "token_logprob")),
    "logprob_sum": lambda c: sum(answer_tokens(c, "token_logprob")),
    "logprob_std": lambda c: std(answer_tokens(c, "token_logprob")),
    "perplexity": lambda c: math.exp(-mean(answer_tokens(c, "token_logprob"))),
    "output_entropy_mean": lambda c: mean(answer_tokens(c, "token_entropy")),
    "output_entropy_max": lambda c: max(answer_tokens(c, "token_entropy")),
    "output_entropy_std": lambda c: std(answer_tokens(c, "token_entropy")),
    "margin_mean": lambda c: mean(answer_tokens(c, "top1_margin")),
    "margin_min": lambda c: min(answer_tokens(c, "top1_margin")),
    "answer_length": lambda c: c.S - c.P,
    "prompt_length": lambda c: c.P,
}


def or_nan(value):
    return math.nan if value is None else value


def next_token(c, name, i):
    return c.token(name, i + 1) if i + 1 < c.S else math.nan


OF_ROW_HEAD = {
    "token_sink_mass": lambda c, i, la, h: sink(c, la, h, i, 4) if sink_rows(c, la, 4, [i]) else math.nan,
    "token_span_mass": lambda c, i, la, h: [span(c, la, h, i, s) for s in range(6)],
    "token_self_attention": lambda c, i, la, h: c.A[la, h, i, i],
    "token_received": lambda c, i, la, h: alpha(c, la, h, i),
    "token_lookback_ratio": lambda c, i, la, h: or_nan(lookback(c, la, h, i, lambda j: j < c.P)),
    "token_attention_entropy": lambda c, i, la, h: or_nan(entropy(c, la, h, i)),
}
OF_ROW_LAYER = {"token_head_std": lambda c, i, la: or_nan(row_spread(c, la, i, "sink", "std"))}
OF_ROW = {
    "token_logprob": lambda c, i: next_token(c, "token_logprob", i),
    "token_output_entropy": lambda c, i: next_token(c, "token_entropy", i),
    "token_margin": lambda c, i: next_token(c, "top1_margin", i),
}


def expected(name, case):
    """The values of one trace, or of all its rows, by loops."""
    layers, heads = range(5), range(6)
    if name in OF_HEAD:
        return np.array([[OF_HEAD[name](case, la, h) for h in heads] for la in layers])
    if name in OF_LAYER:
        return np.array([OF_LAYER[name](case, la) for la in layers])
    if name in OF_TRACE:
        return np.array(OF_TRACE[name](case))
    if name in OF_ROW_HEAD:
        per_row = OF_ROW_HEAD[name]
        return np.array([[[per_row(case, i, la, h) for h in heads] for la in layers] for i in case.stored])
    if name in OF_ROW_LAYER:
        return np.array([[OF_ROW_LAYER[name](case, i, la) for la in layers] for i in case.stored])
    return np.array([OF_ROW[name](case, i) for i in case.stored])


NAMES = [*OF_HEAD, *OF_LAYER, *OF_TRACE, *OF_ROW_HEAD, *OF_ROW_LAYER, *OF_ROW]
