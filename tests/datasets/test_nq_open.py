import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from graphhalu.core.errors import DataFileError, UsageError
from graphhalu.datasets.per_row import NQOpen, NQOpenContext
from graphhalu.datasets.question import Question

GOLD = {"title": "Moon", "text": " Bob Lee walked. ", "hasanswer": True, "isgold": True}
OTHER = {"title": "Sun", "text": "Ann swam.", "hasanswer": False, "isgold": False}
CLOSED = {"question": "who walked", "answer": ["Bob Lee", "Lee", "Bob Lee"]}
OPEN = {"question": "who walked", "answers": ["Bob Lee"], "ctxs": [OTHER, GOLD]}


def saved(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def closed(path: Path) -> list[Question]:
    return list(NQOpen().read(path))


def with_context(path: Path) -> list[Question]:
    return list(NQOpenContext().read(path))


def test_every_answer_is_kept_once_and_nothing_else_is_shown(tmp_path: Path) -> None:
    (question,) = closed(saved(tmp_path, CLOSED))
    assert (question.text, question.answers) == ("who walked", ("Bob Lee", "Lee"))
    assert question.context is None


def test_the_gold_passage_is_the_context_and_its_article_the_group(tmp_path: Path) -> None:
    (question,) = with_context(saved(tmp_path, OPEN))
    assert question.context == "Bob Lee walked."
    assert question.group_id == "article: Moon"
    assert question.metadata == {"title": "Moon"}


def test_a_question_has_the_same_id_with_and_without_its_passage(tmp_path: Path) -> None:
    (first,) = closed(saved(tmp_path, CLOSED))
    (second,) = with_context(saved(tmp_path, OPEN))
    assert first.question_id == second.question_id


@pytest.mark.parametrize("answers", [[], [" "], "Bob Lee", [7], None])
def test_a_question_without_a_list_of_answers_is_named(answers: object, tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="row 2: answer must be a list"):
        closed(saved(tmp_path, CLOSED, {**CLOSED, "answer": answers}))


@pytest.mark.parametrize(
    ("ctxs", "complaint"),
    [
        ([OTHER], "row 2: ctxs must be a list with a gold passage"),
        ([], "row 2: ctxs must be a list with a gold passage"),
        (["Bob"], "row 2: ctxs must be a list of passages"),
        ({"title": "Moon"}, "row 2: ctxs must be a list of passages"),
        ([OTHER, {**GOLD, "text": " "}], "row 2, ctxs 2: text must be a text that is not empty"),
        ([{"isgold": True, "text": "x"}], "row 2, ctxs 1: expected the columns title"),
    ],
)
def test_a_row_without_a_gold_passage_is_named(ctxs: object, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=complaint):
        with_context(saved(tmp_path, OPEN, {**OPEN, "ctxs": ctxs}))


def test_each_set_refuses_the_layout_of_the_other(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=r"row 1: expected NQ-open's layout.*missing: answer"):
        closed(saved(tmp_path, OPEN))
    with pytest.raises(DataFileError, match=r"row 1: expected the layout of NQ-open with passages"):
        with_context(saved(tmp_path, CLOSED))


def test_passages_are_not_on_the_hub_and_the_way_out_is_named() -> None:
    with pytest.raises(UsageError, match=r"'nq_open_context' is not read from the hub(?s:.*)--data"):
        list(NQOpenContext().read(None))


def test_every_row_of_the_published_questions_is_read(shared_data: Path) -> None:
    path = shared_data / "nq_open/NQ-open.dev.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    questions = closed(path)
    assert len(questions) == len(rows) == NQOpen.card.size
    for question, row in zip(questions, rows, strict=True):
        assert question.text == row["question"]
        assert set(question.answers) == {answer.strip() for answer in row["answer"]}


def test_every_published_passage_holds_an_answer_as_the_card_says(shared_data: Path) -> None:
    path = shared_data / "nq_open/nq-open-oracle.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    questions = with_context(path)
    assert len(questions) == len(rows) == NQOpenContext.card.size
    for question, row in zip(questions, rows, strict=True):
        assert question.context == row["ctxs"][0]["text"].strip()
        assert any(answer in (question.context or "") for answer in question.answers)


def test_published_questions_with_passages_are_among_those_without(shared_data: Path) -> None:
    answers = {q.question_id: q.answers for q in closed(shared_data / "nq_open/NQ-open.dev.jsonl")}
    for question in with_context(shared_data / "nq_open/nq-open-oracle.jsonl.gz"):
        assert set(answers[question.question_id]) == set(question.answers)
