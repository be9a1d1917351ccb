"""Scores of many answers, from a file into a file; a stopped run is resumed."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from graphhalu.core.errors import DataFileError, UsageError
from graphhalu.core.files import MAX_TABLE_BYTES, parse_json, read_bytes, reading, shortened
from graphhalu.core.numerics import json_ready
from graphhalu.core.registry import unknown_name
from graphhalu.datasets.files import open_file, read_rows
from graphhalu.datasets.question import Question
from graphhalu.datasets.rows import Row, text_field, wrong_value
from graphhalu.scoring.asked import asked_question
from graphhalu.scoring.scorer import AnswerScorer

BATCH: Final = 32
"""Answers that are scored together and written at once."""


FIELDS: Final = ("question", "messages", "answer", "context", "id")
"""What a row may hold: a question or a conversation, and if wanted the answer, a passage and a name."""
LIKE_ANSWERS: Final = (
    *("given", "given_answer", "given_answers", "response", "responses", "model_answer", "model_response"),
    *("output", "model_output", "completion", "prediction", "generated", "generated_answer", "reply"),
)
"""Names of columns that hold answers to judge, more often than not."""


def read_asked(path: Path, fields: Mapping[str, str] | None = None) -> list[Question]:
    """Rows with ``question`` or ``messages``, and if wanted ``answer``, ``context`` and ``id``.

    Args:
        path: A jsonl, json, csv, tsv or parquet file, also gzipped.
        fields: Column of each field that has another name; an empty name leaves a field out.

    Raises:
        UsageError: If there is no such file or column, an answer is empty, or a column looks like answers
            and nothing says whether it holds them.
        UnknownNameError: If there is no such field.
        DataFileError: If a row has no question, or a field is not text; names the row.
    """
    fields, rows = dict(fields or {}), list(read_rows(open_file(path)))
    columns = list(dict.fromkeys(str(name) for row in rows for name in row.values))
    for field, column in fields.items():
        if field not in FIELDS:
            raise unknown_name("field of a row to score", field, FIELDS)
        if column and column not in columns:
            listed = shortened(", ".join(columns), 400)
            raise UsageError(
                f"{path} has no column {column!r}; found: {listed}\n  Use --fields {field}=COLUMN"
            )
    like = [name for name in columns if name.strip().lower().replace(" ", "_") in LIKE_ANSWERS]
    if "answer" not in fields and "answer" not in columns and like:
        raise UsageError(
            f"{path} has a column {like[0]!r} that looks like answers, and none that is called 'answer'\n"
            f"  Score them:            --fields answer={like[0]}\n"
            f"  Let the model answer:  --fields answer="
        )
    names = {field: fields.get(field, field) for field in FIELDS}
    return [_asked(row, names) for row in rows]


def _asked(row: Row, names: Mapping[str, str]) -> Question:
    name, answer, context = (_optional(row, names[field], field) for field in ("id", "answer", "context"))
    said = row.values.get(names["messages"])
    try:
        asked: Any = text_field(row, names["question"]) if said in (None, "") else _messages(row, names, said)
        question = asked_question(asked, answer, context)
    except UsageError as error:
        raise UsageError(f"{row.where}: {error}") from None
    return replace(question, question_id=name or "")


def _messages(row: Row, names: Mapping[str, str], said: object) -> list[dict[str, Any]]:
    """A conversation: a list of messages, or the JSON text of one."""
    if isinstance(said, str):
        with reading(f"{row.where}: {names['messages']} is not readable JSON"):
            said = parse_json(said.encode())
    if not isinstance(said, list) or not all(isinstance(each, dict) for each in said):
        raise wrong_value(row, names["messages"], "a list of messages with role and content", said)
    return said


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
    rows = []
    for number, line in enumerate(whole.splitlines(), start=1):
        with reading(f"{path}, line {number} is not readable JSON"):
            rows.append(parse_json(line))
        if not isinstance(rows[-1], dict):
            raise DataFileError(f"{path}, line {number}: expected an object, got {type(rows[-1]).__name__}")
    return rows


def _earlier(path: Path, asked: Sequence[Question], scorer: AnswerScorer) -> list[dict[str, Any]]:
    """Rows that an earlier run wrote of the same input."""
    rows = finished_rows(path)
    for place, row in enumerate(rows):
        is_same = place < len(asked) and row.get("question") == asked[place].text
        if not is_same or row.get("threshold_probability") != scorer.threshold_probability:
            raise UsageError(
                f"{path}, line {place + 1} holds a score of another question or detector\n"
                f"  Name another --output, or remove that file"
            )
    return rows


def _optional(row: Row, name: str, field: str) -> str | None:
    value = row.values.get(name) if name else None
    if value is None or value == "":
        return None
    if field == "id" and isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise wrong_value(row, name, "a text", value)
    return value
