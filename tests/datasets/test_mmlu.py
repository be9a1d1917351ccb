import csv
import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from graphhalu.core.errors import DataFileError, UsageError
from graphhalu.datasets.mmlu import CATEGORIES, MMLU
from graphhalu.datasets.question import Question
from graphhalu.datasets.registry import load_questions, seeded_order

Cells = tuple[str, ...]

FIRST = ("What is 2 + 3?", "4", "5", "6", "7", "B")
SECOND = ('Who said "I, too"?\nChoose one.', "Ann, jr.", "Bo", "Cy", "Both A and B", "D")
HUB_ROW = {"question": "Why?", "subject": "anatomy", "choices": ["a", "b", "c", "d"], "answer": 2}


def table(path: Path, *rows: Cells) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def examples(n: int) -> list[Cells]:
    return [(f"Example {place}?", "w", "x", "y", "z", "C") for place in range(n)]


def read(path: Path) -> list[Question]:
    return list(MMLU().read(path))


@pytest.fixture(scope="module")
def questions(shared_data: Path) -> list[Question]:
    return read(shared_data / "mmlu/data")


def test_the_folder_is_read_subject_by_subject_with_the_examples_of_each(tmp_path: Path) -> None:
    table(tmp_path / "test/virology_test.csv", FIRST)
    table(tmp_path / "test/anatomy_test.csv", SECOND, FIRST)
    table(tmp_path / "dev/anatomy_dev.csv", *examples(3))
    table(tmp_path / "val/anatomy_val.csv", FIRST)
    questions = read(tmp_path)
    assert [q.metadata["subject"] for q in questions] == ["anatomy", "anatomy", "virology"]
    assert [len(q.examples) for q in questions] == [3, 3, 0]
    assert questions[0].examples[1].text == "Example 1?"
    assert questions[0].examples[1].choices == ("w", "x", "y", "z")
    assert questions[0].examples[1].correct_choices == (2,)


def test_a_question_has_its_options_in_their_order_and_the_right_place(tmp_path: Path) -> None:
    (question,) = read(table(tmp_path / "marketing_test.csv", SECOND))
    assert question.text == SECOND[0]
    assert question.choices == SECOND[1:5]
    assert question.correct_choices == (3,)
    assert question.answers == ("Both A and B",)
    assert question.incorrect_answers == ("Ann, jr.", "Bo", "Cy")
    assert question.metadata == {"subject": "marketing", "category": "other"}


def test_at_most_five_examples_are_shown(tmp_path: Path) -> None:
    path = table(tmp_path / "test/virology_test.csv", FIRST)
    table(tmp_path / "dev/virology_dev.csv", *examples(7))
    table(tmp_path / "dev/anatomy_dev.csv", *examples(2))
    (question,) = read(path)
    assert [example.text for example in question.examples] == [f"Example {place}?" for place in range(5)]


def test_a_table_of_an_unknown_subject_has_no_category(tmp_path: Path) -> None:
    (question,) = read(table(tmp_path / "cooking.csv", FIRST))
    assert question.metadata == {"subject": "cooking"}


def test_the_same_question_has_the_same_id_in_every_layout(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"question": FIRST[0], "subject": "virology", "choices": FIRST[1:5], "answer": 1}
    path.write_text(json.dumps(row), encoding="utf-8")
    assert read(path) == read(table(tmp_path / "virology_test.csv", FIRST))


def test_a_row_that_stands_twice_is_kept_in_the_group_of_the_first(tmp_path: Path) -> None:
    path = table(tmp_path / "virology_test.csv", FIRST, SECOND, FIRST)
    questions = load_questions("mmlu", path)
    groups = {q.group_id for q in questions if q.text == FIRST[0]}
    assert len(questions) == len({q.question_id for q in questions}) == 3
    assert len(groups) == 1


def test_the_same_text_with_other_options_is_another_question(tmp_path: Path) -> None:
    other = (FIRST[0], "1", "2", "3", "5", "D")
    first, second = read(table(tmp_path / "virology_test.csv", FIRST, other))
    assert first.question_id != second.question_id


