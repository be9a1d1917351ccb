"""Capture of attention inside the forward pass.

A function registered with transformers' ``AttentionInterface`` runs the model's own eager
attention on chunks of query rows and hands each chunk's weights to an observer, so that the
complete ``layer x head x query x key`` tensor never exists. The matching mask is registered
under the same name: without it transformers passes no mask at all, and attention silently looks
at the future.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from graphhalu.errors import ModelRefusedError

CAPTURE_NAME: Final = "graphhalu_capture"


@runtime_checkable
class AttentionObserver(Protocol):
    """What receives attention weights while the model runs."""

    def rows(
        self, layer: int, row_start: int, weights: Float[Tensor, "trace head row key"]
    ) -> None:
        """Take the weights of query rows ``row_start …`` of one layer."""

    def values(self, layer: int, value: Float[Tensor, "trace kv_head key channel"]) -> None:
        """Take the value vectors of one layer."""


@dataclass(frozen=True)
class _Capture:
    observer: AttentionObserver
    row_chunk: int


_ACTIVE: ContextVar[_Capture | None] = ContextVar("graphhalu_capture", default=None)


@contextmanager
def capturing(model: Any, observer: AttentionObserver, *, row_chunk: int) -> Iterator[None]:
    """Run the model with its attention handed to ``observer``, then restore what was set.

    Args:
        model: A transformers model on the attention interface.
        observer: Receives every layer's weights and values.
        row_chunk: Query rows that are computed at a time.

    Raises:
        ModelRefusedError: If the model does not take the capture function.
    """
    register_capture()
    before = model.config._attn_implementation  # noqa: SLF001
    model.set_attn_implementation(CAPTURE_NAME)
    if model.config._attn_implementation != CAPTURE_NAME:  # noqa: SLF001
        message = f"{type(model).__name__} does not take an attention function of its own"
        raise ModelRefusedError(message)
    token = _ACTIVE.set(_Capture(observer, row_chunk))
    try:
        yield
    finally:
        _ACTIVE.reset(token)
        model.set_attn_implementation(before)


def register_capture() -> None:
    """Register the capture function together with the causal mask that it needs."""
    AttentionInterface.register(CAPTURE_NAME, capture_attention)
    AttentionMaskInterface.register(CAPTURE_NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])


def capture_attention(
    module: nn.Module,
    query: Float[Tensor, "trace head row channel"],
    key: Float[Tensor, "trace kv_head key channel"],
    value: Float[Tensor, "trace kv_head key value_channel"],
    attention_mask: Tensor | None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """The model's own eager attention by chunks of query rows, each chunk shown and let go.

    The arguments are those of transformers' attention functions; softcap, learned sinks and
    grouped heads come out right because the model's own code computes them.
    """
    eager = own_eager_attention(module)
    capture = _ACTIVE.get()
    if capture is None:
        return eager(module, query, key, value, attention_mask, **settings)[0], None
    layer: int = module.layer_idx  # type: ignore[assignment]
    n_rows = query.shape[2]
    capture.observer.values(layer, value)
    outputs = []
    for start in range(0, n_rows, capture.row_chunk):
        stop = min(start + capture.row_chunk, n_rows)
        mask = None if attention_mask is None else attention_mask[..., start:stop, :]
        output, weights = eager(module, query[:, :, start:stop], key, value, mask, **settings)
        capture.observer.rows(layer, start, weights)
        outputs.append(output)
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)), None


def own_eager_attention(module: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
    """The eager attention function of the file that defines this attention module.

    Raises:
        ModelRefusedError: If that file has none.
    """
    source = sys.modules[type(module).__module__]
    eager: Callable[..., tuple[Tensor, Tensor]] | None = getattr(
        source, "eager_attention_forward", None
    )
    if eager is None:
        message = f"{source.__name__} has no eager attention to capture from"
        raise ModelRefusedError(message)
    return eager
