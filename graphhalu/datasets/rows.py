"""Rows of data files, and checked ways to take a value out of them.

A *field* of a published data set has one type, and anything else is refused. A *cell* of a user's
own file may hold a text, a number, or a list in four notations.
"""

import ast
import hashlib
import io
import json
import math
import tokenize
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeVar

from graphhalu.core.errors import DataFileError
from graphhalu.core.files import shortened, shown
from graphhalu.datasets.question import LETTERS

T = TypeVar("T")

_LIST: Final = "a list: a real one, JSON text, Python-list text, or text with a separator that is stated"
_LABEL: Final = "1, true, yes or hallucinated; or 0, false, no or correct"

_VERDICTS: Final[Mapping[str, bool]] = dict.fromkeys(
    ("1", "true", "yes", "hallucinated", "wrong", "incorrect"), True
) | dict.fromkeys(("0", "false", "no", "correct", "right"), False)
"""Words of a label, in the direction of all labels: 1 = hallucinated."""


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
        raise DataFileError(
            f"{row.where}: expected {expected or 'the columns ' + ', '.join(names)}; "
            f"missing: {', '.join(missing)}; found: {shortened(found)}"
        )


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


def answers_field(row: Row, name: str) -> tuple[str, ...]:
    """A list with at least one text, each once; see :func:`texts_field`."""
    answers = without_repeats(texts_field(row, name))
    if not answers:
        raise wrong_value(row, name, "a list with at least one answer", row.values[name])
    return answers


def choice_field(row: Row, name: str, values: Mapping[str, T], expected: str) -> T:
    """What one of a few words stands for; upper case and space around it play no part.

    Raises:
        DataFileError: If the column is missing, or holds another word.
    """
    require_columns(row, name)
    word = str(row.values[name]).strip().lower()
    if word not in values:
        raise wrong_value(row, name, expected, row.values[name])
    return values[word]


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


def objects_field(
    row: Row, name: str, *, expected: str = "a list of objects", layout: str | None = None
) -> Iterator[Row]:
    """The objects of a list inside a row, each as a row with a place of its own.

    Raises:
        DataFileError: If the column is missing, where ``layout`` says what was expected, or holds
            something else.
    """
    require_columns(row, name, expected=layout)
    items = row.values[name]
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise wrong_value(row, name, expected, items)
    for number, item in enumerate(items, start=1):
        yield Row(f"{row.where}, {name} {number}", item)


def described(row: Row, names: Iterable[str]) -> dict[str, Any]:
    """Columns that a row has and that are not empty, as the metadata of a question."""
    return {name: row.values[name] for name in names if row.values.get(name)}


def wrong_value(row: Row, name: str, expected: str, came: object) -> DataFileError:
    """The error for a field that holds something unexpected."""
    return DataFileError(f"{row.where}: {name} must be {expected}, got {shown(came)}")


def without_repeats(texts: Iterable[str]) -> tuple[str, ...]:
    """The texts in their order, each once."""
    return tuple(dict.fromkeys(texts))


def text_id(prefix: str, text: str) -> str:
    """An id for a question that its file gives none: the same text has the same id everywhere."""
    return f"{prefix}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: no value, empty text, or the NaN of a table with gaps."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_list(value: Any) -> bool:
    """Whether a cell holds a list, or text that begins and ends as one does."""
    if isinstance(value, str):
        text = value.strip()
        return text.startswith(("['", '["')) or (text[:1] == "[" and text[-1:] == "]")
    return isinstance(value, list | tuple)


def is_short(value: Any, limit: int) -> bool:
    """Whether a cell holds a number, a truth value, or a text of at most ``limit`` characters."""
    if is_missing(value) or (isinstance(value, float) and not math.isfinite(value)):
        return False
    return isinstance(value, int | float) or (isinstance(value, str) and len(value) <= limit)


def scalar_text(value: Any) -> str | None:
    """A text without space around it, or a number as text; ``None`` for anything else.

    A whole number stays one: tables with gaps hold 1969 as 1969.0.
    """
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(int(value)) if value == int(value) else str(value)


