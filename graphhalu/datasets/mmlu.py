"""MMLU: exam questions of 57 subjects with four options, and solved examples of each."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Final

import yaml

from graphhalu.core.errors import UsageError
from graphhalu.datasets.base import Dataset, DatasetCard, dataset_card, hub_rows
from graphhalu.datasets.files import DataFile, open_file, read_rows, table_cells
from graphhalu.datasets.question import Example, Question
from graphhalu.datasets.rows import Row, require_columns, text_field, text_id, wrong_value

LETTERS: Final = "ABCD"
N_EXAMPLES: Final = 5

_CELLS: Final = ("question", *LETTERS, "answer")

CATEGORIES: Final[Mapping[str, str]] = {
    subject: category
    for category, subjects in yaml.safe_load(
        Path(__file__).with_name("mmlu_subjects.yaml").read_text()
    ).items()
    for subject in subjects.split()
}
"""The published four categories by subject."""


class MMLU(Dataset):
    """Reads the published folder, one subject's table, and the hub's rows.

    The folder holds ``test/<subject>_test.csv`` and, for the examples, ``dev/<subject>_dev.csv``.
    A single table of the published name finds its examples in ``../dev``. Where there is no such
    table, questions have no examples.
    """

    card: ClassVar[DatasetCard] = dataset_card("mmlu")

    def read(self, path: Path | None) -> Iterator[Question]:
        """Yield the questions subject by subject; see the base class."""
        if path is None:
            tests = map(_hub_question, hub_rows(self.card))
            return _with_examples(tests, map(_hub_question, hub_rows(self.card, split="dev")))
        if path.is_dir():
            files = _tables(path / "test", "test")
            if not files:
                raise UsageError(f"{path} holds no test/<subject>_test.csv; expected MMLU's folder")
        else:
            files = [path]
        return _with_examples(_read(files), _read(_examples_beside(files)))


def _tables(folder: Path, split: str) -> list[Path]:
    return sorted([*folder.glob(f"*_{split}.csv"), *folder.glob(f"*_{split}.csv.gz")])


def _examples_beside(files: list[Path]) -> list[Path]:
    subjects = {_subject(path) for path in files}
    tables = _tables(files[0].parent.parent / "dev", "dev")
    return [path for path in tables if _subject(path) in subjects]


def _subject(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    return re.sub(r"(_(test|dev|val))?(\.[a-z]+)?$", "", name)


def _with_examples(tests: Iterable[Question], examples: Iterable[Question]) -> Iterator[Question]:
    """The questions with ids of their own, and with the first examples of their subject."""
    shown: dict[str, list[Example]] = defaultdict(list)
    for solved in examples:
        letter = LETTERS[solved.correct_choices[0]]
        shown[solved.metadata["subject"]].append(Example(solved.text, letter, solved.choices))
    counts: Counter[str] = Counter()
    for question in tests:
        name = question.question_id
        counts[name] += 1
        yield replace(
            question,
            question_id=name if counts[name] == 1 else f"{name}_{counts[name]}",
            group_id="",
            examples=tuple(shown[question.metadata["subject"]][:N_EXAMPLES]),
        )


def _read(files: Iterable[Path]) -> Iterator[Question]:
    for path in files:
        file = open_file(path)
        if file.layout == "table":
            yield from _table_questions(file, _subject(path))
        else:
            yield from map(_hub_question, read_rows(file))


def _table_questions(file: DataFile, subject: str) -> Iterator[Question]:
    for number, cells in table_cells(file, ","):
        if len(cells) != len(_CELLS):
            raise file.fault(
                number, f"expected {MMLU.card.layout}; got {len(cells)} cells, not {len(_CELLS)}"
            )
        row = Row(file.where(number), dict(zip(_CELLS, cells, strict=True)))
        letter = text_field(row, "answer")
        if letter not in tuple(LETTERS):
            raise wrong_value(row, "answer", "one of the letters A, B, C, D", letter)
        choices = _choices(row)
        yield _question(subject, text_field(row, "question"), choices, LETTERS.index(letter))


def _hub_question(row: Row) -> Question:
    require_columns(row, "question", "subject", "choices", "answer", expected=MMLU.card.layout)
    options, answer = row.values["choices"], row.values["answer"]
    if not isinstance(options, list | tuple) or len(options) != len(LETTERS):
        raise wrong_value(row, "choices", "a list of four texts", options)
    if not isinstance(answer, int) or answer not in range(len(LETTERS)):
        raise wrong_value(row, "answer", "the place of the right option, 0 to 3", answer)
    choices = _choices(Row(row.where, dict(zip(LETTERS, options, strict=True))))
    return _question(text_field(row, "subject"), text_field(row, "question"), choices, answer)


def _choices(row: Row) -> tuple[str, ...]:
    return tuple(text_field(row, letter) for letter in LETTERS)


def _question(subject: str, text: str, choices: tuple[str, ...], place: int) -> Question:
    """A question whose right option stands at ``place``."""
    metadata = {"subject": subject}
    if subject in CATEGORIES:
        metadata["category"] = CATEGORIES[subject]
    return Question(
        question_id=text_id("mmlu", "\n".join([subject, text, *choices])),
        text=text,
        answers=(choices[place],),
        incorrect_answers=tuple(option for option in choices if option != choices[place]),
        choices=choices,
        correct_choices=(place,),
        metadata=metadata,
    )
