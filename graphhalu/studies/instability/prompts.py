"""Prompts of a study: attacks and benign ones, one a line or as rows of a table."""

from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Final

from graphhalu.core.errors import DataFileError, UsageError
from graphhalu.datasets.files import open_file, read_rows
from graphhalu.datasets.question import question_key
from graphhalu.datasets.rows import Row, require_columns, text_field, wrong_value
from graphhalu.studies.instability.series import PromptRecord

ATTACK: Final = 1
BENIGN: Final = 0
CLASS_NAMES: Final = ("benign", "attack")

_TABLES: Final = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_TEXT_FIELDS: Final = ("prompt", "text")
_LABELS: Final = {
    **dict.fromkeys(("1", "true", "attack", "injection"), ATTACK),
    **dict.fromkeys(("0", "false", "benign", "safe"), BENIGN),
}


def read_prompts(path: Path, label: int | None) -> list[PromptRecord]:
    """The prompts of a file, with their class.

    Args:
        path: As :func:`read_texts` reads it.
        label: Class of all its prompts; ``None`` takes it from the column ``label``.

    Raises:
        UsageError: If there is no such file, no prompt in it, or nothing says their class.
        DataFileError: If a row cannot be read, or lacks its label.
    """
    if label is None and not _is_table(path):
        raise UsageError(
            f"{path} has one prompt a line and says no class\n"
            f"  Use --attacks and --benign, or a table with the columns prompt and label"
        )
    rows = _read(path)
    if label is not None:
        return numbered((text, label) for text, _ in rows)
    return numbered((text, _label(row)) for text, row in rows if row is not None)


def read_texts(path: Path) -> list[str]:
    """The texts of a file of prompts.

    A ``.jsonl``, ``.json``, ``.csv``, ``.tsv`` or ``.parquet`` file, each also gzipped, has the
    column ``prompt`` or ``text``. Any other file has one prompt a line; empty lines are skipped.

    Raises:
        UsageError: If there is no such file, or no prompt in it.
        DataFileError: If a row cannot be read.
    """
    return [text for text, _ in _read(path)]


def numbered(pairs: Iterable[tuple[str, int | None]]) -> list[PromptRecord]:
    """Prompts with ids that count within each class, and groups of prompts that say the same."""
    counts: dict[int | None, int] = {}
    found = []
    for text, label in pairs:
        counts[label] = counts.get(label, 0) + 1
        kind = "prompt" if label is None else CLASS_NAMES[label]
        found.append(PromptRecord(f"{kind}-{counts[label]:04d}", 0, label, prompt_group(text), text))
    return found


def prompt_group(text: str) -> str:
    """Name of all prompts that say the same, regardless of case, accents and punctuation."""
    return sha256(question_key(text).encode()).hexdigest()[:12]


def _read(path: Path) -> list[tuple[str, Row | None]]:
    if not path.is_file():
        raise UsageError(f"no file of prompts at {path}")
    found: list[tuple[str, Row | None]] = []
    if not path.read_bytes().strip():
        pass
    elif _is_table(path):
        found += [(_text(row), row) for row in read_rows(open_file(path))]
    else:
        found += [(line.strip(), None) for line in open_file(path).text().split("\n") if line.strip()]
    if not found:
        raise UsageError(
            f"{path} holds no prompt\n  Expected one prompt a line, or rows with a column 'prompt' or 'text'"
        )
    return found


def _is_table(path: Path) -> bool:
    return any(suffix.lower() in _TABLES for suffix in path.suffixes)


def _text(row: Row) -> str:
    name = next((name for name in _TEXT_FIELDS if name in row.values), _TEXT_FIELDS[0])
    require_columns(row, name, expected="a column 'prompt' or 'text'")
    return text_field(row, name)


def _label(row: Row) -> int:
    require_columns(row, "label")
    value = row.values["label"]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    found = _LABELS.get(str(value).strip().lower())
    if found is None:
        error: DataFileError = wrong_value(row, "label", "1 (attack) or 0 (benign)", value)
        raise error
    return found
