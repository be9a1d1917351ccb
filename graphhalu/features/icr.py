"""Whether a layer's update of a token follows its attention: an ICR-like score."""

from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import entr, softmax

from graphhalu.core.errors import TraceNotFoundError, UsageError
from graphhalu.features.base import feature
from graphhalu.features.block import TraceBlock
from graphhalu.features.matrices import (
    RowPairs,
    answer_pairs,
    attention_at,
    finite_or_missing,
    is_producing_state,
    state_axis,
    states,
)

Ranked = Float[np.ndarray, "row rank"]

ICR_TOP_K: Final = 20
"""Keys of a row that are compared."""

_KEY_BITS: Final = np.uint64(32)
_LAST_KEY: Final = np.uint64(2**32 - 1)


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
