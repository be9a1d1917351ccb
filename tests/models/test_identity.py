"""The identity of a model: the same for the same numbers, another for others."""

import json

import pytest
from safetensors.torch import load_file, save_file

from graphhalu.models.identity import stored_method, weights_digest
from graphhalu.testing.tiny_models import save_tiny


@pytest.fixture
def folder(tmp_path):
    return save_tiny(tmp_path / "tiny")


def change_tensor(folder, name, place):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[name].view(-1)[place] += 1
    save_file(tensors, path, metadata={"format": "pt"})


def test_the_same_content_has_the_same_digest_wherever_it_lies(tmp_path):
    first, second = save_tiny(tmp_path / "a"), save_tiny(tmp_path / "b" / "c")
    assert weights_digest(first) == weights_digest(second)


@pytest.mark.parametrize(
    "name", ["model.layers.1.self_attn.q_proj.weight", "model.layers.2.input_layernorm.weight"]
)
@pytest.mark.parametrize("place", [0, -1])
def test_a_change_of_any_tensor_is_seen(folder, name, place):
    # the digest of a header and the end of a file would miss a fine-tune merged into one matrix
    before = weights_digest(folder)
    change_tensor(folder, name, place)
    assert weights_digest(folder) != before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja"])
def test_configuration_tokenizer_and_template_belong_to_it(folder, name):
    before = weights_digest(folder)
    path = folder / name
    path.write_text(path.read_text() + " ")
    assert weights_digest(folder) != before


def test_a_file_that_is_not_part_of_the_model_does_not_matter(folder):
    before = weights_digest(folder)
    (folder / "README.md").write_text("about")
    assert weights_digest(folder) == before


def test_a_converted_folder_has_the_digest_of_its_source(folder):
    (folder / "graphhalu_source.sha256").write_text("5eed\n")
    assert weights_digest(folder) == "5eed"


def test_weights_of_the_old_format_are_read_in_strides(folder):
    path = folder / "pytorch_model.bin"
    path.write_bytes(bytes(3 * 2**20))
    before = weights_digest(folder)
    content = bytearray(3 * 2**20)
    content[2**20] = 1
    path.write_bytes(content)
    assert weights_digest(folder) != before


@pytest.mark.parametrize(
    ("stored", "method"),
    [
        (None, None),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "nf4"),
        ({"load_in_4bit": True}, "fp4"),
        ({"load_in_8bit": True}, "int8"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
    ],
)
def test_the_method_of_a_stored_model_is_named(stored, method):
    assert stored_method(stored) == method
    json.dumps(stored_method(stored))
