"""FreshQA: questions about a changing world, some of which rest on a false premise."""

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import ClassVar, Final

from graphhalu.datasets.base import Dataset, DatasetCard
from graphhalu.datasets.files import DataFile, open_file, read_rows, table_cells
from graphhalu.datasets.hub import hub_rows
from graphhalu.datasets.question import Question
from graphhalu.datasets.rows import (
    Row,
    require_columns,
    text_field,
    text_id,
    texts_field,
    without_repeats,
    wrong_value,
)
from graphhalu.errors import DataFileError

COLUMNS: Final = ("question", "false_premise", "answer_0")
LAYOUT: Final = "FreshQA's table (question, false_premise, answer_0 … answer_9, and more)"

N_ANSWERS: Final = 10
N_LINES_BEFORE: Final = 5
"""Lines of a spreadsheet's own export that may stand before its header."""

_DESCRIPTIONS: Final = ("fact_type", "num_hops", "effective_year", "split")
_PREMISES: Final = {"TRUE": 1, "FALSE": 0}


class FreshQA(Dataset):
    """Reads an export of the spreadsheet, with or without the warning before its header.

    ``input_label`` is 1 for a false premise. It speaks of the question, not of any answer. Ids
    come from the question's text, so the same question has the same id in every release; the
    ``id`` column changes between releases.
    """

    card: ClassVar[DatasetCard] = DatasetCard(
        name="freshqa",
        task="answer a question about a changing world, or correct its false premise",
        licence="Apache-2.0",
        source="https://github.com/freshllms/freshqa",
        hub_id=None,
        hub_config=None,
        split="TEST and DEV",
        size=600,
        citation="Vu et al. 2023, arXiv:2310.03214",
        label_rule="match",
        artefacts=(
            "The question's words alone tell false premises: AUROC 0.83 with TF-IDF, 5 folds.",
            "Answers to false premises are sentences, so matching by alias decides little there.",
            "Answers are those of the day of the release: a model of another date is 'wrong'.",
            "44 of 600 questions differ between December 2024 and 2026, and so do answers.",
        ),
    )

    def read(self, path: Path | None) -> Iterator[Question]:
        """Yield the questions in the order of the file; see the base class."""
        if path is None:
            return map(_question, hub_rows(self.card))
        file = open_file(path)
        return map(_question, _table_rows(file) if file.layout == "table" else read_rows(file))


def _table_rows(file: DataFile) -> Iterator[Row]:
    """Rows below the header, which may stand a few lines down; blank rows are left out."""
    table = table_cells(file, ",")
    top = list(islice(table, N_LINES_BEFORE))
    place = next((n for n, (_, cells) in enumerate(top) if set(COLUMNS) <= set(cells)), 0)
    names = top[place][1]
    for number, cells in chain(top[place + 1 :], table):
        if len(cells) != len(names):
            message = f"{file.where(number)}: expected {len(names)} cells, got {len(cells)}"
            raise DataFileError(message)
        if any(cell.strip() for cell in cells):
            yield Row(file.where(number), dict(zip(names, cells, strict=True)))


def _question(row: Row) -> Question:
    require_columns(row, *COLUMNS, expected=LAYOUT)
    text, premise = text_field(row, "question"), str(row.values["false_premise"]).strip().upper()
    if premise not in _PREMISES:
        raise wrong_value(row, "false_premise", "TRUE or FALSE", row.values["false_premise"])
    return Question(
        question_id=text_id("freshqa", text),
        text=text,
        answers=_answers(row),
        input_label=_PREMISES[premise],
        metadata={name: row.values[name] for name in _DESCRIPTIONS if row.values.get(name)},
    )


def _answers(row: Row) -> tuple[str, ...]:
    """Every answer that is there, ``answer_0`` among them."""
    names = [f"answer_{n}" for n in range(1, N_ANSWERS) if row.values.get(f"answer_{n}")]
    cells = Row(row.where, {"answers": [row.values[name] for name in names]})
    return without_repeats([text_field(row, "answer_0"), *texts_field(cells, "answers")])
