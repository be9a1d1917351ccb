import json
from pathlib import Path

import pytest

from graphhalu.core.errors import DataFileError
from graphhalu.datasets.question import Question
from graphhalu.datasets.truthfulqa import TruthfulQA

REAL = Path(__file__).parents[2].parent / "shared/data/truthfulqa"

HEADER = "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source"


def read(tmp_path: Path, content: str) -> list[Question]:
    path = tmp_path / "questions"
    path.write_text(content, encoding="utf-8")
    return list(TruthfulQA().read(path))


def test_the_best_answer_comes_first_and_every_answer_once(tmp_path: Path) -> None:
    (question,) = read(
        tmp_path, f"{HEADER}\nAdversarial,Law,Is it?,No,Never; No;  Not so; ,Yes; Of course,x.org\n"
    )
    assert question.answers == ("No", "Never", "Not so")
    assert question.incorrect_answers == ("Yes", "Of course")
    assert question.metadata == {"category": "Law", "type": "Adversarial", "source": "x.org"}


def test_hub_rows_give_the_same_question_as_the_table(tmp_path: Path) -> None:
    (from_csv,) = read(tmp_path, f"{HEADER}\nAdversarial,Law,Is it?,No,No; Never,Yes,x.org\n")
    row = {
        "type": "Adversarial",
        "category": "Law",
        "question": "Is it?",
        "best_answer": "No",
        "correct_answers": ["No", "Never"],
        "incorrect_answers": ["Yes"],
        "source": "x.org",
    }
    (from_hub,) = read(tmp_path, json.dumps(row))
    assert from_csv == from_hub


def test_given_answers_are_the_right_ones_then_the_wrong_ones_each_once(tmp_path: Path) -> None:
    row = "Adversarial,Law,Is it?,No,Never; No; Not so,Yes; Of course; Yes,x.org"
    (question,) = read(tmp_path, f"{HEADER}\n{row}\n")
    assert [(answer.text, answer.is_hallucinated) for answer in question.given] == [
        ("No", False),
        ("Never", False),
        ("Not so", False),
        ("Yes", True),
        ("Of course", True),
    ]


def test_an_answer_listed_as_right_and_as_wrong_is_given_without_a_label(tmp_path: Path) -> None:
    (question,) = read(tmp_path, f"{HEADER}\nAdversarial,Law,Is it?,No,Unknown,Unknown,x.org\n")
    assert [(answer.text, answer.is_hallucinated) for answer in question.given] == [
        ("No", False),
        ("Unknown", None),
    ]


def test_the_layout_for_multiple_choice_is_refused_with_its_columns(tmp_path: Path) -> None:
    rows = json.dumps([{"question": "Is it?", "mc1_targets": {"No": 1}}])
    with pytest.raises(DataFileError, match=r"row 1: expected one of TruthfulQA.*mc1_targets"):
        read(tmp_path, rows)


def test_a_row_without_a_best_answer_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="row 2: Best Answer must be a text"):
        read(tmp_path, f"{HEADER}\nAdversarial,Law,Is it?,,No,Yes,x.org\n")


@pytest.mark.skipif(
    not REAL.is_dir(), reason="../shared/data/truthfulqa is not here; it is the published file"
)
def test_all_790_questions_of_the_published_table_are_read() -> None:
    questions = list(TruthfulQA().read(REAL / "TruthfulQA.csv"))
    assert len({q.question_id for q in questions}) == len(questions) == 790
    assert all(q.answers and q.incorrect_answers and q.metadata["category"] for q in questions)
    first = questions[0]
    assert first.answers[0] == "The watermelon seeds pass through your digestive system"
    assert (len(first.answers), len(first.incorrect_answers)) == (6, 7)
    assert sum(g.is_hallucinated is None for q in questions for g in q.given) == 2
    for question in questions:
        given = [answer.text for answer in question.given]
        assert given == list(dict.fromkeys([*question.answers, *question.incorrect_answers]))
