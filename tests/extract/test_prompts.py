"""Tokens of answers, and the characters that each of them covers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphhalu.core.errors import DataFileError
from graphhalu.datasets.prompts import build_prompt, encode_prompt
from graphhalu.datasets.question import Question
from graphhalu.extract.prompts import generated_answer, given_answer
from graphhalu.testing.tiny_models import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
QUESTION = Question("q", "What is the capital of France?", ("Paris",))


def prompt_of(*, chat):
    rendered = build_prompt(QUESTION, chat=chat, tokenizer=TOKENIZER)
    return rendered, encode_prompt(rendered, TOKENIZER)


@pytest.mark.parametrize("chat", [False, True])
def test_prompt_and_given_answer_together_are_the_text_tokenized_as_one(chat):
    rendered, encoded = prompt_of(chat=chat)
    answer = given_answer(" It is Paris. ", rendered, encoded, TOKENIZER)
    assert answer.text == "It is Paris."
    joined = [*encoded.token_ids.tolist(), *answer.token_ids]
    text = rendered.text + ("" if chat else " ") + "It is Paris."
    assert joined == TOKENIZER(text, add_special_tokens=not chat).input_ids


def test_offsets_of_a_given_answer_are_characters_of_its_text():
    rendered, encoded = prompt_of(chat=False)
    answer = given_answer("In Paris", rendered, encoded, TOKENIZER)
    pieces = [answer.text[start:stop] for start, stop in answer.offsets]
    # the space that joins it to the prompt is a token that covers none of its characters
    assert pieces == ["", *"In Paris"]
    assert len(pieces) == len(answer.token_ids)


def test_an_empty_given_answer_is_refused():
    rendered, encoded = prompt_of(chat=False)
    with pytest.raises(DataFileError, match="the given answer is empty"):
        given_answer("  ", rendered, encoded, TOKENIZER)


def test_offsets_of_a_generated_answer_leave_out_the_space_around_it():
    token_ids = TOKENIZER("  Rome. ", add_special_tokens=False).input_ids
    answer = generated_answer(token_ids, TOKENIZER)
    assert answer.text == "Rome."
    pieces = [answer.text[start:stop] for start, stop in answer.offsets]
    assert pieces == ["", "", *"Rome.", ""]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(4, 96), min_size=1, max_size=23))
def test_ranges_of_a_generated_answer_lie_one_after_another_and_cover_it(token_ids):
    answer = generated_answer(token_ids, TOKENIZER)
    ranges = np.array(answer.offsets)
    assert len(ranges) == len(token_ids)
    assert ranges[0, 0] == 0
    assert ranges[-1, 1] == len(answer.text)
    assert (ranges[1:, 0] == ranges[:-1, 1]).all()


class SplitBytes:
    """A tokenizer whose every token is one byte of UTF-8."""

    def decode(self, token_ids, skip_special_tokens):
        return bytes(token_ids).decode("utf-8", errors="replace")


def test_a_character_of_several_tokens_belongs_to_the_last_of_them():
    answer = generated_answer(list("né€".encode()), SplitBytes())
    assert answer.text == "né€"
    pieces = [answer.text[start:stop] for start, stop in answer.offsets]
    assert pieces == ["n", "", "é", "", "", "€"]
