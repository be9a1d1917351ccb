"""Cells of a user's own file: texts, lists in four notations, labels and right options."""

import ast
import io
import json
import math
import tokenize
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final

from graphhalu.datasets.letters import LETTERS
from graphhalu.datasets.rows import Row, wrong_value

_LIST: Final = (
    "a list: a real one, JSON text, Python-list text, or text with a separator that is stated"
)
_LABEL: Final = "1, true, yes or hallucinated; or 0, false, no or correct"

_VERDICTS: Final[Mapping[str, bool]] = {
    "1": True, "true": True, "yes": True, "hallucinated": True, "wrong": True, "incorrect": True,
    "0": False, "false": False, "no": False, "correct": False, "right": False,
}  # fmt: skip
"""Words of a label, in the direction of all labels: 1 = hallucinated."""


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
    return isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= limit)


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
        DataFileError: If it holds something else, or brackets that are no list.
    """
    texts = []
    for item in list_cell(row, column, separator):
        text = None if is_missing(item) else scalar_text(item)
        if text is None and not is_missing(item):
            raise wrong_value(row, column, _LIST, row.values.get(column))
        texts += [text] if text else []
    return tuple(texts)


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
    items = _json_list(text)
    items = _python_list(text) if items is None else items
    if items is None:
        raise wrong_value(row, column, _LIST, value)
    return items


def labels_cell(row: Row, column: str, separator: str | None = None) -> list[bool | None]:
    """Labels of a cell, ``True`` = hallucinated; an empty one is ``None``.

    Raises:
        DataFileError: If an item is no label.
    """
    items = list_cell(row, column, separator) or [None]
    return [_label(row, column, item) for item in items]


def places_cell(
    row: Row,
    column: str,
    choices: Sequence[str],
    separator: str | None = None,
    *,
    reads_digits: bool,
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
            expected = f"the letter, the number from 0 or the text of one of {list(choices)}"
            raise wrong_value(row, column, expected, item)
        places |= found
    return tuple(sorted(places))


def _label(row: Row, column: str, item: Any) -> bool | None:
    if is_missing(item):
        return None
    word = str(item).lower() if isinstance(item, bool) else (scalar_text(item) or "").lower()
    if word not in _VERDICTS:
        raise wrong_value(row, column, _LABEL, item)
    return _VERDICTS[word]


def _json_list(text: str) -> list[Any] | None:
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return items if isinstance(items, list) else None


def _python_list(text: str) -> list[Any] | None:
    try:
        with warnings.catch_warnings():
            # a backslash in an answer is no fault
            warnings.simplefilter("ignore", SyntaxWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            items = ast.literal_eval(text)
        if not isinstance(items, list) or _n_strings(text) != sum(
            isinstance(i, str) for i in items
        ):
            return None
    except (ValueError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError):
        return None
    return items


def _n_strings(text: str) -> int:
    """How many texts in quotes there are: Python would join ``'a' 'b'`` into one item."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(token.type == tokenize.STRING for token in tokens)
