"""Capture by hooks, for models that are not on transformers' attention interface.

Such a model computes its own eager attention. A hook on each attention module takes the weights
as they come out and puts ``None`` in their place, so that one layer's are in memory at a time.
Which modules those are is found by trying, not by name.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, Final, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from graphhalu.core.axes import RowRange
from graphhalu.core.errors import ModelRefusedError
from graphhalu.models.attention import eager_attention, replaced

_N_PROBE: Final = 5
"""Tokens of the trial; a prime that is not a number of heads in use."""

_WEIGHT_DIMS: Final = 4


@runtime_checkable
class AttentionObserver(Protocol):
    """What receives attention weights while the model runs."""

    def wanted_rows(self, layer: int) -> RowRange | None:
        """Which query rows of a layer are wanted; ``None`` = none."""

    def rows(self, layer: int, row_start: int, weights: Float[Tensor, "trace head row key"]) -> None:
        """Take the weights of query rows ``row_start …`` of one layer.

        The keys are ``0 … n - 1`` with at least the last of the rows among them; a row pays
        nothing to the keys behind.
        """

    def values(self, layer: int, value: Float[Tensor, "trace kv_head key channel"]) -> None:
        """Take the value vectors of one layer."""


def values_are_read(modules: Sequence[nn.Module]) -> bool:
    """Whether the value vectors of these attention modules can be taken too."""
    return all(type(module).__name__ in _VALUES for module in modules)


@torch.inference_mode()
def find_attention_modules(model: Any) -> tuple[tuple[nn.Module, ...], int]:
    """Find the modules that give attention weights, by one pass over a few tokens.

    Returns:
        The attention module of each layer in order, and where their outputs hold the weights.

    Raises:
        ModelRefusedError: If not every layer gives weights of all heads.
    """
    found: dict[int, tuple[nn.Module, int, Tensor]] = {}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        for index, value in enumerate(output if isinstance(output, tuple) else ()):
            if _are_weights(value):
                # a module around it returns the same tensor later, and is not noted
                found.setdefault(id(value), (module, index, value))

    device = next(model.parameters()).device
    tokens = torch.arange(1, _N_PROBE + 1, device=device)[None]
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    with ExitStack() as stack:
        stack.enter_context(eager_attention(model))
        for module in model.modules():
            stack.callback(module.register_forward_hook(note).remove)
        model(**inputs, use_cache=False, output_attentions=True)
    n_layers = model.config.get_text_config().num_hidden_layers
    indices = {index for _, index, _ in found.values()}
    if len(found) != n_layers or len(indices) != 1:
        raise ModelRefusedError(
            f"{type(model).__name__} gives attention weights in {len(found)} places and has "
            f"{n_layers} layers; graphhalu needs those of every layer"
        )
    return tuple(module for module, _, _ in found.values()), indices.pop()


@contextmanager
def attention_hooks(
    model: Any, modules: Sequence[nn.Module], output_index: int, observer: AttentionObserver
) -> Iterator[None]:
    """Run the model with the weights of each layer handed to ``observer``.

    Args:
        model: The model.
        modules: The attention module of each layer.
        output_index: Where their outputs hold the weights.
        observer: Receives weights and, where they can be had, values.
    """

    def ask_for_weights(_: nn.Module, args: Any, settings: Any) -> Any:
        return args, {**settings, "output_attentions": True}

    with ExitStack() as stack:
        stack.enter_context(eager_attention(model))
        asking = model.register_forward_pre_hook(ask_for_weights, with_kwargs=True)
        stack.callback(asking.remove)
        for layer, module in enumerate(modules):
            take = partial(_take_weights, layer, output_index, observer)
            stack.callback(module.register_forward_hook(take).remove)
            if values_are_read(modules):
                stack.enter_context(_values_shown(module, layer, observer))
        yield


def _take_weights(
    layer: int, index: int, observer: AttentionObserver, _: nn.Module, __: Any, output: Any
) -> Any:
    wanted = observer.wanted_rows(layer)
    if wanted is not None:
        observer.rows(layer, wanted.start, output[index][:, :, wanted.start : wanted.stop])
    return (*output[:index], None, *output[index + 1 :])


def _are_weights(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.dim() == _WEIGHT_DIMS
        and value.shape[0] == 1
        and value.shape[2:] == (_N_PROBE, _N_PROBE)
    )


def _third_argument(_module: Any, given: Any, _output: Any) -> Tensor:
    """GPT-J, GPT-Neo: the value is the third argument of ``_attn``."""
    return given[2]


def _third_output(_module: Any, _given: Any, output: Any) -> Tensor:
    """BLOOM: ``_reshape`` splits the fused projection, heads first."""
    return output[2]


def _split_heads(module: Any, _given: Any, output: Any) -> Tensor:
    """Falcon: ``_split_heads`` gives ``token, head``, and grouped heads repeated."""
    is_repeated = getattr(module, "new_decoder_architecture", False)
    n_repeated = module.num_heads // module.num_kv_heads if is_repeated else 1
    return output[2].transpose(1, 2)[:, ::n_repeated]


def _fused_projection(module: Any, _given: Any, output: Any) -> Tensor:
    """MPT: the last third of ``Wqkv``, clipped as the module clips it."""
    value: Tensor = output.chunk(3, dim=2)[2]
    if module.clip_qkv:
        value = value.clamp(min=-module.clip_qkv, max=module.clip_qkv)
    return value.reshape(*value.shape[:2], module.n_heads, -1).transpose(1, 2)


_VALUES: Final[dict[str, tuple[str, Callable[[Any, Any, Any], Tensor]]]] = {
    "GPTJAttention": ("_attn", _third_argument),
    "GPTNeoSelfAttention": ("_attn", _third_argument),
    "BloomAttention": ("_reshape", _third_output),
    "FalconAttention": ("_split_heads", _split_heads),
    "MptAttention": ("Wqkv", _fused_projection),
}
"""For each class of attention module what it calls, and where the value vectors are then."""


def _values_shown(module: Any, layer: int, observer: AttentionObserver) -> AbstractContextManager[None]:
    name, read = _VALUES[type(module).__name__]
    inner = getattr(module, name)

    def show(*given: Any, **settings: Any) -> Any:
        output = inner(*given, **settings)
        observer.values(layer, read(module, given, output))
        return output

    return replaced(module, name, show)
