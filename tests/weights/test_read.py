"""Weights read from files, against the models that transformers makes of them."""

import json
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from graphhalu.core.errors import DataFileError, ModelRefusedError
from graphhalu.models.attention import eager_attention
from graphhalu.studies.weights.measure import attention_block
from graphhalu.testing.tiny_models import TINY_FAMILIES
from graphhalu.weights.architecture import FAMILIES
from graphhalu.weights.circuits import rotations
from graphhalu.weights.read import PARTS, open_weights
from graphhalu.weights.storage import open_gguf, open_shards
from tests.models.test_gguf import write_gguf
from tests.weights.conftest import model_of

TOKENS = torch.arange(3, 16)[None]
KNOWN = sorted(FAMILIES.keys() & TINY_FAMILIES.keys())


def attention_of(weights, layer, hidden):
    """Attention computed anew from the layer's inputs and the stored matrices alone."""
    found, family = weights.architecture, weights.family
    inputs, *_ = attention_block(weights, layer)(
        hidden, np.zeros((found.n_heads, 1, len(hidden)), np.float32)
    )
    turns = rotations(weights.frequencies(layer), tuple(range(len(hidden))), found.head_dim)
    made = []
    for part, norm in (("q", family.q_norm), ("k", family.k_norm)):
        vectors = np.einsum("tw,hdw->thd", inputs, weights.heads(layer, part))
        bias, gain = weights.bias(layer, part), weights.head_gain(layer, norm)
        vectors = vectors if bias is None else vectors + bias
        if gain is not None:
            axes = (1, 2) if gain.size != found.head_dim else 2
            rms = np.sqrt(np.square(vectors).mean(axis=axes, keepdims=True) + 1e-6)
            vectors = vectors / rms * gain.reshape(-1, found.head_dim)
        made.append(np.einsum("tij,thj->thi", turns, vectors))
    query, key = made[0], np.repeat(made[1], found.group_size, axis=1)
    logits = found.scaling * np.einsum("qhd,khd->hqk", query, key)
    if found.softcap is not None:
        logits = found.softcap * np.tanh(logits / found.softcap)
    distance = np.arange(len(hidden))[:, None] - np.arange(len(hidden))
    is_seen = (distance >= 0) & (distance < (found.windows[layer] or len(hidden)))
    weighed = np.where(is_seen, np.exp(logits - logits.max(-1, keepdims=True)), 0.0)
    return weighed / weighed.sum(-1, keepdims=True)


def test_every_family_of_the_cards_can_be_read():
    from graphhalu.models.cards import MODEL_CARDS

    assert {card.family for card in MODEL_CARDS.values()} <= FAMILIES.keys()
    assert len(KNOWN) >= 14


@pytest.mark.parametrize("family", KNOWN)
def test_attention_follows_from_the_weights_that_are_read(family, tiny_folder):
    """Split of fused matrices, gains, biases, scaling, RoPE, windows and caps at once."""
    weights = open_weights(str(tiny_folder(family)))
    model = model_of(family)
    with torch.inference_mode(), eager_attention(model):
        output = model(TOKENS, output_attentions=True, output_hidden_states=True, use_cache=False)
    for layer, expected in enumerate(output.attentions):
        hidden = output.hidden_states[layer][0].numpy()
        found = attention_of(weights, layer, hidden)
        assert np.abs(found - expected[0].numpy()).max() < 2e-3


@pytest.mark.parametrize("family", KNOWN)
def test_what_attention_adds_follows_from_them_too(family, tiny_folder):
    weights = open_weights(str(tiny_folder(family)))
    model = model_of(family)
    written = {}
    norm = weights.family.attention_post_norm
    stem = weights.family.layer.format(layer=1) + (norm or weights.family.o.rpartition(".")[0])

    def keep(_module, _inputs, output):
        written["out"] = (output[0] if isinstance(output, tuple) else output).numpy()[0]

    module = dict(model.named_modules())[stem]
    with torch.inference_mode(), eager_attention(model):
        handle = module.register_forward_hook(keep)
        output = model(TOKENS, output_attentions=True, output_hidden_states=True, use_cache=False)
        handle.remove()
    hidden, attention = output.hidden_states[1][0].numpy(), output.attentions[1][0].numpy()
    _, added, total = attention_block(weights, 1)(hidden, attention)
    assert added.shape == (len(attention), *hidden.shape)
    expected = written["out"]
    assert np.abs(total - expected).max() < 2e-3 * np.abs(expected).max()


def test_a_gguf_file_and_safetensors_of_one_model_agree(tiny_folder, tmp_path):
    plain = open_weights(str(tiny_folder("llama")))
    other = open_weights(str(write_gguf(tmp_path / "tiny.gguf")))
    for part in PARTS:
        assert np.array_equal(plain.heads(1, part), other.heads(1, part))
    assert np.array_equal(plain.gain(2, "input_layernorm"), other.gain(2, "attn_norm"))
    assert np.allclose(plain.frequencies(0), other.frequencies(0))
    assert plain.architecture.scaling == pytest.approx(other.architecture.scaling)


