"""Loading from folders: what comes back, and one clear line for everything that can be wrong."""

import json
import logging
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from graphhalu.core.errors import ModelRefusedError, ModelUnavailableError, UsageError
from graphhalu.models.attention import attention_implementation
from graphhalu.models.cards import ModelSpec
from graphhalu.models.check import check_model
from graphhalu.models.load import load_model
from graphhalu.testing.tiny_models import (
    POSITIONS,
    QUANTIZABLE,
    TINY_FAMILIES,
    save_tiny,
    tiny_model,
    tiny_tokenizer,
)

TOKENS = torch.arange(3, 16)[None]


@pytest.fixture
def folder(tmp_path):
    return save_tiny(tmp_path / "tiny")


def load(folder, **settings):
    return load_model(ModelSpec(name=str(folder), device="cpu", **settings))


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_loads_with_its_measures(folder):
    loaded = load(folder)
    assert (loaded.n_layers, loaded.n_heads, loaded.n_kv_heads, loaded.hidden_size) == (3, 6, 2, 24)
    assert loaded.layer_windows == (None, None, None)
    assert loaded.max_positions == POSITIONS
    assert loaded.eos_token_ids == (2,)
    assert attention_implementation(loaded.model) == "sdpa"
    assert loaded.tokenizer("a").input_ids[0] == loaded.tokenizer.bos_token_id
    assert loaded.card is None


def test_the_loaded_model_is_the_saved_one_and_only_answers(folder):
    model = load(folder).model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with torch.inference_mode():
        assert torch.equal(model(TOKENS).logits, tiny_model("llama")[0](TOKENS).logits)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_every_family_loads_from_a_folder_and_passes_its_check(family, tmp_path):
    loaded = load(save_tiny(tmp_path, family))
    assert check_model(loaded)["logit_change"] > 0
    is_eager = family in {"gemma2", "gpt_oss"} or not TINY_FAMILIES[family].on_interface
    assert attention_implementation(loaded.model) == ("eager" if is_eager else "sdpa")


def test_the_identity_is_plain_json_that_names_what_decides_the_numbers(folder):
    identity = load(folder).identity
    assert json.loads(json.dumps(identity)) == identity
    weights = identity.pop("weights")
    assert len(weights) == 64
    assert identity == {
        "name": "tiny",
        "source": "folder",
        "revision": None,
        "architecture": "LlamaForCausalLM",
        "dtype": "float32",
        "quantization": "none",
    }


def test_the_number_format_can_be_chosen(folder):
    loaded = load(folder, dtype="bfloat16")
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.identity["dtype"] == "bfloat16"


def test_threads_are_set_when_they_are_given(folder, monkeypatch):
    given = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.setattr("graphhalu.models.load.default_threads", lambda: 5)
    load(folder)
    load(folder, threads=3)
    assert given == [5, 3]


def test_loading_says_nothing(folder, capfd):
    load(folder)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_loading_leaves_the_logs_and_bars_of_transformers_as_they_were(folder):
    from transformers.utils import logging as transformers_logging

    level = logging.getLogger("transformers").level
    assert transformers_logging.is_progress_bar_enabled()
    load(folder)
    assert logging.getLogger("transformers").level == level
    assert transformers_logging.is_progress_bar_enabled()


def test_a_tokenizer_without_padding_pads_with_its_end_mark(folder):
    rewrite(folder / "tokenizer_config.json", pad_token=None)
    loaded = load(folder)
    assert loaded.tokenizer.pad_token_id == loaded.tokenizer.eos_token_id == 2
    assert loaded.model.get_input_embeddings().weight.shape[0] == 97


def test_the_end_marks_of_model_and_tokenizer_both_end_an_answer(folder):
    rewrite(folder / "generation_config.json", eos_token_id=[5, 7])
    assert load(folder).eos_token_ids == (2, 5, 7)


@pytest.fixture
def quantizable(tmp_path):
    return save_tiny(tmp_path / "quantizable", **QUANTIZABLE)


