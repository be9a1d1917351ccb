"""Tiny models of every family, and the tokenizer that goes with them."""

import pytest
import torch

from graphhalu.core.errors import UnknownNameError
from graphhalu.testing.tiny_models import TINY_FAMILIES, VOCABULARY, save_tiny, tiny_model, tiny_tokenizer

TOKENS = torch.arange(3, 16)[None]


def test_the_table_holds_families_on_and_off_the_interface():
    on = {name for name, family in TINY_FAMILIES.items() if family.on_interface}
    assert {"llama", "qwen2", "gemma2", "mistral", "mixtral", "gpt_neox", "gpt_oss"} <= on
    assert TINY_FAMILIES.keys() - on == {"falcon", "bloom", "mpt", "gptj", "gpt_neo"}


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_every_family_runs_and_gives_finite_logits(family):
    model, config = tiny_model(family)
    assert config.model_type == family
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with torch.inference_mode():
        logits = model(input_ids=TOKENS).logits
    assert logits.shape == (1, TOKENS.shape[1], VOCABULARY)
    assert bool(torch.isfinite(logits).all())


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_the_flag_says_what_transformers_says(family):
    model, _ = tiny_model(family)
    assert model._can_set_attn_implementation() is TINY_FAMILIES[family].on_interface


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_seed_decides_the_weights_and_leaves_the_global_generator_alone(family):
    before = torch.get_rng_state()
    first, again, other = tiny_model(family), tiny_model(family), tiny_model(family, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    states = [model.state_dict() for model, _ in (first, again, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_an_unknown_family_lists_the_nearest_names():
    with pytest.raises(UnknownNameError, match=r"no tiny model family named 'lama'.*'llama'"):
        tiny_model("lama")


def test_the_tokenizer_gives_back_the_text_and_its_offsets():
    tokenizer = tiny_tokenizer()
    text = "Who wrote Hamlet?\nAnswer:"
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert tokenizer.is_fast
    assert encoded.input_ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(encoded.input_ids, skip_special_tokens=True) == text
    assert encoded.offset_mapping[0] == (0, 0)
    assert "".join(text[start:stop] for start, stop in encoded.offset_mapping[1:]) == text
    assert max(encoded.input_ids) < VOCABULARY


def test_every_token_of_the_model_has_a_text():
    tokenizer = tiny_tokenizer()
    assert len(tokenizer) == VOCABULARY
    texts = [tokenizer.decode([index]) for index in range(VOCABULARY)]
    assert all(texts)
    assert len(set(texts)) == VOCABULARY


def test_the_chat_template_marks_turns_and_begins_once():
    tokenizer = tiny_tokenizer()
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<s><user>Hi</user>\n<assistant>"
    assert tiny_tokenizer(chat=False).chat_template is None


def test_a_saved_tiny_model_loads_with_the_same_weights(tmp_path, capfd):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = save_tiny(tmp_path / "tiny", "qwen2", seed=3)
    assert capfd.readouterr().err == ""
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    made, _ = tiny_model("qwen2", seed=3)
    with torch.inference_mode():
        assert torch.equal(loaded(TOKENS).logits, made(TOKENS).logits)
    assert AutoTokenizer.from_pretrained(folder)("a b").input_ids == tiny_tokenizer()("a b").input_ids
