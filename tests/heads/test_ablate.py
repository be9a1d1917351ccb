"""A model without some heads: exactly those, in every family, and whole again afterwards."""

import numpy as np
import pytest
import torch

from graphhalu.core.errors import ModelRefusedError, UsageError
from graphhalu.heads.ablation import ablating, output_projections, random_heads
from graphhalu.heads.table import HeadMask
from graphhalu.models.attention import eager_attention
from graphhalu.testing.tiny_models import TINY_FAMILIES, tiny_model

TOKENS = torch.arange(3, 16)[None]
LAYER, HEAD = 1, 2


def mask_of(shape, *heads):
    is_chosen = np.zeros(shape, dtype=bool)
    for place in heads:
        is_chosen[place] = True
    return HeadMask("tested", tuple(range(shape[0])), is_chosen, "by hand")


def shape_of(config):
    return config.num_hidden_layers, config.num_attention_heads


@torch.inference_mode()
def logits(model):
    return model(input_ids=TOKENS, use_cache=False).logits


@torch.inference_mode()
def logits_without_weights(model, monkeypatch, layer, head):
    """The oracle: the softmax of one layer gives nothing to one head."""
    softmax, calls = torch.nn.functional.softmax, []

    def without(scores, *args, **settings):
        weights = softmax(scores, *args, **settings)
        if scores.dim() == 4:
            if len(calls) == layer:
                weights = weights.clone()
                weights[:, head] = 0
            calls.append(1)
        return weights

    with monkeypatch.context() as patch, eager_attention(model):
        patch.setattr(torch.nn.functional, "softmax", without)
        patch.setattr(torch, "softmax", without)
        found = model(input_ids=TOKENS, use_cache=False).logits
    assert len(calls) == model.config.num_hidden_layers
    return found


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_exactly_the_chosen_head_is_gone_in_every_family(family, monkeypatch):
    model, config = tiny_model(family)
    before = logits(model)
    expected = logits_without_weights(model, monkeypatch, LAYER, HEAD)
    with ablating(model, mask_of(shape_of(config), (LAYER, HEAD))):
        found = logits(model)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - before).abs().max() > 1e-3
    torch.testing.assert_close(logits(model), before)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "qwen3"])
def test_it_equals_a_model_whose_output_columns_are_zero(family):
    model, config = tiny_model(family)
    shape = shape_of(config)
    with ablating(model, mask_of(shape, (0, 1), (2, 0), (2, 5))):
        found = logits(model)
    projections = output_projections(model)
    for layer, head in ((0, 1), (2, 0), (2, 5)):
        weight = projections[layer].weight.data
        width = weight.shape[1] // shape[1]
        weight[:, head * width : (head + 1) * width] = 0
    torch.testing.assert_close(found, logits(model))


def test_no_head_chosen_changes_nothing():
    model, config = tiny_model("llama")
    before = logits(model)
    with ablating(model, mask_of(shape_of(config))):
        torch.testing.assert_close(logits(model), before)


def test_the_heads_are_back_after_an_error():
    model, config = tiny_model("llama")
    before = logits(model)
    with pytest.raises(RuntimeError, match="on purpose"), ablating(model, mask_of(shape_of(config), (1, 1))):
        message = "on purpose"
        raise RuntimeError(message)
    torch.testing.assert_close(logits(model), before)


def test_a_mask_of_another_model_is_refused():
    model, _ = tiny_model("llama")
    message = "mask is of 3 layers of 5 heads, the model has 3 layers of 6"
    with pytest.raises(UsageError, match=message), ablating(model, mask_of((3, 5))):
        pass


def test_a_projection_that_does_not_divide_into_heads_is_refused(monkeypatch):
    model, config = tiny_model("llama")
    monkeypatch.setattr(config, "num_attention_heads", 5)
    model.config.num_attention_heads = 5
    with pytest.raises(ModelRefusedError, match="cannot be told apart by head"):
        output_projections(model)


def test_random_heads_are_others_of_the_same_layers_in_the_same_number():
    mask = mask_of((5, 7), (0, 1), (0, 2), (0, 6), (3, 4))
    generator = np.random.default_rng(0)
    for _ in range(50):
        drawn, n_elsewhere = random_heads(mask, generator)
        assert n_elsewhere == 0
        assert not (drawn.is_chosen & mask.is_chosen).any()
        assert drawn.is_chosen.sum(1).tolist() == mask.is_chosen.sum(1).tolist()


def test_random_heads_of_a_crowded_layer_come_from_elsewhere_and_it_says_so():
    mask = mask_of((5, 3), (2, 0), (2, 1))
    drawn, n_elsewhere = random_heads(mask, np.random.default_rng(0))
    assert n_elsewhere == 1
    assert drawn.is_chosen.sum() == 2
    assert drawn.is_chosen[2].tolist() == [False, False, True]


def test_more_than_half_of_the_heads_leave_nothing_to_compare_with():
    mask = mask_of((2, 3), (0, 0), (0, 1), (1, 0), (1, 2))
    with pytest.raises(UsageError, match="4 of 6 heads are chosen"):
        random_heads(mask, np.random.default_rng(0))
