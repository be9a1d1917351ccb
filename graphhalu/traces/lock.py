"""Who writes to a store: one process that holds it alone, or several with a shard each.

A lock file names the process that holds it. The system lets go when the process dies, however it
dies.
"""

import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from graphhalu.errors import StoreLockedError
from graphhalu.safe_read import MALFORMED
from graphhalu.traces.write import disk_error

MAIN: Final = "main"
"""The writer that holds a store alone."""

LOCK: Final = ".lock"
HOLDER: Final = ".lock.json"

_PATIENCE_S: Final = 0.3
"""A look at whether a store is locked holds it for a moment; no run fails for that."""


@contextmanager
def writer_lock(store: Path, writer: str = MAIN) -> Iterator[None]:
    """Hold a store for writing: ``main`` alone, any other writer beside others of other names.

    Raises:
        StoreLockedError: If another process holds it; names process, machine and time.
        UsageError: If the folder cannot be written.
        StoreFullError: If the disk is full.
    """
    own = _lock_file(store, writer)
    lock = FileLock(own)
    _acquire(lock, store, own)
    try:
        # taken first, looked at the others then: of two that start at once, at least one sees it
        for other in _others(store, writer):
            _require_free(store, other)
        _name_holder(own)
        yield
    finally:
        _holder_file(own).unlink(missing_ok=True)
        lock.release()


def is_locked(store: Path) -> bool:
    """Whether a process is writing to the store now."""
    return any(_is_held(file) for file in _lock_files(store))


def _lock_file(store: Path, writer: str) -> Path:
    if not re.fullmatch(r"[\w-]{1,64}", writer):
        message = f"a writer's name holds letters, digits, '_' and '-', got {writer!r}"
        raise ValueError(message)
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


def _acquire(lock: FileLock, store: Path, file: Path) -> None:
    try:
        lock.acquire(timeout=_PATIENCE_S, poll_interval=0.05)
    except Timeout:
        raise _locked(store, file) from None
    except OSError as error:
        raise disk_error(error, str(store)) or error from None


def _require_free(store: Path, file: Path) -> None:
    lock = FileLock(file)
    _acquire(lock, store, file)
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
    message = (
        f"{store} is being written by {_holder(lock_file)}\n"
        f"  Wait until it is done, or stop it; one store has one writer at a time, or shards"
    )
    return StoreLockedError(message)


def _holder(lock_file: Path) -> str:
    try:
        holder = json.loads(_holder_file(lock_file).read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except MALFORMED:
        return "another process"
