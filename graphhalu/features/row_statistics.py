"""Row statistics: attention to named spans, the lookback ratio, and entropy."""

from typing import Final, Literal

import numpy as np
from jaxtyping import Bool, Float

from graphhalu.core.axes import Span
from graphhalu.features.base import feature, within
from graphhalu.features.block import Rows, TraceBlock

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
def span_mass(
    block: TraceBlock, *, of: Literal["answer", "all"] = "answer"
) -> Float[np.ndarray, "trace layer head span"]:
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
def span_mass_all(
    block: TraceBlock, *, of: Literal["answer", "all"] = "all"
) -> Float[np.ndarray, "trace layer head span"]:
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
