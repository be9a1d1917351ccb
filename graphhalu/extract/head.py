"""Logits on demand: the layers run once, and the model's own head runs on the rows asked for.

The logits of a long sequence are larger than everything else in a pass (4,096 tokens of a
vocabulary of 49,152 take 805 MB in float32), and only statistics of them are kept.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

_BODIES: WeakKeyDictionary[nn.Module, nn.Module | None] = WeakKeyDictionary()


class DeferredPass:
    """One forward pass whose logits are computed when they are asked for.

    Args:
        model: A causal language model of transformers.
        body: Its :func:`body_below_head`.
        inputs: Arguments of its forward pass.
    """

    def __init__(self, model: Any, body: nn.Module | None, **inputs: Any) -> None:
        self.model = model
        self.inputs = inputs
        self._body = body
        self._logits: Tensor | None = None
        if self._body is not None:
            with _replaced_forward(self._body, self._remembering(self._body.forward)):
                output = model(**inputs, logits_to_keep=1)
        else:
            output = model(**inputs)
            self._logits = output.logits
        self._hidden_states = output.hidden_states

    def take_hidden_states(self) -> list[Tensor | None] | None:
        """The hidden states that were asked for by index, handed over: they are let go here."""
        states, self._hidden_states = self._hidden_states, None
        if self._body is not None:
            self._body_output.hidden_states = None
        return None if states is None else list(states)

    def logits(self, start: int, stop: int) -> Float[Tensor, "trace row vocabulary"]:
        """The logits of rows ``start … stop - 1``."""
        if self._body is None:
            assert self._logits is not None
            return self._logits[:, start:stop]
        rows = torch.arange(start, stop, device=self.inputs["input_ids"].device)
        with _replaced_forward(self._body, lambda *_, **__: self._body_output):
            output = self.model(**self.inputs, logits_to_keep=rows)
        logits: Tensor = output.logits
        return logits

    def _remembering(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **settings: Any) -> Any:
            self._body_output = forward(*args, **settings)
            return self._body_output

        return run


def body_below_head(model: Any) -> nn.Module | None:
    """The module below the head, which the model calls; ``None`` if the head cannot be deferred.

    It is found by trying: in some families the base model stands between and is never called.
    """
    if model not in _BODIES:
        takes_rows = "logits_to_keep" in inspect.signature(model.forward).parameters
        _BODIES[model] = _called_body(model) if takes_rows else None
    return _BODIES[model]


@torch.inference_mode()
def _called_body(model: Any) -> nn.Module | None:
    called: list[nn.Module] = []
    candidates = {id(body): body for body in (model.base_model, model.get_decoder())}
    candidates.pop(id(model), None)
    handles = [
        body.register_forward_hook(lambda module, _, __: called.append(module))
        for body in candidates.values()
    ]
    token = torch.ones(1, 1, dtype=torch.long, device=next(model.parameters()).device)
    try:
        model(input_ids=token, attention_mask=token, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    # an outer module is noted after the one inside it
    return called[-1] if called else None


@contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Run with another ``forward``; one that stands on the instance is put back."""
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before
