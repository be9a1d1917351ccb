"""Which column of a user's own file holds which field of a question."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from graphhalu.datasets.cells import text_cell, texts_cell
from graphhalu.datasets.rows import Row, without_repeats, wrong_value
from graphhalu.errors import DataFileError, UsageError
from graphhalu.registry import unknown_name
from graphhalu.safe_read import shortened

FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "question": ("query", "prompt", "input"),
    "answers": (
        "answer", "ideal", "gold", "gold_answer", "gold_answers", "target", "targets", "reference",
        "references", "best_answer", "correct_answer", "correct_answers", "right_answer",
    ),
    "context": ("passage", "document", "knowledge"),
    "id": ("question_id", "qid"),
    "group": ("group_id",),
    "choices": ("options",),
    "correct": ("correct_choice", "correct_choices", "answer_index", "correct_index"),
    "given": ("given_answer", "given_answers", "response", "responses", "model_answer"),
    "label": ("labels", "is_hallucinated", "hallucinated", "hallucination"),
    "system": ("system_prompt",),
}  # fmt: skip
"""Fields of a question, and the column names that stand for each beside its own."""

_LISTS: Final = frozenset({"answers", "choices", "correct", "given", "label"})
_NEEDS: Final = {"correct": "choices", "label": "given"}
_WORDS: Final = {"tab": "\t", "newline": "\n"}


class Column(NamedTuple):
    """A column, and what stands between the items of one cell if that is stated."""

    name: str
    separator: str | None = None


@dataclass(frozen=True)
class Columns:
    """The columns of a file.

    Attributes:
        by_field: Column of each field that the file has.
        others: Names of the remaining columns.
    """

    by_field: Mapping[str, Column]
    others: tuple[str, ...]

    def has(self, field: str) -> bool:
        """Whether the file has this field."""
        return field in self.by_field

    def text(self, row: Row, field: str) -> str | None:
        """Text of a field; ``None`` if the file lacks it or the cell is empty."""
        return text_cell(row, self.by_field[field].name) if self.has(field) else None

    def required_text(self, row: Row, field: str) -> str:
        """Text of a field that the file has, and that must not be empty.

        Raises:
            DataFileError: If it is; names the row.
        """
        text = self.text(row, field)
        if text is None:
            name = self.by_field[field].name
            raise wrong_value(row, name, "a text that is not empty", row.values.get(name))
        return text

    def texts(self, row: Row, field: str) -> tuple[str, ...]:
        """Texts of a field that may hold a list; none if the file lacks it."""
        return texts_cell(row, *self.by_field[field]) if self.has(field) else ()


def check_field(name: str) -> None:
    """Refuse a name that is no field.

    Raises:
        UnknownNameError: Lists the nearest names.
    """
    if name not in FIELDS:
        raise unknown_name("field of a question", name, FIELDS)


def find_columns(rows: Sequence[Row], path: Path, fields: Mapping[str, str]) -> Columns:
    """Find the column of every field.

    Args:
        rows: All rows of the file; at least one.
        path: The file, for errors.
        fields: Columns that the user names; an empty name leaves the field out.

    Raises:
        UsageError: If a column that was named is missing, or several can be meant.
        DataFileError: If nothing can be the question. Both list the columns that are there.
    """
    names = without_repeats(str(name) for row in rows for name in row.values)
    columns = {
        field: _named(field, fields[field], names, path)
        if field in fields
        else _usual(field, names, path)
        for field in FIELDS
    }
    found = {field: column for field, column in columns.items() if column is not None}
    for field, needed in _NEEDS.items():
        if field in found and needed not in found:
            if field in fields:
                raise _refused(f"the field {field!r} needs {needed!r} too", needed, names, path)
            del found[field]
    if "question" not in found:
        usual = ", ".join(("question", *FIELDS["question"]))
        message = (
            f"{rows[0].where}: expected a column for the question ({usual}); "
            f"found: {shortened(', '.join(names), 400)}\n  Name it:  --fields question=COLUMN"
        )
        raise DataFileError(message)
    taken = {column.name for column in found.values()}
    return Columns(found, tuple(name for name in names if name not in taken))


def _named(field: str, value: str, names: Sequence[str], path: Path) -> Column | None:
    """The column that the user names, with its separator after a colon."""
    if not value or value in names:
        return Column(value) if value else None
    # the last character belongs to the separator, which may itself be a colon
    name, _, start = value[:-1].rpartition(":")
    if name not in names:
        raise _refused(f"there is no column {value!r} for the field {field!r}", field, names, path)
    if field not in _LISTS:
        what = f"the field {field!r} holds no list, so {value!r} cannot state a separator"
        raise _refused(what, field, names, path)
    separator = start + value[-1]
    return Column(name, _WORDS.get(separator, separator))


def _usual(field: str, names: Sequence[str], path: Path) -> Column | None:
    """The column of the field's own name, or the only one of its usual names."""
    for known in ((field,), FIELDS[field]):
        found = [name for name in names if _plain(name) in known]
        if len(found) > 1:
            what = f"several columns can be the field {field!r}: {', '.join(found)}"
            raise _refused(what, field, names, path)
        if found:
            return Column(found[0])
    return None


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _refused(what: str, field: str, names: Sequence[str], path: Path) -> UsageError:
    return UsageError(
        f"{path}: {what}; found: {shortened(', '.join(names), 400)}\n"
        f"  Name a column:   --fields {field}=COLUMN\n"
        f"  Or use none:     --fields {field}="
    )
