"""Storage backends: what a store asks of the folder or the object store that holds it.

Whoever reads or writes a store asks its backend to fetch files, to commit a part, and who else
is writing; the rest of the package sees one folder with the same files in both cases.
"""

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from graphhalu.traces.metadata import COMMIT, PARTS, Commit, is_part_name

MAIN: Final = "main"
"""The writer that holds a store alone."""

LEDGER: Final = "ledger"
"""Folder with one empty file for each part that was ever committed, so that a loss is seen."""

STAGING: Final = ".writing"
"""Folder of parts that are not committed."""


class StorageBackend(ABC):
    """Storage of one store.

    Attributes:
        path: Folder from which its files are read.
        name: What messages call it.
    """

    path: Path
    name: str

    @abstractmethod
    def exists(self) -> bool:
        """Whether there is anything at its path or address."""

    @abstractmethod
    def require(self) -> None:
        """Refuse a path or an address with nothing there.

        Raises:
            StoreNotFoundError: If there is nothing; names the stores nearby.
        """

    @abstractmethod
    def create(self, attributes: Mapping[str, Any]) -> None:
        """Make an empty store.

        Raises:
            UsageError: If there is something already, or it cannot be made.
        """

    @abstractmethod
    def refresh(self) -> None:
        """Fetch what says which parts there are."""

    @abstractmethod
    def refresh_parts(self) -> None:
        """Fetch the commit records."""

    @abstractmethod
    def fetch(self, part: Path, commit: Commit, files: Sequence[str]) -> None:
        """Fetch files of a part, as they were committed."""

    @abstractmethod
    def commit(self, staged: Path, index: int) -> bool:
        """Make a part that is whole in ``staged`` part of the store; ``False`` if one is there."""

    @abstractmethod
    def attempt(self) -> str:
        """A name for one attempt at a part, where attempts are kept apart; else nothing."""

    @abstractmethod
    def ledger(self) -> list[str]:
        """Names of all parts that were ever committed."""

    @abstractmethod
    def publish(self, file: Path) -> None:
        """Store a file that was written beside the parts."""

    @abstractmethod
    def lock(self, writer: str) -> AbstractContextManager[None]:
        """Hold the store for writing; see :func:`graphhalu.traces.local.writer_lock`."""

    @abstractmethod
    def is_locked(self) -> bool:
        """Whether a process is known to be writing."""

    @abstractmethod
    def record_of(self, part: Path) -> str:
        """What to remove so that a part is done anew."""

    @abstractmethod
    def sizes(self, part: Path, commit: Commit) -> dict[str, int]:
        """Sizes in bytes of the stored files of a part, without its commit record."""

    @abstractmethod
    def digest(self, part: Path, commit: Commit, file: str) -> str:
        """SHA-256 of a stored file of a part."""

    def part_folders(self) -> list[Path]:
        """Folders of the committed parts in order; without a commit record there is no part."""
        return part_folders(self.path)

    def part(self, index: int) -> Path:
        """Folder of a part."""
        return self.path / PARTS / f"{index:06d}"

    def staging(self, writer: str, index: int) -> Path:
        """Folder in which a writer makes a part."""
        return self.path / STAGING / f"{writer}.{index:06d}-{os.getpid()}"

    def clean_up(self, writer: str) -> None:
        """Remove what was not committed: a writer's own, or everybody's if it is alone.

        A folder is moved away first: what a lost run still has at work then fails to commit it,
        and commits no part of which some files are gone.
        """
        for folder in (self.path / STAGING).glob("*" if writer == MAIN else f"{writer}.*"):
            away = folder.with_name(f"swept.{uuid4().hex}")
            with suppress(FileNotFoundError):  # committed at this very moment
                shutil.rmtree(folder.rename(away), ignore_errors=True)


def part_folders(store: Path) -> list[Path]:
    """Folders of the committed parts in order; without a commit record there is no part."""
    parts = store / PARTS
    found = [parts / name for name in names_in(parts) if is_part_name(name)]
    return sorted((f for f in found if (f / COMMIT).exists()), key=lambda f: int(f.name))


def names_in(folder: Path) -> Iterator[str]:
    """Names of what is in a folder; none if there is no folder."""
    return (entry.name for entry in folder.iterdir()) if folder.is_dir() else iter(())