def test_hub_rows_come_with_the_examples_of_their_subject(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(hub_id: str, config: str, *, split: str) -> list[dict[str, Any]]:
        asked.append((hub_id, config, split))
        other = {**HUB_ROW, "subject": "virology"}
        dev = [{**HUB_ROW, "question": "Solved?", "answer": 0}, other]
        return [HUB_ROW] if split == "test" else dev

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    (question,) = load_questions("mmlu")
    (example,) = question.examples
    assert (example.text, example.choices, example.answers) == ("Solved?", ("a", "b", "c", "d"), ("a",))
    assert (question.correct_choices, question.answers) == ((2,), ("c",))
    assert sorted(asked) == [("cais/mmlu", "all", "dev"), ("cais/mmlu", "all", "test")]


@pytest.mark.parametrize(
    ("cells", "complaint"),
    [
        (FIRST[:5], r"row 2: expected one of MMLU's layouts.*; got 5 cells, not 6"),
        ((*FIRST[:5], "E"), "row 2: answer must be one of the letters A, B, C, D, got 'E'"),
        ((*FIRST[:5], "AB"), "row 2: answer must be one of the letters A, B, C, D, got 'AB'"),
        ((*FIRST[:5], "1"), "row 2: answer must be one of the letters A, B, C, D, got '1'"),
        (("Who?", "", "5", "6", "7", "B"), "row 2: A must be a text that is not empty"),
        ((" ", *FIRST[1:]), "row 2: question must be a text that is not empty"),
    ],
)
def test_a_bad_row_of_a_table_is_named(cells: Cells, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=complaint):
        read(table(tmp_path / "virology_test.csv", FIRST, cells))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"answer": 4}, "answer must be the place of the right option, 0 to 3, got 4"),
        ({"answer": "C"}, "answer must be the place of the right option"),
        ({"choices": ["a", "b"]}, "choices must be a list of four texts"),
        ({"choices": ["a", "b", "c", 7]}, "D must be a text that is not empty"),
    ],
)
def test_a_bad_hub_row_is_named(change: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [HUB_ROW, {**HUB_ROW, **change}]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(DataFileError, match=rf"row 2: {complaint}"):
        read(path)


def test_a_fault_in_the_examples_names_their_file(tmp_path: Path) -> None:
    table(tmp_path / "test/virology_test.csv", FIRST)
    table(tmp_path / "dev/virology_dev.csv", ("Who?", "B"))
    with pytest.raises(DataFileError, match=r"dev/virology_dev\.csv, row 1: expected"):
        read(tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    table(tmp_path / "virology_test.csv", FIRST)
    with pytest.raises(UsageError, match=r"holds no test/<subject>_test\.csv"):
        read(tmp_path)


def test_there_are_57_subjects_in_four_categories() -> None:
    assert len(CATEGORIES) == 57
    assert Counter(CATEGORIES.values()) == {"STEM": 18, "humanities": 13, "social sciences": 12, "other": 14}


def test_every_cell_of_the_published_folder_is_read(questions: list[Question], shared_data: Path) -> None:
    cells = []
    for path in sorted((shared_data / "mmlu/data/test").glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            cells += [(path.name.removesuffix("_test.csv"), *row) for row in csv.reader(file)]
    assert len(questions) == len(cells) == MMLU.card.size
    for question, (subject, text, *options, letter) in zip(questions, cells, strict=True):
        assert question.metadata["subject"] == subject
        assert (question.text, question.choices) == (text.strip(), tuple(o.strip() for o in options))
        assert "ABCD"[question.correct_choices[0]] == letter
    assert {q.metadata["subject"] for q in questions} == set(CATEGORIES)
    assert all(len(question.examples) == 5 for question in questions)


def test_no_question_stands_among_its_own_examples(questions: list[Question]) -> None:
    for question in questions:
        own = (question.text, question.choices)
        assert own not in [(example.text, example.choices) for example in question.examples]


def test_six_hundred_questions_are_a_mix_of_subjects(questions: list[Question]) -> None:
    sample = seeded_order(questions, seed=0)[:600]
    assert len({question.metadata["subject"] for question in sample}) >= 50


def test_a_published_table_read_alone_gives_the_questions_of_the_folder(
    shared_data: Path, tmp_path: Path
) -> None:
    folder = shared_data / "mmlu/data"
    for split in ("test", "dev"):
        (tmp_path / split).mkdir()
        name = f"{split}/college_physics_{split}.csv"
        shutil.copy(folder / name, tmp_path / name)
    assert read(tmp_path) == read(folder / "test/college_physics_test.csv")
    assert len(read(tmp_path)) == 102
