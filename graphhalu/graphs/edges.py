"""Which attention weights become edges of a token graph."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from graphhalu.core.errors import UsageError
from graphhalu.core.numerics import ragged_offsets


class EdgeRule(ABC):
    """Chooses edges from one importance for each pair of row and key."""

    @abstractmethod
    def choose_pairs(
        self, importance: Float[np.ndarray, "layer pair"], row_starts: Int[np.ndarray, "row_end"]
    ) -> Bool[np.ndarray, "layer pair"]:
        """Which pairs become edges.

        Args:
            importance: One non-negative value a pair; a pair with 0 is never an edge. The keys
                of a row follow one another, lowest first.
            row_starts: Where each row starts on the pair axis, and where the last one ends.
        """

    @final
    def choose(
        self, importance: Float[np.ndarray, "row key"], row_start: int = 0
    ) -> Bool[np.ndarray, "row key"]:
        """The same for a square: always causal, never a token with itself.

        Args:
            importance: One non-negative value a pair; a pair with 0 is never an edge.
            row_start: Position of the first row.
        """
        is_pair = is_causal_pair(importance.shape[0], importance.shape[1], row_start)
        starts = ragged_offsets(is_pair.sum(1))
        is_edge = np.zeros(importance.shape, dtype=bool)
        is_edge[is_pair] = self.choose_pairs(importance[is_pair][None], starts)[0]
        return is_edge


@dataclass(frozen=True)
class Threshold(EdgeRule):
    """Every pair whose importance is more than ``tau``.

    Attributes:
        tau: In [0, 1).
        censor: Whether weights of single heads that do not pass become 0 on the edge. For a
            recipe with the importance ``"max"``: an edge exists where any head passes.

    Source:
        Frasca et al., CHARM, with ``censor=True`` and the importance ``"max"``.
    """

    tau: float
    censor: bool = False

    def __post_init__(self) -> None:
        """Refuse a threshold that no attention could pass or fail.

        Raises:
            UsageError: If ``tau`` is outside [0, 1).
        """
        if not 0 <= self.tau < 1:
            message = f"Threshold(tau) must be in [0, 1), got {self.tau}"
            raise UsageError(message)

    def choose_pairs(
        self, importance: Float[np.ndarray, "layer pair"], row_starts: Int[np.ndarray, "row_end"]
    ) -> Bool[np.ndarray, "layer pair"]:
        """As :meth:`EdgeRule.choose_pairs`."""
        return importance > self.tau


@dataclass(frozen=True)
class TopK(EdgeRule):
    """The ``k`` most important keys of every row; a tie goes to the lower key.

    Attributes:
        k: At least 1; a row that sees fewer other tokens keeps them all.
    """

    k: int

    def __post_init__(self) -> None:
        """Refuse a rule that keeps nothing.

        Raises:
            UsageError: If ``k`` is less than 1.
        """
        if self.k < 1:
            message = f"TopK(k) must be at least 1, got {self.k}"
            raise UsageError(message)

    def choose_pairs(
        self, importance: Float[np.ndarray, "layer pair"], row_starts: Int[np.ndarray, "row_end"]
    ) -> Bool[np.ndarray, "layer pair"]:
        """As :meth:`EdgeRule.choose_pairs`."""
        n_rows = len(row_starts) - 1
        smallest = np.zeros((len(importance), n_rows), dtype=importance.dtype)
        for bucket in _buckets(importance, row_starts, longer_than=self.k):
            width = bucket.values.shape[-1]
            bucket.values.partition(width - self.k, axis=-1)
            smallest[:, bucket.rows] = bucket.values[..., width - self.k]
        counts = np.full(smallest.shape, self.k)
        return _best_of_rows(importance, row_starts, smallest, counts)


@dataclass(frozen=True)
class CumulativeMass(EdgeRule):
    """The fewest keys of every row that hold a share ``p`` of its importance to other tokens.

    The most important come first; a tie goes to the lower key.

    Attributes:
        p: In (0, 1]; 1 keeps every pair that has any importance.
    """

    p: float

    def __post_init__(self) -> None:
        """Refuse a share that is none.

        Raises:
            UsageError: If ``p`` is outside (0, 1].
        """
        if not 0 < self.p <= 1:
            message = f"CumulativeMass(p) must be in (0, 1], got {self.p}"
            raise UsageError(message)

    def choose_pairs(
        self, importance: Float[np.ndarray, "layer pair"], row_starts: Int[np.ndarray, "row_end"]
    ) -> Bool[np.ndarray, "layer pair"]:
        """As :meth:`EdgeRule.choose_pairs`."""
        n_rows = len(row_starts) - 1
        smallest = np.zeros((len(importance), n_rows), dtype=importance.dtype)
        counts = np.zeros(smallest.shape, dtype=np.int64)
        for bucket in _buckets(importance, row_starts):
            bucket.values.sort(axis=-1)
            ranked = bucket.values[..., ::-1]
            reached = np.cumsum(ranked, axis=-1, dtype=np.float64)
            before = np.concatenate([np.zeros_like(reached[..., :1]), reached[..., :-1]], axis=-1)
            n_needed = (before < self.p * reached[..., -1:]).sum(-1)
            last = np.maximum(n_needed - 1, 0)[..., None]
            counts[:, bucket.rows] = n_needed
            smallest[:, bucket.rows] = np.take_along_axis(ranked, last, axis=-1)[..., 0]
        return _best_of_rows(importance, row_starts, smallest, counts)


def is_causal_pair(n_rows: int, n_keys: int, row_start: int = 0) -> Bool[np.ndarray, "row key"]:
    """Pairs of a row with an earlier token: below the diagonal."""
    return np.tri(n_rows, n_keys, k=row_start - 1, dtype=bool)


class _Bucket(NamedTuple):
    """Rows of about the same length, filled up with zeros."""

    rows: Int[np.ndarray, "bucket_row"]
    values: Float[np.ndarray, "layer bucket_row width"]


def _buckets(
    importance: Float[np.ndarray, "layer pair"], row_starts: Int[np.ndarray, "row_end"], longer_than: int = 0
) -> list[_Bucket]:
    """Rows by their length: the widths grow by a quarter, so that little is filled up."""
    lengths = np.diff(row_starts)
    buckets, width = [], max(longer_than, 4)
    lowest = longer_than
    while lowest < lengths.max(initial=0):
        width += max(4, width // 4)
        rows = np.flatnonzero((lengths > lowest) & (lengths <= width))
        if len(rows):
            columns = np.arange(width)
            places = np.minimum(row_starts[rows, None] + columns, importance.shape[1] - 1)
            values = importance[:, places]
            values[:, columns >= lengths[rows, None]] = 0
            buckets.append(_Bucket(rows, values))
        lowest = width
    return buckets


def _best_of_rows(
    importance: Float[np.ndarray, "layer pair"],
    row_starts: Int[np.ndarray, "row_end"],
    smallest: Float[np.ndarray, "layer row"],
    counts: Int[np.ndarray, "layer row"],
) -> Bool[np.ndarray, "layer pair"]:
    """The pairs of each row from its smallest kept value up, of equal ones the lower keys."""
    lengths = np.diff(row_starts)
    is_best: Bool[np.ndarray, "layer pair"] = importance >= np.repeat(smallest, lengths, axis=1)
    is_best &= importance > 0
    n_best = row_sums(is_best, row_starts)
    return _without_late_ties(is_best, n_best > counts, importance, row_starts, smallest, counts)


def _without_late_ties(  # noqa: PLR0917 - one step of _best_of_rows
    is_best: Bool[np.ndarray, "layer pair"],
    is_overfull: Bool[np.ndarray, "layer row"],
    importance: Float[np.ndarray, "layer pair"],
    row_starts: Int[np.ndarray, "row_end"],
    smallest: Float[np.ndarray, "layer row"],
    counts: Int[np.ndarray, "layer row"],
) -> Bool[np.ndarray, "layer pair"]:
    """Drop the later ones of equal values where a row has more of them than it may keep."""
    layers, rows = np.nonzero(is_overfull)
    if not len(rows):
        return is_best
    lengths = np.diff(row_starts)[rows]
    starts = ragged_offsets(lengths)
    pair = np.arange(starts[-1]) + np.repeat(row_starts[rows] - starts[:-1], lengths)
    layer = np.repeat(layers, lengths)
    values, least = importance[layer, pair], np.repeat(smallest[layers, rows], lengths)
    is_tied = values == least
    n_left = counts[layers, rows] - np.add.reduceat(values > least, starts[:-1], dtype=np.int64)
    rank = np.cumsum(is_tied)
    rank -= np.repeat(rank[starts[:-1]] - is_tied[starts[:-1]], lengths)
    is_best[layer, pair] &= ~is_tied | (rank <= np.repeat(n_left, lengths))
    return is_best


def row_sums(
    values: Shaped[np.ndarray, "layer pair"], row_starts: Int[np.ndarray, "row_end"]
) -> Shaped[np.ndarray, "layer row"]:
    """Sum of each row: whole numbers for a mask, double precision for weights."""
    dtype = np.int64 if values.dtype == bool else np.float64
    is_filled = np.diff(row_starts) > 0
    sums = np.zeros((len(values), len(is_filled)), dtype=dtype)
    if is_filled.any():
        starts = row_starts[:-1][is_filled]
        sums[:, is_filled] = np.add.reduceat(values, starts, axis=1, dtype=dtype)
    return sums
