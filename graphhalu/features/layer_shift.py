"""How much attention and hidden states change from layer to layer."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Final

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import entr, softmax

from graphhalu.core.errors import TraceNotFoundError
from graphhalu.features.base import feature
from graphhalu.features.block import Ragged, TraceBlock
from graphhalu.features.matrices import (
    RowPairs,
    attention_at,
    chosen_by_trace,
    finite_or_missing,
    is_producing_state,
    row_pairs,
    states,
    unit_states,
)

HeadPairs = Float[np.ndarray, "head pair"]

HALLUSHIFT_STEP: Final = 2
"""Layers between the two that HalluShift compares."""


@feature("attention")
def layer_divergence(block: TraceBlock) -> Float[np.ndarray, "trace layer_pair"]:
    """Jensen-Shannon divergence (bit) of head-mean attention between neighbouring layers.

    Args:
        block: Traces that keep whole attention.

    Returns:
        Mean over the answer-producing rows, in [0, 1]; NaN where no row of a pair can see the
        same keys in both layers.

    Raises:
        TraceNotFoundError: If the traces do not keep whole attention.

    Summary:
        Change of head-mean attention from one layer to the next

    Formula:
        mean over answer rows i of JSD(m[l, i], m[l + 1, i]) in bit, m = mean over heads of A[l, h,
        i], scaled to a sum of 1

    Direction:
        higher: the layers look at other tokens

    Source:
        Jensen-Shannon divergence between consecutive layers, as an instability. Neighbours are the
        kept attention layers; rows that see other keys in the two layers are left out.
    """
    pairs = row_pairs(block, block.is_answer_row)
    visible = block.n_visible[:, pairs.row]
    n_layers = len(block.shape.attention_layers)
    values = np.full((len(block), n_layers - 1), np.nan)
    before = _mean_rows(block, 0, pairs)
    for place in range(1, n_layers):
        rows = _mean_rows(block, place, pairs)
        divergence = row_divergence(before, rows, pairs)
        is_same = visible[place - 1] == visible[place]
        values[:, place - 1] = pairs.by_trace.mean(divergence, is_same)
        before = rows
    return finite_or_missing(values)


def row_divergence(
    one: Float[np.ndarray, "pair"], other: Float[np.ndarray, "pair"], pairs: RowPairs
) -> Float[np.ndarray, "row"]:
    """Jensen-Shannon divergence (bit) of each row of two sets of distributions, in [0, 1]."""
    gain = entr((one + other) / 2) - (entr(one) + entr(other)) / 2
    # rounding can bring equal rows just below 0
    return np.clip(pairs.row_sum(gain) / np.log(2), 0.0, 1.0)


def _mean_rows(block: TraceBlock, place: int, pairs: RowPairs) -> Float[np.ndarray, "pair"]:
    """Attention averaged over heads, each row scaled to a sum of 1; NaN for a row of zeros."""
    mean = attention_at(block, place, pairs.index).mean(axis=0, dtype=np.float64)
    total = pairs.row_sum(mean)
    return mean / pairs.spread(np.where(total > 0, total, np.nan))


def shifted_places(kept: tuple[int, ...], what: str) -> list[tuple[int, int]]:
    """Places of all kept layers that lie two model layers apart.

    Raises:
        TraceNotFoundError: If there is no such pair.
    """
    place = {layer: index for index, layer in enumerate(kept)}
    found = [(place[i], place[i + HALLUSHIFT_STEP]) for i in kept if i + HALLUSHIFT_STEP in place]
    if not found:
        raise TraceNotFoundError(
            f"no two kept {what} lie {HALLUSHIFT_STEP} layers apart (kept: "
            f"{', '.join(map(str, kept)) or 'none'})\n  Extract with more layers"
        )
    return found


@feature("attention")
def hallushift_attention_distance(block: TraceBlock) -> Float[np.ndarray, "trace layer_pair head"]:
    """Wasserstein-1 distance between the values of attention rows two layers apart.

    Args:
        block: Traces that keep whole attention.

    Returns:
        Mean over the answer-producing rows, in [0, 1]; NaN where no row of a pair can see the
        same keys in both layers.

    Raises:
        TraceNotFoundError: If whole attention or layers two apart are not kept.

    Summary:
        Distance between the sorted weights of attention rows two layers apart

    Formula:
        mean over answer rows i of mean over visible keys of |sort(A[l, h, i]) - sort(A[l + 2, h,
        i])|

    Direction:
        higher: attention sharpens or flattens more

    Source:
        HalluShift, IJCNN 2025. Every kept pair of layers two apart is given, and no network of
        probability features follows. Fault of the source, kept: values are sorted before they are
        compared, so attention that moves from one key to another, or a state that turns, changes
        nothing. Heads are paired by their place, which has no meaning across layers beyond that.
    """
    return _over_attention(block, sorted_rows, _mean_gap)


@feature("attention")
def hallushift_attention_cosine(block: TraceBlock) -> Float[np.ndarray, "trace layer_pair head"]:
    """Cosine between attention rows of the heads at the same place two layers apart.

    Args:
        block: Traces that keep whole attention.

    Returns:
        Mean over the answer-producing rows, in [0, 1]; NaN as in
        :func:`hallushift_attention_distance`.

    Raises:
        TraceNotFoundError: If whole attention or layers two apart are not kept.

    Summary:
        Cosine between attention rows two layers apart

    Formula:
        mean over answer rows i of cos(A[l, h, i], A[l + 2, h, i])

    Direction:
        higher: the two layers look at the same tokens

    Source:
        HalluShift, IJCNN 2025. Every kept pair of layers two apart is given, and no network of
        probability features follows. Heads are paired by their place.
    """
    return _over_attention(block, _unit_rows, _row_product)


def _over_attention(
    block: TraceBlock, prepare: Callable[..., np.ndarray], compare: Callable[..., np.ndarray]
) -> Float[np.ndarray, "trace layer_pair head"]:
    """Compare prepared rows of layers two apart that see the same keys."""
    pairs = row_pairs(block, block.is_answer_row)
    visible = block.n_visible[:, pairs.row]

    def rows(place: int) -> HeadPairs:
        return prepare(attention_at(block, place, pairs.index), pairs)

    places = shifted_places(block.shape.attention_layers, "attention layers")
    is_same = [visible[one] == visible[other] for one, other in places]
    return _means(places, rows, lambda *both: compare(*both, pairs), pairs.by_trace, is_same)


def _means(
    places: Sequence[tuple[int, int]],
    prepared: Callable[[int], np.ndarray],
    compare: Callable[..., np.ndarray],
    by_trace: Ragged,
    is_counted: Sequence[Bool[np.ndarray, "item"] | None],
) -> Float[np.ndarray, "trace layer_pair *head"]:
    """Means over the items of each trace of what compares two layers; three are held at a time."""
    held = lru_cache(maxsize=HALLUSHIFT_STEP + 1)(prepared)
    pairs = zip(places, is_counted, strict=True)
    means = [by_trace.mean(compare(held(one), held(other)), counted) for (one, other), counted in pairs]
    return finite_or_missing(np.stack(means, axis=1))


def sorted_rows(weights: HeadPairs, pairs: RowPairs) -> HeadPairs:
    """The values of each row in rising order; a row with a value that is not finite is NaN."""
    is_faulty = pairs.spread(pairs.row_sum((~np.isfinite(weights)).astype(np.float32))) > 0
    # no weight is above 1: rows stay apart while all pairs are sorted at once
    shift = 2.0 * pairs.by_row.trace
    ordered = np.sort(np.where(is_faulty, 0.0, weights) + shift, axis=-1) - shift
    return np.where(is_faulty, np.nan, ordered)


def _mean_gap(one: HeadPairs, other: HeadPairs, pairs: RowPairs) -> Float[np.ndarray, "head row"]:
    return pairs.row_sum(np.abs(one - other)) / pairs.by_row.lengths


def _unit_rows(weights: HeadPairs, pairs: RowPairs) -> HeadPairs:
    square = pairs.row_sum(weights.astype(np.float64) ** 2)
    length = np.sqrt(np.where(square > 0, square, np.nan))
    return weights / pairs.spread(length)


def _row_product(one: HeadPairs, other: HeadPairs, pairs: RowPairs) -> Float[np.ndarray, "head row"]:
    return np.minimum(pairs.row_sum(one * other), 1.0)


@feature("hidden | hidden_rows")
def hallushift_hidden_distance(block: TraceBlock) -> Float[np.ndarray, "trace hidden_pair"]:
    """Wasserstein-1 distance between softmaxed hidden vectors two layers apart.

    Args:
        block: Traces that keep hidden states of layers two apart.

    Returns:
        Mean over the answer-producing rows, in [0, 1].

    Raises:
        TraceNotFoundError: If hidden states of layers two apart are not kept.

    Summary:
        Distance between the sorted softmaxed hidden vectors two layers apart

    Formula:
        mean over answer rows i of mean over units of |sort(softmax(h[l, i])) - sort(softmax(h[l +
        2, i]))|

    Direction:
        higher: the state changes more in shape

    Source:
        HalluShift, IJCNN 2025. Every kept pair of layers two apart is given, and no network of
        probability features follows. Fault of the source, kept: values are sorted before they are
        compared, so attention that moves from one key to another, or a state that turns, changes
        nothing. The last hidden state is after the final norm.
    """

    def distance(one: np.ndarray, other: np.ndarray) -> Float[np.ndarray, "item"]:
        return np.abs(one - other).mean(axis=-1, dtype=np.float64)

    return _over_states(block, _sorted_softmax, distance)


@feature("hidden | hidden_rows")
def hallushift_hidden_cosine(block: TraceBlock) -> Float[np.ndarray, "trace hidden_pair"]:
    """Cosine between the hidden vectors of a token two layers apart.

    Args:
        block: Traces that keep hidden states of layers two apart.

    Returns:
        Mean over the answer-producing rows, in [-1, 1].

    Raises:
        TraceNotFoundError: If hidden states of layers two apart are not kept.

    Summary:
        Cosine between hidden vectors two layers apart

    Formula:
        mean over answer rows i of cos(h[l, i], h[l + 2, i])

    Direction:
        higher: the state changes less

    Source:
        HalluShift, IJCNN 2025. Every kept pair of layers two apart is given, and no network of
        probability features follows. The last hidden state is after the final norm.
    """

    def cosine(one: np.ndarray, other: np.ndarray) -> Float[np.ndarray, "item"]:
        return np.clip((one * other).sum(axis=-1, dtype=np.float64), -1.0, 1.0)

    return _over_states(block, unit_states, cosine)


def _over_states(
    block: TraceBlock, prepare: Callable[..., np.ndarray], compare: Callable[..., np.ndarray]
) -> Float[np.ndarray, "trace hidden_pair"]:
    """Compare prepared states of layers two apart."""
    is_chosen = is_producing_state(block)
    by_trace = chosen_by_trace(block, is_chosen)
    places = shifted_places(block.shape.hidden_layers, "hidden states")
    read = partial(states, block, chosen=is_chosen)
    return _means(places, lambda place: prepare(read(place)), compare, by_trace, [None] * len(places))


def _sorted_softmax(found: Float[np.ndarray, "item unit"]) -> Float[np.ndarray, "item unit"]:
    # softmax keeps the order; NaN in a vector makes all of it NaN
    with np.errstate(invalid="ignore"):
        probability: Float[np.ndarray, "item unit"] = softmax(np.sort(found, axis=-1), axis=-1)
    return probability
