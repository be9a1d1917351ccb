"""TriviaQA: trivia questions with every alias of the answer."""

import ast
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Final

from graphhalu.datasets.base import Dataset, DatasetCard
from graphhalu.datasets.files import DataFile, open_file, read_rows, table_cells
from graphhalu.datasets.hub import hub_rows
from graphhalu.datasets.question import Question
from graphhalu.datasets.rows import (
    Row,
    mapping_field,
    require_columns,
    text_field,
    text_id,
    texts_field,
    without_repeats,
    wrong_value,
)
from graphhalu.errors import DataFileError

LAYOUTS: Final = (
    "one of TriviaQA's layouts: hub rows (question, question_id, answer), the published JSON "
    "(Question, QuestionId, Answer), or DPR's table (question, tab, Python list of aliases)"
)

_DPR_CELLS: Final = 2


class TriviaQA(Dataset):
    """Reads the hub's ``rc.nocontext`` rows, the published JSON and DPR's question table.

    The hub lists a question once for each of its evidence sets; such rows are joined here, and
    their aliases united.
    """

    card: ClassVar[DatasetCard] = DatasetCard(
        name="triviaqa",
        task="answer a trivia question from memory",
        licence="Apache-2.0",
        source="https://nlp.cs.washington.edu/triviaqa",
        hub_id="mandarjoshi/trivia_qa",
        hub_config="rc.nocontext",
        split="validation",
        size=9_960,
        citation="Joshi et al. 2017, arXiv:1705.03551",
        label_rule="match",
        artefacts=(
            "On the hub 17,944 rows hold 9,960 questions: rows of one question are joined.",
            "Aliases come from Wikipedia redirects: some are misspelt, vulgar or unrelated.",
            "DPR's table has no canonical answer; its first alias may be any (an emoji, even).",
            "Some questions came with CSV quotes inside their text; they are undone here.",
            "DPR's files are CC BY-NC 4.0.",
        ),
    )

    def read(self, path: Path | None) -> Iterator[Question]:
        """Yield the questions in the order of the file, each once; see the base class."""
        return iter(_joined(self._questions(path)))

    def _questions(self, path: Path | None) -> Iterator[Question]:
        if path is None:
            yield from map(_question, hub_rows(self.card))
            return
        file = open_file(path)
        if _is_dpr(file):
            yield from _dpr_questions(file)
            return
        yield from map(_question, read_rows(file))


def _joined(questions: Iterable[Question]) -> list[Question]:
    """Unite the aliases of rows with the same id and text; other repeated ids stay as they are."""
    joined: dict[tuple[str, str], Question] = {}
    for question in questions:
        key = (question.question_id, question.text)
        answers = joined[key].answers if key in joined else ()
        united = without_repeats([*answers, *question.answers])
        joined[key] = replace(joined.get(key, question), answers=united)
    return list(joined.values())


def _question(row: Row) -> Question:
    if "Question" in row.values:
        return _published_question(row)
    require_columns(row, "question", "question_id", "answer", expected=LAYOUTS)
    answer = mapping_field(row, "answer")
    answers = [text_field(answer, "value"), *texts_field(answer, "aliases")]
    if "normalized_aliases" in answer.values and len(answers) == 1:
        answers += texts_field(answer, "normalized_aliases")
    return Question(
        question_id=text_field(row, "question_id"),
        text=_unquoted(text_field(row, "question")),
        answers=_known(answers, row),
    )


def _published_question(row: Row) -> Question:
    require_columns(row, "Question", "QuestionId", "Answer", expected=LAYOUTS)
    answer = mapping_field(row, "Answer")
    answers = [text_field(answer, "Value"), *texts_field(answer, "Aliases")]
    if "HumanAnswers" in answer.values:
        answers += texts_field(answer, "HumanAnswers")
    return Question(
        question_id=text_field(row, "QuestionId"),
        text=_unquoted(text_field(row, "Question")),
        answers=_known(answers, row),
    )


def _known(answers: list[str], row: Row) -> tuple[str, ...]:
    if answers[0] == "<unk>":
        message = f"{row.where}: the answer is hidden: TriviaQA's test split has no gold answers"
        raise DataFileError(message)
    return without_repeats(answers)


def _is_dpr(file: DataFile) -> bool:
    if file.layout != "table":
        return False
    cells = file.text().lstrip().partition("\n")[0].split("\t")
    return len(cells) >= _DPR_CELLS and cells[-1].lstrip('"').startswith("[")


def _dpr_questions(file: DataFile) -> Iterator[Question]:
    for number, cells in table_cells(file, "\t"):
        where = file.where(number)
        if len(cells) != _DPR_CELLS or not cells[0].strip():
            message = f"{where}: expected question, tab and list of aliases, got {len(cells)} cells"
            raise DataFileError(message)
        text = _unquoted(cells[0].strip())
        answers = _literal_list(Row(where, {"aliases": cells[1]}))
        yield Question(question_id=text_id("triviaqa", text), text=text, answers=answers)


def _unquoted(text: str) -> str:
    """Undo the CSV quotes that TriviaQA left around questions that quote something."""
    inner = text[1:-1]
    is_quoted = len(text) > 1 and text[0] == text[-1] == '"'
    if not is_quoted or re.search(r'(?<!")(?:"")*"(?!")', inner):
        return text
    return inner.replace('""', '"').strip()


def _literal_list(row: Row) -> tuple[str, ...]:
    cell = row.values["aliases"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # an alias may hold a stray backslash
            value = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise wrong_value(row, "aliases", "a Python list of texts", cell) from None
    aliases = texts_field(Row(row.where, {"aliases": value}), "aliases")
    if not aliases:
        raise wrong_value(row, "aliases", "a list with at least one alias", value)
    return without_repeats(aliases)
