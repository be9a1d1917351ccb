"""Stores in folders: the local storage backend, its locks, and stores by path or address.

A lock file names the process that holds it. The system lets go when the process dies, however it
dies.
"""

import errno
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlparse

from filelock import FileLock, Timeout

from graphhalu.core.errors import StoreLockedError, UsageError
from graphhalu.core.files import MALFORMED
from graphhalu.core.provenance import file_sha256
from graphhalu.traces.disk import disk_error, sync
from graphhalu.traces.metadata import (
    COMMIT,
    PARTS,
    Commit,
    create_root,
    is_part_name,
    no_store,
    no_such_store,
)
from graphhalu.traces.storage import LEDGER, MAIN, StorageBackend, names_in

LOCK: Final = ".lock"
HOLDER: Final = ".lock.json"

_TIMEOUT_S: Final = 0.3
"""A look at whether a store is locked holds it for a moment; no run fails for that."""

_SCHEME: Final = re.compile(r"(s3|gs|az|file):(?:/+|$)(.*)", re.DOTALL)


class LocalBackend(StorageBackend):
    """A folder of this machine, or one that several machines share."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)

    def exists(self) -> bool:
        """Whether there is anything at this path."""
        return self.path.exists()

    def require(self) -> None:
        """Refuse a path with nothing there."""
        if not self.path.exists():
            raise no_such_store(self.path)

    def create(self, attributes: Mapping[str, Any]) -> None:
        """Make an empty store beside its path and move it there."""
        create_root(self.path, attributes)

    def refresh(self) -> None:
        """Nothing: the files are here."""

    def refresh_parts(self) -> None:
        """Nothing: the files are here."""

    def fetch(self, part: Path, commit: Commit, files: Sequence[str]) -> None:
        """Nothing: the files are here, or lost."""

    def commit(self, staged: Path, index: int) -> bool:
        """Move the part into place; that move is the commit."""
        is_new = moved_into_place(staged, self.part(index))
        self._note(index)
        return is_new

    def attempt(self) -> str:
        """Nothing: a folder is moved whole, so attempts cannot mix."""
        return ""

    def _note(self, index: int) -> None:
        entry = self.path / LEDGER / f"{index:06d}"
        if entry.exists():
            return
        try:
            entry.parent.mkdir(exist_ok=True)
            entry.touch()
            sync(entry.parent)
        except OSError as error:
            raise disk_error(error, f"the ledger of {self.path}") or error from None

    def ledger(self) -> list[str]:
        """Names of the entries of the ledger."""
        return sorted(name for name in names_in(self.path / LEDGER) if is_part_name(name))

    def publish(self, file: Path) -> None:
        """Nothing: the file is where the store lies."""

    def lock(self, writer: str) -> AbstractContextManager[None]:
        """Hold the folder; the system lets go when the process dies."""
        return writer_lock(self.path, writer)

    def is_locked(self) -> bool:
        """Whether a process of this machine, or of one that shares the folder, is writing."""
        return is_locked(self.path)

    def record_of(self, part: Path) -> str:
        """The folder of the part."""
        return str(part)

    def sizes(self, part: Path, commit: Commit) -> dict[str, int]:
        """Sizes of the files in the folder of a part."""
        files = {f.relative_to(part).as_posix(): f for f in sorted(part.rglob("*")) if f.is_file()}
        return {name: file.stat().st_size for name, file in files.items() if name != COMMIT}

    def digest(self, part: Path, commit: Commit, file: str) -> str:
        """SHA-256 of a file in the folder of a part."""
        return file_sha256(part / file)


def backend_of(given: Path | str) -> StorageBackend:
    """The storage backend of a path or an address.

    A path keeps one slash of ``s3://`` only; it means the same.

    Raises:
        MissingExtraError: If it is in an object store and obstore is not installed.
        UsageError: If it is no address that can be used.
    """
    text = os.fspath(given)
    match = _SCHEME.match(text)
    if match is None:
        return LocalBackend(Path(text))
    scheme, rest = match.groups()
    if scheme == "file":
        return LocalBackend(Path(unquote(urlparse(f"file:///{rest}").path)))
    from graphhalu.traces.remote import RemoteBackend

    return RemoteBackend(f"{scheme}://{rest.rstrip('/')}")


def check_place(path: Path | str) -> None:
    """Refuse a path with something else than a store; a path that does not exist is allowed.

    Raises:
        UsageError: If a file or another folder is there.
    """
    backend = backend_of(path)
    is_local = isinstance(backend, LocalBackend)
    if is_local and backend.exists() and not (backend.path / PARTS).is_dir():
        raise UsageError(f"{no_store(backend.path)}\n  Give another place with --out")


def is_there(path: Path | str) -> bool:
    """Whether there is anything at a path or an address."""
    return backend_of(path).exists()


@contextmanager
def writer_lock(store: Path, writer: str = MAIN) -> Iterator[None]:
    """Hold a store for writing: ``main`` alone, any other writer beside others of other names.

    Raises:
        StoreLockedError: If another process holds it; names process, machine and time.
        UsageError: If the folder cannot be written.
        StoreFullError: If the disk is full.
    """
    own = _lock_file(store, writer)
    with _acquired(own, store):
        try:
            # taken first, looked at the others then: of two that start at once, one sees it
            for other in _others(store, writer):
                with _acquired(other, store):
                    pass
            _name_holder(own)
            yield
        finally:
            _holder_file(own).unlink(missing_ok=True)


def is_locked(store: Path) -> bool:
    """Whether a process is writing to the store now."""
    return any(_is_held(file) for file in _lock_files(store))


def _lock_file(store: Path, writer: str) -> Path:
    if not re.fullmatch(r"[\w-]{1,64}", writer):
        raise ValueError(f"a writer's name holds letters, digits, '_' and '-', got {writer!r}")
    return store / (LOCK if writer == MAIN else f"{LOCK}-{writer}")


def _holder_file(lock_file: Path) -> Path:
    return lock_file.with_name(f"{lock_file.name}.json")


def _lock_files(store: Path) -> list[Path]:
    shards = [file for file in store.glob(f"{LOCK}-*") if file.suffix != ".json"]
    return [file for file in (store / LOCK, *sorted(shards)) if file.exists()]


def _others(store: Path, writer: str) -> list[Path]:
    """Lock files of the writers that may not write at the same time."""
    if writer != MAIN:
        return [file for file in (store / LOCK,) if file.exists()]
    return [file for file in _lock_files(store) if file.name != LOCK]


@contextmanager
def _acquired(file: Path, store: Path) -> Iterator[None]:
    lock = FileLock(file)
    try:
        lock.acquire(timeout=_TIMEOUT_S, poll_interval=0.05)
    except Timeout:
        raise _locked(store, file) from None
    except OSError as error:
        raise disk_error(error, str(store)) or error from None
    try:
        yield
    finally:
        lock.release()


def _is_held(file: Path) -> bool:
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # a read-only store has no writer that this process could see
        return False
    lock.release()
    return False


def _name_holder(lock_file: Path) -> None:
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        _holder_file(lock_file).write_text(json.dumps(holder), encoding="utf-8")
    except OSError as error:
        raise disk_error(error, str(lock_file.parent)) or error from None


def _locked(store: Path, lock_file: Path) -> StoreLockedError:
    return StoreLockedError(
        f"{store} is being written by {_holder(lock_file)}\n"
        f"  Wait until it is done, or stop it; one store has one writer at a time, or shards"
    )


def _holder(lock_file: Path) -> str:
    try:
        holder = json.loads(_holder_file(lock_file).read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except MALFORMED:
        return "another process"


def moved_into_place(staged: Path, target: Path) -> bool:
    """Move a part to its place in one step; ``False`` if a part is committed there already."""
    try:
        staged.rename(target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        if (target / COMMIT).exists():
            return False
        # a folder without a commit record is no part: it gives way
        shutil.rmtree(target)
        staged.rename(target)
    sync(target.parent)
    return True
