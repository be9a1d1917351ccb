"""TruthfulQA: questions that invite a common falsehood, open or with options.

The options are four (``truthfulqa_mc``), or the published targets mc1 and mc2.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from graphhalu.core.errors import DataFileError
from graphhalu.datasets.base import dataset_card, row_dataset
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

N_DISTRACTORS: Final = 3

Targets = tuple[tuple[str, ...], tuple[str, ...]]
"""Right and wrong options of one question, each once and in the order of the file."""


def _open(row: Row) -> Question:
    """Reads the published CSV and the hub's ``generation`` rows; both give the same ids."""
    is_csv = "Question" in row.values
    text, best, right, wrong = "question", "best_answer", "correct_answers", "incorrect_answers"
    if is_csv:
        text, best, right, wrong = "Question", "Best Answer", "Correct Answers", "Incorrect Answers"
    require_columns(row, text, best, right, wrong, expected=dataset_card("truthfulqa").layout)
    listed = _joined_texts if is_csv else texts_field
    correct = without_repeats([text_field(row, best), *listed(row, right)])
    incorrect = without_repeats(listed(row, wrong))
    both = set(correct) & set(incorrect)  # an answer that is listed as right and wrong has no label
    names = ("Category", "Type", "Source") if is_csv else ("category", "type", "source")
    return Question(
        question_id=text_id("truthfulqa", text_field(row, text)),
        text=text_field(row, text),
        answers=correct,
        incorrect_answers=incorrect,
        given=tuple(
            GivenAnswer(answer, is_hallucinated=None if answer in both else answer in incorrect)
            for answer in without_repeats([*correct, *incorrect])
        ),
        metadata={name.lower(): value for name, value in described(row, names).items()},
    )


def _four_options(row: Row) -> Question:
    """The best answer and three distractors, drawn from the incorrect answers.

    Reads what ``truthfulqa`` reads, and the layouts of ``truthfulqa_mc1``. Which distractors are
    drawn, and the order of the options, depend on the question's id and their texts alone:
    neither other questions nor the order of the file move them.
    """
    if "mc1_targets" in row.values:
        question = _with_targets(row, "mc1_targets")
        right = without_repeats([*question.answers, *_targets(row, "mc2_targets")[0]])
        question = replace(question, answers=right)
    else:
        question = _open(row)
    drawn = distractors(question.question_id, question.answers, question.incorrect_answers)
    if not drawn:
        raise DataFileError(f"{row.where}: expected an incorrect answer that is not listed as correct too")
    return with_options(question, question.answers[:1], drawn)


def _mc1(row: Row) -> Question:
    """The published targets with one right option."""
    return _with_targets(row, "mc1_targets")


def _mc2(row: Row) -> Question:
    """The published targets with one or more right options."""
    return _with_targets(row, "mc2_targets")


def with_options(question: Question, right: tuple[str, ...], wrong: tuple[str, ...]) -> Question:
    """The question with its options in an order that depends on its id and their texts alone."""
    options = _shuffled([*right, *wrong], f"{question.question_id}\norder")
    return replace(
        question,
        choices=tuple(options),
        correct_choices=tuple(n for n, text in enumerate(options) if text in right),
        given=tuple(GivenAnswer(text, text not in right) for text in options),
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


def _with_targets(row: Row, column: str) -> Question:
    expected = dataset_card("truthfulqa_mc1").layout
    require_columns(row, "question", "mc1_targets", "mc2_targets", expected=expected)
    text, (right, wrong) = text_field(row, "question"), _targets(row, column)
    if column == "mc1_targets" and len(right) > 1:
        raise wrong_value(row, column, "options with one right one", list(right))
    question = Question(text_id("truthfulqa", text), text, right, incorrect_answers=wrong)
    return with_options(question, right, wrong)


def _targets(row: Row, column: str) -> Targets:
    labels = _labels(mapping_field(row, column))
    right = tuple(text for text, is_right in labels.items() if is_right)
    wrong = tuple(text for text, is_right in labels.items() if not is_right)
    if not right or not wrong:
        raise wrong_value(row, column, "options, some right and some wrong", row.values[column])
    return right, wrong


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


TruthfulQA = row_dataset("truthfulqa", _open)
TruthfulQAChoice = row_dataset("truthfulqa_mc", _four_options)
TruthfulQAMC1 = row_dataset("truthfulqa_mc1", _mc1)
TruthfulQAMC2 = row_dataset("truthfulqa_mc2", _mc2)
