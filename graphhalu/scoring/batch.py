"""Scores of many answers, from a file into a file; a stopped run is resumed."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from graphhalu.core.errors import DataFileError, UsageError
from graphhalu.core.files import MAX_TABLE_BYTES, parse_json, read_bytes, reading
from graphhalu.core.numerics import json_ready
from graphhalu.datasets.files import open_file, read_rows
from graphhalu.datasets.question import Question
from graphhalu.datasets.rows import Row, text_field, wrong_value
from graphhalu.scoring.scorer import AnswerScorer, asked_question

BATCH: Final = 32
"""Answers that are scored together and written at once."""


def read_asked(path: Path) -> list[Question]:
    """Rows with ``question``, and if wanted ``answer``, ``context`` and ``id``.

    Args:
        path: A jsonl, json, csv, tsv or parquet file, also gzipped.

    Raises:
        UsageError: If there is no such file, or an answer is empty.
        DataFileError: If a row has no question, or a field is not text; names the row.
    """
    asked = []
    for row in read_rows(open_file(path)):
        name, answer, context = (_optional(row, field) for field in ("id", "answer", "context"))
        question = asked_question(text_field(row, "question"), answer, context)
        asked.append(replace(question, question_id=name or ""))
    return asked


def score_file(
    scorer: AnswerScorer,
    asked: Sequence[Question],
    output: Path,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> list[dict[str, Any]]:
    """Score what the output does not hold yet, and add it batch by batch.

    The output is JSON Lines in the order of the input: ``row``, ``id`` and the fields of
    :class:`AnswerScore`. A line that a killed run left half-written is taken off.

    Args:
        scorer: The detector.
        asked: The input; an empty ``question_id`` is written as ``null``.
        output: Is made, or gone on with.
        on_progress: Called with the rows that are done, and all rows.

    Returns:
        All rows of the output.

    Raises:
        UsageError: If the output holds scores of another input or threshold.
        DataFileError: If the output cannot be read or written.
    """
    done = _earlier(output, asked, scorer)
    with reading(f"{output} cannot be written"):
        output.parent.mkdir(parents=True, exist_ok=True)
        file = output.open("a", encoding="utf-8")
    with file:
        for start in range(len(done), len(asked), BATCH):
            chosen = asked[start : start + BATCH]
            numbered = enumerate(zip(chosen, scorer.score_many(chosen), strict=True), start)
            rows = [
                json_ready({"row": row, "id": each.question_id or None, **score.to_json()})
                for row, (each, score) in numbered
            ]
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())
            done += rows
            on_progress(len(done), len(asked))
    return done


def finished_rows(path: Path) -> list[dict[str, Any]]:
    """Rows that an earlier run wrote; what it left half-written is cut off.

    Raises:
        DataFileError: If the file cannot be read; names the line.
    """
    if not path.exists():
        return []
    with reading(f"{path} cannot be read"):
        content = read_bytes(path, MAX_TABLE_BYTES)
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with path.open("r+b") as file:
                file.truncate(len(whole))
    return list(_rows(path, whole))


def _earlier(path: Path, asked: Sequence[Question], scorer: AnswerScorer) -> list[dict[str, Any]]:
    """Rows that an earlier run wrote of the same input."""
    rows = finished_rows(path)
    threshold = None if scorer.calibration is None else scorer.calibration.threshold
    for place, row in enumerate(rows):
        is_same = place < len(asked) and row.get("question") == asked[place].text
        if not is_same or row.get("threshold") != threshold:
            raise UsageError(
                f"{path}, line {place + 1} holds a score of another question or detector\n"
                f"  Name another --output, or remove that file"
            )
    return rows


def _rows(path: Path, content: bytes) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(content.splitlines(), start=1):
        with reading(f"{path}, line {number} is not readable JSON"):
            row = parse_json(line)
        if not isinstance(row, dict):
            raise DataFileError(f"{path}, line {number}: expected an object, got {type(row).__name__}")
        yield row


def _optional(row: Row, name: str) -> str | None:
    value = row.values.get(name)
    if value is None or value == "":
        return None
    if name == "id" and isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise wrong_value(row, name, "a text", value)
    return value
