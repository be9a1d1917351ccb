"""Capture of attention inside the forward pass.

A function registered with transformers' ``AttentionInterface`` runs the model's own eager
attention on chunks of query rows and hands each chunk's weights to an observer, so that the
complete ``layer x head x query x key`` tensor never exists. A chunk sees only the keys up to its
last row. Where few rows are wanted, or none of a layer, the output comes from the model's fast
kernel and only the wanted rows are computed.

The matching mask is registered under the same name: without it transformers passes no mask at
all, and attention silently looks at the future. Transformers would build one ``row x key`` mask
for the whole sequence; here it gets a placeholder that carries how to build it, so that at long
contexts no whole mask ever exists. Models that are not on the interface are captured by hooks
(:mod:`graphhalu.extract.hooks`).
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from math import isqrt, prod
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from graphhalu.core.axes import RowRange
from graphhalu.core.errors import ModelRefusedError
from graphhalu.extract.hooks import (
    AttentionObserver,
    attention_hooks,
    find_attention_modules,
    values_are_read,
)
from graphhalu.extract.settings import GPU_CHUNK_BYTES
from graphhalu.models.attention import attention_implementation, is_on_interface

CAPTURE_NAME: Final = "graphhalu_capture"
CHUNK_BYTES: Final = 8 * 2**20
"""Attention weights (float32) that exist at a time on a CPU: enough to keep the cores busy, and little
enough that they are still in the cache when they are reduced. Masks of all chunks together are kept
for the next layers if they are no larger than this."""


_Attend = Callable[..., tuple[Tensor, Tensor]]
_Capture = tuple[AttentionObserver, int | None, str, _Attend | None]
"""Who observes, query rows at a time, the fast attention of the model, and how one row attends."""

_ACTIVE: ContextVar[_Capture | None] = ContextVar("graphhalu_capture", default=None)
_ATTENTION: WeakKeyDictionary[nn.Module, tuple[tuple[nn.Module, ...], int]] = WeakKeyDictionary()


@contextmanager
def capturing(
    model: Any, observer: AttentionObserver, *, row_chunk: int | None = None, one_row: _Attend | None = None
) -> Iterator[None]:
    """Run the model with its attention handed to ``observer``, then restore what was set.

    Args:
        model: A causal language model of transformers.
        observer: Receives every layer's weights and values.
        row_chunk: Query rows that are computed at a time; by default as many as fit
            ``CHUNK_BYTES``.
        one_row: Attention of a pass of one row a sequence; by default the model's own eager one.

    Raises:
        ModelRefusedError: If the attention of this model cannot be had at all.
    """
    if not is_on_interface(model):
        with attention_hooks(model, *_attention_modules(model), observer):
            yield
        return
    AttentionInterface.register(CAPTURE_NAME, capture_attention)
    AttentionMaskInterface.register(CAPTURE_NAME, mask_placeholder)
    before = attention_implementation(model)
    model.set_attn_implementation(CAPTURE_NAME)
    token = _ACTIVE.set((observer, row_chunk, before, one_row))
    try:
        if attention_implementation(model) != CAPTURE_NAME:
            raise ModelRefusedError(f"{type(model).__name__} does not take an attention function of its own")
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
    return (
        f"{type(model).__name__} is not on transformers' attention interface: its whole attention "
        f"of one layer is in memory at a time"
        + ("" if reads_values(model) else ", and its value norms are not stored")
        + ("" if model.dtype == torch.float32 else f"; rows of {model.dtype} sum to 1 within 0.004 only")
    )


def reads_values(model: Any) -> bool:
    """Whether value vectors can be had from this model."""
    return is_on_interface(model) or values_are_read(_attention_modules(model)[0])


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
    observer, row_chunk, fast, one_row = capture
    layer: int = module.layer_idx  # type: ignore[assignment]
    recipe = recipe_of(attention_mask, type(module).__name__)

    # tokens that a cache holds come before the rows
    rows = RowRange(key.shape[2] - query.shape[2], key.shape[2])

    def of_rows(start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Output and weights of some rows; in float32, since rows of half precision sum to 1 ± 0.004."""
        eager = own_eager_attention(module) if one_row is None or query.shape[2] > 1 else one_row
        mask = recipe.rows(start, stop).to(query.device)
        queries = query[:, :, start - rows.start : stop - rows.start].float()
        keys, values = key[:, :, :stop].float(), value[:, :, :stop].float()
        output, weights = eager(module, queries, keys, values, mask, **settings)
        return output.to(query.dtype), weights

    observer.values(layer, value)
    wanted = observer.wanted_rows(layer) or RowRange(rows.start, rows.start)
    if fast == "eager" or 2 * (wanted.stop - wanted.start) > rows.stop - rows.start:
        outputs = []
        for start, stop in row_chunks(rows, query, row_chunk):
            output, weights = of_rows(start, stop)
            first, last = max(wanted.start, start), min(wanted.stop, stop)
            if first < last:
                observer.rows(layer, first, weights[:, :, first - start : last - start])
            outputs.append(output)
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)), None
    for start, stop in row_chunks(wanted, query, row_chunk):
        observer.rows(layer, start, of_rows(start, stop)[1])
    attend = ALL_ATTENTION_FUNCTIONS[fast]
    whole = recipe.whole(fast)
    whole = whole.to(query.device) if whole is not None else None
    return attend(module, query, key, value, whole, **settings)[0], None


