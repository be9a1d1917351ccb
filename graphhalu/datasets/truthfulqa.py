"""TruthfulQA: questions that invite a common falsehood, open or with options.

The options are four (``truthfulqa_mc``), or the published targets mc1 and mc2.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar, Final, Literal, NamedTuple

from graphhalu.core.errors import DataFileError
from graphhalu.datasets.base import DatasetCard, RowDataset, dataset_card
from graphhalu.datasets.question import GivenAnswer, Question
from graphhalu.datasets.rows import (
    Row,
    described,
    mapping_field,
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
TARGET_LAYOUTS: Final = (
    "one of TruthfulQA's layouts for multiple choice: the published mc_task.json (question, "
    "mc1_targets, mc2_targets: option -> 0 or 1), or hub rows (the same with choices and labels)"
)

N_DISTRACTORS: Final = 3

TargetColumn = Literal["mc1_targets", "mc2_targets"]


class TruthfulQA(RowDataset):
    """Reads the published CSV and the hub's ``generation`` rows; both give the same ids."""

    card: ClassVar[DatasetCard] = dataset_card("truthfulqa")
    layout: ClassVar[str] = LAYOUTS

    def question(self, row: Row) -> Question:
        """The question of a row in either layout."""
        return _open_question(row)


class Targets(NamedTuple):
    """Options of one question, right and wrong, each once and in the order of the file."""

    right: tuple[str, ...]
    wrong: tuple[str, ...]


class TruthfulQAChoice(RowDataset):
    """The best answer and three distractors, drawn from the incorrect answers.

    Reads what ``truthfulqa`` reads, and the layouts of ``truthfulqa_mc1``. Which distractors are
    drawn, and the order of the options, depend on the question's id and their texts alone:
    neither other questions nor the order of the file move them.
    """

    card: ClassVar[DatasetCard] = dataset_card("truthfulqa_mc")
    layout: ClassVar[str] = TruthfulQA.layout

    def question(self, row: Row) -> Question:
        """The question of a row with up to four options."""
        if "mc1_targets" in row.values:
            question = _target_question(row, "mc1_targets")
            right = without_repeats([*question.answers, *_targets(row, "mc2_targets").right])
            question = replace(question, answers=right)
        else:
            question = _open_question(row)
        drawn = distractors(question.question_id, question.answers, question.incorrect_answers)
        if not drawn:
            raise DataFileError(
                f"{row.where}: expected an incorrect answer that is not listed as correct too"
            )
        return with_options(question, Targets(question.answers[:1], drawn))


class TruthfulQAMC1(RowDataset):
    """The published targets with one right option."""

    card: ClassVar[DatasetCard] = dataset_card("truthfulqa_mc1")
    layout: ClassVar[str] = TARGET_LAYOUTS

    def question(self, row: Row) -> Question:
        """The question of a row with the options of ``mc1_targets``."""
        return _target_question(row, "mc1_targets")


class TruthfulQAMC2(RowDataset):
    """The published targets with one or more right options."""

    card: ClassVar[DatasetCard] = dataset_card("truthfulqa_mc2")
    layout: ClassVar[str] = TARGET_LAYOUTS

    def question(self, row: Row) -> Question:
        """The question of a row with the options of ``mc2_targets``."""
        return _target_question(row, "mc2_targets")


def with_options(question: Question, targets: Targets) -> Question:
    """The question with its options in an order that depends on its id and their texts alone."""
    options = _shuffled([*targets.right, *targets.wrong], f"{question.question_id}\norder")
    return replace(
        question,
        choices=tuple(options),
        correct_choices=tuple(n for n, text in enumerate(options) if text in targets.right),
        given=tuple(GivenAnswer(text, text not in targets.right) for text in options),
    )


def distractors(question_id: str, right: Iterable[str], wrong: Iterable[str]) -> tuple[str, ...]:
    """Up to three wrong answers that differ in words from each other and from every right one."""
    seen = {_words(text) for text in right}
    drawn = []
    for text in _shuffled(wrong, f"{question_id}\ndistractors"):
        if _words(text) not in seen:
            seen.add(_words(text))
            drawn.append(text)
    return tuple(drawn[:N_DISTRACTORS])


