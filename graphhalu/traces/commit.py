"""The commit record of a part: what it covers, and size and digest of each of its files."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter

from graphhalu.errors import CorruptStoreError
from graphhalu.provenance import file_sha256
from graphhalu.safe_read import MALFORMED, read_bytes
from graphhalu.traces.schema import FORMAT, FORMAT_VERSION, TraceRecord

COMMIT: Final = "commit.json"


@dataclass(frozen=True)
class Commit:
    """The commit record of a part: without it the part does not exist.

    Attributes:
        part: Index of the part.
        question_ids: Questions that are done, with or without a trace.
        trace_ids: Traces in the order of the arrays.
        failures: ``question_id`` and ``reason`` of the questions without a trace.
        files: Size and SHA-256 of every file of the part, by relative path.
        counts: How many traces, and how many tokens, rows and pairs they have together.
        created: When it was written, in UTC.
        attempt: In an object store, which of several attempts at the part this is.
    """

    part: int
    question_ids: tuple[str, ...]
    trace_ids: tuple[str, ...]
    failures: tuple[dict[str, str], ...]
    files: dict[str, dict[str, Any]]
    counts: dict[str, int] = field(default_factory=dict)
    created: str = ""
    attempt: str = ""

    def to_json(self) -> str:
        """The record with a digest of itself."""
        plain = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        return json.dumps({**plain, "digest": _digest(plain)}, indent=1)


_MOST_BYTES: Final = 2**50
"""Most bytes of a file that a commit record is believed."""
_COMMIT: Final = TypeAdapter(Commit)
_FIELDS: Final = tuple(Commit.__dataclass_fields__)
_FILE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")
_ATTEMPT: Final = re.compile(r"[A-Za-z0-9_-]*")


def commit_of(
    folder: Path,
    *,
    part: int,
    records: Sequence[TraceRecord],
    counts: Mapping[str, int],
    question_ids: Sequence[str],
    failures: Sequence[Mapping[str, str]],
    attempt: str = "",
) -> Commit:
    """The record of a part whose other files are all in ``folder``."""
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return Commit(
        part=part,
        question_ids=tuple(question_ids),
        trace_ids=tuple(record.trace_id for record in records),
        failures=tuple(dict(failure) for failure in failures),
        files=files,
        counts=dict(counts),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        attempt=attempt,
    )


def read_commit(folder: Path) -> Commit:
    """The commit record of a part.

    Raises:
        CorruptStoreError: If it is missing, unreadable, or not what was written for this part.
    """
    try:
        plain = json.loads(read_bytes(folder / COMMIT))
        digest = plain.pop("digest")
        is_whole = digest == _digest(plain)
        commit = _COMMIT.validate_python({name: plain[name] for name in _FIELDS if name in plain})
        _check_files(commit)
    except MALFORMED as error:
        raise _damaged(folder, f"cannot be read ({type(error).__name__})") from None
    if not is_whole:
        raise _damaged(folder, "differs from what was written")
    if commit.part != int(folder.name):
        raise _damaged(folder, f"is that of part {commit.part:06d}")
    return commit


def _check_files(commit: Commit) -> None:
    """Refuse files that lie outside of the part, or of no size: readers fetch what is listed."""
    for name, said in commit.files.items():
        is_inside = _FILE.fullmatch(name) and not {"", ".", ".."} & set(name.split("/"))
        is_sized = type(said["bytes"]) is int and 0 <= said["bytes"] <= _MOST_BYTES
        if not (is_inside and is_sized and isinstance(said["sha256"], str)):
            message = f"a file {name[:80]!r}"
            raise ValueError(message)
    if not _ATTEMPT.fullmatch(commit.attempt):
        message = f"an attempt {commit.attempt[:80]!r}"
        raise ValueError(message)


def _damaged(folder: Path, what: str) -> CorruptStoreError:
    message = (
        f"{COMMIT} of part {folder.name} in {folder.parent.parent} {what}\n"
        f"  Remove {folder} and run the extraction again: it does those questions anew"
    )
    return CorruptStoreError(message)


def _digest(plain: Mapping[str, Any]) -> str:
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False)
    # texts of a data set may hold lone surrogates, which plain UTF-8 refuses
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