def row_chunks(rows: RowRange, query: Tensor, row_chunk: int | None) -> Iterator[RowRange]:
    """Chunks of rows whose weights fit ``CHUNK_BYTES``; a chunk up to row ``r`` sees ``r`` keys."""
    budget = _chunk_bytes(query) // (4 * query.shape[0] * query.shape[1])
    start = rows.start
    while start < rows.stop:
        # the n that solves n * (start + n) = budget
        size = row_chunk or max(1, int((isqrt(start * start + 4 * budget) - start) // 2))
        stop = min(start + size, rows.stop)
        yield RowRange(start, stop)
        start = stop


def _chunk_bytes(near: Tensor) -> int:
    return CHUNK_BYTES if near.device.type == "cpu" else GPU_CHUNK_BYTES


def own_eager_attention(module: nn.Module) -> _Attend:
    """The eager attention function of the file that defines this attention module.

    Raises:
        ModelRefusedError: If that file has none.
    """
    source = sys.modules[type(module).__module__]
    eager: Any = getattr(source, "eager_attention_forward", None)
    if eager is None:
        raise ModelRefusedError(f"{source.__name__} has no eager attention to capture from")
    return eager


@dataclass(frozen=True)
class MaskRecipe:
    """Arguments from which transformers builds a mask.

    Attributes:
        arguments: What the mask function was called with.
    """

    arguments: Mapping[str, Any]
    _chunks: dict[tuple[int, int], Tensor] = field(default_factory=dict, repr=False)
    _whole: dict[str, Tensor | None] = field(default_factory=dict, repr=False)

    def rows(self, start: int, stop: int) -> Float[Tensor, "trace 1 row key"]:
        """The additive mask of rows ``start … stop - 1`` for the keys ``0 … stop - 1``."""
        if (start, stop) in self._chunks:
            return self._chunks[start, stop]
        padding = self.arguments.get("attention_mask")
        changed = {
            "q_offset": start,
            "q_length": stop - start,
            "kv_length": stop,
            "attention_mask": padding[:, :stop] if isinstance(padding, Tensor) else padding,
        }
        mask: Tensor = ALL_MASK_ATTENTION_FUNCTIONS["eager"](**{**self.arguments, **changed})
        # a row of padding sees no key: its weights would be NaN where scores fall below the format's least
        mask = mask.masked_fill((mask < 0).all(dim=-1, keepdim=True), 0.0)
        sizes = (int(self.arguments[name]) for name in ("batch_size", "q_length", "kv_length"))
        if mask.element_size() * prod(sizes) <= _chunk_bytes(mask):
            self._chunks[start, stop] = mask
        return mask

    def whole(self, implementation: str) -> Tensor | None:
        """The mask of all rows as an attention implementation of transformers wants it."""
        if implementation not in self._whole:
            build = ALL_MASK_ATTENTION_FUNCTIONS[implementation]
            self._whole[implementation] = build(**self.arguments)
        return self._whole[implementation]


def mask_placeholder(*args: Any, **arguments: Any) -> Tensor:
    """The mask function of the capture name: a tensor without content that carries the recipe."""
    assert not args, "transformers gives masks their arguments by name"
    mask = torch.empty(0)
    mask.recipe = MaskRecipe(arguments)  # type: ignore[attr-defined]
    # a model spread over devices moves what it hands on, and a copy would carry no recipe
    mask.to = lambda *_, **__: mask  # type: ignore[method-assign]
    return mask


def recipe_of(mask: Tensor | None, kind: str) -> MaskRecipe:
    """The recipe that a model passed on as its mask.

    Raises:
        ModelRefusedError: If the model passes on something else than it was given.
    """
    recipe = getattr(mask, "recipe", None)
    if not isinstance(recipe, MaskRecipe):
        raise ModelRefusedError(f"{kind} changes the attention mask before it attends")
    return recipe


def _attention_modules(model: Any) -> tuple[tuple[nn.Module, ...], int]:
    if model not in _ATTENTION:
        _ATTENTION[model] = find_attention_modules(model)
    return _ATTENTION[model]
