"""Needles in a haystack: lengths, depths, and the place of the needle among the tokens."""

import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphhalu.core.errors import DataFileError, UsageError
from graphhalu.datasets.question import Question
from graphhalu.heads.retrieval import Haystack, read_haystack, read_needles, trials
from graphhalu.testing.tiny_models import tiny_tokenizer

TEXT = "The mill is old. It has a wheel. Nobody turns it now. The water is clear. " * 9
SENTENCE = "A red fox hid the key."
NEEDLE = Question("0", "Who hid the key?", ("A red fox",), group_id=SENTENCE)


def tokens_text(tokenizer, hidden):
    return tokenizer.decode(hidden.token_ids[slice(*hidden.span)])


@given(depth=st.floats(0, 1), length=st.integers(90, 300), chat=st.booleans())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_needle_tokens_spell_the_needle_at_every_length_and_depth(depth, length, chat):
    tokenizer = tiny_tokenizer()
    haystack = Haystack(TEXT.strip(), tokenizer, chat=chat)
    if chat:
        length += 60
    hidden = haystack.hide(NEEDLE, length=length, depth=depth)
    assert tokens_text(tokenizer, hidden).strip() == SENTENCE
    assert abs(len(hidden.token_ids) - length) <= 3
    context, needle = hidden.context, hidden.span
    assert context.start <= needle.start < needle.stop <= context.stop


def test_a_needle_stands_between_whole_sentences():
    tokenizer = tiny_tokenizer(chat=False)
    haystack = Haystack(TEXT.strip(), tokenizer, chat=False)
    starts = []
    for depth in (0.0, 0.3, 0.6, 1.0):
        hidden = haystack.hide(NEEDLE, length=250, depth=depth)
        before = tokenizer.decode(hidden.token_ids[hidden.context.start : hidden.span.start])
        assert not before.strip() or before.strip().endswith(".")
        starts.append(hidden.span.start)
    assert starts == sorted(set(starts))
    assert starts[0] == hidden.context.start


def test_a_needle_that_also_stands_in_the_haystack_is_found_where_it_was_hidden():
    tokenizer = tiny_tokenizer(chat=False)
    haystack = Haystack((SENTENCE + " " + TEXT).strip(), tokenizer, chat=False)
    hidden = haystack.hide(NEEDLE, length=250, depth=0.5)
    assert hidden.span.start > hidden.context.start + 20
    assert tokens_text(tokenizer, hidden).strip() == SENTENCE


def test_every_needle_is_hidden_at_every_depth_of_every_length():
    haystack = Haystack(TEXT.strip(), tiny_tokenizer(chat=False), chat=False)
    other = replace(NEEDLE, question_id="1", group_id="The cat is blue.")
    found = list(trials(haystack, (NEEDLE, other), (210, 130), 3))
    assert len({trial.question.question_id for trial in found}) == 12
    assert found[0].question.question_id == "length 130, depth 0.00, needle 0"
    assert found[-1].question.question_id == "length 210, depth 1.00, needle 1"


def test_no_room_and_no_depth_are_refused():
    haystack = Haystack(TEXT.strip(), tiny_tokenizer(chat=False), chat=False)
    for length in (20, 5000):
        with pytest.raises(UsageError, match=f"a prompt of {length} tokens needs"):
            haystack.hide(NEEDLE, length=length, depth=0.5)
    with pytest.raises(UsageError, match="between 0"):
        haystack.hide(NEEDLE, length=200, depth=1.5)
    with pytest.raises(UsageError, match="one depth or more"):
        list(trials(haystack, (NEEDLE,), (200,), 0))


def test_a_template_that_shows_no_context_cannot_hide_a_needle():
    haystack = Haystack(TEXT.strip(), tiny_tokenizer(chat=False), template="published", chat=False)
    with pytest.raises(UsageError, match="does not show"):
        haystack.hide(NEEDLE, length=200, depth=0.5)


def test_the_bundled_texts_know_nothing_of_each_other():
    text, needles = read_haystack(), read_needles()
    assert len(text.split()) > 1500
    assert len(needles) == 5
    for needle in needles:
        assert needle.group_id not in text
        assert needle.answers[0] in needle.group_id
        assert needle.group_id.endswith(".")


def test_published_needles_are_read(shared_data):
    path = shared_data / "retrieval_head" / "haystack_for_detect" / "needles.jsonl"
    if not path.is_file():
        pytest.skip(f"the published needles are not at {path}")
    assert [n.text[:10] for n in read_needles(path)] == ["What does ", "What is th", "Why does e"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nonsense", "row 2: expected JSON, got a bad line"),
        ("[1]", "row 2: expected an object"),
        (json.dumps({"needle": "a", "question": "b"}), "row 2: expected the columns real_needle"),
        (
            json.dumps({"needle": "a", "question": " ", "real_needle": "a"}),
            "question must be a text that is not empty",
        ),
        (json.dumps({"needle": 1, "question": "b", "real_needle": "a"}), "needle must be a text"),
    ],
)
def test_a_broken_needle_is_named_by_row(line, said, tmp_path):
    path = tmp_path / "needles.jsonl"
    whole = {"needle": SENTENCE, "question": NEEDLE.text, "real_needle": NEEDLE.answers[0]}
    path.write_text(json.dumps(whole) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(DataFileError, match=r"needles\.jsonl") as caught:
        read_needles(path)
    assert said in str(caught.value)


def test_files_that_hold_nothing_are_refused(tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n", encoding="utf-8")
    with pytest.raises(DataFileError, match="is empty"):
        read_haystack(empty)
    with pytest.raises(DataFileError, match="is empty"):
        read_needles(empty)
    with pytest.raises(UsageError, match="no data file at"):
        read_haystack(tmp_path / "none.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataFileError, match="expected UTF-8"):
        read_haystack(tmp_path / "bytes.txt")
