"""Capture of attention inside the forward pass.

A function registered with transformers' ``AttentionInterface`` runs the model's own eager
attention on chunks of query rows and hands each chunk's weights to an observer, so that the
complete ``layer x head x query x key`` tensor never exists. A chunk sees only the keys up to its
last row. Where few rows are wanted, or none of a layer, the output comes from the model's fast
kernel and only the wanted rows are computed.

The matching mask is registered under the same name: without it transformers passes no mask at
all, and attention silently looks at the future. Models that are not on the interface are
captured by hooks (:mod:`graphhalu.extract.hooks`).
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import isqrt
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from graphhalu.axes import RowRange
from graphhalu.errors import ModelRefusedError
from graphhalu.extract.hooks import AttentionTaps, find_taps, tapping
from graphhalu.extract.masks import MaskRecipe, recipe_of, stand_in
from graphhalu.extract.observer import AttentionObserver
from graphhalu.models.attention import attention_implementation, is_on_interface

CAPTURE_NAME: Final = "graphhalu_capture"
CHUNK_BYTES: Final = 8 * 2**20
"""Attention weights (float32) that exist at a time: enough to keep the cores busy, and little
enough that they are still in the cache when they are reduced."""


@dataclass(frozen=True)
class _Capture:
    observer: AttentionObserver
    row_chunk: int | None
    fast: str


_ACTIVE: ContextVar[_Capture | None] = ContextVar("graphhalu_capture", default=None)
_TAPS: WeakKeyDictionary[nn.Module, AttentionTaps] = WeakKeyDictionary()


@contextmanager
def capturing(
    model: Any, observer: AttentionObserver, *, row_chunk: int | None = None
) -> Iterator[None]:
    """Run the model with its attention handed to ``observer``, then restore what was set.

    Args:
        model: A causal language model of transformers.
        observer: Receives every layer's weights and values.
        row_chunk: Query rows that are computed at a time; by default as many as fit
            ``CHUNK_BYTES``.

    Raises:
        ModelRefusedError: If the attention of this model cannot be had at all.
    """
    if not is_on_interface(model):
        with tapping(model, _taps(model), observer):
            yield
        return
    register_capture()
    before = attention_implementation(model)
    model.set_attn_implementation(CAPTURE_NAME)
    token = _ACTIVE.set(_Capture(observer, row_chunk, before))
    try:
        if attention_implementation(model) != CAPTURE_NAME:
            message = f"{type(model).__name__} does not take an attention function of its own"
            raise ModelRefusedError(message)
        yield
    finally:
        _ACTIVE.reset(token)
        model.set_attn_implementation(before)


def capture_note(model: Any) -> str | None:
    """What a user should know of how this model is captured, or ``None`` if it is streamed.

    Raises:
        ModelRefusedError: If its attention cannot be had.
    """
    if is_on_interface(model):
        return None
    reads_values = _taps(model).reads_values
    return (
        f"{type(model).__name__} is not on transformers' attention interface: its whole attention "
        f"of one layer is in memory at a time"
        + ("" if reads_values else ", and its value norms are not stored")
    )


def reads_values(model: Any) -> bool:
    """Whether value vectors can be had from this model."""
    return is_on_interface(model) or _taps(model).reads_values


def register_capture() -> None:
    """Register the capture function together with the causal mask that it needs."""
    AttentionInterface.register(CAPTURE_NAME, capture_attention)
    AttentionMaskInterface.register(CAPTURE_NAME, stand_in)


def capture_attention(
    module: nn.Module,
    query: Float[Tensor, "trace head row channel"],
    key: Float[Tensor, "trace kv_head key channel"],
    value: Float[Tensor, "trace kv_head key value_channel"],
    attention_mask: Tensor | None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """The model's own attention, its weights shown in chunks of rows and let go.

    The arguments are those of transformers' attention functions; softcap, learned sinks and
    grouped heads come out right because the model's own code computes them.
    """
    capture = _ACTIVE.get()
    assert capture is not None, "the capture function runs inside capturing() only"
    layer: int = module.layer_idx  # type: ignore[assignment]
    recipe = recipe_of(attention_mask, type(module).__name__)
    capture.observer.values(layer, value)
    wanted = capture.observer.wanted_rows(layer) or RowRange(0, 0)
    call = _Call(module, query, key, value, recipe, settings)
    n_rows = query.shape[2]
    if capture.fast == "eager" or 2 * (wanted.stop - wanted.start) > n_rows:
        outputs = []
        for start, stop in _chunks(RowRange(0, n_rows), query, capture.row_chunk):
            output, weights = call.rows(start, stop)
            _show(capture.observer, layer, wanted, start, weights)
            outputs.append(output)
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)), None
    for start, stop in _chunks(wanted, query, capture.row_chunk):
        capture.observer.rows(layer, start, call.rows(start, stop)[1])
    return call.whole(capture.fast), None


@dataclass(frozen=True)
class _Call:
    """One call of an attention function, of which rows can be computed apart."""

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    recipe: MaskRecipe
    settings: dict[str, Any]

    def rows(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Output and weights of some rows, by the model's own eager attention."""
        return own_eager_attention(self.module)(
            self.module, self.query[:, :, start:stop],
            self.key[:, :, :stop], self.value[:, :, :stop],
            self.recipe.rows(start, stop), **self.settings,
        )  # fmt: skip

    def whole(self, implementation: str) -> Tensor:
        """Output of all rows, by a fast kernel."""
        attend = ALL_ATTENTION_FUNCTIONS[implementation]
        mask = self.recipe.whole(implementation)
        output: Tensor = attend(
            self.module, self.query, self.key, self.value, mask, **self.settings
        )[0]
        return output


def _show(
    observer: AttentionObserver, layer: int, wanted: RowRange, start: int, weights: Tensor
) -> None:
    first, stop = max(wanted.start, start), min(wanted.stop, start + weights.shape[2])
    if first < stop:
        observer.rows(layer, first, weights[:, :, first - start : stop - start])


def _chunks(rows: RowRange, query: Tensor, row_chunk: int | None) -> Iterator[RowRange]:
    """Chunks of rows whose weights fit ``CHUNK_BYTES``; a chunk up to row ``r`` sees ``r`` keys."""
    budget = CHUNK_BYTES // (4 * query.shape[0] * query.shape[1])
    start = rows.start
    while start < rows.stop:
        # the n that solves n * (start + n) = budget
        size = row_chunk or max(1, int((isqrt(start * start + 4 * budget) - start) // 2))
        stop = min(start + size, rows.stop)
        yield RowRange(start, stop)
        start = stop


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


def _taps(model: Any) -> AttentionTaps:
    if model not in _TAPS:
        _TAPS[model] = find_taps(model)
    return _TAPS[model]
