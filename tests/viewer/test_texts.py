"""Texts of tokens, and the pieces that a text is cut into."""

from dataclasses import replace

import numpy as np
import pytest

from graphhalu.core.errors import GraphhaluError
from graphhalu.testing.tiny_models import tiny_tokenizer
from graphhalu.viewer.text import hallucinated_tokens, piece_starts, store_tokenizer, token_texts


def spoken(trace, prompt, tokenizer, answer_ids=()):
    """A trace whose prompt is really this text."""
    ids = tokenizer(prompt)["input_ids"]
    ids = [*ids, *answer_ids]
    record = replace(trace.record, prompt=prompt, prompt_length=len(ids) - len(answer_ids), length=len(ids))
    return replace(trace, record=record, arrays={"token_ids": np.array(ids, dtype=np.int32)})


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def test_a_prompt_is_cut_into_the_texts_of_its_tokens(planted, tokenizer):
    record = replace(planted[0].record, answer="xy", answer_offsets=((0, 1), (1, 2)))
    trace = spoken(replace(planted[0], record=record), "a <b> c", tokenizer, (27, 28))
    texts = token_texts(trace, tokenizer)
    assert texts == ("<s>", "a", " ", "<", "b", ">", " ", "c", "x", "y")
    assert "".join(texts[1:8]) == trace.record.prompt


def test_a_character_of_several_tokens_stands_with_the_first_of_them(planted, tokenizer):
    trace = spoken(planted[0], "é!", tokenizer, (4,))
    assert token_texts(trace, tokenizer)[:-1] == ("<s>", "é", "", "!")


def test_other_tokens_than_the_prompt_gives_are_decoded_alone(planted, tokenizer):
    trace = spoken(planted[0], "abc", tokenizer, (4,))
    changed = replace(trace, record=replace(trace.record, prompt="xyz"))
    assert token_texts(changed, tokenizer) == ("<s>", "a", "b", "c", "a")


def test_without_a_tokenizer_the_prompt_is_numbers_and_the_answer_its_text(planted):
    trace = planted[0]
    texts = token_texts(trace, None)
    assert texts[0] == f"#{trace.token_ids[0]}"
    assert "".join(texts[trace.prompt_length :]) == trace.record.answer


def test_tokens_are_hallucinated_where_a_given_span_touches_them(planted):
    trace = planted[0]
    assert hallucinated_tokens(trace) is None
    first = trace.record.answer_offsets[1][0]
    given = replace(trace, record=replace(trace.record, given_spans=((first, first + 1),)))
    assert np.flatnonzero(hallucinated_tokens(given)).tolist() == [trace.prompt_length + 1]


def test_the_tokenizer_of_a_folder_is_loaded_without_weights(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    found = store_tokenizer({}, str(tmp_path))
    assert found("ab")["input_ids"] == [1, 4, 5]


def test_a_model_that_is_not_there_is_a_note_unless_it_was_asked_for():
    notes = []
    assert store_tokenizer({"model": {"name": "no-such"}}, on_note=notes.append) is None
    assert "shown as numbers" in notes[0]
    assert store_tokenizer({}, on_note=notes.append) is None
    with pytest.raises(GraphhaluError):
        store_tokenizer({}, "no-such", notes.append)


def test_pieces_end_at_sentences_and_at_spans():
    texts = [" one", " two", ".", " three", " four", " five", ".", " six", " seven", " eight"]
    code = np.array([3] * 8 + [5] * 2, dtype=np.uint8)
    assert piece_starts(texts, code, most=4) == (0, 3, 7, 8)


def test_a_long_text_gives_about_as_many_pieces_as_asked_for():
    texts = [" word"] * 1009
    assert piece_starts(texts, np.full(1009, 2, dtype=np.uint8), most=32)[:3] == (0, 64, 128)
    ended = [" word", "."] * 500
    assert len(piece_starts(ended, np.full(1000, 2, dtype=np.uint8))) == 32