@pytest.mark.parametrize(("quantization", "n_bytes"), [("nf4", 578_432), ("int8", 1_002_368)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning:bitsandbytes.*")
def test_quantisation_makes_the_model_smaller_and_is_in_its_identity(
    quantizable, quantization, n_bytes, capfd, caplog
):
    folder = quantizable
    plain, loaded = load(folder), load(folder, quantization=quantization)
    assert loaded.identity["quantization"] == quantization
    assert loaded.model.get_memory_footprint() < plain.model.get_memory_footprint()
    assert abs(loaded.model.get_memory_footprint() - n_bytes) < 100
    check_model(loaded)
    assert capfd.readouterr().err == ""
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    if quantization == "nf4":
        settings = loaded.model.config.quantization_config
        assert settings.bnb_4bit_quant_type == "nf4"
        assert settings.bnb_4bit_compute_dtype == torch.bfloat16
        assert settings.bnb_4bit_use_double_quant


def test_a_model_stored_quantised_loads_as_it_is_and_says_so(quantizable, tmp_path):
    quantised = load(quantizable, quantization="nf4")
    stored = tmp_path / "stored"
    quantised.model.save_pretrained(stored)
    tiny_tokenizer().save_pretrained(stored)
    loaded = load(stored)
    assert loaded.identity["quantization"] == "stored nf4"
    with torch.inference_mode():
        assert torch.equal(loaded.model(TOKENS).logits, quantised.model(TOKENS).logits)
    with pytest.raises(UsageError, match="is stored quantised and loads as it is"):
        load(stored, quantization="int8")


@pytest.fixture
def avx512bf16(monkeypatch):
    """Says of this processor whether it has AVX-512 BF16, for which bitsandbytes packs weights."""

    def say(is_there):
        monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: is_there)

    return say


@pytest.mark.parametrize(
    ("sizes", "layer"),
    [
        ({}, "q_proj has 24 and 24"),
        ({**QUANTIZABLE, "num_attention_heads": 24}, "k_proj has 16 and 192"),
        ({**QUANTIZABLE, "intermediate_size": 352}, "down_proj has 192 and 352"),
    ],
)
def test_a_layer_that_the_processor_cannot_pack_is_refused_at_load(tmp_path, avx512bf16, sizes, layer):
    folder = save_tiny(tmp_path / "odd", **sizes)
    avx512bf16(True)
    with pytest.raises(ModelRefusedError, match=layer) as caught:
        load(folder, quantization="nf4")
    expected = "a multiple of 32 outputs and of 64 inputs"
    assert expected in str(caught.value)
    assert str(caught.value).endswith("\n  Use --quantization none, or --quantization int8")
    check_model(load(folder, quantization="int8"))


def test_a_stored_model_that_the_processor_cannot_pack_is_refused_too(folder, tmp_path, avx512bf16):
    avx512bf16(False)
    stored = tmp_path / "stored"
    load(folder, quantization="nf4").model.save_pretrained(stored)
    tiny_tokenizer().save_pretrained(stored)
    check_model(load(stored))
    avx512bf16(True)
    with pytest.raises(ModelRefusedError, match="Use a copy of the model that is not quantised"):
        load(stored)


@pytest.mark.parametrize(
    ("pattern", "missing"),
    [("config.json", "config.json"), ("tokenizer*", "a tokenizer"), ("*.safetensors", "weights")],
)
def test_a_folder_that_lacks_something_is_told_what(folder, pattern, missing):
    for path in folder.glob(pattern):
        path.unlink()
    with pytest.raises(ModelUnavailableError, match=f"{folder} lacks {missing}") as caught:
        load(folder)
    assert "It holds: " in str(caught.value)


def test_an_empty_folder_lacks_everything(tmp_path):
    with pytest.raises(ModelUnavailableError, match=r"lacks .* and .* and .*\n  It holds: nothing"):
        load(tmp_path)


def test_cut_off_weights_are_unavailable_in_two_lines(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelUnavailableError, match=r"the weights of .*SafetensorError") as caught:
        load(folder)
    assert len(str(caught.value).splitlines()) == 2


def test_a_missing_tensor_is_not_filled_with_random_numbers(folder):
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ModelUnavailableError, match=r"1 tensors are missing, .*layers\.1\.mlp"):
        load(folder)


