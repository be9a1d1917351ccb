"""How much attention and hidden states change from layer to layer, and whether one follows the other."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import entr, softmax

from graphhalu.core.errors import TraceNotFoundError, UsageError
from graphhalu.features.base import feature
from graphhalu.features.block import Ragged, TraceBlock
from graphhalu.features.matrices import (
    RowPairs,
    answer_pairs,
    attention_at,
    chosen_by_trace,
    finite_or_missing,
    is_producing_state,
    row_pairs,
    state_axis,
    states,
    unit_states,
)

HeadPairs = Float[np.ndarray, "head pair"]

Ranked = Float[np.ndarray, "row rank"]

HALLUSHIFT_STEP: Final = 2
"""Layers between the two that HalluShift compares."""

ICR_TOP_K: Final = 20
"""Keys of a row that :func:`icr` compares."""

_KEY_BITS: Final = np.uint64(32)
_LAST_KEY: Final = np.uint64(2**32 - 1)


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


@feature("attention", "hidden")
def icr(block: TraceBlock, *, top_k: int = ICR_TOP_K) -> Float[np.ndarray, "trace updated_layer"]:
    """Divergence (bit) between where a layer attends and where its update of the state points.

    Args:
        block: Traces that keep whole attention, and the hidden states of all tokens before and
            after a layer.
        top_k: Most attended keys of a row that are compared; fewer where fewer are in sight.

    Returns:
        Mean over the answer-producing rows that see two keys or more, in [0, 1]; NaN where there
        is none, or states of the prompt are not kept. The layers are those of
        :func:`updated_layers`.

    Raises:
        UsageError: If fewer than two keys are to be compared.
        TraceNotFoundError: If no layer's attention and states before and after it are kept.

    Summary:
        How far a layer's update of a token is from following its attention

    Formula:
        mean over answer rows i of JSD(softmax over j of z(m[l, i, j]), softmax over j of (h[l + 1,
        i] - h[l, i]) . h[l, j] / |h[l, j]|) in bit; m = mean over heads of A; j = the k most
        attended keys; z = standard score over them

    Direction:
        higher: the update does not come from where the layer attends

    Source:
        ICR Probe, 2025, without its network. Every key in sight counts: the released code cuts
        attention from answer to prompt. The last layer is left out, as the state after it is kept
        behind the final norm.
    """
    if top_k <= 1:
        raise UsageError(f"top_k must be at least 2, got {top_k}: one key has nothing to be compared with")
    layers, is_producing = updated_layers(block), is_producing_state(block)
    pairs = answer_pairs(block)
    place_of_state = {layer: place for place, layer in enumerate(block.shape.hidden_layers)}
    values = np.full((len(block), len(layers)), np.nan)
    held: tuple[int, np.ndarray] | None = None
    for index, layer in enumerate(layers):
        place = block.shape.attention_layers.index(layer)
        chosen = pairs[block.shape.layer_windows[place]]
        mean = attention_at(block, place, chosen.index).mean(axis=0)
        key, weight, is_kept = strongest_keys(mean, chosen, top_k)
        is_held = held is not None and held[0] == layer
        before = held[1] if held and is_held else states(block, place_of_state[layer])
        after = states(block, place_of_state[layer + 1])
        update, held = after[is_producing] - before[is_producing], (layer + 1, after)
        along = _projections(block, before, update, key, chosen)
        found = row_icr(weight, along, is_kept)
        values[:, index] = chosen.by_trace.mean(found, is_kept.sum(axis=1) > 1)
    return finite_or_missing(values)


def updated_layers(block: TraceBlock) -> list[int]:
    """Model layers whose attention and whose states before and after are kept.

    The last layer is not among them: the state after it is kept behind the final norm.

    Raises:
        TraceNotFoundError: If there is none, or the states of the prompt are not kept.
    """
    shape = block.shape
    kept = set(shape.hidden_layers) if state_axis(block)[0] == "hidden" else set()
    layers = [
        layer for layer in shape.attention_layers if {layer, layer + 1} <= kept and layer + 1 < shape.n_layers
    ]
    if not layers:
        raise TraceNotFoundError(
            f"no layer has its attention and the states of all tokens before and after it kept "
            f"(attention of {_listed(shape.attention_layers)}; hidden states "
            f"{_listed(shape.hidden_layers)})\n  Extract with all hidden states"
        )
    return layers


def _listed(layers: tuple[int, ...]) -> str:
    return ", ".join(map(str, layers)) or "none"


def strongest_keys(
    weights: Float[np.ndarray, "pair"], pairs: RowPairs, top_k: int
) -> tuple[Int[np.ndarray, "row rank"], Ranked, Bool[np.ndarray, "row rank"]]:
    """The ``top_k`` strongest keys of each row, in no order of meaning; of equal ones the earlier.

    Returns:
        Position of each key within the trace, attention to it, and whether there is one: a row may
        see fewer keys.
    """
    bits = weights.astype(np.float32).view(np.uint32).astype(np.uint64)
    # weight and key in one number: the order of floats from 0 up is that of their bits
    code = (bits << _KEY_BITS) | (_LAST_KEY - pairs.key.astype(np.uint64))
    width = int(pairs.by_row.lengths.max(initial=0))
    table = np.zeros((len(pairs.row), max(width, top_k)), dtype=np.uint64)
    table[pairs.by_row.trace, pairs.by_row.position] = code
    top = np.partition(table, -top_k, axis=1)[:, -top_k:]
    is_kept = top > 0
    key = np.where(is_kept, _LAST_KEY - (top & _LAST_KEY), 0).astype(np.int64)
    weight = (top >> _KEY_BITS).astype(np.uint32).view(np.float32)
    return key, weight, is_kept


def _projections(
    block: TraceBlock,
    before: Float[np.ndarray, "token unit"],
    update: Float[np.ndarray, "row unit"],
    key: Int[np.ndarray, "row rank"],
    pairs: RowPairs,
) -> Ranked:
    """Length of each row's update along the state of each of its keys."""
    square = np.einsum("tu,tu->t", before, before)
    norm = np.where(square > 0, np.sqrt(square), np.nan)
    along = np.empty(key.shape, dtype=np.float32)
    for trace in range(len(block)):
        rows = slice(*pairs.by_trace.offsets[trace : trace + 2].tolist())
        tokens = slice(*block.tokens.offsets[trace : trace + 2].tolist())
        products = update[rows] @ before[tokens].T / norm[tokens]
        along[rows] = np.take_along_axis(products, key[rows], axis=1)
    return along


