"""Every stored byte against what was committed."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from graphhalu.errors import CorruptStoreError
from graphhalu.parquet import read_parquet
from graphhalu.safe_read import MALFORMED, reason_of
from graphhalu.traces.commit import COMMIT, Commit, read_commit
from graphhalu.traces.place import Place, place_of
from graphhalu.traces.root import GROUP, PARTS, is_part_name, read_attributes

_CHANGED: Final = "the content differs from what was written"


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


def verify_store(path: Path | str) -> VerifyReport:
    """Read every file of a store and compare size and SHA-256 with the commit records.

    Labels are compared with their own checksums. Finds flipped bits, truncated and missing files,
    files that do not belong, missing parts and questions that stand in two parts.

    Raises:
        StoreNotFoundError: If there is no store.
        CorruptStoreError: If the root itself is damaged.
    """
    place = place_of(path)
    place.require()
    place.refresh()
    path = place.path
    n_parts = read_attributes(path).get("n_parts", 0)
    names = sorted(entry.name for entry in (path / PARTS).glob("*"))
    folders = [path / PARTS / name for name in names if is_part_name(name)]
    problems = [*_root_problems(path), *_strays(names)]
    problems += _missing_parts(folders, n_parts, place.ledger())
    problems += _label_problems(path)
    seen: dict[str, str] = {}
    n_files = 0
    for folder in folders:
        try:
            commit = read_commit(folder)
        except CorruptStoreError as error:
            problems.append(Problem(folder.name, COMMIT, str(error)))
            continue
        if not _is_as_written(folder / COMMIT):
            problems.append(Problem(folder.name, COMMIT, _CHANGED))
        n_files += len(commit.files)
        problems += _file_problems(place, folder, commit)
        for question in commit.question_ids:
            first = seen.setdefault(question, folder.name)
            if first != folder.name:
                what = f"question {question!r} stands in part {first} too"
                problems.append(Problem(folder.name, COMMIT, what))
    return VerifyReport(len(folders), n_files, tuple(problems))


def _root_problems(path: Path) -> Iterator[Problem]:
    """The two group descriptions that no commit record covers; one has a digest of its own."""
    for file in ("zarr.json", f"{PARTS}/zarr.json"):
        try:
            found = json.loads((path / file).read_text(encoding="utf-8"))
            is_sound = _without_attributes(found) == GROUP and _is_as_written(path / file)
        except MALFORMED as error:
            yield Problem("-", file, f"the file cannot be read ({type(error).__name__})")
        else:
            if not is_sound:
                yield Problem("-", file, _CHANGED)


def _label_problems(path: Path) -> Iterator[Problem]:
    """Labels are made anew at will, so no commit record covers them; their pages have checksums."""
    for file in sorted(path.glob("labels/*.parquet")):
        try:
            read_parquet(file)
        except MALFORMED as error:
            what = f"the file is damaged ({reason_of(error)}); remove it and label again"
            yield Problem("-", f"labels/{file.name}", what)


def _is_as_written(file: Path) -> bool:
    """Whether a JSON file has the one spelling in which it is written.

    A flipped bit can spell the same value in another way: ``1E-05``, or an escape in capitals.
    """
    text = file.read_text(encoding="utf-8")
    return "".join(text.split()) == "".join(json.dumps(json.loads(text)).split())


def _without_attributes(description: Mapping[str, Any]) -> dict[str, Any]:
    ours = {"attributes", "consolidated_metadata"}
    return {key: value for key, value in description.items() if key not in ours}


def _strays(names: list[str]) -> Iterator[Problem]:
    for name in names:
        if not is_part_name(name) and name != "zarr.json":
            yield Problem("-", f"{PARTS}/{name}", "the file was not committed")


def _missing_parts(folders: list[Path], n_parts: int, ledger: list[str]) -> Iterator[Problem]:
    """Parts that were committed once and are not there; the first format counted them."""
    known = {int(name) for name in ledger} | set(range(n_parts))
    for missing in sorted(known - {int(folder.name) for folder in folders}):
        yield Problem(f"{missing:06d}", "-", "the part is missing")


def _file_problems(place: Place, folder: Path, commit: Commit) -> Iterator[Problem]:
    found = place.sizes(folder, commit)
    for name, expected in commit.files.items():
        if name not in found:
            yield Problem(folder.name, name, "the file is missing")
        elif found[name] != expected["bytes"]:
            what = f"{found[name]} bytes long, {expected['bytes']} were committed"
            yield Problem(folder.name, name, what)
        elif place.digest(folder, commit, name) != expected["sha256"]:
            yield Problem(folder.name, name, "the content differs from what was committed")
    for name in sorted(set(found) - set(commit.files)):
        yield Problem(folder.name, name, "the file was not committed")
