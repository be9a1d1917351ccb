"""A model without some of its heads.

A head's contribution is its slice of what goes into the output projection of its attention. The
slice is set to zero, so the head is gone and all others are as they were. Setting attention
logits to zero instead would leave a uniform head, and one that sees the future.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from graphhalu.errors import ModelRefusedError, UsageError
from graphhalu.extract.hooks import find_attention_modules
from graphhalu.heads.select import HeadMask
from graphhalu.models.attention import eager_attention

_N_PROBE = 5


class Drawn(NamedTuple):
    """Random heads to compare with.

    Attributes:
        mask: As many heads as were chosen, from the same layers.
        n_elsewhere: How many come from other layers, since theirs has too few others.
    """

    mask: HeadMask
    n_elsewhere: int


@contextmanager
def ablating(model: Any, mask: HeadMask) -> Iterator[None]:
    """Run the model without some heads, then with them again.

    Args:
        model: A causal language model of transformers.
        mask: The heads to leave out; its layers are those of the model.

    Raises:
        UsageError: If the mask does not fit the model.
        ModelRefusedError: If the output projections cannot be found.
    """
    projections = output_projections(model)
    n_heads = _n_heads(model)
    if mask.is_chosen.shape[1] != n_heads or not set(mask.layers) <= set(range(len(projections))):
        message = (
            f"the mask is of {len(mask.layers)} layers of {mask.is_chosen.shape[1]} heads, the "
            f"model has {len(projections)} layers of {n_heads} heads"
        )
        raise UsageError(message)
    with ExitStack() as stack:
        for layer, chosen in zip(mask.layers, mask.is_chosen, strict=True):
            if chosen.any():
                hook = projections[layer].register_forward_pre_hook(_without(chosen))
                stack.callback(hook.remove)
        yield


def output_projections(model: Any) -> tuple[nn.Module, ...]:
    """The output projection of each layer's attention, found by trying, not by name.

    It is the last module with a weight matrix that runs inside the attention module, and what
    goes into it must divide evenly into heads.

    Raises:
        ModelRefusedError: If it is not so in every layer.
    """
    last: dict[int, tuple[nn.Module, int]] = {}
    modules = find_attention_modules(model).modules
    handles = [
        inner.register_forward_hook(_noting(place, last))
        for place, module in enumerate(modules)
        for inner in module.modules()
        if _is_projection(inner)
    ]
    tokens = torch.arange(1, _N_PROBE + 1, device=next(model.parameters()).device)[None]
    try:
        with torch.inference_mode(), eager_attention(model):
            model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    n_heads = _n_heads(model)
    is_found = len(last) == len(modules) and all(
        width % n_heads == 0 for _, width in last.values()
    )
    if not is_found:
        message = (
            f"the output projection of {type(model).__name__} cannot be told apart by head: found "
            f"{len(last)} of {len(modules)} layers, {n_heads} heads"
        )
        raise ModelRefusedError(message)
    return tuple(last[place][0] for place in range(len(modules)))


def random_heads(mask: HeadMask, generator: np.random.Generator) -> Drawn:
    """As many heads of the same layers, drawn among those that are not chosen.

    Where a layer has too few others, the rest comes from the unchosen heads of all layers.

    Raises:
        UsageError: If the model has too few heads that are not chosen.
    """
    if 2 * mask.is_chosen.sum() > mask.is_chosen.size:
        message = (
            f"{mask.is_chosen.sum()} of {mask.is_chosen.size} heads are chosen: there are too few "
            f"others to compare with\n  Choose fewer, with --top-k"
        )
        raise UsageError(message)
    drawn = np.zeros_like(mask.is_chosen)
    for place, chosen in enumerate(mask.is_chosen):
        others = np.flatnonzero(~chosen)
        n_wanted = min(int(chosen.sum()), len(others))
        drawn[place, generator.choice(others, n_wanted, replace=False)] = True
    n_missing = int(mask.is_chosen.sum() - drawn.sum())
    free = np.flatnonzero(~(mask.is_chosen | drawn))
    drawn.flat[generator.choice(free, n_missing, replace=False)] = True
    rule = "random heads of the same layers"
    return Drawn(HeadMask(mask.role, mask.layers, drawn, rule), n_missing)


def _without(chosen: Bool[np.ndarray, "head"]) -> Any:
    keeps = torch.from_numpy(~chosen)

    def cut(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states = args[0]
        by_head: Float[Tensor, "*token head channel"] = states.reshape(
            *states.shape[:-1], len(chosen), -1
        )
        kept = keeps.to(device=states.device, dtype=states.dtype)[:, None]
        return ((by_head * kept).flatten(-2), *args[1:])

    return cut


def _noting(place: int, last: dict[int, tuple[nn.Module, int]]) -> Any:
    def note(module: nn.Module, args: Sequence[Any], _: Any) -> None:
        last[place] = (module, int(args[0].shape[-1]))

    return note


def _is_projection(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() > 1 and not list(module.children())


def _n_heads(model: Any) -> int:
    return int(model.config.get_text_config().num_attention_heads)
