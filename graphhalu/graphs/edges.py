"""Rules that choose which attention weights become edges of a token graph."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from graphhalu.core.errors import UsageError
from graphhalu.features.block import Ragged


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
            raise UsageError(f"Threshold(tau) must be in [0, 1), got {self.tau}")

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
            raise UsageError(f"TopK(k) must be at least 1, got {self.k}")

    def choose_pairs(
        self, importance: Float[np.ndarray, "layer pair"], row_starts: Int[np.ndarray, "row_end"]
    ) -> Bool[np.ndarray, "layer pair"]:
        """As :meth:`EdgeRule.choose_pairs`."""
        return _best_of_rows(importance, row_starts, lambda ranked: np.arange(ranked.shape[1]) < self.k)


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
            raise UsageError(f"CumulativeMass(p) must be in (0, 1], got {self.p}")

    def choose_pairs(
        self, importance: Float[np.ndarray, "layer pair"], row_starts: Int[np.ndarray, "row_end"]
    ) -> Bool[np.ndarray, "layer pair"]:
        """As :meth:`EdgeRule.choose_pairs`."""

        def is_needed(ranked: Float[np.ndarray, "row width"]) -> Bool[np.ndarray, "row width"]:
            reached = np.cumsum(ranked, axis=1, dtype=np.float64)
            before = np.concatenate([np.zeros_like(reached[:, :1]), reached[:, :-1]], axis=1)
            needed: Bool[np.ndarray, "row width"] = before < self.p * reached[:, -1:]
            return needed

        return _best_of_rows(importance, row_starts, is_needed)


def _best_of_rows(
    importance: Float[np.ndarray, "layer pair"],
    row_starts: Int[np.ndarray, "row_end"],
    is_kept: Callable[[Float[np.ndarray, "row width"]], Bool[np.ndarray, "..."]],
) -> Bool[np.ndarray, "layer pair"]:
    """The pairs of each row that are kept, of equal ones the lower keys first.

    Args:
        importance: One non-negative value a pair.
        row_starts: Where each row starts on the pair axis, and where the last one ends.
        is_kept: Which places of the ranked values of a row are kept, largest first.
    """
    rows = Ragged(row_starts)
    is_edge = np.zeros(importance.shape, dtype=bool)
    values = torch.from_numpy(importance)
    padded = values.new_zeros((len(rows.lengths), int(rows.lengths.max(initial=1))))
    for layer in range(len(importance)):
        padded[rows.trace, rows.position] = values[layer]
        ranked, order = padded.sort(dim=1, descending=True, stable=True)
        is_best = torch.from_numpy((ranked.numpy() > 0) & is_kept(ranked.numpy()))
        chosen = torch.zeros_like(is_best).scatter_(1, order, is_best)
        is_edge[layer] = chosen[rows.trace, rows.position].numpy()
    return is_edge