def text_cell(row: Row, column: str) -> str | None:
    """The text of a cell, or ``None`` if it is empty.

    Raises:
        DataFileError: If it holds neither text nor a number.
    """
    value = row.values.get(column)
    if is_missing(value):
        return None
    text = scalar_text(value)
    if text is None:
        raise wrong_value(row, column, "a text", value)
    return text


def texts_cell(row: Row, column: str, separator: str | None = None) -> tuple[str, ...]:
    """The texts of a cell; empty ones are left out, and one text is a list of one.

    Args:
        row: The row.
        column: Name of the column.
        separator: What stands between the texts of one cell. Without it, text in square brackets
            is read as JSON or as a Python list, and any other text is one item.

    Raises:
        DataFileError: If it holds something else, or brackets that are not a list.
    """
    texts = [scalar_text(item) for item in list_cell(row, column, separator) if not is_missing(item)]
    if None in texts:
        raise wrong_value(row, column, _LIST, row.values.get(column))
    return tuple(text for text in texts if text)


def list_cell(row: Row, column: str, separator: str | None = None) -> list[Any]:
    """The items of a cell as they are; see :func:`texts_cell`."""
    value = row.values.get(column)
    if is_missing(value):
        return []
    if isinstance(value, list | tuple):
        return list(value)
    if not isinstance(value, str):
        return [value]
    if separator is not None:
        return value.split(separator)
    text = value.strip()
    if not is_list(text):
        return [text]
    for parse in (json.loads, _python_list):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError):
            items = parse(text)
            if isinstance(items, list):
                return items
    raise wrong_value(row, column, _LIST, value)


def labels_cell(row: Row, column: str, separator: str | None = None) -> list[bool | None]:
    """Labels of a cell, ``True`` = hallucinated; an empty one is ``None``.

    Raises:
        DataFileError: If an item is not a label.
    """
    items = list_cell(row, column, separator) or [None]
    return [_label(row, column, item) for item in items]


def places_cell(
    row: Row, column: str, choices: Sequence[str], separator: str | None = None, *, reads_digits: bool
) -> tuple[int, ...]:
    """Places of the options that a cell names by text, by letter or by number from 0.

    Args:
        row: The row.
        column: Name of the column.
        choices: The options.
        separator: What stands between several names in one cell.
        reads_digits: Whether digits in a text are a number; a real number always is.

    Raises:
        DataFileError: If an item names no option, or one by its text and another by its place.
    """
    places: set[int] = set()
    for item in list_cell(row, column, separator):
        text = scalar_text(item)
        found = {place for place, choice in enumerate(choices) if choice == text}
        if text in set(LETTERS[: len(choices)]):
            found.add(LETTERS.index(text))
        is_number = reads_digits or not isinstance(item, str)
        is_short = text.isdecimal() and len(text) <= len(str(len(choices))) if text else False
        if text and is_number and is_short and int(text) < len(choices):
            found.add(int(text))
        if len(found) != 1:
            raise wrong_value(
                row, column, f"the letter, the number from 0 or the text of one of {list(choices)}", item
            )
        places |= found
    return tuple(sorted(places))


def literal(text: str) -> Any:
    """The value of a Python literal.

    Raises:
        ValueError: If the text is none.
    """
    try:
        with warnings.catch_warnings():
            # a backslash in an answer is not a fault
            warnings.simplefilter("ignore", SyntaxWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise ValueError(text) from None


def _label(row: Row, column: str, item: Any) -> bool | None:
    if is_missing(item):
        return None
    word = (str(item) if isinstance(item, bool) else scalar_text(item) or "").lower()
    if word not in _VERDICTS:
        raise wrong_value(row, column, _LABEL, item)
    return _VERDICTS[word]


def _python_list(text: str) -> Any:
    """The value of Python text, in which no two texts in quotes stand side by side.

    Raises:
        ValueError: If they do: Python would join ``'a' 'b'`` into one item.
    """
    items = literal(text)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    n_quoted = sum(token.type == tokenize.STRING for token in tokens)
    if isinstance(items, list) and n_quoted != sum(isinstance(item, str) for item in items):
        raise ValueError(text)
    return items
