"""Attention sinks: the mass of the first tokens, and sinks located by what they receive."""

from dataclasses import replace
from typing import Final, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from graphhalu.core.errors import UsageError
from graphhalu.features.base import Feature, feature, within
from graphhalu.features.block import Rows, TraceBlock
from graphhalu.features.row_statistics import mean_received
from graphhalu.traces.schema import N_SINK_KEYS

PerHead = Float[np.ndarray, "trace layer head"]

EPSILON: Final = 0.3
MIN_ROWS: Final = 2
"""Rows that must see a token before it can be called a sink: one row alone is its own diagonal."""

Where = Literal["all", "answer"]

_SOURCE: Final = (
    "Xiao et al. 2023, arXiv:2309.17453; study sinks-bruh. Rows of the sink itself, 1 by "
    "construction, and rows whose sliding window has left it do not count."
)
_LOCATED: Final = (
    "Sink rate of Gu et al. 2024, arXiv:2410.10781 (alpha_k > eps), for every token. Tokens that "
    "fewer than min_rows stored rows see are not judged; the rate depends on the length."
)


class SinkShare(NamedTuple):
    """Attention of every row to the first keys, and where that says something.

    Attributes:
        values: In [0, 1]; NaN where the stream is not finite.
        is_defined: Whether the row comes after the sink and still sees all of it.
    """

    values: Float[np.ndarray, "layer head row"]
    is_defined: Bool[np.ndarray, "layer row"]


def row_sink_share(rows: Rows, n_sink: int = N_SINK_KEYS) -> SinkShare:
    """Attention that each row pays to the first ``n_sink`` tokens, per head.

    A row of the sink itself can look at nothing else, and a row further than a sliding window
    away can not look at the sink: both are marked as undefined.

    Args:
        rows: Rows of traces that keep the stream ``sink_keys``.
        n_sink: Leading tokens that form the sink: 1 to 4 are stored.

    Raises:
        UsageError: If so many keys are not stored.
    """
    if not 1 <= n_sink <= N_SINK_KEYS:
        raise UsageError(f"n_sink must be 1 to {N_SINK_KEYS} (so many keys are stored), got {n_sink}")
    mass = rows.entry("sink_keys", 0)
    for key in range(1, n_sink):
        mass += rows.entry("sink_keys", key)
    is_defined = (rows.token >= n_sink) & (rows.n_visible == rows.token + 1)
    # half precision can bring a sum just above 1
    return SinkShare(within(mass, 0.0, 1.0), is_defined)


def mean_sink_mass(rows: Rows, n_sink: int = N_SINK_KEYS) -> PerHead:
    """Mean attention of the rows that count to the first ``n_sink`` tokens; NaN without any."""
    share = row_sink_share(rows, n_sink)
    return rows.ragged.mean(share.values, share.is_defined[:, None])


@feature("sink_keys", source=_SOURCE)
def token_sink_mass(block: TraceBlock, *, n_sink: int = N_SINK_KEYS) -> Float[np.ndarray, "row layer head"]:
    """Attention of a row to the first tokens.

    NaN where the row does not count.

    Formula:
        sum_(j < n_sink) A[i, j] for i >= n_sink

    Direction:
        a stronger sink; 0 to 1
    """
    share = row_sink_share(block.all_rows, n_sink)
    return np.moveaxis(np.where(share.is_defined[:, None], share.values, np.nan), -1, 0)


def _sink_mass(n_sink: int, of: Literal["answer", "all"]) -> Feature:
    which = "rows that produce the answer" if of == "answer" else "stored rows"

    @feature(
        "sink_keys",
        summary=f"attention to the first {n_sink} tokens, mean over the {which}",
        name=f"sink_mass_k{n_sink}" + ("" if of == "answer" else "_all"),
        formula=f"mean over {which} i >= {n_sink} of sum_(j < {n_sink}) A[i, j]",
        direction="a stronger sink; 0 to 1",
        source=_SOURCE,
    )
    def compute(block: TraceBlock) -> PerHead:
        """:func:`mean_sink_mass` of the answer-producing or of all stored rows."""
        return mean_sink_mass(block.answer_rows if of == "answer" else block.all_rows, n_sink)

    return compute


sink_mass_k1: Final = _sink_mass(1, "answer")
sink_mass_k4: Final = _sink_mass(4, "answer")
sink_mass_k1_all: Final = _sink_mass(1, "all")
sink_mass_k4_all: Final = _sink_mass(4, "all")


def _is_judged(block: TraceBlock, where: Where, min_rows: int) -> Bool[np.ndarray, "layer token"]:
    is_here = block.is_answer_token if where == "answer" else np.ones(1, dtype=bool)
    return (block.n_rows_that_see >= max(min_rows, 1)) & is_here


