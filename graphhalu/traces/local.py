"""Local storage backend: stores in folders, and the locks of their writers.

A lock file names the process that holds it. The operating system releases a lock when its process
dies.
"""

import errno
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from graphhalu.core.errors import StoreError, UsageError
from graphhalu.core.files import MALFORMED
from graphhalu.core.provenance import file_sha256
from graphhalu.traces.disk import disk_error, sync, writing
from graphhalu.traces.metadata import COMMIT, PARTS, Commit, create_root, is_part_name, no_store
from graphhalu.traces.storage import LEDGER, MAIN, StorageBackend, names_in

LOCK: Final = ".lock"
HOLDER: Final = ".lock.json"

_TIMEOUT_S: Final = 0.3
"""How long a writer waits: :meth:`LocalBackend.is_locked` of another process holds a lock briefly."""


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
