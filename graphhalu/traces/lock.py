"""One writer a store: a lock that names the process holding it."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from graphhalu.errors import StoreLockedError
from graphhalu.traces.write import disk_error

LOCK: Final = ".lock"
HOLDER: Final = ".lock.json"

_PATIENCE_S: Final = 0.3
"""A look at whether a store is locked holds it for a moment; no run fails for that."""


@contextmanager
def writer_lock(store: Path) -> Iterator[None]:
    """Hold the store for writing; the system lets go when the process dies, however it dies.

    Raises:
        StoreLockedError: If another process holds it; names process, machine and time.
        UsageError: If the folder cannot be written.
        StoreFullError: If the disk is full.
    """
    lock = FileLock(store / LOCK)
    try:
        lock.acquire(timeout=_PATIENCE_S, poll_interval=0.05)
    except Timeout:
        raise _locked(store) from None
    except OSError as error:
        raise disk_error(error, str(store)) or error from None
    try:
        _name_holder(store)
        yield
    finally:
        (store / HOLDER).unlink(missing_ok=True)
        lock.release()


def is_locked(store: Path) -> bool:
    """Whether a process is writing to the store now."""
    if not (store / LOCK).exists():
        return False
    lock = FileLock(store / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # a read-only store has no writer that this process could see
        return False
    lock.release()
    return False


def _name_holder(store: Path) -> None:
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        (store / HOLDER).write_text(json.dumps(holder), encoding="utf-8")
    except OSError as error:
        raise disk_error(error, str(store)) or error from None


def _locked(store: Path) -> StoreLockedError:
    message = (
        f"{store} is being written by {_holder(store)}\n"
        f"  Wait until it is done, or stop it; one store has one writer at a time"
    )
    return StoreLockedError(message)


def _holder(store: Path) -> str:
    try:
        holder = json.loads((store / HOLDER).read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