def test_parts_of_a_sharded_checkpoint_are_found_by_its_index(tiny_folder, tmp_path):
    whole = load_file(tiny_folder("llama") / "model.safetensors")
    names = sorted(whole)
    shards = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for file, members in shards.items():
        save_file({name: whole[name].bfloat16() for name in members}, tmp_path / file)
    index = {name: file for file, members in shards.items() for name in members}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": index}))
    found = open_shards(tmp_path)
    assert found.keys() == whole.keys()
    for name in names:
        assert found[name].storage == "BF16"
        assert np.array_equal(found[name].read(), whole[name].bfloat16().float().numpy())
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(DataFileError, match=r"lacks 1 of 2 parts, b\.safetensors among them"):
        open_shards(tmp_path)
    path.write_text(json.dumps({"weight_map": dict.fromkeys(names, 5000 * "x")}))
    with pytest.raises(DataFileError, match=r"lacks 1 of 1 parts, x{80} among them"):
        open_shards(tmp_path)


def test_rows_in_chunks_are_the_rows_of_the_whole(tiny_folder):
    tensor = open_weights(str(tiny_folder("llama"))).embedding
    chunks = list(tensor.chunks(n_bytes=1000))
    assert len(chunks) > 5
    assert np.array_equal(np.concatenate(chunks), tensor.read())


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "is_nested"), [("nf4", True), ("fp4", False)])
def test_a_4_bit_weight_is_what_bitsandbytes_makes_of_it(tmp_path, kind, is_nested):
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = torch.randn(96, 35, generator=torch.Generator().manual_seed(0))
    packed, state = quantize_4bit(weight, quant_type=kind, blocksize=64, compress_statistics=is_nested)
    expected = dequantize_4bit(packed, state).numpy()
    parts = {f"a.weight.{name}": value for name, value in state.as_dict(packed=True).items()}
    save_file({"a.weight": packed, **parts}, tmp_path / "model.safetensors")
    (tensor,) = open_shards(tmp_path).values()
    assert (tensor.name, tensor.shape, tensor.storage) == ("a.weight", (96, 35), kind)
    assert np.allclose(tensor.read(), expected, atol=1e-6)
    assert np.allclose(tensor.load(13, 31), expected[13:31], atol=1e-6)


def test_an_8_bit_weight_is_its_integers_times_their_scale(tmp_path):
    integers = torch.arange(-15, 20, dtype=torch.int8).reshape(7, 5)
    scale = torch.arange(1.0, 8.0)
    save_file({"a.weight": integers, "a.SCB": scale}, tmp_path / "model.safetensors")
    (tensor,) = open_shards(tmp_path).values()
    assert tensor.storage == "int8"
    assert np.allclose(tensor.read(), integers.float() * scale[:, None] / 127)


@pytest.mark.parametrize("kept", [0, 3, 30, 300, 5_000, 20_000])
def test_a_gguf_file_that_is_cut_off_gives_one_line(tmp_path, kept):
    path = write_gguf(tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataFileError, match=r"tiny\.gguf is (cut off|damaged|empty)") as caught:
        open_gguf(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("kept", [0, 5, 200, 10_000])
def test_a_safetensors_file_that_is_cut_off_gives_one_line(tiny_folder, tmp_path, kept):
    whole = (tiny_folder("llama") / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:kept])
    with pytest.raises(DataFileError, match=r"(cut off|empty|no safetensors)") as caught:
        open_shards(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_files_of_another_kind_are_named(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"PK\x03\x04" + bytes(99))
    with pytest.raises(DataFileError, match="is not a GGUF file: it starts with"):
        open_gguf(tmp_path / "a.gguf")
    (tmp_path / "b.gguf").write_bytes(b"GGUF" + struct.pack("<I", 9) + bytes(99))
    with pytest.raises(DataFileError, match="GGUF of version 9"):
        open_gguf(tmp_path / "b.gguf")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(DataFileError, match="are pickles and not read"):
        open_shards(tmp_path / "c")


def test_a_family_that_is_not_known_lists_those_that_are(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bloom"}))
    with pytest.raises(ModelRefusedError, match=r"'bloom' cannot be read.*\n.*Known: .*llama"):
        open_weights(str(tmp_path))


def test_a_tensor_that_is_missing_is_named(tiny_folder, tmp_path):
    whole = load_file(tiny_folder("llama") / "model.safetensors")
    whole.pop("model.layers.1.self_attn.k_proj.weight")
    save_file(whole, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((tiny_folder("llama") / "config.json").read_bytes())
    with pytest.raises(DataFileError, match=r"lacks the tensor model\.layers\.1\.self_attn\.k_proj"):
        open_weights(str(tmp_path)).heads(1, "k")