def _open_question(row: Row) -> Question:
    """The question of a row of the published CSV or of the hub."""
    is_csv = "Question" in row.values
    text, best, right, wrong = "question", "best_answer", "correct_answers", "incorrect_answers"
    if is_csv:
        text, best, right, wrong = "Question", "Best Answer", "Correct Answers", "Incorrect Answers"
    require_columns(row, text, best, right, wrong, expected=LAYOUTS)
    listed = _joined_texts if is_csv else texts_field
    correct, incorrect = [text_field(row, best), *listed(row, right)], listed(row, wrong)
    names = ("Category", "Type", "Source") if is_csv else ("category", "type", "source")
    return Question(
        question_id=text_id("truthfulqa", text_field(row, text)),
        text=text_field(row, text),
        answers=without_repeats(correct),
        incorrect_answers=without_repeats(incorrect),
        given=given_answers(correct, incorrect),
        metadata={name.lower(): value for name, value in described(row, names).items()},
    )


def given_answers(correct: Iterable[str], incorrect: Iterable[str]) -> tuple[GivenAnswer, ...]:
    """Right answers, then wrong ones, each once; one that is listed as both has no label."""
    right, wrong = without_repeats(correct), without_repeats(incorrect)
    both = set(right) & set(wrong)
    return tuple(
        GivenAnswer(text, is_hallucinated=None if text in both else text in wrong)
        for text in without_repeats([*right, *wrong])
    )


def _joined_texts(row: Row, name: str) -> tuple[str, ...]:
    """Answers of one cell, which joins them with semicolons."""
    cell = row.values[name]
    if not isinstance(cell, str):
        raise wrong_value(row, name, "answers joined with '; '", cell)
    return tuple(answer.strip() for answer in cell.split(";") if answer.strip())


def _shuffled(texts: Iterable[str], seed: str) -> list[str]:
    return sorted(texts, key=lambda text: hashlib.sha256(f"{seed}\n{text}".encode()).digest())


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold())) or text


def _target_question(row: Row, column: TargetColumn) -> Question:
    require_columns(row, "question", "mc1_targets", "mc2_targets", expected=TARGET_LAYOUTS)
    text, targets = text_field(row, "question"), _targets(row, column)
    if column == "mc1_targets" and len(targets.right) > 1:
        raise wrong_value(row, column, "options with one right one", list(targets.right))
    question = Question(
        question_id=text_id("truthfulqa", text),
        text=text,
        answers=targets.right,
        incorrect_answers=targets.wrong,
    )
    return with_options(question, targets)


def _targets(row: Row, column: TargetColumn) -> Targets:
    labels = _labels(mapping_field(row, column))
    right = tuple(text for text, is_right in labels.items() if is_right)
    wrong = tuple(text for text, is_right in labels.items() if not is_right)
    if not right or not wrong:
        raise wrong_value(row, column, "options, some right and some wrong", row.values[column])
    return Targets(right, wrong)


def _labels(targets: Row) -> dict[str, bool]:
    """Whether each option is right; empty options are left out."""
    labels: dict[str, bool] = {}
    for text, label in _pairs(targets):
        if not isinstance(text, str) or not isinstance(label, int) or label not in {0, 1}:
            raise wrong_value(targets, "an option", "a text with 0 or 1", (text, label))
        if text.strip() and labels.setdefault(text.strip(), bool(label)) != bool(label):
            raise wrong_value(targets, "an option", "either right or wrong", text)
    return labels


def _pairs(targets: Row) -> list[tuple[object, object]]:
    """Option and label, from the published layout or from the hub's two lists."""
    if set(targets.values) != {"choices", "labels"}:
        return list(targets.values.items())
    choices, labels = targets.values["choices"], targets.values["labels"]
    if not isinstance(choices, list) or not isinstance(labels, list) or len(choices) != len(labels):
        raise wrong_value(targets, "labels", "a list with a label for each of the choices", labels)
    return list(zip(choices, labels, strict=True))
