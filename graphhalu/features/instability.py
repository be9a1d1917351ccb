"""Disagreement of the heads of a layer on a share of attention, and their agreement on keys."""

from typing import Final, Literal

import numpy as np
from jaxtyping import Bool, Float

from graphhalu.core.axes import SPAN_NAMES, Span
from graphhalu.core.errors import UsageError
from graphhalu.features.base import Feature, feature, within
from graphhalu.features.block import Rows, TraceBlock
from graphhalu.features.matrices import RowPairs, answer_pairs, attention_at, finite_or_missing
from graphhalu.features.sinks import SinkShare, row_sink_share

PerRow = Float[np.ndarray, "row"]
IsRow = Bool[np.ndarray, "row"]
HeadRows = Float[np.ndarray, "head row"]

Target = Literal["sink", "system", "context", "question", "answer"]
Form = Literal["std", "logit", "bounded"]

SHARE_FLOOR: Final = 1e-6
"""Shares are kept this far from 0 and 1 before a logit: half precision gives exact zeros."""

MIDDLE_FROM: Final = 0.25
"""Share of the depth below which layers are left out of :func:`share_agreement`."""

TAIL_CUT: Final = 0.10
"""Share of the depth at the end that is left out of :func:`share_agreement`."""

PROMPT_FLOOR: Final = 1e-9
"""Least attention to the prompt that a share is taken of."""


def head_std(share: Float[np.ndarray, "layer head row"]) -> Float[np.ndarray, "layer row"]:
    """Population standard deviation over heads, ``sqrt(mean_h (s_h - m)^2)``.

    Args:
        share: Share of a row's attention that goes to some span, in [0, 1].

    Returns:
        Values in [0, 0.5]; higher means that the heads disagree more.

    Source:
        Inter-head standard deviation of the public study ``llm-attention-head-instability``
        (its share is that of the system prompt). It depends on the mean of the share: see
        :func:`logit_std` and :func:`bounded_std`.
    """
    return share.std(axis=1, dtype=np.float64)


def logit_std(share: Float[np.ndarray, "layer head row"]) -> Float[np.ndarray, "layer row"]:
    """Population standard deviation over heads of ``log(s / (1 - s))``.

    Args:
        share: In [0, 1]; kept 1e-6 away from both ends.

    Returns:
        Values from 0 up; free of the bound that the mean sets on :func:`head_std`.

    Source:
        Not in the study that :func:`head_std` follows.
    """
    inner = np.clip(share.astype(np.float64), SHARE_FLOOR, 1 - SHARE_FLOOR)
    return np.log(inner / (1 - inner)).std(axis=1)


def bounded_std(share: Float[np.ndarray, "layer head row"]) -> Float[np.ndarray, "layer row"]:
    """Standard deviation over heads relative to its largest value: ``std / sqrt(m (1 - m))``.

    Args:
        share: In [0, 1].

    Returns:
        Values in [0, 1]; NaN where the mean ``m`` is 0 or 1 and no head could differ.

    Source:
        Not in the study that :func:`head_std` follows.
    """
    mean = share.mean(axis=1, dtype=np.float64)
    variance_bound = mean * (1 - mean)
    is_defined = variance_bound > 0
    ratio = head_std(share) / np.sqrt(np.where(is_defined, variance_bound, 1.0))
    # rounding can lift a share of only zeros and ones just above 1
    return np.where(is_defined, np.minimum(ratio, 1.0), np.nan)


def row_share(rows: Rows, target: Target) -> SinkShare:
    """Share of each row's attention that goes to the sink or to a named span.

    That of the system prompt is a share of the attention to the prompt, as in the study that
    :func:`head_std` follows; all others are shares of the whole row.

    Args:
        rows: Rows of traces that keep ``sink_keys``, or ``span_mass`` and ``span_code``.
        target: The first four tokens, or a span.

    Returns:
        The share, and whether the row can see one of these tokens.
    """
    if target == "sink":
        return row_sink_share(rows)
    span = Span[target.upper()]
    code = rows.block.raw("span_code")
    share, is_seen = rows.span_mass([span]), rows.n_visible_of(code == span) > 0
    if target == "system":
        prompt = rows.span_mass([each for each in Span if each is not Span.ANSWER])
        share /= np.maximum(prompt, np.float32(PROMPT_FLOOR))
    return SinkShare(within(share, 0.0, 1.0), is_seen)


