"""Checks of a store: every byte against what was committed; and a description in numbers."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from graphhalu.core.errors import CorruptStoreError
from graphhalu.core.files import MALFORMED, read_parquet, reason_of
from graphhalu.traces.metadata import COMMIT, GROUP, PARTS, Commit, is_part_name, read_attributes, read_commit
from graphhalu.traces.schema import RAGGED_AXES, array_spec
from graphhalu.traces.storage import StorageBackend
from graphhalu.traces.store import open_traces, storage_backend

_CHANGED: Final = "the content differs from what was written"


def verify_store(path: Path | str) -> list[dict[str, str]]:
    """Read every file of a store and compare size and SHA-256 with the commit records.

    Labels are compared with their own checksums. Finds flipped bits, truncated and missing files,
    files that do not belong, missing parts and questions that are in two parts.

    Returns:
        The problems, none for a sound store: ``part`` (``-`` for the store as a whole), ``file``
        (path within the part) and ``what`` is wrong.

    Raises:
        StoreNotFoundError: If there is no store.
        CorruptStoreError: If the root itself is damaged.
    """
    backend = storage_backend(path)
    backend.require()
    backend.refresh()
    path = backend.path
    n_parts = read_attributes(path).get("n_parts", 0)
    names = sorted(entry.name for entry in (path / PARTS).glob("*"))
    folders = [path / PARTS / name for name in names if is_part_name(name)]
    problems = [*_root_problems(path)]
    strays = [name for name in names if not is_part_name(name) and name != "zarr.json"]
    problems += [_problem("-", f"{PARTS}/{name}", "the file was not committed") for name in strays]
    problems += _missing_parts(folders, n_parts, backend.ledger())
    problems += _label_problems(path)
    seen: dict[str, str] = {}
    for folder in folders:
        try:
            commit = read_commit(folder)
        except CorruptStoreError as error:
            problems.append(_problem(folder.name, COMMIT, str(error)))
            continue
        if not _is_as_written(folder / COMMIT):
            problems.append(_problem(folder.name, COMMIT, _CHANGED))
        problems += _file_problems(backend, folder, commit)
        for question in commit.question_ids:
            first = seen.setdefault(question, folder.name)
            if first != folder.name:
                what = f"question {question!r} is in part {first} too"
                problems.append(_problem(folder.name, COMMIT, what))
    return problems


def describe_store(path: Path | str) -> dict[str, Any]:
    """Contents and settings of a store as plain values; no trace array is read.

    Raises:
        StoreNotFoundError: If there is none.
    """
    store = open_traces(path)
    n_bytes = store.n_bytes()
    lengths = np.array([record.length for record in store.records], dtype=np.int64)
    return {
        "path": store.name,
        "n_traces": len(store),
        "n_questions": len({record.question_id for record in store.records}),
        "n_parts": len(store.parts),
        "is_being_written": store.backend.is_locked(),
        "failures": dict(Counter(failure["reason"] for failure in store.failures)),
        "tokens": (
            {"min": lengths.min(), "median": float(np.median(lengths)), "max": lengths.max()}
            if len(lengths)
            else None
        ),
        "n_bytes": sum(n_bytes.values()),
        "bytes_a_trace": sum(n_bytes.values()) / len(store) if len(store) else None,
        "arrays": {
            spec.name: {
                "axes": [a if a in RAGGED_AXES else f"{a} {store.shape.axis_size(a)}" for a in spec.axes],
                "dtype": spec.dtype if spec.encoding == "plain" else spec.encoding,
                "n_bytes": n_bytes[spec.name],
            }
            for spec in map(array_spec, store.arrays)
        },
        "labels": sorted(file.stem for file in store.labels_folder.glob("*.parquet")),
        "configuration": store.configuration,
        "provenance": store.provenance,
    }


def _problem(part: str, file: str, what: str) -> dict[str, str]:
    return {"part": part, "file": file, "what": what}


def _root_problems(path: Path) -> Iterator[dict[str, str]]:
    """Damage of the two group descriptions that no commit record covers; one has its own digest."""
    for file in ("zarr.json", f"{PARTS}/zarr.json"):
        try:
            found = json.loads((path / file).read_text(encoding="utf-8"))
            bare = {key: found[key] for key in found.keys() - {"attributes", "consolidated_metadata"}}
            is_sound = bare == GROUP and _is_as_written(path / file)
        except MALFORMED as error:
            yield _problem("-", file, f"the file cannot be read ({type(error).__name__})")
        else:
            if not is_sound:
                yield _problem("-", file, _CHANGED)


def _label_problems(path: Path) -> Iterator[dict[str, str]]:
    """Damaged label files; no commit record covers labels, but their pages have checksums."""
    for file in sorted(path.glob("labels/*.parquet")):
        try:
            read_parquet(file)
        except MALFORMED as error:
            what = f"the file is damaged ({reason_of(error)}); remove it and label again"
            yield _problem("-", f"labels/{file.name}", what)


def _is_as_written(file: Path) -> bool:
    """Whether a JSON file has the one spelling in which it is written.

    A flipped bit can spell the same value in another way: ``1E-05``, or an escape in capitals.
    """
    text = file.read_text(encoding="utf-8")
    return "".join(text.split()) == "".join(json.dumps(json.loads(text)).split())


def _missing_parts(folders: list[Path], n_parts: int, ledger: list[str]) -> Iterator[dict[str, str]]:
    """Parts that were committed once and are not there; the first format counted them."""
    known = {int(name) for name in ledger} | set(range(n_parts))
    for missing in sorted(known - {int(folder.name) for folder in folders}):
        yield _problem(f"{missing:06d}", "-", "the part is missing")


def _file_problems(backend: StorageBackend, folder: Path, commit: Commit) -> Iterator[dict[str, str]]:
    found = backend.sizes(folder, commit)
    for name, expected in commit.files.items():
        if name not in found:
            yield _problem(folder.name, name, "the file is missing")
        elif found[name] != expected["bytes"]:
            what = f"{found[name]} bytes long, {expected['bytes']} were committed"
            yield _problem(folder.name, name, what)
        elif backend.digest(folder, commit, name) != expected["sha256"]:
            yield _problem(folder.name, name, "the content differs from what was committed")
    for name in sorted(set(found) - set(commit.files)):
        yield _problem(folder.name, name, "the file was not committed")
