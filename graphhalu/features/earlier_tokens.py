"""Attention to the token before and to earlier occurrences of a token, and RAUQ on the former."""

from math import ceil

import numpy as np
from jaxtyping import Bool, Float, Int

from graphhalu.core.errors import UsageError
from graphhalu.features.base import feature
from graphhalu.features.block import Ragged, TraceBlock
from graphhalu.features.matrices import RowPairs, attention_at, finite_or_missing, row_pairs, row_starts
from graphhalu.traces.trace import attention_kept

PreviousToken = tuple[Float[np.ndarray, "head row"], Float[np.ndarray, "head row"]]
"""Attention to the token before, and the most that it can be where that is not known.

The first is NaN where it is not known: the first token, a key out of the window, a key that is not
among the kept edges. The second is the same where it is known, else a bound of 1 or less.
"""


def previous_token(block: TraceBlock, place: int) -> PreviousToken:
    """Attention of every stored row to the token before its own, in one layer.

    Read from whole attention, or from edges: an edge that is not kept is at most as strong as
    the weakest kept one and as the mass that was dropped.

    Raises:
        TraceNotFoundError: If the traces keep neither.
    """
    if attention_kept(block.arrays.names()) == "edges":
        values, bound = _from_edges(block, place)
    else:
        values = bound = attention_at(block, place, row_starts(block) + np.maximum(block.row_token - 1, 0))
    is_blind = (block.row_token == 0) | (block.n_visible[place] == 1)
    return np.where(is_blind, np.nan, values), np.where(is_blind, np.nan, bound)


def _from_edges(block: TraceBlock, place: int) -> PreviousToken:
    key, weight = block.stream("edge_key", place), block.stream("edge_weight", place)
    dropped = finite_or_missing(block.stream("dropped_mass", place))
    is_previous = key == (block.row_token - 1)[:, None]
    is_kept = is_previous.any(axis=-1)
    is_all = (key < 0).any(axis=-1)
    values = np.where(is_kept, np.where(is_previous, weight, 0.0).sum(axis=-1), np.nan)
    # a row with room for a further edge has none: what it does not list is zero
    values = finite_or_missing(np.where(~is_kept & is_all, 0.0, values))
    bound = np.where(is_kept | is_all, values, np.minimum(weight[..., -1], dropped))
    return values, bound


@feature("attention | edge_key")
def previous_token_mass(block: TraceBlock) -> Float[np.ndarray, "trace layer head"]:
    """Mean attention of the answer-producing rows to the token before their own.

    Args:
        block: Traces that keep whole attention, or edges.

    Returns:
        Values in [0, 1]; NaN where it is not known of every row.

    Raises:
        TraceNotFoundError: If the traces keep neither.

    Summary:
        Attention to the token before

    Formula:
        mean over answer rows i of A[i, i - 1]

    Direction:
        higher: the head copies from its left neighbour

    Source:
        Previous-token head score of TransformerLens, on the answer-producing rows alone. Among kept
        edges it is missing as soon as one row's edge is not kept.
    """
    rows = np.flatnonzero(block.is_answer_row & (block.row_token > 0))
    by_trace = block.rows.among(rows)
    layers = range(len(block.shape.attention_layers))
    means = [by_trace.mean(previous_token(block, place)[0][:, rows]) for place in layers]
    return np.stack(means, axis=1)


@feature("attention", "token_ids")
def duplicate_mass(block: TraceBlock) -> Float[np.ndarray, "trace layer head"]:
    """Attention of the answer-producing rows to earlier occurrences of their own token.

    Args:
        block: Traces that keep whole attention.

    Returns:
        Mean over the rows with such a key in sight, in [0, 1]; NaN if there is none.

    Raises:
        TraceNotFoundError: If the traces do not keep whole attention.

    Summary:
        Attention to earlier occurrences of the row's token

    Formula:
        mean over answer rows i with a match of sum of A[i, j] over j < i with token[j] = token[i]

    Direction:
        higher: the head looks for repetitions

    Source:
        Duplicate-token head score of TransformerLens, on the answer itself and not on repeated
        random tokens.
    """
    return _target_mass(block, offset=0)


@feature("attention", "token_ids")
def induction_mass(block: TraceBlock) -> Float[np.ndarray, "trace layer head"]:
    """Attention of the answer-producing rows to what followed earlier occurrences of their token.

    Args:
        block: Traces that keep whole attention.

    Returns:
        Mean over the rows with such a key in sight, in [0, 1]; NaN if there is none.

    Raises:
        TraceNotFoundError: If the traces do not keep whole attention.

    Summary:
        Attention to what followed earlier occurrences of the row's token

    Formula:
        mean over answer rows i with a match of sum of A[i, j + 1] over j < i - 1 with token[j] =
        token[i]

    Direction:
        higher: the head continues as the text did before

    Source:
        Induction head score of TransformerLens, on the answer itself and not on repeated random
        tokens. Attention to several matches is summed; the row's own token (j = i - 1) is left out.
    """
    return _target_mass(block, offset=1)


def _target_mass(block: TraceBlock, offset: int) -> Float[np.ndarray, "trace layer head"]:
    n_layers, n_heads = len(block.shape.attention_layers), block.shape.n_heads
    values = np.full((len(block), n_layers, n_heads), np.nan)
    windows = np.array([window or -1 for window in block.shape.layer_windows])
    for window in dict.fromkeys(windows.tolist()):
        pairs = row_pairs(block, block.is_answer_row, None if window < 0 else window)
        is_target = follows_same_token(block, pairs, offset)
        by_row = pairs.by_row.among(is_target)
        for place in np.flatnonzero(windows == window).tolist():
            weights = attention_at(block, place, pairs.index[is_target])
            mass = np.minimum(by_row.sum(weights), 1.0)
            values[:, place] = pairs.by_trace.mean(mass.T, by_row.lengths > 0)
    return finite_or_missing(values)


