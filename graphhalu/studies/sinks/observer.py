"""Sums attention to the first tokens while a model runs: every window and query mode in one pass.

Only sums are held, one number a sequence, layer and head; the attention itself is let go chunk by
chunk. NaN is kept: a model that overflows gives a record that says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from graphhalu.core.axes import RowRange
from graphhalu.evaluation.files import numbers
from graphhalu.studies.sinks.records import QueryMode


@dataclass(frozen=True)
class SinkMass:
    """Mean attention of the counted rows of one sequence to the first tokens.

    Attributes:
        k: Leading tokens that form the sink.
        mode: Which rows count.
        values: In [0, 1]; NaN where the model gave none, 0 where no row counts.
        is_seen: Layers in which at least one row counts.
    """

    k: int
    mode: QueryMode
    values: Annotated[Float[np.ndarray, "layer head"], numbers(2)]
    is_seen: Annotated[Bool[np.ndarray, "layer"], numbers(1, np.bool_)]

    @property
    def scalar(self) -> float:
        """Mean over heads, then over the layers that can see the sink; NaN if there is none."""
        by_layer = self.values.mean(axis=1)[self.is_seen]
        return float(by_layer.mean()) if by_layer.size else float("nan")


class SinkObserver:
    """Sums attention to the first tokens over the rows that count.

    A row counts if it comes after the sink and sees all of it: rows ``i < K`` can look at little
    else, and a row further than a sliding window away cannot look at the sink.

    Args:
        last: The last row of each sequence, which the mode ``last`` counts; padding is on the
            right.
        start: First row that may count in the mode ``range``.
        ks: Leading tokens that form the sink, several at once.
        modes: Query modes, one or both.
        layer_windows: Sliding window of each layer, or ``None``.
        n_heads: Heads of a layer.
    """

    def __init__(
        self,
        last: Sequence[int],
        *,
        start: int,
        ks: Sequence[int],
        modes: Sequence[QueryMode],
        layer_windows: Sequence[int | None],
        n_heads: int,
    ) -> None:
        self.last = torch.tensor(last)
        self.start = start
        self.layer_windows = tuple(layer_windows)
        first = min(start, *last) if "range" in modes else min(last)
        self.wanted = RowRange(first, max(last) + 1)
        size = (len(self.layer_windows), len(last), n_heads)
        self.sums: dict[tuple[int, QueryMode], tuple[Tensor, Tensor]] = {
            (k, mode): (torch.zeros(size, dtype=torch.float64), torch.zeros(size[:2]))
            for k in ks
            for mode in modes
        }

    def wanted_rows(self, layer: int) -> RowRange | None:
        """From the first row that counts anywhere to the last."""
        return self.wanted

    def rows(self, layer: int, row_start: int, weights: Float[Tensor, "trace head row key"]) -> None:
        """Add a chunk of rows."""
        position = torch.arange(row_start, row_start + weights.shape[2])
        for (k, mode), (total, count) in self.sums.items():
            counts = self._counts(layer, position, k, mode)
            if bool(counts.any()):
                share = weights[..., :k].float().sum(-1).cpu()
                kept = torch.where(counts[:, None], share, torch.zeros(()))
                total[layer] += kept.double().sum(-1)
                count[layer] += counts.sum(-1)

    def values(self, layer: int, value: Float[Tensor, "trace kv_head key channel"]) -> None:
        """Value vectors play no part."""

    def mass(self, index: int, k: int, mode: QueryMode) -> SinkMass:
        """The sink mass of one sequence."""
        total, count = (part[:, index] for part in self.sums[k, mode])
        mean = total / count.clamp_min(1)[:, None]
        return SinkMass(k, mode, mean.numpy(), (count > 0).numpy())

    def _counts(
        self, layer: int, position: Int[Tensor, "row"], k: int, mode: QueryMode
    ) -> Bool[Tensor, "trace row"]:
        window = self.layer_windows[layer]
        sees_sink = (position >= k) & (position < (window or position.max() + 1))
        if mode == "last":
            return sees_sink & (position == self.last[:, None])
        return sees_sink & (position >= self.start) & (position <= self.last[:, None])
