"""Questions of a user's own file: a table or JSON whose columns are named, or have usual names."""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from graphhalu.core.config import read_yaml
from graphhalu.core.errors import DataFileError, UsageError
from graphhalu.core.files import shortened
from graphhalu.core.registry import unknown_name
from graphhalu.datasets.files import open_file, read_rows
from graphhalu.datasets.question import LETTERS, GivenAnswer, Question
from graphhalu.datasets.rows import (
    Row,
    is_list,
    is_short,
    labels_cell,
    places_cell,
    text_cell,
    text_id,
    texts_cell,
    without_repeats,
    wrong_value,
)

FIELDS: Final[Mapping[str, list[str]]] = read_yaml(Path(__file__).with_name("fields.yaml"))
"""Fields of a question, and the column names that stand for each beside its own."""

_LISTS: Final = frozenset({"answers", "choices", "correct", "given", "label"})
_NEEDS: Final = {"correct": "choices", "label": "given"}
_WORDS: Final = {"tab": "\t", "newline": "\n"}

_MAX_DESCRIPTION: Final = 200
"""Longest text of another column that is kept with the question, in characters."""


Column = tuple[str, str | None]
"""Name of a column, and what stands between the items of one cell if that is stated."""


@dataclass(frozen=True)
class Columns:
    """The columns of a file.

    Attributes:
        by_field: Column of each field that the file has.
        others: Names of the remaining columns.
    """

    by_field: Mapping[str, Column]
    others: tuple[str, ...]

    def text(self, row: Row, field: str) -> str | None:
        """Text of a field; ``None`` if the file lacks it or the cell is empty."""
        return text_cell(row, self.by_field[field][0]) if field in self.by_field else None

    def required_text(self, row: Row, field: str) -> str:
        """Text of a field that the file has, and that must not be empty.

        Raises:
            DataFileError: If it is; names the row.
        """
        text = self.text(row, field)
        if text is None:
            name, _ = self.by_field[field]
            raise wrong_value(row, name, "a text that is not empty", row.values.get(name))
        return text

    def texts(self, row: Row, field: str) -> tuple[str, ...]:
        """Texts of a field that may hold a list; none if the file lacks it."""
        return texts_cell(row, *self.by_field[field]) if field in self.by_field else ()


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
        field: _named(field, fields[field], names, path) if field in fields else _usual(field, names, path)
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
        raise DataFileError(
            f"{rows[0].where}: expected a column for the question ({usual}); "
            f"found: {shortened(', '.join(names), 400)}\n  Name it:  --fields question=COLUMN"
        )
    taken = {name for name, _ in found.values()}
    return Columns(found, tuple(name for name in names if name not in taken))


def _named(field: str, value: str, names: Sequence[str], path: Path) -> Column | None:
    """The column that the user names, with its separator after a colon."""
    if not value or value in names:
        return (value, None) if value else None
    # the last character belongs to the separator, which may itself be a colon
    name, _, start = value[:-1].rpartition(":")
    if name not in names:
        raise _refused(f"there is no column {value!r} for the field {field!r}", field, names, path)
    if field not in _LISTS:
        raise _refused(
            f"the field {field!r} holds no list, so {value!r} cannot state a separator", field, names, path
        )
    separator = start + value[-1]
    return name, _WORDS.get(separator, separator)


def _usual(field: str, names: Sequence[str], path: Path) -> Column | None:
    """The column of the field's own name, or the only one of its usual names."""
    for known in ((field,), FIELDS[field]):
        found = [name for name in names if re.sub(r"[\s-]+", "_", name.strip().lower()) in known]
        if len(found) > 1:
            raise _refused(
                f"several columns can be the field {field!r}: {', '.join(found)}", field, names, path
            )
        if found:
            return found[0], None
    return None


def _refused(what: str, field: str, names: Sequence[str], path: Path) -> UsageError:
    return UsageError(
        f"{path}: {what}; found: {shortened(', '.join(names), 400)}\n"
        f"  Name a column:   --fields {field}=COLUMN\n"
        f"  Or use none:     --fields {field}="
    )


def read_fields(text: str) -> dict[str, str]:
    """Columns by field, from text such as ``question=Q,answers=Aliases:;``.

    Entries are divided by commas. Double quotes keep a comma inside one, as in
    ``answers="Gold, all"`` or, for a separator, ``answers=Gold:","``.

    Raises:
        UsageError: If an entry has no ``=``, a field is named twice, or a quote is not closed.
    """
    entries = shlex.shlex(text, posix=True)
    entries.whitespace, entries.quotes, entries.escape, entries.commenters = ",", '"', "", ""
    entries.whitespace_split = True
    try:
        found = [entry.strip() for entry in entries]
    except ValueError:
        raise UsageError(f"--fields has a quote that is not closed: {text}") from None
    fields: dict[str, str] = {}
    for entry in filter(None, found):
        name, is_equal, column = (part.strip() for part in entry.partition("="))
        if not is_equal:
            raise UsageError(
                f"--fields expects FIELD=COLUMN,FIELD=COLUMN, got {entry!r}\n"
                f"  Example:  --fields question=Question,answers=Aliases:;"
            )
        if name in fields:
            raise UsageError(f"--fields names {name!r} twice, as {fields[name]!r} and {column!r}")
        fields[name] = column
    return fields


