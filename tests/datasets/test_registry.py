import json
from pathlib import Path

import pytest

from graphhalu.core.errors import DataFileError, UnknownNameError, UsageError
from graphhalu.datasets.question import Question, question_key
from graphhalu.datasets.registry import DATASETS, load_questions, seeded_order, share_groups


def write_questions(path: Path, texts: list[str], ids: list[str] | None = None) -> Path:
    names = ids or [f"q{place}" for place in range(len(texts))]
    rows = [
        {"question": text, "question_id": name, "answer": {"value": "Paris", "aliases": []}}
        for text, name in zip(texts, names, strict=True)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def question(name: str, text: str, **rest: object) -> Question:
    return Question(name, text, ("x",), **rest)


def test_every_data_set_in_the_table_has_a_card_of_its_own_name() -> None:
    names = DATASETS.names()
    assert {"worldfacts", "probes", "triviaqa", "truthfulqa"} <= set(names)
    for name in names:
        card = DATASETS.get(name).card
        assert card.name == name
        assert card.licence
        assert card.size > 0


def test_a_smaller_sample_is_the_beginning_of_a_larger_one(tmp_path: Path) -> None:
    path = write_questions(tmp_path / "q.jsonl", [f"What is {n}?" for n in range(53)])
    large = load_questions("triviaqa", path, num_samples=31, seed=5)
    small = load_questions("triviaqa", path, num_samples=7, seed=5)
    assert large[:7] == small
    assert len(large) == 31


def test_another_seed_gives_another_order_of_the_same_questions(tmp_path: Path) -> None:
    path = write_questions(tmp_path / "q.jsonl", [f"What is {n}?" for n in range(53)])
    first, second = (load_questions("triviaqa", path, seed=seed) for seed in (0, 1))
    assert first != second
    assert {q.question_id for q in first} == {q.question_id for q in second}


def test_the_order_does_not_depend_on_what_else_is_in_the_set() -> None:
    questions = [question(f"q{n}", f"What is {n}?") for n in range(53)]
    every_third = seeded_order(questions[::3], seed=3)
    assert every_third == [q for q in seeded_order(questions, seed=3) if q in questions[::3]]


def test_more_samples_than_questions_take_all_and_the_length_says_so(tmp_path: Path) -> None:
    path = write_questions(tmp_path / "q.jsonl", [f"What is {n}?" for n in range(11)])
    assert len(load_questions("triviaqa", path, num_samples=97)) == 11


@pytest.mark.parametrize("num_samples", [0, -3])
def test_a_sample_below_one_is_refused(num_samples: int, tmp_path: Path) -> None:
    path = write_questions(tmp_path / "q.jsonl", ["What is 1?"])
    with pytest.raises(UsageError, match="at least 1"):
        load_questions("triviaqa", path, num_samples=num_samples)


def test_a_repeated_id_is_refused_with_both_rows(tmp_path: Path) -> None:
    path = write_questions(tmp_path / "q.jsonl", ["A?", "B?", "C?"], ids=["x", "y", "x"])
    with pytest.raises(DataFileError, match=r"'x'(?s:.*)question 1: 'A\?'\n.*question 3: 'C\?'"):
        load_questions("triviaqa", path)


def test_a_file_with_a_header_only_holds_no_question(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text("Question,Best Answer,Correct Answers,Incorrect Answers\n", encoding="utf-8")
    with pytest.raises(DataFileError, match=r"q\.csv holds no question"):
        load_questions("truthfulqa", path)


def test_an_unknown_data_set_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'triviaqa'"):
        load_questions("trivia_qa")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is the capital of France?", "what is  capital of france"),
        ("Who was Gödel?", "Who was Godel?"),
        ("Who wrote “Emma”?", 'Who wrote "Emma"?'),
    ],
)
def test_texts_that_differ_only_in_form_share_a_group(one: str, other: str) -> None:
    first, second = share_groups([question("q1", one), question("q2", other)])
    assert first.group_id == second.group_id == "q1"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Who wrote Emma?", "Who wrote Persuasion?"),
        ("「ガ」とは?", "「カ」とは?"),
        ("???", "!!!"),
        ("What is 2 + 3?", "What is 2 3?"),
    ],
)
def test_different_questions_keep_groups_of_their_own(one: str, other: str) -> None:
    first, second = share_groups([question("q1", one), question("q2", other)])
    assert (first.group_id, second.group_id) == ("q1", "q2")


def test_the_same_question_about_another_context_is_another_question() -> None:
    assert question_key("Who?", "Ann came.") != question_key("Who?", "Bob came.")


def test_groups_of_the_data_set_grow_together_through_a_shared_text() -> None:
    grouped = share_groups(
        [
            question("a", "One?", group_id="g1"),
            question("b", "Two?", group_id="g1"),
            question("c", "two", group_id="g2"),
            question("d", "Three?", group_id="g2"),
            question("e", "Four?", group_id="g3"),
        ]
    )
    assert [item.group_id for item in grouped] == ["g1", "g1", "g1", "g1", "g3"]


def test_groups_that_grow_together_later_bear_the_name_of_the_first_of_them() -> None:
    grouped = share_groups(
        [
            question("a", "One?", group_id="g1"),
            question("b", "Two?", group_id="g2"),
            question("c", "two", group_id="g1"),
        ]
    )
    assert [item.group_id for item in grouped] == ["g1", "g1", "g1"]


def test_no_questions_have_no_groups() -> None:
    assert share_groups([]) == []
