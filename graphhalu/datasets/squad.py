"""SQuAD: questions about a Wikipedia passage, whose answers stand in it."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from graphhalu.datasets.base import Dataset, DatasetCard, dataset_card
from graphhalu.datasets.question import Question
from graphhalu.datasets.rows import (
    Row,
    mapping_field,
    objects_field,
    require_columns,
    text_field,
    text_id,
    texts_field,
    without_repeats,
    wrong_value,
)


class SQuAD(Dataset):
    """Reads the published JSON of versions 1.1 and 2.0, XQuAD's among them, and hub rows.

    In version 2.0 some questions cannot be answered from their passage: they come without
    answers and with ``input_label`` 1, the others with 0. In version 1.1 there are none, and
    nothing is said.
    """

    card: ClassVar[DatasetCard] = dataset_card("squad")

    def read(self, path: Path | None) -> Iterator[Question]:
        """Yield the questions in the order of the file; see the base class."""
        return iter(_labelled(q for row in self.rows(path) for q in _row_questions(row)))


def _labelled(questions: Iterable[Question]) -> list[Question]:
    """Say of each question whether it can be answered, if some cannot (version 2.0)."""
    listed = list(questions)
    if all(question.answers for question in listed):
        return listed
    return [replace(item, input_label=0 if item.answers else 1) for item in listed]


def _row_questions(row: Row) -> Iterator[Question]:
    if "paragraphs" in row.values:
        return _article_questions(row)
    require_columns(row, "id", "context", "question", "answers", expected=SQuAD.card.layout)
    answers = texts_field(mapping_field(row, "answers"), "text")
    title = text_field(row, "title") if row.values.get("title") else ""
    return iter([_question(row, text_field(row, "context"), title, answers)])


def _article_questions(article: Row) -> Iterator[Question]:
    paragraphs = list(_objects(article, "paragraphs"))
    title = text_field(article, "title") if article.values.get("title") else ""
    if not title and paragraphs:
        title = text_id("article", text_field(paragraphs[0], "context"))
    for paragraph in paragraphs:
        context = text_field(paragraph, "context")
        for entry in _objects(paragraph, "qas"):
            yield _question(entry, context, title, _entry_answers(entry))


def _entry_answers(entry: Row) -> tuple[str, ...]:
    answers = tuple(text_field(answer, "text") for answer in _objects(entry, "answers"))
    is_impossible = entry.values.get("is_impossible", False)
    if bool(answers) is is_impossible:
        raise wrong_value(
            entry,
            "answers",
            "empty if is_impossible is true, and a list of answers otherwise",
            entry.values["answers"],
        )
    return answers


def _question(row: Row, context: str, title: str, answers: tuple[str, ...]) -> Question:
    plausible = "plausible_answers" in row.values and not answers
    wrong = _objects(row, "plausible_answers") if plausible else ()
    return Question(
        question_id=text_field(row, "id"),
        text=text_field(row, "question"),
        answers=without_repeats(answers),
        group_id=f"article: {title}" if title else text_id("passage", context),
        context=context,
        incorrect_answers=without_repeats(text_field(answer, "text") for answer in wrong),
        metadata={"title": title} if title else {},
    )


def _objects(row: Row, name: str) -> Iterator[Row]:
    return objects_field(row, name, layout=SQuAD.card.layout)
