"""Observers of attention while a prompt with its answer runs through the model once."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from graphhalu.core.axes import RowRange
from graphhalu.core.errors import NonFiniteError
from graphhalu.extract.capture import capturing
from graphhalu.extract.forward import DeferredPass, body_below_head
from graphhalu.extract.hooks import AttentionObserver


class RowsObserver:
    """Reduces the weights of some rows of every layer, chunk by chunk.

    Args:
        rows: The query rows that are wanted.
        reduce: Gets ``weights[head, row, key]`` in float32, and gives an array whose second
            axis is the row.

    Attributes:
        kept: What ``reduce`` gave, by layer, chunk after chunk.
    """

    def __init__(self, rows: RowRange, reduce: Callable[[Tensor], Tensor]) -> None:
        self.wanted = rows
        self.reduce = reduce
        self.kept: dict[int, list[Tensor]] = {}

    def wanted_rows(self, layer: int) -> RowRange | None:
        """The same rows of every layer."""
        return self.wanted

    def rows(self, layer: int, row_start: int, weights: Float[Tensor, "trace head row key"]) -> None:
        """Reduce a chunk of rows.

        Raises:
            NonFiniteError: If a weight is NaN or infinite.
        """
        exact = weights[0].float()
        if not bool(torch.isfinite(exact.sum())):
            raise NonFiniteError(f"the attention of layer {layer} holds NaN or infinity")
        self.kept.setdefault(layer, []).append(self.reduce(exact).cpu())

    def values(self, layer: int, value: Float[Tensor, "trace kv_head key channel"]) -> None:
        """Value vectors play no part."""

    def stacked(self) -> np.ndarray:
        """``[layer, head, row, …]`` of all layers in order."""
        layers = [torch.cat(self.kept[layer], dim=1).numpy() for layer in sorted(self.kept)]
        n_rows = self.wanted.stop - self.wanted.start
        assert all(layer.shape[1] == n_rows for layer in layers), "every row is seen once"
        return np.stack(layers)


def run_observed(
    model: Any, token_ids: Integer[np.ndarray, "token"], observer: AttentionObserver
) -> DeferredPass:
    """One teacher-forced pass over a sequence with its attention shown to ``observer``.

    Returns:
        The pass, whose logits can be asked for.
    """
    device = next(model.parameters()).device
    tokens: Int[Tensor, "1 token"] = torch.from_numpy(token_ids.astype(np.int64))[None].to(device)
    # found by a pass of its own, whose attention must not be observed
    body = body_below_head(model)
    given = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "position_ids": torch.arange(tokens.shape[1], device=device)[None],
    }
    with torch.inference_mode(), capturing(model, observer):
        return DeferredPass(model, body, **given, use_cache=False)
