"""MMLU: exam questions of 57 subjects with four options, and solved examples of each."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Final

from graphhalu.core.config import read_yaml
from graphhalu.core.errors import UsageError
from graphhalu.datasets.base import Dataset, DatasetCard, dataset_card, hub_rows
from graphhalu.datasets.files import DataFile, open_file, read_rows, table_cells
from graphhalu.datasets.question import Question
from graphhalu.datasets.rows import Row, require_columns, text_field, text_id, wrong_value

LETTERS: Final = "ABCD"
N_EXAMPLES: Final = 5

CATEGORIES: Final[Mapping[str, str]] = {
    subject: category
    for category, subjects in read_yaml(Path(__file__).with_name("mmlu_subjects.yaml")).items()
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
            tests = map(_question, hub_rows(self.card))
            return _with_examples(tests, map(_question, hub_rows(self.card, split="dev")))
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
    shown: dict[str, list[Question]] = defaultdict(list)
    for solved in examples:
        shown[solved.metadata["subject"]].append(solved)
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
        yield from map(
            _question, _table_rows(file, _subject(path)) if file.layout == "table" else read_rows(file)
        )


def _table_rows(file: DataFile, subject: str) -> Iterator[Row]:
    """The rows of a table in the layout of the hub, but with the letter of the answer."""
    for number, cells in table_cells(file, ","):
        if len(cells) != len(LETTERS) + 2:
            raise file.fault(
                number, f"expected {MMLU.card.layout}; got {len(cells)} cells, not {len(LETTERS) + 2}"
            )
        row = Row(file.where(number), {"question": cells[0], "subject": subject, "choices": cells[1:-1]})
        letter = cells[-1].strip()
        if letter not in tuple(LETTERS):
            raise wrong_value(row, "answer", "one of the letters A, B, C, D", letter)
        yield Row(row.where, {**row.values, "answer": LETTERS.index(letter)})


def _question(row: Row) -> Question:
    require_columns(row, "question", "subject", "choices", "answer", expected=MMLU.card.layout)
    options, place = row.values["choices"], row.values["answer"]
    if not isinstance(options, list | tuple) or len(options) != len(LETTERS):
        raise wrong_value(row, "choices", "a list of four texts", options)
    if not isinstance(place, int) or place not in range(len(LETTERS)):
        raise wrong_value(row, "answer", "the place of the right option, 0 to 3", place)
    lettered = Row(row.where, dict(zip(LETTERS, options, strict=True)))
    choices = tuple(text_field(lettered, letter) for letter in LETTERS)
    subject, text = text_field(row, "subject"), text_field(row, "question")
    category = {"category": CATEGORIES[subject]} if subject in CATEGORIES else {}
    return Question(
        question_id=text_id("mmlu", "\n".join([subject, text, *choices])),
        text=text,
        answers=(choices[place],),
        incorrect_answers=tuple(option for option in choices if option != choices[place]),
        choices=choices,
        correct_choices=(place,),
        metadata={"subject": subject, **category},
    )