def read_own(path: Path, fields: Mapping[str, str] | None = None) -> Iterator[Question]:
    """Yield the questions of a user's own file, in its order.

    A field is read from the column that ``fields`` names, or from one that bears its name or a
    usual one (:data:`FIELDS`; case, spaces and hyphens do not matter).
    Only the question must be there. Other columns with numbers or short texts are metadata.

    - ``answers``, ``choices``, ``correct``, ``given`` and ``label`` may hold lists: real ones in
      JSON and Parquet, JSON text, Python-list text, or text with a separator, which stands
      behind the column: ``answers=Aliases:;`` (``tab`` and ``newline`` by name).
    - ``correct`` names the right choices by letter, by number from 0, or by text. Without it,
      ``answers`` does, where a number in a text is not a place.
    - ``label`` says of each given answer whether it is hallucinated: 1, true, yes or
      hallucinated; or 0, false, no or correct.
    - Rows that differ in their given answers alone are one question.
    - Without ``id``, ids come from the texts of question and context.

    Args:
        path: A csv, tsv, json, jsonl or parquet file, also gzipped.
        fields: Columns by field; an empty name leaves the field out.

    Raises:
        UsageError: If there is no such file, or a column is missing or ambiguous.
        UnknownNameError: If there is no such field.
        DataFileError: If a row cannot be read; names it.
    """
    fields = fields or {}
    for name in fields:
        if name not in FIELDS:
            raise unknown_name("field of a question", name, FIELDS)
    rows = list(read_rows(open_file(path)))
    if not rows:
        return iter(())
    columns = find_columns(rows, path, fields)
    return iter(_merged(_question(row, columns) for row in rows))


def _question(row: Row, columns: Columns) -> Question:
    text, context = columns.required_text(row, "question"), columns.text(row, "context")
    own_id = text_id("own", text if context is None else f"{text}\n{context}")
    choices, answers = _choices(row, columns), columns.texts(row, "answers")
    correct = _correct(row, columns, choices)
    if correct and not (answers and "correct" in columns.by_field):
        answers = tuple(choices[place] for place in correct)
    metadata = {
        name: row.values[name] for name in columns.others if is_short(row.values.get(name), _MAX_DESCRIPTION)
    }
    category = columns.text(row, "category")
    metadata |= {"category": category} if category else {}
    return Question(
        question_id=columns.required_text(row, "id") if "id" in columns.by_field else own_id,
        text=text,
        answers=without_repeats(answers),
        group_id=columns.text(row, "group") or "",
        context=context,
        system=columns.text(row, "system"),
        choices=choices,
        correct_choices=correct,
        given=tuple(GivenAnswer(*each, metadata=dict(metadata)) for each in _given(row, columns)),
        metadata=metadata,
    )


def _choices(row: Row, columns: Columns) -> tuple[str, ...]:
    choices = columns.texts(row, "choices")
    n_different = len(set(choices))
    if n_different < len(choices) or n_different == 1 or n_different > len(LETTERS):
        expected = f"2 to {len(LETTERS)} different options, or none"
        raise wrong_value(row, columns.by_field["choices"][0], expected, list(choices))
    return choices


def _correct(row: Row, columns: Columns, choices: tuple[str, ...]) -> tuple[int, ...]:
    """Places of the right choices, from a field of their own or else from the answers."""
    field = "correct" if "correct" in columns.by_field else "answers"
    if not choices or field not in columns.by_field:
        return ()
    name, separator = columns.by_field[field]
    places = places_cell(row, name, choices, separator, reads_digits=field == "correct")
    if len(places) == len(choices):
        raise wrong_value(row, name, "some of the choices, not all", row.values[name])
    return places


def _given(row: Row, columns: Columns) -> list[tuple[str, bool | None]]:
    """Text and label of each given answer.

    Text with a single label is one answer, even in square brackets.
    """
    if "given" not in columns.by_field:
        return []
    if "label" not in columns.by_field:
        return [(text, None) for text in columns.texts(row, "given")]
    (given, divides), (name, separator) = columns.by_field["given"], columns.by_field["label"]
    is_one_label = not separator and not is_list(row.values.get(name))
    if divides is None and isinstance(row.values.get(given), str) and is_one_label:
        texts = tuple(text for text in [columns.text(row, "given")] if text is not None)
    else:
        texts = columns.texts(row, "given")
    labels = labels_cell(row, name, separator)
    if labels == [None]:
        labels *= len(texts)
    if len(labels) != len(texts):
        raise wrong_value(row, name, f"one label for each of {len(texts)} given answers", row.values[name])
    return list(zip(texts, labels, strict=True))


def _merged(questions: Iterable[Question]) -> list[Question]:
    """One question for rows that differ in their given answers and descriptions alone."""
    merged: dict[str | int, Question] = {}
    for number, question in enumerate(questions):
        key = repr(replace(question, given=(), metadata={})) if question.given else number
        merged[key] = _joined(merged[key], question) if key in merged else question
    return list(merged.values())


def _joined(first: Question, other: Question) -> Question:
    shared = other.metadata.items()
    return replace(
        first,
        given=first.given + other.given,
        metadata={name: value for name, value in first.metadata.items() if (name, value) in shared},
    )
