"""One row of a data file, and the checked ways to take a field out of it."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from graphhalu.errors import DataFileError
from graphhalu.safe_read import shortened, shown


class Row(NamedTuple):
    """A row with its place, so that every error can name it.

    Attributes:
        where: File and row number, as ``"data/questions.csv, row 7"``.
        values: The fields by column name.
    """

    where: str
    values: Mapping[str, Any]


def require_columns(row: Row, *names: str, expected: str | None = None) -> None:
    """Refuse a row that lacks a column.

    Args:
        row: The row.
        names: Columns that it must have.
        expected: What to say was expected; by default the names.

    Raises:
        DataFileError: Lists the columns that the row has.
    """
    missing = [name for name in names if name not in row.values]
    if missing:
        found = ", ".join(map(str, row.values)) or "none"
        message = (
            f"{row.where}: expected {expected or 'the columns ' + ', '.join(names)}; "
            f"missing: {', '.join(missing)}; found: {shortened(found)}"
        )
        raise DataFileError(message)


def text_field(row: Row, name: str) -> str:
    """A text that is not empty, without space around it.

    Raises:
        DataFileError: If the column is missing, or holds something else.
    """
    require_columns(row, name)
    value = row.values[name]
    if not isinstance(value, str) or not value.strip():
        raise wrong_value(row, name, "a text that is not empty", value)
    return value.strip()


def texts_field(row: Row, name: str) -> tuple[str, ...]:
    """A list of texts; empty ones are left out, the others come without space around them.

    Raises:
        DataFileError: If the column is missing, or holds something else.
    """
    require_columns(row, name)
    value = row.values[name]
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise wrong_value(row, name, "a list of texts", value)
    return tuple(item.strip() for item in value if item.strip())


def mapping_field(row: Row, name: str) -> Row:
    """An object inside a row, as a row with a place of its own.

    Raises:
        DataFileError: If the column is missing, or holds something else.
    """
    require_columns(row, name)
    value = row.values[name]
    if not isinstance(value, Mapping):
        raise wrong_value(row, name, "an object with named fields", value)
    return Row(f"{row.where}, {name}", value)


def wrong_value(row: Row, name: str, expected: str, came: object) -> DataFileError:
    """The error for a field that holds something unexpected."""
    return DataFileError(f"{row.where}: {name} must be {expected}, got {shown(came)}")


def without_repeats(texts: Iterable[str]) -> tuple[str, ...]:
    """The texts in their order, each once."""
    return tuple(dict.fromkeys(texts))


def text_id(prefix: str, text: str) -> str:
    """An id for a question that its file gives none: the same text has the same id everywhere."""
    return f"{prefix}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
