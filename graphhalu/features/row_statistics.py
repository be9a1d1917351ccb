"""Row statistics: attention to named spans, the lookback ratio, entropy, and attention received."""

from typing import Final, Literal

import numpy as np
from jaxtyping import Bool, Float

from graphhalu.core.axes import Span
from graphhalu.core.errors import UsageError
from graphhalu.features.base import Feature, feature, within
from graphhalu.features.block import Ragged, Rows, TraceBlock

HeadSpans = Float[np.ndarray, "trace layer head span"]

Of = Literal["prompt", "context"]
RowValues = tuple[Float[np.ndarray, "layer head row"], Bool[np.ndarray, "layer #head row"]]
"""A number of each row, and where it says something."""

_SPANS: Final = "The one primitive behind sink, lookback, focus and instability scores."
_LOOKBACK: Final = (
    "Lookback Lens, Chuang et al. 2024, arXiv:2407.07071: means a token, not sums. Theirs counts "
    "a fixed suffix of the prompt as new; here rows before the first answer token have no ratio."
)
_ENTROPY: Final = (
    "Attention entropy, Zhai et al. 2023, arXiv:2303.06296, over its largest value. In a sliding "
    "window fewer keys are visible; a row that sees one key does not count."
)


@feature("span_mass", source=_SPANS)
def span_mass(block: TraceBlock, *, of: Literal["answer", "all"] = "answer") -> HeadSpans:
    """Attention to each named span, mean over the rows that produce the answer.

    Formula:
        mean_i sum_(j in span) A[i, j]

    Direction:
        more attention to the span; 0 to 1
    """
    rows = block.answer_rows if of == "answer" else block.all_rows
    mass = np.moveaxis(rows.read("span_mass"), 2, -1)
    return rows.ragged.mean(np.ascontiguousarray(mass))


@feature("span_mass", source=_SPANS)
def span_mass_all(block: TraceBlock, *, of: Literal["answer", "all"] = "all") -> HeadSpans:
    """Attention to each named span, mean over all stored rows.

    Formula:
        mean_i sum_(j in span) A[i, j]

    Direction:
        more attention to the span; 0 to 1
    """
    return span_mass(block, of=of)


@feature("span_mass", source=_SPANS)
def token_span_mass(block: TraceBlock) -> Float[np.ndarray, "row layer head span"]:
    """Attention of a row to each named span.

    Formula:
        sum_(j in span) A[i, j]

    Direction:
        more attention to the span; 0 to 1
    """
    return np.moveaxis(block.stream("span_mass"), 2, 0)


def row_lookback(rows: Rows, of: Of = "prompt") -> RowValues:
    """``a / (a + b)``: mean attention per source token ``a``, and per answer token so far ``b``.

    The row of the last prompt token produces the first answer token and sees no answer yet: it
    has no ratio. So a row of a sliding-window layer that no longer sees the source.

    Args:
        rows: Rows of traces that keep ``span_mass`` and ``span_code``.
        of: Source tokens: all of the prompt, or its context span.

    Returns:
        Values in [0, 1], NaN where the stream is not finite; and whether the row sees both tokens
        of the source and of the answer.
    """
    code = rows.block.raw("span_code")
    spans = [Span.CONTEXT] if of == "context" else [s for s in Span if s is not Span.ANSWER]
    n_source = rows.n_visible_of(np.isin(code, spans))[:, None]
    n_new = rows.n_visible_of(code == Span.ANSWER)[:, None]
    source = rows.span_mass(spans) / np.maximum(n_source, 1).astype(np.float32)
    total = rows.span_mass([Span.ANSWER]) / np.maximum(n_new, 1).astype(np.float32)
    total += source
    is_zero = total == 0
    is_defined = (n_source > 0) & (n_new > 0) & ~is_zero
    total[is_zero] = 1.0
    return within(source / total, 0.0, 1.0), is_defined


@feature("span_mass", "span_code", source=_LOOKBACK)
def lookback_ratio(block: TraceBlock) -> Float[np.ndarray, "trace layer head"]:
    """Attention to the prompt against attention to the answer so far, per token.

    Mean of :func:`row_lookback` over the rows that produce the answer and have one.

    Formula:
        mean_i a_i / (a_i + b_i), a_i = mean_(j in prompt) A[i, j], b_i = mean_(P<=j<=i) A[i, j]

    Direction:
        looks more at the prompt; 0 to 1
    """
    return block.answer_rows.ragged.mean(*row_lookback(block.answer_rows))


@feature("span_mass", "span_code", source=f"{_LOOKBACK} Missing for prompts without a passage.")
def lookback_ratio_context(block: TraceBlock) -> Float[np.ndarray, "trace layer head"]:
    """Attention to the given passage against attention to the answer so far, per token.

    As :func:`lookback_ratio`, with the passage in place of the prompt.

    Formula:
        mean_i a_i / (a_i + b_i), a_i = mean_(j in context) A[i, j], b_i = mean_(P<=j<=i) A[i, j]

    Direction:
        looks more at the passage; 0 to 1
    """
    return block.answer_rows.ragged.mean(*row_lookback(block.answer_rows, "context"))


