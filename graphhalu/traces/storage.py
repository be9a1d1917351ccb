"""Storage backends: the operations that a store needs of the folder or object store that holds it.

A store is read and written through its backend, which fetches files, commits parts and knows who
else is writing. The rest of the package sees one folder with the same files in both cases.
"""

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from graphhalu.core.errors import StoreNotFoundError
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


def names_in(folder: Path) -> Iterator[str]:
    """Names of what is in a folder; none if there is no folder."""
    return (entry.name for entry in folder.iterdir()) if folder.is_dir() else iter(())
