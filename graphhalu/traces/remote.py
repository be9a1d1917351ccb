"""Remote storage backend: parts by put-if-absent, and a local mirror of what was read.

Arrays lie as ``parts/<index>-<attempt>/…``, the commit record as ``commits/<index>.json``. Two
writers that make the same part write to two attempts; the commit record that comes first names the
one that counts, the other is removed. The mirror in the cache has the layout of a local store, and
whatever is read is compared with the SHA-256 of the commit record first.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from graphhalu.core.errors import CorruptStoreError, StoreNotFoundError, UsageError
from graphhalu.models.gguf import cache_folder
from graphhalu.traces.disk import disk_error
from graphhalu.traces.metadata import COMMIT, PARTS, Commit, create_root, is_part_name
from graphhalu.traces.objects import Objects
from graphhalu.traces.storage import LEDGER, STAGING, StorageBackend

COMMITS: Final = "commits"
_LABELS: Final = "labels"
_ROOT_FILES: Final = (f"{PARTS}/zarr.json", "zarr.json")
_TAG: Final = ".tag"
"""File beside a mirrored commit record: what the listing said of it."""

_ENDPOINTS: Final = (
    "AWS_ENDPOINT",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "GOOGLE_BASE_URL",
    "AZURE_ENDPOINT",
)


class RemoteBackend(StorageBackend):
    """An address in an object store, and its mirror in the cache.

    Args:
        url: As ``s3://bucket/folder/name.zarr``.
    """

    def __init__(self, url: str) -> None:
        self.name = url
        self.objects = Objects(url)
        self.path = _mirror(url)

    def exists(self) -> bool:
        """Whether a store's root lies there."""
        return bool(self._root("zarr.json"))

    def require(self) -> None:
        """Refuse an address where no store's root lies."""
        if not self.exists():
            message = f"no trace store at {self.name}\n  Make one:  graphhalu extract --out …"
            raise StoreNotFoundError(message)

    def create(self, attributes: Mapping[str, Any]) -> None:
        """Put the root of an empty store; of two that do so at once, one is refused."""
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "root"
            create_root(root, attributes)
            files = {name: (root / name).read_bytes() for name in _ROOT_FILES}
        if self.exists() or not all(self.objects.create(*file) for file in files.items()):
            raise UsageError(
                f"there is a store at {self.name} already\n"
                f"  Open it with open_traces, or give another place with --out"
            )

    def refresh(self) -> None:
        """Bring the root, the commit records and the labels near; drop what is outdated."""
        root = self._root("zarr.json")
        mirrored = self.path / "zarr.json"
        if mirrored.is_file() and mirrored.read_bytes() != root:
            shutil.rmtree(self.path, ignore_errors=True)
        self._keep("zarr.json", root)
        self._keep(f"{PARTS}/zarr.json", self._root(f"{PARTS}/zarr.json"))
        self.refresh_parts()
        for name in self.objects.listed(_LABELS):
            self._keep(name, self.objects.read(name))

    def refresh_parts(self) -> None:
        """Bring the commit records near; drop parts that are lost or were done anew."""
        committed = {
            Path(name).stem: listed.tag
            for name, listed in self.objects.listed(COMMITS).items()
            if is_part_name(Path(name).stem)
        }
        for folder in self.part_folders():
            if committed.get(folder.name) != _tag(folder):
                shutil.rmtree(folder, ignore_errors=True)
        new = [part for part in committed if not (self.path / PARTS / part / COMMIT).exists()]
        self.objects.each(lambda part: self._take(part, committed[part]), new)

    def _take(self, part: str, tag: str) -> None:
        record = self.objects.read(f"{COMMITS}/{part}.json")
        self._keep(f"{PARTS}/{part}/{_TAG}", tag.encode())
        self._keep(f"{PARTS}/{part}/{COMMIT}", record)

    def fetch(self, part: Path, commit: Commit, files: Sequence[str]) -> None:
        """Bring files of a part near that are not yet there, several at a time."""

        def one(file: str) -> None:
            name = f"{_data(part.name, commit)}/{file}"
            expected = commit.files[file]
            try:
                content = self.objects.read(name, expected["bytes"])
            except FileNotFoundError:
                return  # the reader says which file is missing
            if sha256(content).hexdigest() != expected["sha256"]:
                raise CorruptStoreError(
                    f"{name} of {self.name} is damaged: its content differs from what was "
                    f"committed\n  Remove {self.record_of(part)} and run the extraction again: "
                    f"it does the part anew"
                )
            self._keep(f"{PARTS}/{part.name}/{file}", content)

        known = [file for file in files if file in commit.files]
        self.objects.each(one, [file for file in known if not _is_near(part, commit, file)])

    def attempt(self) -> str:
        """A name of its own for what this writer puts."""
        return uuid4().hex[:12]

    def commit(self, staged: Path, index: int) -> bool:
        """Put the files of the part, then its commit record if there is none."""
        record = (staged / COMMIT).read_bytes()
        data = f"{PARTS}/{index:06d}-{json.loads(record)['attempt']}"
        files = [f for f in sorted(staged.rglob("*")) if f.is_file() and f.name != COMMIT]
        names = [f"{data}/{file.relative_to(staged).as_posix()}" for file in files]

        def put(pair: tuple[str, Path]) -> None:
            self.objects.write(pair[0], pair[1].read_bytes())

        self.objects.each(put, zip(names, files, strict=True))
        if not self.objects.create(f"{COMMITS}/{index:06d}.json", record):
            self.objects.remove(names)
            return False
        self.objects.write(f"{LEDGER}/{index:06d}", b"")
        return True

    def ledger(self) -> list[str]:
        """Names of the entries of the ledger."""
        return [Path(n).name for n in self.objects.listed(LEDGER) if is_part_name(Path(n).name)]

    def publish(self, file: Path) -> None:
        """Put a file that was written into the mirror beside the parts."""
        self.objects.write(file.relative_to(self.path).as_posix(), file.read_bytes())

    def lock(self, writer: str) -> AbstractContextManager[None]:
        """Nothing to hold: two writers of one part are told apart when they commit."""
        self.path.mkdir(parents=True, exist_ok=True)
        return nullcontext()

    def is_locked(self) -> bool:
        """An object store does not know who is writing."""
        return False

    def clean_up(self, writer: str) -> None:
        """Remove what writers of this machine that are no more had not committed."""
        for folder in (self.path / STAGING).glob("*"):
            process = folder.name.rpartition("-")[2]
            if not process.isdecimal() or not _is_alive(int(process)):
                shutil.rmtree(folder, ignore_errors=True)

    def record_of(self, part: Path) -> str:
        """What to remove so that a part is done anew."""
        return f"{self.name}/{COMMITS}/{part.name}.json"

    def sizes(self, part: Path, commit: Commit) -> dict[str, int]:
        """Sizes in bytes of the stored files of a part."""
        data = _data(part.name, commit)
        found = self.objects.listed(data)
        return {name.removeprefix(f"{data}/"): listed.n_bytes for name, listed in found.items()}

    def digest(self, part: Path, commit: Commit, file: str) -> str:
        """SHA-256 of a stored file of a part."""
        size = commit.files[file]["bytes"]
        return sha256(self.objects.read(f"{_data(part.name, commit)}/{file}", size)).hexdigest()

    def _root(self, name: str) -> bytes:
        try:
            return self.objects.read(name)
        except FileNotFoundError:
            return b""

    def _keep(self, name: str, content: bytes) -> None:
        """Put content into the mirror; a reader sees all of it or nothing."""
        if {"", ".", ".."} & set(name.split("/")):
            message = f"{self.name} names a file outside of the store: {name[:120]!r}"
            raise CorruptStoreError(message)
        path = self.path / name
        aside = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(content)
            aside.replace(path)
        except OSError as error:
            raise disk_error(error, f"what was read of {self.name}") or error from None
        finally:
            aside.unlink(missing_ok=True)


def _tag(folder: Path) -> str | None:
    try:
        return (folder / _TAG).read_text(encoding="utf-8")
    except OSError:
        return None


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _data(part: str, commit: Commit) -> str:
    return f"{PARTS}/{part}-{commit.attempt}"


def _is_near(part: Path, commit: Commit, file: str) -> bool:
    path = part / file
    return path.is_file() and path.stat().st_size == commit.files[file]["bytes"]


def _mirror(url: str) -> Path:
    """Folder of the cache for an address; the same address of another server is another one."""
    servers = [os.environ.get(name, "") for name in _ENDPOINTS]
    key = sha256("\n".join([url, *servers]).encode()).hexdigest()[:16]
    return cache_folder() / "stores" / key / (url.rsplit("/", 1)[-1] or "store")
