"""The self-check: every family passes it, and broken models do not."""

import dataclasses

import pytest
import torch
import transformers

from graphhalu.core.axes import ROW_SUM_TOLERANCE
from graphhalu.core.errors import ModelRefusedError, NonFiniteError
from graphhalu.models.attention import attention_implementation, model_shape
from graphhalu.models.cards import ModelSpec
from graphhalu.models.check import check_model, load_checked
from graphhalu.models.load import LoadedModel
from graphhalu.testing.tiny_models import TINY_FAMILIES, save_tiny, tiny_model, tiny_tokenizer


def loaded_tiny(family="llama", **changes):
    model, config = tiny_model(family)
    if not model._can_set_attn_implementation():
        config._attn_implementation = "eager"
        model = type(model)._from_config(config, attn_implementation="eager").eval()
    return dataclasses.replace(
        LoadedModel(
            model=model,
            tokenizer=tiny_tokenizer(),
            spec=ModelSpec(name=f"tiny {family}"),
            card=None,
            identity={},
            eos_token_ids=(2,),
            **model_shape(config, family),
        ),
        **changes,
    )


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_every_family_passes(family):
    loaded = loaded_tiny(family)
    before = attention_implementation(loaded.model)
    check = check_model(loaded)
    assert check["largest_future"] == 0
    assert check["largest_row_error"] < ROW_SUM_TOLERANCE
    assert check["logit_change"] > 0
    assert check["has_learned_sink"] is (family == "gpt_oss")
    assert attention_implementation(loaded.model) == before


def test_what_was_set_before_is_restored_when_the_model_fails():
    loaded = loaded_tiny()
    assert attention_implementation(loaded.model) == "sdpa"

    def fail(*_, **__):
        message = "the layer fails"
        raise RuntimeError(message)

    loaded.model.model.layers[1].mlp.forward = fail
    with pytest.raises(RuntimeError, match="the layer fails"):
        check_model(loaded)
    assert attention_implementation(loaded.model) == "sdpa"


def test_a_model_that_sees_the_future_is_refused(monkeypatch):
    from transformers.models.llama import modeling_llama

    monkeypatch.setattr(modeling_llama, "create_causal_mask", lambda **_: None)
    with pytest.raises(ModelRefusedError, match=r"tiny llama looks at the future: a weight of 0\."):
        check_model(loaded_tiny())


def test_rows_that_do_not_sum_to_one_are_refused(monkeypatch):
    from transformers.models.llama import modeling_llama

    own = modeling_llama.eager_attention_forward

    def scaled(*arguments, **settings):
        output, weights = own(*arguments, **settings)
        return output, 0.9 * weights

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", scaled)
    with pytest.raises(ModelRefusedError, match=r"do not sum to 1: off by 0\.1, allowed 0\.0001"):
        check_model(loaded_tiny())


def test_a_model_whose_attention_does_not_matter_is_refused():
    loaded = loaded_tiny()
    for layer in loaded.model.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
    with pytest.raises(ModelRefusedError, match="does not change its logits"):
        check_model(loaded)


def test_positions_counted_by_the_mask_do_not_hide_that_attention_does_not_matter():
    loaded = loaded_tiny("opt")
    for layer in loaded.model.model.decoder.layers:
        layer.self_attn.out_proj.weight.data.zero_()
    with pytest.raises(ModelRefusedError, match="does not change its logits"):
        check_model(loaded)


def test_the_layer_that_makes_nan_is_named():
    loaded = loaded_tiny()
    loaded.model.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="the hidden states after layer 1 of tiny llama"):
        check_model(loaded)


def test_attention_that_is_nan_is_named_by_its_layer():
    loaded = loaded_tiny()
    loaded.model.model.layers[2].self_attn.q_proj.weight.data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="the attention of layer 2 of tiny llama"):
        check_model(loaded)


def test_embeddings_and_logits_that_are_not_finite_are_named():
    loaded = loaded_tiny()
    loaded.model.get_input_embeddings().weight.data.fill_(float("inf"))
    with pytest.raises(NonFiniteError, match="the embeddings of tiny llama"):
        check_model(loaded)
    loaded = loaded_tiny()
    loaded.model.lm_head.weight.data[3, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="the logits of tiny llama"):
        check_model(loaded)


def test_an_overflow_of_float16_names_the_wider_format():
    loaded = loaded_tiny()
    loaded.model.half()
    loaded.model.model.layers[0].mlp.down_proj.weight.data.fill_(60_000)
    with pytest.raises(NonFiniteError, match=r"after layer 0 .* try --dtype bfloat16"):
        check_model(loaded)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_passes_with_its_own_tolerance(dtype):
    loaded = loaded_tiny()
    loaded.model.to(dtype)
    check = check_model(loaded)
    assert ROW_SUM_TOLERANCE < check["largest_row_error"] < 3e-2


def test_a_tokenizer_of_another_model_is_refused():
    loaded = loaded_tiny()
    loaded.model.resize_token_embeddings(11, mean_resizing=False)
    with pytest.raises(ModelRefusedError, match="the model knows 11 tokens: they do not belong"):
        check_model(loaded)


def test_a_model_in_which_only_some_layers_attend_is_refused():
    config = transformers.JambaConfig(
        vocab_size=97,
        hidden_size=24,
        intermediate_size=28,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=3,
        attn_layer_period=3,
        attn_layer_offset=1,
        num_experts=1,
        num_experts_per_tok=1,
        use_mamba_kernels=False,
        mamba_d_state=5,
        mamba_dt_rank=7,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    loaded = loaded_tiny(model=model, spec=ModelSpec(name="hybrid"), n_layers=3, n_heads=3, n_kv_heads=3)
    with pytest.raises(ModelRefusedError, match=r"has 3 layers .* attention of 1 layers"):
        check_model(loaded)


def test_a_model_without_attention_is_refused(monkeypatch):
    loaded = loaded_tiny()
    own = loaded.model.forward

    def without_weights(input_ids, attention_mask, position_ids, **settings):
        output = own(input_ids, attention_mask, position_ids, **settings)
        output.attentions = ()
        return output

    monkeypatch.setattr(loaded.model, "forward", without_weights)
    with pytest.raises(ModelRefusedError, match=r"tiny llama .* gives no attention weights"):
        check_model(loaded)


def test_a_checked_model_can_still_be_differentiated(tmp_path):
    loaded = load_checked(ModelSpec(name=str(save_tiny(tmp_path / "tiny", "llama"))))
    assert not any(parameter.is_inference() for parameter in loaded.model.parameters())
