"""Storage backends: the operations that a store needs of what holds it, and stores in folders.

A store is read and written through its backend, which fetches files, commits parts and knows who
else is writing. The rest of the package sees one folder with the same files, whatever the backend. In
a folder a lock file names the process that holds it; the operating system releases a lock when its
process dies.
"""

import errno
import json
import os
import re
import shutil
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from filelock import FileLock, Timeout

from graphhalu.core.errors import StoreError, StoreNotFoundError, UsageError
from graphhalu.core.files import MALFORMED
from graphhalu.core.provenance import file_sha256
from graphhalu.traces.disk import disk_error, sync, writing
from graphhalu.traces.metadata import COMMIT, PARTS, Commit, create_root, is_part_name, no_store

MAIN: Final = "main"
"""The writer that holds a store alone."""

LEDGER: Final = "ledger"
"""Folder with one empty file for each part that was ever committed, so that a loss is seen."""

STAGING: Final = ".writing"
"""Folder of parts that are not committed."""


LOCK: Final = ".lock"

_TIMEOUT_S: Final = 0.3
"""How long a writer waits: :meth:`LocalBackend.is_locked` of another process holds a lock briefly."""


class StorageBackend(ABC):
    """Storage of one store.

    Attributes:
        path: Folder from which its files are read.
        name: Path or address of the store in messages.
    """

    path: Path
    name: str

    # methods without ``abstractmethod`` do nothing for a folder, whose files are at hand
    @abstractmethod
    def exists(self) -> bool:
        """Whether there is anything at its path or address."""

    @abstractmethod
    def create(self, attributes: Mapping[str, Any]) -> None:
        """Make an empty store.

        Raises:
            UsageError: If there is something already, or it cannot be made.
        """

    @abstractmethod
    def commit(self, staged: Path, index: int) -> bool:
        """Make a part that is whole in ``staged`` part of the store; ``False`` if one is there."""

    @abstractmethod
    def ledger(self) -> list[str]:
        """Names of all parts that were ever committed."""

    @abstractmethod
    def lock(self, writer: str) -> AbstractContextManager[None]:
        """Hold the store for writing: ``main`` alone, other writers beside each other.

        Raises:
            StoreError: If another process holds it; names process, machine and time.
            UsageError: If the folder cannot be written.
        """

    @abstractmethod
    def is_locked(self) -> bool:
        """Whether a process is known to be writing."""

    @abstractmethod
    def record_of(self, part: Path) -> str:
        """File or folder whose removal lets the next run write the part again."""

    @abstractmethod
    def sizes(self, part: Path, commit: Commit) -> dict[str, int]:
        """Sizes in bytes of the stored files of a part, without its commit record."""

    @abstractmethod
    def digest(self, part: Path, commit: Commit, file: str) -> str:
        """SHA-256 of a stored file of a part."""

    def require(self) -> None:
        """Refuse a path or an address with nothing there.

        Raises:
            StoreNotFoundError: If there is nothing; names the stores nearby.
        """
        if not self.exists():
            raise StoreNotFoundError(f"no trace store at {self.name}\n  {self.hint()}")

    def hint(self) -> str:
        """Advice for a path or an address with nothing there."""
        return "Make one:  graphhalu extract --out …"

    def refuse_other_content(self) -> None:  # noqa: B027
        """Refuse a place that holds something else than a store; an empty place is allowed.

        Raises:
            UsageError: If a file or another folder is there.
        """

    def refresh(self) -> None:  # noqa: B027
        """Fetch the root, the commit records and the labels, where the files are not at hand."""

    def refresh_parts(self) -> None:  # noqa: B027
        """Fetch the commit records, where the files are not at hand."""

    def fetch(self, part: Path, commit: Commit, files: Sequence[str]) -> None:  # noqa: B027
        """Fetch files of a part as they were committed, where they are not at hand."""

    def attempt(self) -> str:
        """A name for one attempt at a part, where attempts are kept apart; else nothing."""
        return ""

    def publish(self, file: Path) -> None:  # noqa: B027
        """Store a file that was written beside the parts, where that is another place."""

    def part_folders(self) -> list[Path]:
        """Folders of the committed parts in order; without a commit record there is no part."""
        parts = self.path / PARTS
        found = [parts / name for name in names_in(parts) if is_part_name(name)]
        return sorted((f for f in found if (f / COMMIT).exists()), key=lambda f: int(f.name))

    def part(self, index: int) -> Path:
        """Folder of a part."""
        return self.path / PARTS / f"{index:06d}"

    def staging(self, writer: str, index: int) -> Path:
        """Folder in which a writer makes a part."""
        return self.path / STAGING / f"{writer}.{index:06d}-{os.getpid()}"

    def clean_up(self, writer: str) -> None:
        """Remove parts that were not committed: a writer's own, or everybody's if it is alone.

        A folder is moved away first: a lost run that still works on it then fails to commit it,
        and commits no part of which some files are gone.
        """
        for folder in (self.path / STAGING).glob("*" if writer == MAIN else f"{writer}.*"):
            away = folder.with_name(f"removed.{uuid4().hex}")
            with suppress(FileNotFoundError):  # committed at this very moment
                shutil.rmtree(folder.rename(away), ignore_errors=True)


