"""Self-check of a loaded model, and of the machine and the packages around it."""

import inspect
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from graphhalu.core.axes import ROW_SUM_TOLERANCE
from graphhalu.core.errors import GraphhaluError, ModelRefusedError, NonFiniteError
from graphhalu.core.provenance import bfloat16_hint, provenance
from graphhalu.models.attention import eager_attention
from graphhalu.models.cards import ModelSpec
from graphhalu.models.gguf import cache_folder
from graphhalu.models.load import LoadedModel, load_model

_log = logging.getLogger(__name__)

_TEXT: Final = "The capital of France is Paris, and the capital of Italy is"
_N_TOKENS: Final = 24
_HIDDEN_TOKEN: Final = -3
"""Near the end, so that it lies inside any sliding window."""

_TOLERANCES: Final = {torch.float32: ROW_SUM_TOLERANCE, torch.float16: 5e-3, torch.bfloat16: 3e-2}


def load_checked(spec: ModelSpec) -> LoadedModel:
    """Load a model and check its attention; raises what :func:`load_model` and :func:`check_model` do."""
    loaded = load_model(spec)
    check_model(loaded)
    return loaded


@torch.inference_mode()
def check_model(loaded: LoadedModel) -> dict[str, Any]:
    """Check on a short text that attention is causal, sums to 1, and matters.

    The model's own eager attention is used; what was set before is restored.

    Returns:
        The largest weight above the diagonal (``largest_future``), 0 for a causal model; the largest
        distance of a row's sum from 1 (``largest_row_error``), with a learned sink by how much a row is
        over 1; whether rows sum to less than 1 because a learned sink takes the rest
        (``has_learned_sink``); and the change of the logits when a token is hidden from attention
        (``logit_change``).

    Raises:
        ModelRefusedError: If the attention is not what graphhalu reads.
        NonFiniteError: If the model gives NaN or infinity; names the layer.
    """
    model = loaded.model
    tokens = _tokens(loaded)
    is_seen = torch.ones_like(tokens, dtype=torch.bool)
    output = _eager(model, tokens, is_seen)
    attentions = _attentions(output, loaded)
    _require_finite(output, attentions, loaded)
    is_seen[0, _HIDDEN_TOKEN] = False
    changed = _eager(model, tokens, is_seen)
    has_sink = any(name.endswith("sinks") for name, _ in model.named_parameters())
    excess = [weights.sum(-1) - 1 for weights in attentions]
    check = {
        "largest_future": max(float(torch.triu(w, diagonal=1).max()) for w in attentions),
        "largest_row_error": max(float((e.clamp(min=0) if has_sink else e.abs()).max()) for e in excess),
        "has_learned_sink": has_sink,
        "logit_change": float((changed.logits[0, -1] - output.logits[0, -1]).float().abs().max()),
    }
    _require_sound(check, loaded.spec.name, _TOLERANCES.get(model.dtype, max(_TOLERANCES.values())))
    return check


def _tokens(loaded: LoadedModel) -> Int[Tensor, "1 token"]:
    token_ids = loaded.tokenizer(_TEXT).input_ids[:_N_TOKENS]
    n_known = loaded.model.get_input_embeddings().weight.shape[0]
    if max(token_ids) >= n_known:
        raise ModelRefusedError(
            f"the tokenizer of {loaded.spec.name} gives token {max(token_ids)}, and the model "
            f"knows {n_known} tokens: they do not belong together"
        )
    return torch.tensor([token_ids], device=loaded.model.device)


def _eager(model: Any, tokens: Int[Tensor, "1 token"], is_seen: Bool[Tensor, "1 token"]) -> Any:
    inputs = {"input_ids": tokens, "attention_mask": is_seen.long()}
    if "position_ids" in inspect.signature(model.forward).parameters:
        # otherwise some families count positions by the mask, and hiding a token moves the others
        inputs["position_ids"] = torch.arange(tokens.shape[1], device=tokens.device)[None]
    with eager_attention(model):
        return model(**inputs, output_attentions=True, output_hidden_states=True, use_cache=False)


def _attentions(output: Any, loaded: LoadedModel) -> list[Float[Tensor, "head query key"]]:
    given = [weights for weights in output.attentions or () if weights is not None]
    kind = type(loaded.model).__name__
    if not given:
        raise ModelRefusedError(f"{loaded.spec.name} ({kind}) gives no attention weights")
    expected = (loaded.n_layers, loaded.n_heads)
    came = (len(given), given[0].shape[1])
    if came != expected:
        raise ModelRefusedError(
            f"{loaded.spec.name} ({kind}) has {expected[0]} layers of {expected[1]} heads, and "
            f"gives the attention of {came[0]} layers of {came[1]} heads\n"
            f"  graphhalu reads models in which every layer attends"
        )
    return [weights[0].float().cpu() for weights in given]


def _require_sound(check: Mapping[str, Any], name: str, tolerance: float) -> None:
    if check["largest_future"] > 0:
        raise ModelRefusedError(
            f"the attention of {name} looks at the future: a weight of "
            f"{check['largest_future']:.2g} lies above the diagonal"
        )
    if check["largest_row_error"] > tolerance:
        raise ModelRefusedError(
            f"the attention rows of {name} do not sum to 1: off by {check['largest_row_error']:.2g}, "
            f"allowed {tolerance:g}"
        )
    if check["logit_change"] == 0:
        raise ModelRefusedError(f"hiding a token from the attention of {name} does not change its logits")


def _require_finite(output: Any, attentions: Sequence[Tensor], loaded: LoadedModel) -> None:
    for layer, weights in enumerate(attentions):
        states = output.hidden_states[layer]
        before = "the embeddings" if layer == 0 else f"the hidden states after layer {layer - 1}"
        for what, values in ((before, states), (f"the attention of layer {layer}", weights)):
            if not bool(torch.isfinite(values).all()):
                raise _non_finite(what, loaded)
    # a vocabulary may be padded with tokens of probability 0, whose logits are -inf
    if bool((torch.isnan(output.logits) | torch.isposinf(output.logits)).any()):
        raise _non_finite("the logits", loaded)


def _non_finite(what: str, loaded: LoadedModel) -> NonFiniteError:
    is_half = loaded.model.dtype == torch.float16
    way_out = "try --dtype bfloat16" if is_half else "the weights may be damaged"
    return NonFiniteError(f"{what} of {loaded.spec.name} hold NaN or infinity; {way_out}")


def examine(model: str) -> dict[str, Any]:
    """Versions, devices, cache and the self-check of a model, as plain values.

    Args:
        model: Name of the model to load and check.
    """
    found, cache = provenance(), cache_folder()
    _log.info("loading %s (the first time it is converted, which takes about a minute)", model)
    check = _check(model)
    existing = cache if cache.exists() else next(p for p in cache.parents if p.exists())
    return {
        "python": found["python"],
        "platform": found["platform"],
        "packages": found["packages"],
        "devices": {
            "cpu_cores": found["cpu_count"],
            "cpu_threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())],
            "bfloat16": bfloat16_hint() or "not native on this CPU",
        },
        "cache": {"folder": str(cache), "free_gib": round(shutil.disk_usage(existing).free / 2**30, 1)},
        "model": check,
        "is_healthy": "error" not in check,
    }


def _check(model: str) -> dict[str, Any]:
    started = time.monotonic()
    try:
        loaded = load_model(ModelSpec(name=model))
        measured = check_model(loaded)
    except GraphhaluError as error:
        return {"name": model, "error": f"{type(error).__name__}: {error}"}
    seconds = round(time.monotonic() - started, 1)
    return {"name": model, "load_and_check_s": seconds, **measured}
