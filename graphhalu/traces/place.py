"""Where a store lies: a folder of this machine, or an address in an object store.

Whoever reads or writes a store asks its place to bring files near, to commit a part, and who else
is writing; the rest of the package sees one folder with the same files in both cases.
"""

import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlparse
from uuid import uuid4

from graphhalu.provenance import file_sha256
from graphhalu.traces.commit import COMMIT, Commit
from graphhalu.traces.lock import MAIN, is_locked, writer_lock
from graphhalu.traces.root import PARTS, create_root, is_part_name, no_such_store
from graphhalu.traces.write import disk_error, moved_into_place, sync

LEDGER: Final = "ledger"
"""Folder with one empty file for each part that was ever committed, so that a loss is seen."""

ASIDE: Final = ".writing"
"""Folder of parts that are not committed."""

_SCHEME: Final = re.compile(r"(s3|gs|az|file):(?:/+|$)(.*)", re.DOTALL)


class Place(ABC):
    """Where a store lies.

    Attributes:
        path: Folder from which its files are read.
        name: What messages call it.
    """

    path: Path
    name: str

    @abstractmethod
    def exists(self) -> bool:
        """Whether there is anything at this place."""

    @abstractmethod
    def require(self) -> None:
        """Refuse a place with nothing there.

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
        """Bring near what says which parts there are."""

    @abstractmethod
    def refresh_parts(self) -> None:
        """Bring the commit records near."""

    @abstractmethod
    def fetch(self, part: Path, commit: Commit, files: Sequence[str]) -> None:
        """Bring files of a part near, as they were committed."""

    @abstractmethod
    def commit(self, aside: Path, index: int) -> bool:
        """Make a part that is whole in ``aside`` part of the store; ``False`` if one is there."""

    @abstractmethod
    def attempt(self) -> str:
        """A name for one attempt at a part, where attempts are kept apart; else nothing."""

    @abstractmethod
    def ledger(self) -> list[str]:
        """Names of all parts that were ever committed."""

    @abstractmethod
    def publish(self, file: Path) -> None:
        """Bring a file that was written beside the parts to where the store lies."""

    @abstractmethod
    def lock(self, writer: str) -> AbstractContextManager[None]:
        """Hold the store for writing; see :func:`graphhalu.traces.lock.writer_lock`."""

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

    def aside(self, writer: str, index: int) -> Path:
        """Folder in which a writer makes a part."""
        return self.path / ASIDE / f"{writer}.{index:06d}-{os.getpid()}"

    def sweep(self, writer: str) -> None:
        """Remove what was not committed: a writer's own, or everybody's if it is alone.

        A folder is moved away first: what a lost run still has at work then fails to commit it,
        and commits no part of which some files are gone.
        """
        for folder in (self.path / ASIDE).glob("*" if writer == MAIN else f"{writer}.*"):
            away = folder.with_name(f"swept.{uuid4().hex}")
            with suppress(FileNotFoundError):  # committed at this very moment
                shutil.rmtree(folder.rename(away), ignore_errors=True)


class LocalPlace(Place):
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
        """Make an empty store aside and move it into place."""
        create_root(self.path, attributes)

    def refresh(self) -> None:
        """Nothing: the files are here."""

    def refresh_parts(self) -> None:
        """Nothing: the files are here."""

    def fetch(self, part: Path, commit: Commit, files: Sequence[str]) -> None:
        """Nothing: the files are here, or lost."""

    def commit(self, aside: Path, index: int) -> bool:
        """Move the part into place; that move is the commit."""
        is_new = moved_into_place(aside, self.part(index))
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
        return sorted(name for name in _names(self.path / LEDGER) if is_part_name(name))

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


def part_folders(store: Path) -> list[Path]:
    """Folders of the committed parts in order; without a commit record there is no part."""
    parts = store / PARTS
    found = [parts / name for name in _names(parts) if is_part_name(name)]
    return sorted((f for f in found if (f / COMMIT).exists()), key=lambda f: int(f.name))


def place_of(given: Path | str) -> Place:
    """The place that a path or an address names.

    A path keeps one slash of ``s3://`` only; it means the same.

    Raises:
        MissingExtraError: If it is in an object store and obstore is not installed.
        UsageError: If it is no address that can be used.
    """
    text = os.fspath(given)
    match = _SCHEME.match(text)
    if match is None:
        return LocalPlace(Path(text))
    scheme, rest = match.groups()
    if scheme == "file":
        return LocalPlace(Path(unquote(urlparse(f"file:///{rest}").path)))
    from graphhalu.traces.remote import RemotePlace

    return RemotePlace(f"{scheme}://{rest.rstrip('/')}")


def _names(folder: Path) -> Iterator[str]:
    return (entry.name for entry in folder.iterdir()) if folder.is_dir() else iter(())