def row_instability(
    rows: Rows, target: Target, form: Form
) -> tuple[Float[np.ndarray, "layer row"], Bool[np.ndarray, "layer row"]]:
    """Spread of :func:`row_share` over heads, and where heads can differ at all.

    Args:
        rows: As for :func:`row_share`.
        target: As for :func:`row_share`.
        form: ``std``, ``logit`` (of log-odds) or ``bounded``.
    """
    share = row_share(rows, target)
    spread = {"std": head_std, "logit": logit_std, "bounded": bounded_std}[form](share.values)
    if form != "bounded":
        return spread, share.is_defined
    mean = share.values.mean(axis=1)
    # no head can differ where the mean is 0 or 1; a faulty share is none of these
    return spread, share.is_defined & ~((mean <= 0) | (mean >= 1))


@feature("sink_keys")
def token_head_std(
    block: TraceBlock, *, target: Target = "sink", form: Form = "std"
) -> Float[np.ndarray, "row layer"]:
    """How much the heads of a layer differ in a row's attention to the sink or a span.

    :func:`row_instability` of every stored row; NaN where it has none.

    Formula:
        std_h s[h, i], or its forms logit and bounded; s as in head_std_sink

    Direction:
        heads disagree more; from 0 up

    Source:
        Inter-head standard deviation, study llm-attention-head-instability. It depends on the mean
        of the share. Without its window of layers.
    """
    spread, is_defined = row_instability(block.all_rows, target, form)
    return np.where(is_defined, spread, np.nan).T


@feature("sink_keys")
def layer_std_sink(block: TraceBlock) -> Float[np.ndarray, "trace"]:
    """How much the layers differ in their mean attention to the first four tokens.

    A mean over the rows that produce the answer. Layers in which a row cannot see the sink do not
    count; a row needs two that do.

    Formula:
        mean_i std_l mean_h s[l, h, i]; s = sum_(j < 4) A[i, j] of rows i >= 4 that see the sink

    Direction:
        layers disagree more; 0 to 0.5

    Source:
        Not published: the spread over layers beside the one over heads.
    """
    rows = block.answer_rows
    share = row_sink_share(rows)
    mean = np.where(share.is_defined, share.values.mean(axis=1, dtype=np.float64), 0.0)
    count = share.is_defined.sum(axis=0)
    n_layers = np.maximum(count, 1)
    distance = np.where(share.is_defined, mean - mean.sum(axis=0) / n_layers, 0.0)
    spread = np.sqrt(np.square(distance).sum(axis=0) / n_layers)
    return rows.ragged.mean(spread, count > 1)


_STUDY: Final = "Inter-head standard deviation, study llm-attention-head-instability"
_SOURCES: Final[dict[Form, str]] = {
    "std": f"{_STUDY}. It depends on the mean of the share. Without its window of layers.",
    "logit": f"Not in that study ({_STUDY}): free of the bound that the mean sets.",
    "bounded": f"Not in that study ({_STUDY}): relative to the largest value of that mean.",
}
_FORMULAS: Final[dict[Form, str]] = {
    "std": "mean_i std_h s[h, i]",
    "logit": "mean_i std_h log(s[h, i] / (1 - s[h, i])), s kept 1e-6 from 0 and 1",
    "bounded": "mean_i std_h s[h, i] / sqrt(m (1 - m)), m = mean_h s[h, i]",
}
_TARGETS: Final[dict[Target, tuple[str, str]]] = {
    "sink": ("the first four tokens", "sum_(j < 4) A[i, j] of rows i >= 4 that see the sink"),
    "system": ("the system prompt", "sum_(j in system) A[i, j] / sum_(j < P) A[i, j]"),
    "context": ("the passage", "sum_(j in context) A[i, j]"),
    "question": ("the question", "sum_(j in question) A[i, j]"),
    "answer": ("the answer so far", "sum_(P <= j <= i) A[i, j]"),
}
"""What attention is a share of, in words and as a formula."""


