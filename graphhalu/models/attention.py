"""Which attention a model computes, and how to have its eager one for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def attention_implementation(model: Any) -> str:
    """How the model computes attention now (``sdpa``, ``eager`` …)."""
    return str(model.config._attn_implementation)  # noqa: SLF001


def is_on_interface(model: Any) -> bool:
    """Whether the model's attention runs through transformers' attention interface."""
    return bool(model._can_set_attn_implementation())  # noqa: SLF001


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Let the model compute attention by its eager code, then restore what was set.

    Models off the interface read their configuration in every pass. Falcon, asked for attention
    weights under ``sdpa``, computes them without the causal mask, and says nothing.
    """
    before = attention_implementation(model)
    _set(model, "eager")
    try:
        yield
    finally:
        _set(model, before)


def _set(model: Any, implementation: str) -> None:
    if is_on_interface(model):
        model.set_attn_implementation(implementation)
    else:
        model.config._attn_implementation = implementation  # noqa: SLF001
