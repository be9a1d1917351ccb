"""Sizes read from configurations, in the words of each family."""

from types import SimpleNamespace

import pytest
import transformers

from graphhalu.core.errors import ModelRefusedError
from graphhalu.models.attention import layer_windows, model_shape
from graphhalu.testing.tiny_models import POSITIONS, TINY_FAMILIES, WINDOW, tiny_model


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_the_sizes_of_every_family_are_read(family):
    model, config = tiny_model(family)
    shape = model_shape(config, family)
    n_parameters = sum(p.numel() for p in model.get_input_embeddings().parameters())
    assert shape["hidden_size"] * config.get_text_config().vocab_size == n_parameters
    assert shape["n_layers"] == (2 if family == "gpt_neo" else 3)
    assert len(shape["layer_windows"]) == shape["n_layers"]
    assert shape["n_heads"] in (3, 6)
    assert shape["n_heads"] % shape["n_kv_heads"] == 0


@pytest.mark.parametrize(("family", "n_kv_heads"), [("llama", 2), ("gpt2", 3), ("falcon", 1), ("phi", 6)])
def test_key_value_heads_are_counted_in_the_words_of_the_family(family, n_kv_heads):
    assert model_shape(tiny_model(family)[1], family)["n_kv_heads"] == n_kv_heads


@pytest.mark.parametrize(
    ("family", "windows"),
    [
        ("llama", (None, None, None)),
        ("mistral", (WINDOW, WINDOW, WINDOW)),
        ("gemma3_text", (WINDOW, None, WINDOW)),
        ("gemma2", (WINDOW, None, WINDOW)),
        ("gpt_neo", (None, WINDOW)),
        ("phi3", (None, None, None)),
    ],
)
def test_sliding_windows_are_read_layer_by_layer(family, windows):
    assert layer_windows(tiny_model(family)[1]) == windows


def test_a_window_that_is_switched_off_is_none():
    config = transformers.Qwen2Config(num_hidden_layers=3, sliding_window=7, use_sliding_window=False)
    assert layer_windows(config) == (None, None, None)


def test_a_window_that_begins_at_a_later_layer_begins_there():
    config = transformers.Qwen2Config(
        num_hidden_layers=3, sliding_window=7, use_sliding_window=True, max_window_layers=1
    )
    assert layer_windows(config) == (None, 7, 7)


@pytest.mark.parametrize(
    ("family", "longest"), [("llama", POSITIONS), ("gpt2", POSITIONS), ("mpt", POSITIONS), ("bloom", None)]
)
def test_the_context_window_is_read(family, longest):
    assert model_shape(tiny_model(family)[1], family)["max_positions"] == longest


def test_heads_that_differ_by_layer_are_refused():
    config = SimpleNamespace(
        model_type="odd", num_hidden_layers=3, num_attention_heads=[6, 3, 6], hidden_size=24
    )
    config.get_text_config = lambda: config
    with pytest.raises(ModelRefusedError, match="one number of heads for all its layers"):
        model_shape(config, "odd")