def _head_std(form: Form, target: Target) -> Feature:
    @feature(
        *(("sink_keys",) if target == "sink" else ("span_mass", "span_code")),
        summary=f"how much the heads of a layer differ in their attention to {_TARGETS[target][0]}",
        name=f"head_std_{target}" if form == "std" else f"head_{form}_std_{target}",
        formula=f"{_FORMULAS[form]}; s = {_TARGETS[target][1]}",
        source=_SOURCES[form],
    )
    def compute(block: TraceBlock) -> Float[np.ndarray, "trace layer"]:
        """Mean of :func:`row_instability` over the rows that produce the answer and have one.

        Direction:
            heads disagree more; from 0 up
        """
        return block.answer_rows.ragged.mean(*row_instability(block.answer_rows, target, form))

    return compute


head_std_sink, head_std_system, head_std_context, head_std_question, head_std_answer = (
    _head_std("std", target) for target in _TARGETS
)
(
    head_logit_std_sink,
    head_logit_std_system,
    head_logit_std_context,
    head_logit_std_question,
    head_logit_std_answer,
) = (_head_std("logit", target) for target in _TARGETS)
(
    head_bounded_std_sink,
    head_bounded_std_system,
    head_bounded_std_context,
    head_bounded_std_question,
    head_bounded_std_answer,
) = (_head_std("bounded", target) for target in _TARGETS)


@feature("attention")
def head_agreement(block: TraceBlock) -> Float[np.ndarray, "trace layer"]:
    """Mean pairwise correlation of the heads' attention rows over the keys in sight.

    Args:
        block: Traces that keep whole attention.

    Returns:
        Mean over the answer-producing rows, in [-1, 1]; NaN where no row has two heads that vary.

    Raises:
        TraceNotFoundError: If the traces do not keep whole attention.

    Summary:
        Mean correlation between the attention rows of a layer's heads

    Formula:
        mean over answer rows i of mean over pairs of heads g != h of corr over visible keys j of
        (A[g, i, j], A[h, i, j])

    Direction:
        higher: the heads look at the same tokens

    Source:
        Agreement of heads on single keys; a row where fewer than two heads vary is left out.
    """
    layers = block.shape.layer_windows
    values, pairs = np.full((len(block), len(layers)), np.nan), answer_pairs(block)
    for place, window in enumerate(layers):
        chosen = pairs[window]
        weights = attention_at(block, place, chosen.index)
        correlation, is_defined = row_correlation(weights, chosen)
        values[:, place] = chosen.by_trace.mean(correlation, is_defined)
    return finite_or_missing(values)


def row_correlation(weights: Float[np.ndarray, "head pair"], pairs: RowPairs) -> tuple[PerRow, IsRow]:
    """Mean correlation over all pairs of heads of each row, and whether there is one.

    A head that pays all its keys the same correlates with nothing and is left out. The unit
    vectors of n heads have ``|sum|^2 = n + sum over pairs of 2 cos``.
    """
    mean = pairs.row_sum(weights) / pairs.by_row.lengths
    apart = weights - pairs.spread(mean)
    whole = pairs.row_sum(weights.astype(np.float64) ** 2)
    scale, varies = _scale(pairs.row_sum(apart**2), whole)
    together = (apart * pairs.spread(scale)).sum(axis=0)
    return _mean_correlation(pairs.row_sum(together**2), varies)