def row_icr(weight: Ranked, along: Ranked, is_kept: Bool[np.ndarray, "row rank"]) -> Float[np.ndarray, "row"]:
    """Jensen-Shannon divergence (bit) of the softmax of z-scored weights and of projections."""
    n_kept = np.maximum(is_kept.sum(axis=1, keepdims=True), 1)
    mean = np.where(is_kept, weight, 0.0).sum(axis=1, keepdims=True) / n_kept
    apart = np.where(is_kept, weight - mean, 0.0)
    spread = np.sqrt((apart**2).sum(axis=1, keepdims=True) / n_kept)
    attended = _softmax(apart / np.where(spread > 0, spread, 1.0), is_kept)
    updated = _softmax(along.astype(np.float64), is_kept)
    gain = entr((attended + updated) / 2) - (entr(attended) + entr(updated)) / 2
    return np.clip(gain.sum(axis=1) / np.log(2), 0.0, 1.0)


def _softmax(logits: Ranked, is_kept: Bool[np.ndarray, "row rank"]) -> Ranked:
    shown = np.where(is_kept, logits, -np.inf)
    # a row without any key has no weight; NaN and infinity make all of a row NaN
    with np.errstate(invalid="ignore"):
        return np.where(is_kept.any(axis=1, keepdims=True), softmax(shown, axis=1), 0.0)