@feature("span_mass", "span_code", source=_LOOKBACK)
def token_lookback_ratio(block: TraceBlock, *, of: Of = "prompt") -> Float[np.ndarray, "row layer head"]:
    """Lookback ratio of a row.

    :func:`row_lookback` of every stored row; NaN where it has none.

    Formula:
        a_i / (a_i + b_i) as in lookback_ratio

    Direction:
        looks more at the prompt; 0 to 1
    """
    values, is_defined = row_lookback(block.all_rows, of)
    return np.moveaxis(np.where(is_defined, values, np.nan), -1, 0)


def normalised_entropy(rows: Rows) -> RowValues:
    """Entropy of each row over the largest that its visible keys allow, and where it is defined.

    A row that sees one key has no entropy to speak of.
    """
    visible = rows.n_visible[:, None]
    is_defined = visible > 1
    largest = np.log(np.where(is_defined, visible, 2)).astype(np.float32)
    # half precision can bring an even row just above 1
    return within(rows.read("row_entropy") / largest, 0.0, 1.0), is_defined


@feature("row_entropy", source=_ENTROPY)
def attention_entropy_mean(block: TraceBlock) -> Float[np.ndarray, "trace layer head"]:
    """How evenly attention is spread, mean over the rows that produce the answer.

    Mean of :func:`normalised_entropy` over the rows that produce the answer.

    Formula:
        mean_i -sum_j A[i, j] log A[i, j] / log(#{j that i sees})

    Direction:
        spread more evenly; 0 to 1
    """
    return block.answer_rows.ragged.mean(*normalised_entropy(block.answer_rows))


@feature("row_entropy", source=_ENTROPY)
def attention_entropy_std(block: TraceBlock) -> Float[np.ndarray, "trace layer head"]:
    """How much the spread of attention varies over the rows that produce the answer.

    Standard deviation of :func:`normalised_entropy` over the rows that produce the answer.

    Formula:
        std_i -sum_j A[i, j] log A[i, j] / log(#{j that i sees})

    Direction:
        varies more; 0 to 0.5
    """
    return block.answer_rows.ragged.std(*normalised_entropy(block.answer_rows))


@feature("row_entropy", source=_ENTROPY)
def token_attention_entropy(block: TraceBlock) -> Float[np.ndarray, "row layer head"]:
    """How evenly a row spreads its attention.

    :func:`normalised_entropy` of every stored row; NaN where it is not defined.

    Formula:
        -sum_j A[i, j] log A[i, j] / log(#{j that i sees})

    Direction:
        spread more evenly; 0 to 1
    """
    values, is_defined = normalised_entropy(block.all_rows)
    return np.moveaxis(np.where(is_defined, values, np.nan), -1, 0)


TOP_K: Final = 10
MAX_K: Final = 100


def mean_received(block: TraceBlock) -> Float[np.ndarray, "layer head token"]:
    """Attention that a key receives, averaged over the stored rows that can see it.

    Its own row is one of them. NaN where no stored row can see the key.
    """
    n_rows = block.n_rows_that_see[:, None]
    received = block.stream("received")
    return np.where(n_rows > 0, received / np.maximum(n_rows, 1).astype(np.float32), np.nan)


def mean_received_later(block: TraceBlock) -> Float[np.ndarray, "layer head token"]:
    """As :func:`mean_received`, but from later tokens only: a key's own row does not count.

    The diagonal is stored in half precision: what rounding brings below 0 is set to 0.
    """
    has_row, own = token_diagonal(block)
    n_rows = (block.n_rows_that_see - has_row)[:, None]
    received = block.stream("received") - np.where(has_row, own, np.float32(0))
    # NaN stays NaN: np.maximum hands it on
    mean = np.maximum(received, 0) / np.maximum(n_rows, 1).astype(np.float32)
    return np.where(n_rows > 0, mean, np.nan)


def token_diagonal(
    block: TraceBlock,
) -> tuple[Bool[np.ndarray, "token"], Float[np.ndarray, "layer head token"]]:
    """Which tokens have a stored row, and the attention of that row to its own token."""
    has_row = block.tokens.position >= block.of_record("row_start")[block.tokens.trace]
    stored = block.stream("self_attention")
    own = np.zeros((*stored.shape[:2], len(has_row)), dtype=np.float32)
    own[..., has_row] = stored
    return has_row, own


