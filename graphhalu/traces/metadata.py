"""Metadata of a store: the attributes of its root, and the commit record of each part.

A commit record lists the questions and traces of a part, and size and digest of each of its files.
"""

import errno
import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import zarr
from pydantic import TypeAdapter

from graphhalu.core.axes import EDGE_CONVENTION, ROW_CONVENTION, SPAN_NAMES
from graphhalu.core.errors import CorruptStoreError, StoreError, UsageError
from graphhalu.core.files import MALFORMED, read_bytes, shown
from graphhalu.core.provenance import file_sha256
from graphhalu.traces.disk import disk_error, sync, sync_tree
from graphhalu.traces.schema import ARRAYS, FORMAT, FORMAT_VERSION, TraceShape

COMMIT: Final = "commit.json"
PARTS: Final = "parts"
GROUP: Final = {"zarr_format": 3, "node_type": "group"}

_SHAPE: Final = TypeAdapter(TraceShape)
_MOST_SIZE: Final = 2**24
_MOST_PARTS: Final = 10**6
_PART_NAME: Final = re.compile("[0-9]{6,}")

_ERROR_BOUNDS: Final = {
    "float16": "relative 2**-11 above 6.1e-5, absolute 3.0e-8 below",
    "bfloat16": "relative 2**-8",
    "fixed16": "absolute 7.7e-6",
}
_MOST_BYTES: Final = 2**50
"""Most bytes of a file that a commit record is believed."""
_FILE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")
_ATTEMPT: Final = re.compile(r"[A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Commit:
    """The commit record of a part; a part without one does not exist.

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
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    created: str = ""
    attempt: str = ""

    def to_json(self) -> str:
        """The record with a digest of itself."""
        plain = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        return json.dumps({**plain, "digest": _digest(plain, ensure_ascii=False)}, indent=1)


_COMMIT: Final = TypeAdapter(Commit)


def is_part_name(name: str) -> bool:
    """Whether a folder of this name can be a part."""
    return _PART_NAME.fullmatch(name) is not None


def store_attributes(
    configuration: Mapping[str, Any], shape: TraceShape, arrays: Sequence[str], provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """The attributes of a root with their digest; plain JSON values."""
    plain = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "configuration": configuration,
        "provenance": provenance,
        "shape": asdict(shape),
        "arrays": list(arrays),
        "axes": {name: list(ARRAYS[name].axes) for name in arrays},
        "span_names": list(SPAN_NAMES),
        "row_convention": ROW_CONVENTION,
        "edge_convention": EDGE_CONVENTION,
        "error_bounds": _ERROR_BOUNDS,
    }
    loaded: dict[str, Any] = json.loads(json.dumps(plain))
    return {**loaded, "digest": _digest(loaded, ensure_ascii=True)}


def create_root(path: Path, attributes: Mapping[str, Any]) -> None:
    """Create an empty store beside its path and move it there.

    Raises:
        UsageError: If there is something at ``path``, or its folder cannot be written.
        StoreFullError: If the disk is full.
    """
    staged: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=".creating-", dir=path.parent))
        staged.chmod(0o755)
        group = zarr.create_group(store=staged, zarr_format=3, attributes=dict(attributes))
        group.create_group(PARTS)
        sync_tree(staged)
        if path.exists():
            raise FileExistsError(errno.EEXIST, "exists", str(path))
        staged.rename(path)
        sync(path.parent)
    except OSError as error:
        raise disk_error(error, str(path)) or _not_creatable(path, error) from None
    finally:
        if staged is not None:
            shutil.rmtree(staged, ignore_errors=True)


def read_attributes(path: Path) -> dict[str, Any]:
    """The attributes of a store.

    Raises:
        StoreError: If there is no trace store at ``path``, or one of a newer version.
        CorruptStoreError: If the attributes are not what was written.
    """
    try:
        attributes = dict(zarr.open_group(path, mode="r", zarr_format=3).attrs)
    except MALFORMED as error:
        if (path / PARTS).is_dir():
            raise _damaged_root(path) from error
        raise StoreError(no_store(path)) from error
    if attributes.get("format") != FORMAT:
        if "row_convention" in attributes:
            raise _damaged_root(path)
        raise StoreError(f"{no_store(path)}\n  Its format is {shown(attributes.get('format'))}")
    version = attributes.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise StoreError(
            f"{path} has format version {version}, this graphhalu reads up "
            f"to {FORMAT_VERSION}\n  Update it:  pip install --upgrade graphhalu"
        )
    if attributes.get("digest") != _digest(attributes, ensure_ascii=True) or not _is_sound(attributes):
        raise _damaged_root(path)
    return attributes


def _is_sound(attributes: Mapping[str, Any]) -> bool:
    """Whether sizes are such as a model has, and arrays such as a part may hold."""
    try:
        shape = _SHAPE.validate_python(attributes["shape"])
        sizes = (shape.n_layers, shape.n_heads, shape.n_kv_heads, shape.hidden_size)
        is_sized = min(sizes) > 0 and max(*sizes, shape.n_edges) <= _MOST_SIZE
        is_sized &= len(shape.layer_windows) == len(shape.attention_layers)
        is_sized &= attributes["shape"].keys() <= TraceShape.__dataclass_fields__.keys()
        is_known = set(attributes["arrays"]) <= ARRAYS.keys()
        described = (attributes["configuration"], attributes["provenance"])
        n_parts = attributes.get("n_parts", 0)
    except MALFORMED:
        return False
    is_counted = type(n_parts) is int and 0 <= n_parts <= _MOST_PARTS
    return is_sized and is_known and is_counted and all(isinstance(d, dict) for d in described)


def no_store(path: Path) -> str:
    """A sentence that says what lies at a path instead of a trace store."""
    came = "a folder without a zarr.json" if path.is_dir() else "a file"
    if (path / "zarr.json").exists():
        came = "something else in Zarr's format"
    return f"{path} is not a trace store, but {came}; expected a folder that graphhalu extract made"


def _damaged_root(path: Path) -> CorruptStoreError:
    return CorruptStoreError(
        f"zarr.json of {path} is not what was written: the file is damaged or missing\n"
        f"  The parts are not touched. Bring the file back from a copy, or extract again "
        f"to another place"
    )


def _not_creatable(path: Path, error: OSError) -> UsageError:
    if path.exists():
        return UsageError(
            f"there is something at {path} already\n"
            f"  Open it with open_traces, or give another place with --out"
        )
    above = next(folder for folder in path.parents if folder.exists())
    reason = error.strerror if above.is_dir() else f"{above} is a file, expected a folder"
    return UsageError(f"{path} cannot be created: {reason}\n  Give another place with --out")


def sealed(commit: Commit, folder: Path, counts: Mapping[str, int]) -> Commit:
    """The record of a part whose other files are all in ``folder``, as it is written now."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return replace(commit, files=files, counts=dict(counts), created=created)


def read_commit(folder: Path) -> Commit:
    """The commit record of a part.

    Raises:
        CorruptStoreError: If it is missing, unreadable, or not what was written for this part.
    """
    try:
        plain = json.loads(read_bytes(folder / COMMIT))
        is_whole = plain["digest"] == _digest(plain, ensure_ascii=False)
        commit = _COMMIT.validate_python(plain)
        _check_files(commit)
    except MALFORMED as error:
        raise _damaged_commit(folder, f"cannot be read ({type(error).__name__})") from None
    if not is_whole:
        raise _damaged_commit(folder, "differs from what was written")
    if commit.part != int(folder.name):
        raise _damaged_commit(folder, f"is that of part {commit.part:06d}")
    return commit


def _check_files(commit: Commit) -> None:
    """Refuse files that lie outside of the part, or of no size: readers fetch what is listed."""
    for name, said in commit.files.items():
        is_inside = _FILE.fullmatch(name) and not {"", ".", ".."} & set(name.split("/"))
        is_sized = type(said["bytes"]) is int and 0 <= said["bytes"] <= _MOST_BYTES
        if not (is_inside and is_sized and isinstance(said["sha256"], str)):
            raise ValueError(f"a file {name[:80]!r}")
    if not _ATTEMPT.fullmatch(commit.attempt):
        raise ValueError(f"an attempt {commit.attempt[:80]!r}")


def _damaged_commit(folder: Path, what: str) -> CorruptStoreError:
    return CorruptStoreError(
        f"{COMMIT} of part {folder.name} in {folder.parent.parent} {what}\n"
        f"  Remove {folder} and run the extraction again: it does those questions anew"
    )


def _digest(plain: Mapping[str, Any], *, ensure_ascii: bool) -> str:
    """SHA-256 of the canonical JSON of a record, without the digest that it holds."""
    bare = {key: value for key, value in plain.items() if key != "digest"}
    text = json.dumps(bare, sort_keys=True, ensure_ascii=ensure_ascii)
    # texts of a data set may hold lone surrogates, which plain UTF-8 refuses
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
