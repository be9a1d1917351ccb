"""FreshQA: questions about a changing world, some of which rest on a false premise."""

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import ClassVar, Final

from graphhalu.datasets.base import DatasetCard, RowDataset, dataset_card
from graphhalu.datasets.files import DataFile, open_file, read_rows, table_cells
from graphhalu.datasets.question import Question
from graphhalu.datasets.rows import (
    Row,
    described,
    text_field,
    text_id,
    texts_field,
    without_repeats,
    wrong_value,
)

N_ANSWERS: Final = 10
N_LINES_BEFORE: Final = 5
"""Lines of a spreadsheet's own export that may stand before its header."""

_DESCRIPTIONS: Final = ("fact_type", "num_hops", "effective_year", "split")
_PREMISES: Final = {"TRUE": 1, "FALSE": 0}


class FreshQA(RowDataset):
    """Reads an export of the spreadsheet, with or without the warning before its header.

    ``input_label`` is 1 for a false premise. It speaks of the question, not of any answer. Ids
    come from the question's text, so the same question has the same id in every release; the
    ``id`` column changes between releases.
    """

    card: ClassVar[DatasetCard] = dataset_card("freshqa")
    layout: ClassVar[str] = "FreshQA's table (question, false_premise, answer_0 … answer_9, and more)"
    columns: ClassVar[tuple[str, ...]] = ("question", "false_premise", "answer_0")

    def rows(self, path: Path | None) -> Iterator[Row]:
        """Rows of a file; those of a table stand below a header that may not be its first line."""
        if path is None:
            return super().rows(path)
        file = open_file(path)
        return self._table_rows(file) if file.layout == "table" else read_rows(file)

    def _table_rows(self, file: DataFile) -> Iterator[Row]:
        table = table_cells(file, ",")
        top = list(islice(table, N_LINES_BEFORE))
        headers = (n for n, (_, cells) in enumerate(top) if set(self.columns) <= set(cells))
        place = next(headers, 0)
        names = top[place][1]
        for number, cells in chain(top[place + 1 :], table):
            if len(cells) != len(names):
                raise file.fault(number, f"expected {len(names)} cells, got {len(cells)}")
            if any(cell.strip() for cell in cells):
                yield Row(file.where(number), dict(zip(names, cells, strict=True)))

    def question(self, row: Row) -> Question:
        """The question of a row, with every answer that is there, ``answer_0`` among them."""
        text, premise = text_field(row, "question"), str(row.values["false_premise"])
        if premise.strip().upper() not in _PREMISES:
            raise wrong_value(row, "false_premise", "TRUE or FALSE", row.values["false_premise"])
        others = described(row, (f"answer_{n}" for n in range(1, N_ANSWERS)))
        cells = Row(row.where, {"answers": list(others.values())})
        return Question(
            question_id=text_id("freshqa", text),
            text=text,
            answers=without_repeats([text_field(row, "answer_0"), *texts_field(cells, "answers")]),
            input_label=_PREMISES[premise.strip().upper()],
            metadata=described(row, _DESCRIPTIONS),
        )
