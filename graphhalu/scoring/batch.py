"""Many answers from a file into a file, which a stopped run goes on with."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from graphhalu.core.errors import DataFileError, UsageError
from graphhalu.core.files import MAX_TABLE_BYTES, parse_json, read_bytes, reading
from graphhalu.core.numerics import json_ready
from graphhalu.datasets.files import open_file, read_rows
from graphhalu.datasets.rows import Row, text_field, wrong_value
from graphhalu.scoring.scorer import AnswerScore, AnswerScorer, asked_question

BATCH: Final = 32
"""Answers that are scored together and written at once."""


class Asking(NamedTuple):
    """One row of the input.

    Attributes:
        row: Its number, from 0.
        question: The question.
        answer: The answer to judge; without, the model answers.
        context: A passage that the prompt shows.
        id: What the input calls it, if anything.
    """

    row: int
    question: str
    answer: str | None
    context: str | None
    id: str | None

    def as_json(self) -> dict[str, Any]:
        """What the output says of where a score belongs."""
        return {"row": self.row, "id": self.id}


def read_asked(path: Path) -> list[Asking]:
    """Rows with ``question``, and if wanted ``answer``, ``context`` and ``id``.

    Args:
        path: A jsonl, json, csv, tsv or parquet file, also gzipped.

    Raises:
        UsageError: If there is no such file.
        DataFileError: If a row has no question, or a field is no text; names the row.
    """
    return [
        Asking(
            number,
            text_field(row, "question"),
            _optional(row, "answer"),
            _optional(row, "context"),
            _optional(row, "id"),
        )
        for number, row in enumerate(read_rows(open_file(path)))
    ]


def score_file(
    scorer: AnswerScorer,
    asked: Sequence[Asking],
    output: Path,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> list[dict[str, Any]]:
    """Score what the output does not hold yet, and add it batch by batch.

    The output is JSON Lines in the order of the input: ``row``, ``id`` and the fields of
    :class:`AnswerScore`. A line that a killed run left half-written is taken off.

    Args:
        scorer: The detector.
        asked: The input.
        output: Is made, or gone on with.
        on_progress: Called with the rows that are done, and all rows.

    Returns:
        All rows of the output.

    Raises:
        UsageError: If the output holds scores of another input or threshold.
        DataFileError: If the output cannot be read or written.
    """
    done = _earlier(output, asked, scorer)
    with _appending(output) as file:
        for start in range(len(done), len(asked), BATCH):
            chosen = asked[start : start + BATCH]
            questions = [asked_question(each.question, each.answer, each.context) for each in chosen]
            scores = scorer.score_many(questions)
            rows = [_row(each, score) for each, score in zip(chosen, scores, strict=True)]
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


def _row(asked: Asking, score: AnswerScore) -> dict[str, Any]:
    found: dict[str, Any] = json_ready({**asked.as_json(), **score.to_json()})
    return found


def _appending(path: Path) -> Any:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a", encoding="utf-8")
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror}"
        raise DataFileError(message) from None


def _earlier(path: Path, asked: Sequence[Asking], scorer: AnswerScorer) -> list[dict[str, Any]]:
    """Rows that an earlier run wrote of the same input."""
    rows = finished_rows(path)
    calibration = scorer.recipe.calibration
    threshold = None if calibration is None else calibration.threshold
    for place, row in enumerate(rows):
        is_same = place < len(asked) and row.get("question") == asked[place].question
        if not is_same or row.get("threshold") != threshold:
            message = (
                f"{path}, line {place + 1} holds a score of another question or detector\n"
                f"  Name another --output, or remove that file"
            )
            raise UsageError(message)
    return rows


def _rows(path: Path, content: bytes) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(content.splitlines(), start=1):
        with reading(f"{path}, line {number} is not readable JSON"):
            row = parse_json(line)
        if not isinstance(row, dict):
            message = f"{path}, line {number}: expected an object, got {type(row).__name__}"
            raise DataFileError(message)
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