@feature("span_mass")
def share_agreement(block: TraceBlock, *, span: str = "question") -> Float[np.ndarray, "trace"]:
    """Mean pairwise correlation, over layers, of the heads' shares of a span of the prompt.

    Args:
        block: Traces that keep ``span_mass``.
        span: Name of a span of the prompt.

    Returns:
        Mean over the answer-producing rows, in [-1, 1]; NaN where fewer than two heads vary over
        the layers, as where the prompt has no such span or nothing else.

    Raises:
        UsageError: If there is no such span, or it is the answer.
        TraceNotFoundError: If the traces do not keep ``span_mass``.

    Summary:
        Mean correlation over layers between the heads' shares of a span of the prompt

    Formula:
        mean over answer rows i of mean over pairs of heads g != h of corr over layers l of (s[l, g,
        i], s[l, h, i]); s = span mass / mass of the prompt; layers from 25 % to 90 %

    Direction:
        higher: the heads move together from layer to layer

    Source:
        Head agreement of the public study llm-attention-head-instability, whose span is the system
        prompt. The row that yields the first answer token counts too; layers whose window does not
        reach the start are left out; heads are paired across layers by their place.
    """
    if span not in SPAN_NAMES[: Span.ANSWER]:
        raise UsageError(
            f"expected a span of the prompt ({', '.join(SPAN_NAMES[: Span.ANSWER])}), got {span!r}"
        )
    places = layer_slice(len(block.shape.attention_layers))
    rows = block.answer_rows
    mass = rows.read("span_mass")[places].astype(np.float64)
    share = mass[..., SPAN_NAMES.index(span)] / np.maximum(
        mass[..., : Span.ANSWER].sum(axis=-1), PROMPT_FLOOR
    )
    # a window that ends inside the prompt does not show the share
    sees = rows.n_visible[places] > rows.token
    correlation, is_defined = layer_correlation(share, sees)
    return finite_or_missing(rows.ragged.mean(correlation, is_defined))


def layer_slice(n_layers: int, mid_high: float = MIDDLE_FROM, tail_cut: float = TAIL_CUT) -> slice:
    """Layers ``int(L * mid_high) … int(L * (1 - tail_cut)) - 1``, as the public study cuts them."""
    return slice(int(n_layers * mid_high), int(n_layers * (1 - tail_cut)))


def layer_correlation(
    share: Float[np.ndarray, "layer head row"], is_counted: Bool[np.ndarray, "layer row"]
) -> tuple[PerRow, IsRow]:
    """Mean correlation of all pairs of heads over the counted layers, and whether there is one."""
    counted = is_counted[:, None]
    n_layers = np.maximum(counted.sum(axis=0), 1)
    inside = np.where(counted, share, 0.0)
    apart = np.where(counted, share - inside.sum(axis=0) / n_layers, 0.0)
    square = (apart**2).sum(axis=0)
    scale, varies = _scale(square, (inside**2).sum(axis=0))
    return _mean_correlation(((apart * scale).sum(axis=1) ** 2).sum(axis=0), varies)


def _scale(square: HeadRows, whole: HeadRows) -> tuple[HeadRows, Bool[np.ndarray, "head row"]]:
    """What brings each head's deviations to length 1, and which heads vary at all.

    Args:
        square: Sum of the squared deviations from the mean.
        whole: Sum of the squared values.
    """
    # rounding leaves a rest where all values are the same; NaN counts as varying
    varies = ~(square <= 1e-12 * whole)
    return 1 / np.sqrt(np.where(varies, square, np.inf)), varies


def _mean_correlation(square: PerRow, varies: Bool[np.ndarray, "head row"]) -> tuple[PerRow, IsRow]:
    """Mean over pairs of heads from the squared length of the sum of their unit vectors."""
    n_heads = varies.sum(axis=0)
    is_defined = n_heads > 1
    n_pairs = np.where(is_defined, n_heads * (n_heads - 1), 1)
    return np.clip((square - n_heads) / n_pairs, -1.0, 1.0), is_defined
