"""SQuAD, questions about a Wikipedia passage, and TriviaQA, trivia questions with every alias."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Final

from graphhalu.core.errors import DataFileError
from graphhalu.datasets.base import Dataset, DatasetCard, dataset_card
from graphhalu.datasets.files import DataFile, open_file, read_rows, table_cells
from graphhalu.datasets.question import Question
from graphhalu.datasets.rows import (
    Row,
    answers_field,
    literal,
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


_DPR_CELLS: Final = 2


class TriviaQA(Dataset):
    """Reads the hub's ``rc.nocontext`` rows, the published JSON and DPR's question table.

    The hub lists a question once for each of its evidence sets; such rows are joined here, and
    their aliases united.
    """

    card: ClassVar[DatasetCard] = dataset_card("triviaqa")

    def read(self, path: Path | None) -> Iterator[Question]:
        """Yield the questions in the order of the file, each once; see the base class."""
        return iter(_joined(self._questions(path)))

    def _questions(self, path: Path | None) -> Iterator[Question]:
        if path is None:
            return map(_trivia_question, self.rows(path))
        file = open_file(path)
        return _dpr_questions(file) if _is_dpr(file) else map(_trivia_question, read_rows(file))


def _joined(questions: Iterable[Question]) -> list[Question]:
    """Unite the aliases of rows with the same id and text; other repeated ids stay as they are."""
    joined: dict[tuple[str, str], Question] = {}
    for question in questions:
        key = (question.question_id, question.text)
        answers = joined[key].answers if key in joined else ()
        united = without_repeats([*answers, *question.answers])
        joined[key] = replace(joined.get(key, question), answers=united)
    return list(joined.values())


def _trivia_question(row: Row) -> Question:
    """The question of a row of the published JSON, or of the hub."""
    is_published = "Question" in row.values
    text, name, answer = "question", "question_id", "answer"
    value, aliases, more = "value", "aliases", "normalized_aliases"
    if is_published:
        text, name, answer = "Question", "QuestionId", "Answer"
        value, aliases, more = "Value", "Aliases", "HumanAnswers"
    require_columns(row, text, name, answer, expected=TriviaQA.card.layout)
    found = mapping_field(row, answer)
    answers = [text_field(found, value), *texts_field(found, aliases)]
    if more in found.values and (is_published or len(answers) == 1):
        answers += texts_field(found, more)
    if answers[0] == "<unk>":
        raise DataFileError(f"{row.where}: the answer is hidden: TriviaQA's test split has no gold answers")
    return Question(text_field(row, name), _unquoted(text_field(row, text)), without_repeats(answers))


def _is_dpr(file: DataFile) -> bool:
    if file.layout != "table":
        return False
    cells = file.text().lstrip().partition("\n")[0].split("\t")
    return len(cells) >= _DPR_CELLS and cells[-1].lstrip('"').startswith("[")


def _dpr_questions(file: DataFile) -> Iterator[Question]:
    for number, cells in table_cells(file, "\t"):
        if len(cells) != _DPR_CELLS or not cells[0].strip():
            raise file.fault(number, f"expected question, tab and list of aliases, got {len(cells)} cells")
        text = _unquoted(cells[0].strip())
        answers = _aliases(file.where(number), cells[1])
        yield Question(question_id=text_id("triviaqa", text), text=text, answers=answers)


def _unquoted(text: str) -> str:
    """Undo the CSV quotes that TriviaQA left around questions that quote something."""
    inner = text[1:-1]
    is_quoted = len(text) > 1 and text[0] == text[-1] == '"'
    if not is_quoted or re.search(r'(?<!")(?:"")*"(?!")', inner):
        return text
    return inner.replace('""', '"').strip()


def _aliases(where: str, cell: str) -> tuple[str, ...]:
    try:
        row = Row(where, {"aliases": literal(cell)})
    except ValueError:
        raise wrong_value(Row(where, {}), "aliases", "a Python list of texts", cell) from None
    return answers_field(row, "aliases")
