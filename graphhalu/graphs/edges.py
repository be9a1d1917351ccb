"""Which attention weights become edges of a token graph."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from graphhalu.errors import UsageError


class EdgeRule(ABC):
    """Chooses edges from one importance for each pair of row and key."""

    @abstractmethod
    def choose(
        self, importance: Float[np.ndarray, "row key"], row_start: int = 0
    ) -> Bool[np.ndarray, "row key"]:
        """Which pairs become edges: always causal, never a token with itself.

        Args:
            importance: One non-negative value a pair; a pair with 0 is never an edge.
            row_start: Position of the first row.
        """


@dataclass(frozen=True)
class Threshold(EdgeRule):
    """Every pair whose importance is more than ``tau``.

    Attributes:
        tau: In [0, 1).
    """

    tau: float

    def __post_init__(self) -> None:
        """Refuse a threshold that no attention could pass or fail.

        Raises:
            UsageError: If ``tau`` is outside [0, 1).
        """
        if not 0 <= self.tau < 1:
            message = f"Threshold(tau) must be in [0, 1), got {self.tau}"
            raise UsageError(message)

    def choose(
        self, importance: Float[np.ndarray, "row key"], row_start: int = 0
    ) -> Bool[np.ndarray, "row key"]:
        """As :meth:`EdgeRule.choose`."""
        return _candidates(importance, row_start) > self.tau


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

    def choose(
        self, importance: Float[np.ndarray, "row key"], row_start: int = 0
    ) -> Bool[np.ndarray, "row key"]:
        """As :meth:`EdgeRule.choose`."""
        candidates = _candidates(importance, row_start)
        best = _descending(candidates)[:, : self.k]
        is_edge = np.zeros(candidates.shape, dtype=bool)
        np.put_along_axis(is_edge, best, values=True, axis=1)
        return is_edge & (candidates > 0)


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

    def choose(
        self, importance: Float[np.ndarray, "row key"], row_start: int = 0
    ) -> Bool[np.ndarray, "row key"]:
        """As :meth:`EdgeRule.choose`."""
        candidates = _candidates(importance, row_start)
        order = _descending(candidates)
        ranked = np.take_along_axis(candidates, order, axis=1)
        reached = np.cumsum(ranked, axis=1)
        before = np.pad(reached[:, :-1], ((0, 0), (1, 0)))
        is_needed = before < self.p * reached[:, -1:]
        is_edge = np.zeros(candidates.shape, dtype=bool)
        np.put_along_axis(is_edge, order, is_needed, axis=1)
        return is_edge & (candidates > 0)


def is_causal_pair(n_rows: int, n_keys: int, row_start: int = 0) -> Bool[np.ndarray, "row key"]:
    """Pairs of a row with an earlier token: below the diagonal."""
    return np.tri(n_rows, n_keys, k=row_start - 1, dtype=bool)


def _candidates(
    importance: Float[np.ndarray, "row key"], row_start: int
) -> Float[np.ndarray, "row key"]:
    n_rows, n_keys = importance.shape
    is_pair = is_causal_pair(n_rows, n_keys, row_start)
    return np.where(is_pair, importance, 0.0).astype(np.float64)


def _descending(candidates: Float[np.ndarray, "row key"]) -> np.ndarray:
    return np.argsort(-candidates, axis=1, kind="stable")
