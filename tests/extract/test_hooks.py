"""Finding where a model off the interface gives its attention, and leaving it as it was."""

import pytest
import torch

from graphhalu.core.errors import ModelRefusedError
from graphhalu.extract.capture import capture_note, capturing, reads_values
from graphhalu.extract.hooks import find_attention_modules
from graphhalu.testing.tiny_models import TINY_FAMILIES, tiny_model
from tests.extract.test_replay import Ignoring

OFF_INTERFACE = [name for name, family in TINY_FAMILIES.items() if not family.on_interface]


@pytest.mark.parametrize("family", OFF_INTERFACE)
def test_one_module_a_layer_gives_the_weights_and_the_user_is_told(family):
    model, config = tiny_model(family)
    modules, _ = find_attention_modules(model)
    assert len(modules) == config.num_hidden_layers
    assert len({type(module) for module in modules}) == 1
    assert reads_values(model)
    assert "is not on transformers' attention interface" in capture_note(model)


def test_families_on_the_interface_need_no_note():
    model, _ = tiny_model("llama")
    assert capture_note(model) is None
    assert reads_values(model)


@pytest.mark.parametrize("family", OFF_INTERFACE)
def test_the_model_is_as_before_after_an_error(family):
    model, _ = tiny_model(family)
    tokens = torch.arange(3, 14)[None]
    with torch.inference_mode():
        before = model(input_ids=tokens, use_cache=False).logits
        with pytest.raises(RuntimeError, match="on purpose"), capturing(model, Ignoring()):
            message = "on purpose"
            raise RuntimeError(message)
        after = model(input_ids=tokens, use_cache=False)
    torch.testing.assert_close(after.logits, before)
    assert getattr(after, "attentions", None) is None
    assert not any(module._forward_hooks for module in model.modules())
    assert not model._forward_pre_hooks


def test_a_model_without_weights_in_every_layer_is_refused(monkeypatch):
    model, _ = tiny_model("gptj")
    last = model.transformer.h[-1].attn
    forward = type(last).forward
    monkeypatch.setattr(last, "forward", lambda *a, **k: (forward(last, *a, **k)[0], None))
    with pytest.raises(ModelRefusedError, match="weights in 2 places and has 3 layers"):
        find_attention_modules(model)


def test_an_unknown_attention_module_keeps_no_value_norms():
    model, _ = tiny_model("gptj")
    for block in model.transformer.h:
        block.attn.__class__ = type("OtherAttention", (type(block.attn),), {})
    assert not reads_values(model)
    assert "its value norms are not stored" in capture_note(model)