class LocalBackend(StorageBackend):
    """A folder of this machine, or one that several machines share."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)

    def exists(self) -> bool:
        """Whether there is anything at this path."""
        return self.path.exists()

    def hint(self) -> str:
        """The stores nearby, those of similar names first."""
        stores = sorted(found.name for found in self.path.parent.glob("*.zarr"))
        near = get_close_matches(self.path.name, stores, n=3)
        near += [name for name in stores if name not in near]
        listed = ", ".join(str(self.path.parent / name) for name in near[:10])
        return f"Stores there: {listed}" if near else "Make one:  graphhalu extract"

    def refuse_other_content(self) -> None:
        """Refuse a file, and a folder without parts."""
        if self.path.exists() and not (self.path / PARTS).is_dir():
            raise UsageError(f"{no_store(self.path)}\n  Give another place with --out")

    def create(self, attributes: Mapping[str, Any]) -> None:
        """Make an empty store beside its path and move it there."""
        create_root(self.path, attributes)

    def commit(self, staged: Path, index: int) -> bool:
        """Move the part into place; that move is the commit."""
        is_new = _move_into_place(staged, self.part(index))
        entry = self.path / LEDGER / f"{index:06d}"
        if not entry.exists():
            with writing(f"the ledger of {self.path}"):
                entry.parent.mkdir(exist_ok=True)
                entry.touch()
                sync(entry.parent)
        return is_new

    def ledger(self) -> list[str]:
        """Names of the entries of the ledger."""
        return sorted(name for name in names_in(self.path / LEDGER) if is_part_name(name))

    @contextmanager
    def lock(self, writer: str = MAIN) -> Iterator[None]:
        """Hold the folder; the operating system releases it when the process dies."""
        if not re.fullmatch(r"[\w-]{1,64}", writer):
            raise ValueError(f"a writer's name holds letters, digits, '_' and '-', got {writer!r}")
        own = self.path / (LOCK if writer == MAIN else f"{LOCK}-{writer}")
        with self._acquired(own):
            try:
                # acquired before the others are checked: of two that start at once, one sees the other
                for other in self._lock_files():
                    if (other.name == LOCK) != (writer == MAIN):
                        with self._acquired(other):
                            pass
                self._name_holder(own)
                yield
            finally:
                _holder_file(own).unlink(missing_ok=True)

    def is_locked(self) -> bool:
        """Whether a process of this machine, or of one that shares the folder, is writing."""
        return any(_is_held(file) for file in self._lock_files())

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

    def _lock_files(self) -> list[Path]:
        shards = [file for file in self.path.glob(f"{LOCK}-*") if file.suffix != ".json"]
        return [file for file in (self.path / LOCK, *sorted(shards)) if file.exists()]

    @contextmanager
    def _acquired(self, file: Path) -> Iterator[None]:
        lock = FileLock(file)
        try:
            lock.acquire(timeout=_TIMEOUT_S, poll_interval=0.05)
        except Timeout:
            raise StoreError(
                f"{self.path} is being written by {_holder(file)}\n"
                f"  Wait until it is done, or stop it; one store has one writer at a time, or shards"
            ) from None
        except OSError as error:
            raise disk_error(error, self.name) or error from None
        try:
            yield
        finally:
            lock.release()

    def _name_holder(self, lock_file: Path) -> None:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        with writing(self.name):
            _holder_file(lock_file).write_text(json.dumps(holder), encoding="utf-8")


def _holder_file(lock_file: Path) -> Path:
    return lock_file.with_name(f"{lock_file.name}.json")


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


def _holder(lock_file: Path) -> str:
    try:
        holder = json.loads(_holder_file(lock_file).read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except MALFORMED:
        return "another process"


def _move_into_place(staged: Path, target: Path) -> bool:
    """Move a part to its place in one step; ``False`` if a part is committed there already."""
    try:
        staged.rename(target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        if (target / COMMIT).exists():
            return False
        # a folder without a commit record is not a part and is replaced
        shutil.rmtree(target)
        staged.rename(target)
    sync(target.parent)
    return True


def names_in(folder: Path) -> Iterator[str]:
    """Names of what is in a folder; none if there is no folder."""
    return (entry.name for entry in folder.iterdir()) if folder.is_dir() else iter(())
