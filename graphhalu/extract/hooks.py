"""Capture by hooks, for models that are not on transformers' attention interface.

Such a model computes its own eager attention. A hook on each attention module takes the weights
as they come out and puts ``None`` in their place, so that one layer's are in memory at a time.
Which modules those are is found by trying, not by name.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from graphhalu.errors import ModelRefusedError
from graphhalu.extract.observer import AttentionObserver
from graphhalu.models.attention import eager_attention

_N_PROBE: Final = 5
"""Tokens of the trial; a prime that is no number of heads in use."""

_WEIGHT_DIMS: Final = 4


@dataclass(frozen=True)
class AttentionTaps:
    """Where a model's attention can be taken.

    Attributes:
        modules: The attention module of each layer, in order.
        place: Where its output holds the weights.
    """

    modules: tuple[nn.Module, ...]
    place: int

    @property
    def reads_values(self) -> bool:
        """Whether the value vectors of these modules can be taken too."""
        return all(type(module).__name__ in _VALUE_TAPS for module in self.modules)


@torch.inference_mode()
def find_taps(model: Any) -> AttentionTaps:
    """Find the modules that give attention weights, by one pass over a few tokens.

    Raises:
        ModelRefusedError: If not every layer gives weights of all heads.
    """
    found: dict[int, tuple[nn.Module, int, Tensor]] = {}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        for place, value in enumerate(output if isinstance(output, tuple) else ()):
            if _are_weights(value):
                # a module around it returns the same tensor later, and is not noted
                found.setdefault(id(value), (module, place, value))

    device = next(model.parameters()).device
    tokens = torch.arange(1, _N_PROBE + 1, device=device)[None]
    handles = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with eager_attention(model):
            model(
                input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False,
                output_attentions=True,
            )  # fmt: skip
    finally:
        for handle in handles:
            handle.remove()
    n_layers = model.config.get_text_config().num_hidden_layers
    places = {place for _, place, _ in found.values()}
    if len(found) != n_layers or len(places) != 1:
        message = (
            f"{type(model).__name__} gives attention weights in {len(found)} places and has "
            f"{n_layers} layers; graphhalu needs those of every layer"
        )
        raise ModelRefusedError(message)
    return AttentionTaps(tuple(module for module, _, _ in found.values()), places.pop())


@contextmanager
def tapping(model: Any, taps: AttentionTaps, observer: AttentionObserver) -> Iterator[None]:
    """Run the model with the weights of each layer handed to ``observer``."""
    with ExitStack() as stack:

        def ask_for_weights(_: nn.Module, args: Any, settings: Any) -> Any:
            return args, {**settings, "output_attentions": True}

        stack.enter_context(eager_attention(model))
        asking = model.register_forward_pre_hook(ask_for_weights, with_kwargs=True)
        stack.callback(asking.remove)
        for layer, module in enumerate(taps.modules):
            hook = module.register_forward_hook(_take_weights(layer, taps.place, observer))
            stack.callback(hook.remove)
            if taps.reads_values:
                stack.enter_context(_tap_values(module, layer, observer))
        yield


def _take_weights(layer: int, place: int, observer: AttentionObserver) -> Callable[..., Any]:
    def take(_: nn.Module, __: Any, output: Any) -> Any:
        wanted = observer.wanted_rows(layer)
        if wanted is not None:
            weights = output[place][:, :, wanted.start : wanted.stop]
            observer.rows(layer, wanted.start, weights)
        return (*output[:place], None, *output[place + 1 :])

    return take


def _are_weights(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.dim() == _WEIGHT_DIMS
        and value.shape[0] == 1
        and value.shape[2:] == (_N_PROBE, _N_PROBE)
    )


def _of_attn(module: nn.Module, take: Callable[[Tensor], None]) -> tuple[str, Callable[..., Any]]:
    """GPT-J, GPT-Neo: the value is the third argument of ``_attn``."""
    inner: Callable[..., Any] = module._attn  # type: ignore[assignment]  # noqa: SLF001

    def attn(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **settings: Any) -> Any:
        take(value)
        return inner(query, key, value, *rest, **settings)

    return "_attn", attn


def _of_reshape(
    module: nn.Module, take: Callable[[Tensor], None]
) -> tuple[str, Callable[..., Any]]:
    """BLOOM: ``_reshape`` splits the fused projection, heads first."""
    inner: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]] = module._reshape  # type: ignore[assignment]  # noqa: SLF001

    def reshape(fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = inner(fused)
        take(parts[2])
        return parts

    return "_reshape", reshape


def _of_split_heads(
    module: nn.Module, take: Callable[[Tensor], None]
) -> tuple[str, Callable[..., Any]]:
    """Falcon: ``_split_heads`` gives ``token, head``, and grouped heads repeated."""
    inner: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]] = module._split_heads  # type: ignore[assignment]  # noqa: SLF001

    def split_heads(fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = inner(fused)
        n_repeated = 1
        if getattr(module, "new_decoder_architecture", False):
            n_repeated = module.num_heads // module.num_kv_heads  # type: ignore[operator, assignment]
        take(parts[2].transpose(1, 2)[:, ::n_repeated])
        return parts

    return "_split_heads", split_heads


def _of_fused_projection(
    module: nn.Module, take: Callable[[Tensor], None]
) -> tuple[str, Callable[..., Any]]:
    """MPT: the last third of ``Wqkv``, clipped as the module clips it."""
    projection: nn.Module = module.Wqkv  # type: ignore[assignment]
    n_heads: int = module.n_heads  # type: ignore[assignment]
    bound: float | None = module.clip_qkv  # type: ignore[assignment]

    def project(states: Tensor) -> Tensor:
        fused: Tensor = projection.forward(states)
        value = fused.chunk(3, dim=2)[2]
        if bound:
            value = value.clamp(min=-bound, max=bound)
        take(value.reshape(*value.shape[:2], n_heads, -1).transpose(1, 2))
        return fused

    return "Wqkv", project


_VALUE_TAPS: Final[dict[str, Callable[..., tuple[str, Callable[..., Any]]]]] = {
    "GPTJAttention": _of_attn,
    "GPTNeoSelfAttention": _of_attn,
    "BloomAttention": _of_reshape,
    "FalconAttention": _of_split_heads,
    "MptAttention": _of_fused_projection,
}
"""How to take the value vectors of an attention module, by its class."""


@contextmanager
def _tap_values(module: nn.Module, layer: int, observer: AttentionObserver) -> Iterator[None]:
    def take(value: Tensor) -> None:
        observer.values(layer, value)

    name, replacement = _VALUE_TAPS[type(module).__name__](module, take)
    replaced = module._modules.pop(name, None)  # noqa: SLF001
    module.__dict__[name] = replacement
    try:
        yield
    finally:
        del module.__dict__[name]
        if replaced is not None:
            module._modules[name] = replaced  # noqa: SLF001