def _sinks(
    block: TraceBlock, where: Where, epsilon: float, min_rows: int
) -> tuple[Bool[np.ndarray, "layer head token"], Bool[np.ndarray, "trace layer 1"]]:
    """Which tokens receive more than ``epsilon``, and whether a token of the trace is judged.

    Args:
        block: Keeps the stream ``received``.
        where: Tokens that are judged, if enough rows see them.
        epsilon: Threshold of mean received attention, in [0, 1].
        min_rows: Stored rows that must see a token.
    """
    judged = _is_judged(block, where, min_rows)
    is_sink = (mean_received(block) > epsilon) & judged[:, None]
    return is_sink, (block.tokens.sum(judged) > 0)[..., None]


@feature("received")
def sink_rate(block: TraceBlock, *, epsilon: float = EPSILON) -> PerHead:
    """Whether the first token is a sink.

    NaN where no stored row sees it.

    Formula:
        1 if alpha_0 > epsilon else 0, alpha_j = sum_(i >= j) A[i, j] / #{i >= j that see j}

    Direction:
        1 = a sink

    Source:
        Gu et al. 2024, arXiv:2410.10781. Of one trace: its mean over traces is their rate.
    """
    is_first = block.tokens.position == 0
    alpha = np.where(is_first, mean_received(block), np.float32(0))
    first = block.tokens.sum(alpha)
    return np.where(np.isnan(first), np.nan, first > epsilon)


@feature("received", source=_LOCATED)
def sink_count(
    block: TraceBlock, *, epsilon: float = EPSILON, min_rows: int = MIN_ROWS, where: Where = "all"
) -> PerHead:
    """How many tokens are sinks.

    NaN where no token can be judged.

    Formula:
        #{j: alpha_j > epsilon}, alpha_j = sum_(i >= j) A[i, j] / #{i >= j that see j}

    Direction:
        more sinks; from 0 up
    """
    is_sink, is_known = _sinks(block, where, epsilon, min_rows)
    return np.where(is_known, block.tokens.sum(is_sink), np.nan)


@feature("received", source=_LOCATED)
def sink_share(
    block: TraceBlock, *, epsilon: float = EPSILON, min_rows: int = MIN_ROWS, where: Where = "all"
) -> PerHead:
    """Share of all attention that goes to located sinks.

    NaN where no token can be judged.

    Formula:
        sum_(j: alpha_j > epsilon) received_j / sum_j received_j,
        alpha_j = sum_(i >= j) A[i, j] / #{i >= j that see j}

    Direction:
        more attention on sinks; 0 to 1
    """
    is_sink, is_known = _sinks(block, where, epsilon, min_rows)
    received = block.stream("received")
    total = block.tokens.sum(received)
    of_sinks = block.tokens.sum(np.where(is_sink, received, np.float32(0)))
    return np.where(is_known, of_sinks / np.where(total > 0, total, np.nan), np.nan)


sink_count_answer: Final = replace(
    sink_count,
    name="sink_count_answer",
    summary="how many tokens of the answer are sinks",
    formula=sink_count.formula.replace("#{j: ", "#{j >= P: ", 1),
    direction="more sinks inside the answer; from 0 up",
    parameters={**sink_count.parameters, "where": "answer"},
)
sink_share_answer: Final = replace(
    sink_share,
    name="sink_share_answer",
    summary="share of all attention that goes to sinks located inside the answer",
    formula=sink_share.formula.replace("sum_(j: ", "sum_(j >= P: ", 1),
    direction="more attention on sinks inside the answer; 0 to 1",
    parameters={**sink_share.parameters, "where": "answer"},
)


@feature("received", source=_LOCATED)
def sink_first_answer(block: TraceBlock, *, epsilon: float = EPSILON, min_rows: int = MIN_ROWS) -> PerHead:
    """Where in the answer the first sink stands; missing where there is none.

    0 at the start of the answer.

    Formula:
        (min{j >= P: alpha_j > epsilon} - P) / (S - P), alpha_j = sum_(i >= j) A[i, j] / #{i >= j
        that see j}

    Direction:
        a later first sink; 0 up to 1
    """
    is_sink, _ = _sinks(block, "answer", epsilon, min_rows)
    trace = block.tokens.trace
    prompt, length = block.of_record("prompt_length"), block.of_record("length")
    place = (block.tokens.position - prompt[trace]) / np.maximum(length - prompt, 1)[trace]
    # the smallest place is the largest of its negatives
    return -block.tokens.max(np.broadcast_to(-place, is_sink.shape), is_sink)


@feature("received", source=_LOCATED)
def sink_largest_answer(block: TraceBlock, *, min_rows: int = MIN_ROWS) -> PerHead:
    """Largest mean received attention of a token of the answer.

    NaN where none can be judged.

    Formula:
        max_(j >= P) alpha_j, alpha_j = sum_(i >= j) A[i, j] / #{i >= j that see j}

    Direction:
        a stronger receiver inside the answer; 0 to 1
    """
    judged = _is_judged(block, "answer", min_rows)
    return block.tokens.max(mean_received(block), judged[:, None])
