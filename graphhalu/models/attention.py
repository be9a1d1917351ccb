"""Attention of a model: its implementation, and the sizes that the configuration states."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from graphhalu.core.errors import ModelRefusedError


def attention_implementation(model: Any) -> str:
    """Name of the attention implementation of the model now (``sdpa``, ``eager`` …)."""
    return str(model.config._attn_implementation)  # noqa: SLF001


def is_on_interface(model: Any) -> bool:
    """Whether the model's attention runs through transformers' attention interface."""
    return bool(model._can_set_attn_implementation())  # noqa: SLF001


@contextmanager
def replaced(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Let a module, of torch or of Python, call another function by this name, then restore what it had."""
    before = vars(owner).get(name)
    vars(owner)[name] = function
    try:
        yield
    finally:
        del vars(owner)[name]
        if before is not None:
            vars(owner)[name] = before


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


def model_shape(config: Any, name: str) -> dict[str, Any]:
    """The sizes that a configuration states, as fields of :class:`graphhalu.models.load.LoadedModel`.

    Raises:
        ModelRefusedError: If it states no layers or heads, or heads that differ by layer.
    """
    text = config.get_text_config()
    fields = {"n_layers": "num_hidden_layers", "n_heads": "num_attention_heads", "hidden_size": "hidden_size"}
    sizes = {name: getattr(text, field, None) for name, field in fields.items()}
    if not all(isinstance(size, int) for size in sizes.values()):
        raise ModelRefusedError(
            f"{name} ({config.model_type}) does not have one number of heads for all its layers, "
            f"which attention[layer, head, query, key] needs"
        )
    limit = getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None)
    return {
        **sizes,
        "n_kv_heads": _n_kv_heads(text, text.num_attention_heads),
        "layer_windows": layer_windows(config),
        "max_positions": limit,
    }


def layer_windows(config: Any) -> tuple[int | None, ...]:
    """Sliding window of each layer, itself included, or ``None`` where a row sees all keys."""
    text = config.get_text_config()
    local = getattr(text, "attention_layers", None)
    if local is not None:  # gpt_neo
        return tuple(text.window_size if kind == "local" else None for kind in local)
    window = getattr(text, "sliding_window", None)
    if not window or getattr(text, "use_sliding_window", True) is False:
        return (None,) * text.num_hidden_layers
    kinds = getattr(text, "layer_types", None)
    if kinds is None:
        return (int(window),) * text.num_hidden_layers
    return tuple(int(window) if kind == "sliding_attention" else None for kind in kinds)


def _n_kv_heads(text: Any, n_heads: int) -> int:
    if getattr(text, "multi_query", False) and not getattr(text, "new_decoder_architecture", False):
        return 1
    stated = getattr(text, "num_key_value_heads", None) or getattr(text, "num_kv_heads", None)
    return int(stated or n_heads)
