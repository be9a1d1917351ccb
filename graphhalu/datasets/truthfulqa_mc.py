"""TruthfulQA (multiple choice): four options, or the published targets mc1 and mc2."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Final, Literal, NamedTuple

from graphhalu.datasets.base import Dataset, DatasetCard
from graphhalu.datasets.files import open_file, read_rows
from graphhalu.datasets.hub import hub_rows
from graphhalu.datasets.question import GivenAnswer, Question
from graphhalu.datasets.rows import (
    Row,
    mapping_field,
    require_columns,
    text_field,
    text_id,
    without_repeats,
    wrong_value,
)
from graphhalu.datasets.truthfulqa import TruthfulQA, question_of
from graphhalu.errors import DataFileError

TARGET_LAYOUTS: Final = (
    "one of TruthfulQA's layouts for multiple choice: the published mc_task.json (question, "
    "mc1_targets, mc2_targets: option -> 0 or 1), or hub rows (the same with choices and labels)"
)

N_DISTRACTORS: Final = 3

TargetColumn = Literal["mc1_targets", "mc2_targets"]

_ARTEFACTS: Final = (
    "Text alone tells right options from wrong ones: TF-IDF is reported at AUROC 0.82.",
    "The published files list the right options first: they are shuffled here by question id.",
)


class Targets(NamedTuple):
    """Options of one question, right and wrong, each once and in the order of the file."""

    right: tuple[str, ...]
    wrong: tuple[str, ...]


class TruthfulQAChoice(Dataset):
    """The best answer and three distractors, drawn from the incorrect answers.

    Reads what ``truthfulqa`` reads, and the layouts of ``truthfulqa_mc1``. Which distractors are
    drawn, and the order of the options, depend on the question's id and their texts alone:
    neither other questions nor the order of the file move them.
    """

    card: ClassVar[DatasetCard] = replace(
        TruthfulQA.card,
        name="truthfulqa_mc",
        task="choose the true answer among up to four",
        label_rule="choice",
        artefacts=(
            "127 of 817 questions have fewer than four options, so chance is 27 %.",
            "The longest option is right in 39 % of 817 questions.",
            "The release of 2025 has 790 questions, that of 2021 (and the hub) 817.",
            *_ARTEFACTS,
        ),
    )

    def read(self, path: Path | None) -> Iterator[Question]:
        """Yield the questions in the order of the file; see the base class."""
        rows = hub_rows(self.card) if path is None else read_rows(open_file(path))
        return map(_four_options, rows)


class TruthfulQAMC1(Dataset):
    """The published targets with one right option."""

    card: ClassVar[DatasetCard] = replace(
        TruthfulQA.card,
        name="truthfulqa_mc1",
        task="choose the one true answer among two to thirteen",
        hub_config="multiple_choice",
        label_rule="choice",
        artefacts=(
            "The longest option is right in 34 % of 817 questions, where chance is 22 %.",
            "The file of 2025 has 17 empty options, which are left out.",
            *_ARTEFACTS,
        ),
    )

    def read(self, path: Path | None) -> Iterator[Question]:
        """Yield the questions in the order of the file; see the base class."""
        return _target_questions(self.card, path, "mc1_targets")


class TruthfulQAMC2(Dataset):
    """The published targets with one or more right options."""

    card: ClassVar[DatasetCard] = replace(
        TruthfulQA.card,
        name="truthfulqa_mc2",
        task="choose a true answer among two to twenty-four",
        hub_config="multiple_choice",
        label_rule="choice",
        artefacts=(
            "On average 46 % of the options are right, so chance is 46 %.",
            "The longest option is right in 63 % of 817 questions.",
            "The file of 2025 has 22 empty options, five of them as right; they are left out.",
            *_ARTEFACTS,
        ),
    )

    def read(self, path: Path | None) -> Iterator[Question]:
        """Yield the questions in the order of the file; see the base class."""
        return _target_questions(self.card, path, "mc2_targets")


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


def _shuffled(texts: Iterable[str], seed: str) -> list[str]:
    return sorted(texts, key=lambda text: hashlib.sha256(f"{seed}\n{text}".encode()).digest())


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold())) or text


def _four_options(row: Row) -> Question:
    if "mc1_targets" in row.values:
        question = _target_question(row, "mc1_targets")
        right = without_repeats([*question.answers, *_targets(row, "mc2_targets").right])
        question = replace(question, answers=right)
    else:
        question = question_of(row)
    drawn = distractors(question.question_id, question.answers, question.incorrect_answers)
    if not drawn:
        message = f"{row.where}: expected an incorrect answer that is not listed as correct too"
        raise DataFileError(message)
    return with_options(question, Targets(question.answers[:1], drawn))


def _target_questions(
    card: DatasetCard, path: Path | None, column: TargetColumn
) -> Iterator[Question]:
    rows = hub_rows(card) if path is None else read_rows(open_file(path))
    return (_target_question(row, column) for row in rows)


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
