"""Every stored byte against what was committed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from graphhalu.errors import CorruptStoreError
from graphhalu.provenance import file_sha256
from graphhalu.traces.part import COMMIT, read_commit
from graphhalu.traces.store import open_traces, part_folders


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it was committed.

    Attributes:
        part: Name of the part, or ``-`` for the store as a whole.
        file: Path within the part.
        what: What is wrong.
    """

    part: str
    file: str
    what: str


@dataclass(frozen=True)
class VerifyReport:
    """What a verification found."""

    n_parts: int
    n_files: int
    problems: tuple[Problem, ...]


def verify_store(path: Path) -> VerifyReport:
    """Read every file of a store and compare size and SHA-256 with the commit records.

    Finds flipped bytes, truncated and missing files, files that do not belong, missing parts
    and questions that stand in two parts.

    Raises:
        StoreNotFoundError: If there is no store.
        CorruptStoreError: If the root itself is damaged.
    """
    open_traces(path)
    folders = part_folders(path)
    problems = list(_missing_parts([int(folder.name) for folder in folders]))
    seen: dict[str, str] = {}
    n_files = 0
    for folder in folders:
        try:
            commit = read_commit(folder)
        except CorruptStoreError as error:
            problems.append(Problem(folder.name, COMMIT, str(error)))
            continue
        n_files += len(commit.files)
        problems += _file_problems(folder, commit.files)
        for question in commit.question_ids:
            first = seen.setdefault(question, folder.name)
            if first != folder.name:
                what = f"question {question!r} stands in part {first} too"
                problems.append(Problem(folder.name, COMMIT, what))
    return VerifyReport(len(folders), n_files, tuple(problems))


def _missing_parts(indices: list[int]) -> Iterator[Problem]:
    for missing in sorted(set(range(max(indices, default=-1) + 1)) - set(indices)):
        yield Problem(f"{missing:06d}", "-", "the part is missing")


def _file_problems(folder: Path, files: dict[str, dict[str, object]]) -> Iterator[Problem]:
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            yield Problem(folder.name, name, "the file is missing")
        elif path.stat().st_size != expected["bytes"]:
            what = f"{path.stat().st_size} bytes long, {expected['bytes']} were committed"
            yield Problem(folder.name, name, what)
        elif file_sha256(path) != expected["sha256"]:
            yield Problem(folder.name, name, "the content differs from what was committed")
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and name != COMMIT and name not in files:
            yield Problem(folder.name, name, "the file was not committed")
