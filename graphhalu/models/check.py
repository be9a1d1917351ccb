"""The self-check at load: is this attention what the other rooms take it for?"""

from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from graphhalu.axes import ROW_SUM_TOLERANCE
from graphhalu.errors import ModelRefusedError, NonFiniteError
from graphhalu.models.load import LoadedModel

_N_TOKENS: Final = 12
_TOLERANCES: Final = {
    torch.float32: ROW_SUM_TOLERANCE, torch.float16: 5e-3, torch.bfloat16: 3e-2,
}  # fmt: skip


@dataclass(frozen=True)
class ModelCheck:
    """What the self-check measured.

    Attributes:
        largest_future: Largest weight above the diagonal; 0 for a causal model.
        largest_row_error: Largest distance of a row's sum from 1.
        has_learned_sink: Whether rows sum to less than 1 because a learned sink takes the rest.
        logit_change: Change of the logits when a token is hidden from attention.
    """

    largest_future: float
    largest_row_error: float
    has_learned_sink: bool
    logit_change: float


@torch.inference_mode()
def check_model(loaded: LoadedModel) -> ModelCheck:
    """Check on a few tokens that attention is causal, sums to 1, and matters.

    Raises:
        ModelRefusedError: If the attention is not what graphhalu reads.
        NonFiniteError: If the model gives NaN or infinity; names the layer.
    """
    model = loaded.model
    tokens = torch.arange(3, 3 + _N_TOKENS, device=model.device)[None] % model.vocab_size
    output = _eager(model, tokens, torch.ones_like(tokens))
    if not output.attentions or output.attentions[0] is None:
        message = f"{loaded.spec.name} ({type(model).__name__}) gives no attention weights"
        raise ModelRefusedError(message)
    _require_finite(output, loaded.spec.name)
    weights = torch.stack([layer[0].float().cpu() for layer in output.attentions])
    sums = weights.sum(-1)
    has_sink = any(name.endswith("sinks") for name, _ in model.named_parameters())
    hidden = torch.ones_like(tokens)
    hidden[0, 1] = 0
    changed = _eager(model, tokens, hidden).logits[0, -1].float()
    check = ModelCheck(
        largest_future=float(torch.triu(weights, diagonal=1).max()),
        largest_row_error=float(((sums - 1).clamp(min=0) if has_sink else (sums - 1).abs()).max()),
        has_learned_sink=has_sink,
        logit_change=float((changed - output.logits[0, -1].float()).abs().max()),
    )
    _require_sound(check, loaded.spec.name, _TOLERANCES.get(model.dtype, 3e-2))
    return check


def _require_sound(check: ModelCheck, name: str, tolerance: float) -> None:
    if check.largest_future > 0:
        message = (
            f"the attention of {name} looks at the future: a weight of "
            f"{check.largest_future:.2g} lies above the diagonal"
        )
        raise ModelRefusedError(message)
    if check.largest_row_error > tolerance:
        message = (
            f"the attention rows of {name} do not sum to 1: off by {check.largest_row_error:.2g}, "
            f"allowed {tolerance:g}"
        )
        raise ModelRefusedError(message)
    if check.logit_change == 0:
        message = f"hiding a token from the attention of {name} does not change its logits"
        raise ModelRefusedError(message)


def _eager(model: Any, tokens: Tensor, mask: Tensor) -> Any:
    before = model.config._attn_implementation  # noqa: SLF001
    if before != "eager":
        model.set_attn_implementation("eager")
    try:
        return model(input_ids=tokens, attention_mask=mask, output_attentions=True, use_cache=False)
    finally:
        if before != "eager":
            model.set_attn_implementation(before)


def _require_finite(output: Any, name: str) -> None:
    for layer, weights in enumerate(output.attentions):
        if not _is_finite(weights):
            message = f"the attention of layer {layer} of {name} holds NaN or infinity"
            raise NonFiniteError(message)
    if not _is_finite(output.logits):
        message = f"the logits of {name} hold NaN or infinity"
        raise NonFiniteError(message)


def _is_finite(values: Float[Tensor, "..."]) -> bool:
    return bool(torch.isfinite(values).all())
