"""Attention that each token receives from the rows that can see it."""

from typing import Final

import numpy as np
from jaxtyping import Bool, Float

from graphhalu.core.errors import UsageError
from graphhalu.features.base import Feature, feature
from graphhalu.features.block import Ragged, TraceBlock

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