def follows_same_token(block: TraceBlock, pairs: RowPairs, offset: int) -> Bool[np.ndarray, "pair"]:
    """Which keys stand ``offset`` tokens behind a key with the row's own token.

    The row's own token never counts as a key.
    """
    ids = block.stream("token_ids")
    row = pairs.by_row.trace
    start = block.tokens.offsets[:-1][pairs.by_trace.trace][row]
    own = block.row_token[pairs.row][row]
    earlier = pairs.key - offset
    is_same = ids[start + np.maximum(earlier, 0)] == ids[start + own]
    return is_same & (earlier >= 0) & (pairs.key < own)


@feature("attention | edge_key", "token_logprob")
def rauq(block: TraceBlock, *, alpha: float = 0.5) -> Float[np.ndarray, "trace"]:
    """Largest uncertainty of the layers from a third to two thirds of the model's depth.

    Args:
        block: Traces that keep the token log-probabilities, and whole attention or edges.
        alpha: Weight of a token's own probability against what it carries on, in (0, 1].

    Returns:
        Values from 1 up; NaN where one of these layers is not known or none is kept.

    Raises:
        UsageError: If ``alpha`` is out of range.
        TraceNotFoundError: If an array is not kept.

    Summary:
        Uncertainty of tokens, carried along attention to the previous token

    Formula:
        max over layers L/3 … 2L/3 of 1 - mean over answer tokens t of log c[t]; c[0] = p[0]; c[t] =
        alpha p[t] + (1 - alpha) A[h, t, t - 1] c[t - 1]; h = the head with the largest mean of A[h,
        t, t - 1] over t >= 1

    Direction:
        higher: less certain

    Source:
        RAUQ, ICML 2026: alpha 0.5 for instructed models (the default), 0.2 for base models. A[t, t
        - 1] is read as the paper has it; the released code reads the attention of token t - 1 to
        itself. The entropy form is not given. Among kept edges it is missing where the head is in
        doubt.
    """
    if not 0 < alpha <= 1:
        raise UsageError(f"alpha must be above 0 and at most 1, got {alpha}")
    # the kept layers floor(L / 3) to ceil(2 L / 3) of a model of L layers
    n_layers, layers = block.shape.n_layers, np.array(block.shape.attention_layers, dtype=np.int64)
    places = np.flatnonzero((layers >= n_layers // 3) & (layers <= ceil(2 * n_layers / 3)))
    if not len(places):
        return np.full(len(block), np.nan)
    carried = np.stack([_carried(block, place) for place in places.tolist()], axis=1)
    mean_log = _mean_log_confidence(block, carried, alpha)
    return finite_or_missing(1.0 - mean_log.min(axis=1))


def _carried(block: TraceBlock, place: int) -> Float[np.ndarray, "trace step"]:
    """Attention of each answer token to the one before, in the layer's chosen head.

    Step 0 is the first answer token, which carries nothing. NaN where the head or its attention
    is not known.
    """
    first = block.of_record("prompt_length")
    # the answer tokens after the first carry confidence on
    rows = np.flatnonzero(block.row_token > first[block.rows.trace])
    by_trace = block.rows.among(rows)
    values, bound = (found[:, rows] for found in previous_token(block, place))
    head = chosen_head(values, bound, by_trace)
    is_known = head >= 0
    values = values[np.maximum(head, 0)[by_trace.trace], np.arange(len(rows))]
    n_steps = int((block.of_record("length") - first).max())
    carried = np.full((len(block), n_steps), np.nan)
    step = block.row_token[rows] - first[by_trace.trace]
    carried[by_trace.trace, step] = np.where(is_known[by_trace.trace], values, np.nan)
    return carried


def chosen_head(
    values: Float[np.ndarray, "head row"], bound: Float[np.ndarray, "head row"], by_trace: Ragged
) -> Int[np.ndarray, "trace"]:
    """Head with the most attention to the previous token; -1 where that is not known.

    With kept edges alone a head is chosen only if all its values are known, and no other head
    can have more, however strong its dropped edges were.
    """
    most = by_trace.mean(bound)
    # NaN would be taken for the largest
    head = np.where(np.isnan(most), -1.0, most).argmax(axis=1)
    trace = np.arange(len(head))
    is_known = np.isfinite(by_trace.mean(values)[trace, head])
    return np.where(is_known & np.isfinite(most).all(axis=1), head, -1)


def _mean_log_confidence(
    block: TraceBlock, carried: Float[np.ndarray, "trace layer step"], alpha: float
) -> Float[np.ndarray, "trace layer"]:
    """Mean over the answer of ``log c``, ``c[t] = alpha p[t] + (1 - alpha) a[t] c[t - 1]``."""
    is_answer = block.is_answer_token
    n_tokens = block.of_record("length") - block.of_record("prompt_length")
    probability = np.full((len(block), carried.shape[-1]), np.nan)
    step = (block.tokens.position - block.of_record("prompt_length")[block.tokens.trace])[is_answer]
    logprob = block.stream("token_logprob")[is_answer].astype(np.float64)
    probability[block.tokens.trace[is_answer], step] = np.exp(logprob)
    confidence = np.repeat(probability[:, :1], carried.shape[1], axis=1)
    total = np.zeros(carried.shape[:2])
    for now in range(carried.shape[-1]):
        if now:
            kept = (1 - alpha) * carried[..., now] * confidence
            confidence = alpha * probability[:, now, None] + kept
        with np.errstate(divide="ignore"):
            log = np.log(confidence)
        total += np.where((now < n_tokens)[:, None], log, 0.0)
    return total / n_tokens[:, None]
