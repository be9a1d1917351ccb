"""TruthfulQA (generation): questions that people often answer with a misconception."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar, Final

from graphhalu.datasets.base import Dataset, DatasetCard
from graphhalu.datasets.files import open_file, read_rows
from graphhalu.datasets.hub import hub_rows
from graphhalu.datasets.question import GivenAnswer, Question
from graphhalu.datasets.rows import (
    Row,
    require_columns,
    text_field,
    text_id,
    texts_field,
    without_repeats,
    wrong_value,
)

LAYOUTS: Final = (
    "one of TruthfulQA's layouts: the published CSV (Question, Best Answer, Correct Answers, "
    "Incorrect Answers), or hub rows (question, best_answer, correct_answers, incorrect_answers)"
)


class TruthfulQA(Dataset):
    """Reads the published CSV and the hub's ``generation`` rows; both give the same ids."""

    card: ClassVar[DatasetCard] = DatasetCard(
        name="truthfulqa",
        task="answer a question without repeating a common falsehood",
        licence="Apache-2.0",
        source="https://github.com/sylinrl/TruthfulQA",
        hub_id="truthfulqa/truthful_qa",
        hub_config="generation",
        split="validation",
        size=817,
        citation="Lin et al. 2022, arXiv:2109.07958",
        label_rule="rouge",
        artefacts=(
            "Written against GPT-3: questions that it answered well were dropped.",
            "Correct answers are sentences, so matching by alias decides little.",
            "The release of 2025 has 790 questions, that of 2021 (and the hub) 817.",
            "'I have no comment' is listed as correct for many questions.",
            "Text alone tells the given answers apart: TF-IDF is reported at AUROC 0.82.",
            "Two questions of 2025 list 'Unknown' as right and as wrong: given without a label.",
        ),
    )

    def read(self, path: Path | None) -> Iterator[Question]:
        """Yield the questions in the order of the file; see the base class."""
        rows = hub_rows(self.card) if path is None else read_rows(open_file(path))
        return map(question_of, rows)


def question_of(row: Row) -> Question:
    """The question of a row in either layout.

    Raises:
        DataFileError: If the row is in neither; names it.
    """
    return _csv_question(row) if "Question" in row.values else _hub_question(row)


def _csv_question(row: Row) -> Question:
    require_columns(
        row, "Question", "Best Answer", "Correct Answers", "Incorrect Answers", expected=LAYOUTS
    )
    correct = [text_field(row, "Best Answer"), *_listed(row, "Correct Answers")]
    incorrect = _listed(row, "Incorrect Answers")
    metadata = {"Category": "category", "Type": "type", "Source": "source"}
    return Question(
        question_id=text_id("truthfulqa", text_field(row, "Question")),
        text=text_field(row, "Question"),
        answers=without_repeats(correct),
        incorrect_answers=without_repeats(incorrect),
        given=given_answers(correct, incorrect),
        metadata={name: row.values[key] for key, name in metadata.items() if row.values.get(key)},
    )


def _hub_question(row: Row) -> Question:
    require_columns(
        row, "question", "best_answer", "correct_answers", "incorrect_answers", expected=LAYOUTS
    )
    correct = [text_field(row, "best_answer"), *texts_field(row, "correct_answers")]
    incorrect = texts_field(row, "incorrect_answers")
    names = ("category", "type", "source")
    return Question(
        question_id=text_id("truthfulqa", text_field(row, "question")),
        text=text_field(row, "question"),
        answers=without_repeats(correct),
        incorrect_answers=without_repeats(incorrect),
        given=given_answers(correct, incorrect),
        metadata={name: row.values[name] for name in names if row.values.get(name)},
    )


def given_answers(correct: Iterable[str], incorrect: Iterable[str]) -> tuple[GivenAnswer, ...]:
    """Right answers, then wrong ones, each once; one that is listed as both has no label."""
    right, wrong = without_repeats(correct), without_repeats(incorrect)
    both = set(right) & set(wrong)
    return tuple(
        GivenAnswer(text, is_hallucinated=None if text in both else text in wrong)
        for text in without_repeats([*right, *wrong])
    )


def _listed(row: Row, name: str) -> list[str]:
    """Answers of one cell, which joins them with semicolons."""
    cell = row.values[name]
    if not isinstance(cell, str):
        raise wrong_value(row, name, "answers joined with '; '", cell)
    return [answer.strip() for answer in cell.split(";") if answer.strip()]