def test_weights_of_another_size_are_unavailable(folder):
    rewrite(folder / "config.json", intermediate_size=41)
    with pytest.raises(ModelUnavailableError, match=r"the weights of .* cannot be read"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("config.json", "{", "configuration"),
        ("config.json", '{"model_type": "from_the_future"}', "configuration"),
        ("config.json", '{"model_type": "llama", "hidden_size": "many"}', "configuration"),
        ("tokenizer.json", "{}", "tokenizer"),
    ],
)
def test_a_damaged_file_is_named_in_two_lines(folder, name, content, what):
    (folder / name).write_text(content)
    with pytest.raises(ModelUnavailableError, match=f"the {what} of .* cannot be read") as caught:
        load(folder)
    assert len(str(caught.value).splitlines()) == 2


def test_a_tokenizer_without_offsets_is_refused(folder):
    from transformers import ByT5Tokenizer

    for path in folder.glob("tokenizer*"):
        path.unlink()
    ByT5Tokenizer().save_pretrained(folder)
    with pytest.raises(ModelRefusedError, match=r"ByT5Tokenizer.* gives no character offsets"):
        load(folder)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("t5", "is an encoder-decoder model"),
        ("mamba", "has no attention"),
        ("rwkv", "has no attention"),
        ("falcon_mamba", "has no attention"),
    ],
)
def test_a_model_without_causal_attention_is_refused(folder, model_type, reason):
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ModelRefusedError, match=reason):
        load(folder)


@pytest.mark.parametrize("device", ["gpu", "meta", "cpu:x"])
def test_an_unknown_device_lists_the_known_ones(folder, device):
    with pytest.raises(UsageError, match=f"no device named '{device}'; expected auto, spread, cpu, cuda"):
        load_model(ModelSpec(name=str(folder), device=device))


@pytest.mark.parametrize(("device", "n_gpus"), [("cuda", 0), ("cuda:2", 2), ("mps", 0)])
def test_a_device_that_is_not_there_is_said_to_be_missing(folder, device, n_gpus, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UsageError, match=f"'{device}' was asked for, and torch sees {n_gpus}"):
        load_model(ModelSpec(name=str(folder), device=device))


def test_a_revision_does_not_go_with_a_folder(folder):
    with pytest.raises(UsageError, match="a revision belongs to a model of the hub"):
        load(folder, revision="main")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def fresh_process(tmp_path_factory):
    """A process with a model in its hub cache, and a hub that cannot be reached."""
    home = tmp_path_factory.mktemp("home")
    repository = home / "hub" / "models--some-lab--tiny"
    save_tiny(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    code = (
        "import json, sys, time\n"
        "from graphhalu.core.errors import ModelUnavailableError\n"
        "from graphhalu.models.load import ModelSpec, load_model\n"
        "found = {'identity': load_model(ModelSpec(name='some-lab/tiny')).identity}\n"
        "found['imported'] = 'bitsandbytes' in sys.modules\n"
        "started = time.monotonic()\n"
        "try:\n    load_model(ModelSpec(name='llama2-7b'))\n"
        "except ModelUnavailableError as error:\n    found['error'] = str(error)\n"
        "found['seconds'] = time.monotonic() - started\n"
        "print(json.dumps(found))\n"
    )
    environment = {
        **os.environ,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": "http://127.0.0.1:9",  # nothing listens at the discard port
    }
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done


def test_a_model_of_the_cache_loads_without_the_hub_and_keeps_its_commit(fresh_process):
    identity = json.loads(fresh_process.stdout)["identity"]
    assert identity["source"] == "some-lab/tiny"
    assert identity["revision"] == COMMIT
    assert identity["weights"] is None


def test_a_model_that_cannot_be_had_fails_at_once_and_without_noise(fresh_process):
    found = json.loads(fresh_process.stdout)
    assert "the hub was not reached" in found["error"]
    assert found["seconds"] < 15
    assert fresh_process.stderr == ""


def test_bitsandbytes_is_not_imported_unless_quantisation_is_asked_for(fresh_process):
    assert json.loads(fresh_process.stdout)["imported"] is False