def top_k(
    values: Float[np.ndarray, "layer head item"],
    ragged: Ragged,
    is_counted: Bool[np.ndarray, "#layer item"],
    k: int,
) -> Float[np.ndarray, "trace layer head rank"]:
    """The ``k`` largest counted values of each trace, largest first; NaN where there are fewer.

    Args:
        values: One value an item.
        ragged: Which items belong to which trace.
        is_counted: Which items count.
        k: How many, 1 to 100.

    Raises:
        UsageError: If ``k`` is out of range.
    """
    if not 1 <= k <= MAX_K:
        raise UsageError(f"k must be 1 to {MAX_K}, got {k}")
    n_layers, n_heads, _ = values.shape
    width = max(k, int(ragged.lengths.max(initial=0)))
    top = np.empty((len(ragged.lengths), n_layers, n_heads, k), dtype=values.dtype)
    # a layer at a time: one long trace among short ones makes this array mostly empty
    padded = np.empty((len(ragged.lengths), n_heads, width), dtype=values.dtype)
    for layer in range(n_layers):
        padded.fill(np.inf)
        counted = np.where(is_counted[layer % len(is_counted)], -values[layer], np.inf)
        padded[ragged.trace, :, ragged.position] = counted.T
        if width > k:
            padded.partition(k - 1, axis=-1)
        top[:, layer] = -np.sort(padded[..., :k], axis=-1)
    return np.where(np.isfinite(top), top, np.nan)


@feature("received")
def received_top(block: TraceBlock, *, k: int = TOP_K) -> Float[np.ndarray, "trace layer head rank"]:
    """Largest attention received by a token, a mean over the stored rows that can see it.

    A key's own row counts.

    Formula:
        top k of s_j = sum_(i >= j) A[i, j] / #{i >= j that see j}

    Direction:
        the k-th strongest receiver is stronger

    Source:
        SinkProbe, arXiv:2604.10697, rows from the token itself on. Rows not stored do not count.
    """
    return top_k(mean_received(block), block.tokens, block.n_rows_that_see > 0, k)


@feature("received", "self_attention")
def received_later_top(block: TraceBlock, *, k: int = TOP_K) -> Float[np.ndarray, "trace layer head rank"]:
    """Largest attention received by a token from later ones, a mean over those that see it.

    Formula:
        top k of sum_(i > j) A[i, j] / #{i > j that see j}

    Direction:
        the k-th strongest receiver is stronger

    Source:
        SinkProbe, arXiv:2604.10697, in the reading that leaves out the token's own row.
    """
    is_seen = block.n_rows_that_see - token_diagonal(block)[0] > 0
    return top_k(mean_received_later(block), block.tokens, is_seen, k)


@feature("received", "self_attention")
def token_received(block: TraceBlock) -> Float[np.ndarray, "row layer head"]:
    """Attention that a row's own token receives, a mean over the stored rows that see it.

    :func:`mean_received` of the own token of every stored row.

    Formula:
        s_i = sum_(u >= i) A[u, i] / #{u >= i that see i}

    Direction:
        a stronger receiver; 0 to 1

    Source:
        SinkProbe, arXiv:2604.10697. Looks at later rows too: not for detection while tokens are
        made.
    """
    has_row = token_diagonal(block)[0]
    return np.moveaxis(mean_received(block)[..., has_row], -1, 0)


def value_share(block: TraceBlock) -> Float[np.ndarray, "layer head token"]:
    """Share of each key in ``alpha_j * |v_j|``, summing to 1 over the keys of a trace.

    A head takes the value norms of the key-value head that it shares. NaN where no stored row
    can see the key, and everywhere if all weights are 0.
    """
    n_groups = block.shape.n_heads // block.shape.n_kv_heads
    norm = np.repeat(block.stream("value_norm"), n_groups, axis=1)
    weight = mean_received(block) * norm
    is_seen = (block.n_rows_that_see > 0)[:, None]
    total = np.moveaxis(block.tokens.sum(np.where(is_seen, weight, np.float32(0))), 0, -1)
    total = np.where(total == 0, np.nan, total).astype(np.float32)
    return weight / total[..., block.tokens.trace]


@feature("received", "value_norm")
def value_received_top(block: TraceBlock, *, k: int = TOP_K) -> Float[np.ndarray, "trace layer head rank"]:
    """Largest share of a token in received attention times the norm of its value.

    Formula:
        top k of s_j |v_j| / sum_m s_m |v_m|

    Direction:
        the k-th strongest receiver is stronger

    Source:
        arXiv:2606.07604. With plain norms of the values, not through the output matrix.
    """
    return top_k(value_share(block), block.tokens, block.n_rows_that_see > 0, k)


def _value_sink(n_sink: int) -> Feature:
    @feature(
        "received",
        "value_norm",
        summary=f"share of the first {n_sink} tokens in received attention times value norm",
        name=f"value_sink_k{n_sink}",
        formula=f"sum_(j < {n_sink}) s_j |v_j| / sum_m s_m |v_m|",
    )
    def compute(block: TraceBlock) -> Float[np.ndarray, "trace layer head"]:
        """Share of the first keys in value-weighted attention; NaN where one is not seen.

        Direction:
            a stronger sink; 0 to 1

        Source:
            arXiv:2606.07604: sinks have tiny values, so that their mass exaggerates them.
        """
        share = value_share(block)
        is_sink = block.tokens.position < n_sink
        values = block.tokens.sum(np.where(is_sink, share, np.float32(0)))
        is_long = block.of_record("length")[:, None, None] >= n_sink
        return np.where(is_long, values, np.nan)

    return compute


value_sink_k1: Final = _value_sink(1)
value_sink_k4: Final = _value_sink(4)
