"""What the capture feeds: the contract between the attention of a model and the recorders."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from graphhalu.axes import RowRange


@runtime_checkable
class AttentionObserver(Protocol):
    """What receives attention weights while the model runs."""

    def wanted_rows(self, layer: int) -> RowRange | None:
        """Which query rows of a layer are wanted; ``None`` = none."""

    def rows(
        self, layer: int, row_start: int, weights: Float[Tensor, "trace head row key"]
    ) -> None:
        """Take the weights of query rows ``row_start …`` of one layer.

        The keys are ``0 … n - 1`` with at least the last of the rows among them; a row pays
        nothing to the keys behind.
        """

    def values(self, layer: int, value: Float[Tensor, "trace kv_head key channel"]) -> None:
        """Take the value vectors of one layer."""
