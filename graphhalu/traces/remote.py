"""Remote storage backend: stores in S3, Google Cloud Storage or Azure, mirrored in the user's cache.

Arrays lie as ``parts/<index>-<attempt>/…``, the commit record as ``commits/<index>.json``. Two
writers that make the same part write to two attempts; the commit record that comes first names the
one that counts, the other is removed. The mirror in the cache has the layout of a local store, and
whatever is read is compared with the SHA-256 of the commit record first.

Credentials come from the environment only (``AWS_ACCESS_KEY_ID``,
``GOOGLE_APPLICATION_CREDENTIALS``, ``AZURE_STORAGE_ACCOUNT_NAME`` and what else their own tools
read).
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import uuid4

from graphhalu.core.errors import CorruptStoreError, MissingExtraError, StoreError, UsageError
from graphhalu.models.gguf import cache_folder
from graphhalu.traces.disk import writing
from graphhalu.traces.metadata import COMMIT, PARTS, Commit, create_root, is_part_name
from graphhalu.traces.storage import LEDGER, STAGING, StorageBackend

COMMITS: Final = "commits"

RANGE_BYTES: Final = 8 * 2**20
"""Objects above this size are read in ranges of it, several at a time."""

TIMEOUT: Final = "GRAPHHALU_STORE_PATIENCE_S"
"""Environment variable: how long a request is tried again, in seconds; 120 by default."""

_LABELS: Final = "labels"
_ROOT_FILES: Final = (f"{PARTS}/zarr.json", "zarr.json")
_TAG: Final = ".tag"
"""File beside a mirrored commit record with the entity tag of the object."""

_CONNECTIONS: Final = 8
_ANSWER_S: Final = 60
_CONNECT_S: Final = 5
_ENDPOINTS: Final = (
    "AWS_ENDPOINT",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "GOOGLE_BASE_URL",
    "AZURE_ENDPOINT",
)

T = TypeVar("T")


class RemoteBackend(StorageBackend):
    """An address in an object store, and its mirror in the cache.

    Requests that fail by the network, or because the server is busy, are tried again with growing
    pauses until the timeout.

    Args:
        url: As ``s3://bucket/folder/name.zarr``.

    Raises:
        MissingExtraError: If obstore is not installed.
        UsageError: If the address, or a setting of the environment for it, cannot be used.
    """

    def __init__(self, url: str) -> None:
        self.name = url.rstrip("/")
        self.path = _mirror(url)
        self._objects = _connected(self.name)

    def exists(self) -> bool:
        """Whether a store's root lies there."""
        return bool(self._root("zarr.json"))

    def create(self, attributes: Mapping[str, Any]) -> None:
        """Put the root of an empty store; of two that do so at once, one is refused."""
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "root"
            create_root(root, attributes)
            files = {name: (root / name).read_bytes() for name in _ROOT_FILES}
        if self.exists() or not all(self.put_if_absent(*file) for file in files.items()):
            raise UsageError(
                f"there is a store at {self.name} already\n"
                f"  Open it with open_traces, or give another place with --out"
            )

    def refresh(self) -> None:
        """Fetch the root, the commit records and the labels; drop what is outdated."""
        root = self._root("zarr.json")
        mirrored = self.path / "zarr.json"
        if mirrored.is_file() and mirrored.read_bytes() != root:
            shutil.rmtree(self.path, ignore_errors=True)
        self._mirror_file("zarr.json", root)
        self._mirror_file(f"{PARTS}/zarr.json", self._root(f"{PARTS}/zarr.json"))
        self.refresh_parts()
        for name in self.list_objects(_LABELS):
            self._mirror_file(name, self.read_object(name))

    def refresh_parts(self) -> None:
        """Fetch the commit records; drop parts that are lost or were done anew."""
        committed = {
            Path(name).stem: meta["e_tag"] or str(meta["last_modified"])
            for name, meta in self.list_objects(COMMITS).items()
            if is_part_name(Path(name).stem)
        }
        for folder in self.part_folders():
            if committed.get(folder.name) != _mirrored_tag(folder):
                shutil.rmtree(folder, ignore_errors=True)

        def fetch_record(part: str) -> None:
            record = self.read_object(f"{COMMITS}/{part}.json")
            self._mirror_file(f"{PARTS}/{part}/{_TAG}", committed[part].encode())
            self._mirror_file(f"{PARTS}/{part}/{COMMIT}", record)

        _in_parallel(
            fetch_record, [part for part in committed if not (self.path / PARTS / part / COMMIT).exists()]
        )

    def fetch(self, part: Path, commit: Commit, files: Sequence[str]) -> None:
        """Fetch files of a part that are not in the mirror, several at a time."""

        def fetch_file(file: str) -> None:
            name = f"{_attempt_folder(part, commit)}/{file}"
            expected = commit.files[file]
            try:
                content = self.read_object(name, expected["bytes"])
            except FileNotFoundError:
                return  # the reader says which file is missing
            if sha256(content).hexdigest() != expected["sha256"]:
                raise CorruptStoreError(
                    f"{name} of {self.name} is damaged: its content differs from what was "
                    f"committed\n  Remove {self.record_of(part)} and run the extraction again: "
                    f"it does the part anew"
                )
            self._mirror_file(f"{PARTS}/{part.name}/{file}", content)

        def is_mirrored(file: str) -> bool:
            path = part / file
            return path.is_file() and path.stat().st_size == commit.files[file]["bytes"]

        known = [file for file in files if file in commit.files]
        _in_parallel(fetch_file, [file for file in known if not is_mirrored(file)])

    def attempt(self) -> str:
        """A name that no other attempt at a part has."""
        return uuid4().hex[:12]

    def commit(self, staged: Path, index: int) -> bool:
        """Put the files of the part, then its commit record if there is none."""
        record = (staged / COMMIT).read_bytes()
        data = f"{PARTS}/{index:06d}-{json.loads(record)['attempt']}"
        files = [f for f in sorted(staged.rglob("*")) if f.is_file() and f.name != COMMIT]
        named = {f"{data}/{file.relative_to(staged).as_posix()}": file for file in files}
        _in_parallel(lambda name: self.put_object(name, named[name].read_bytes()), named)
        if not self.put_if_absent(f"{COMMITS}/{index:06d}.json", record):
            self.remove_objects(named)
            return False
        self.put_object(f"{LEDGER}/{index:06d}", b"")
        return True

    def ledger(self) -> list[str]:
        """Names of the entries of the ledger."""
        return [Path(n).name for n in self.list_objects(LEDGER) if is_part_name(Path(n).name)]

    def publish(self, file: Path) -> None:
        """Put a file that was written into the mirror beside the parts."""
        self.put_object(file.relative_to(self.path).as_posix(), file.read_bytes())

    def lock(self, writer: str) -> AbstractContextManager[None]:
        """Hold nothing: two writers of one part are told apart when they commit."""
        self.path.mkdir(parents=True, exist_ok=True)
        return nullcontext()

    def is_locked(self) -> bool:
        """An object store does not know who is writing."""
        return False

    def clean_up(self, writer: str) -> None:
        """Remove parts that ended writers of this machine had not committed."""
        for folder in (self.path / STAGING).glob("*"):
            process = folder.name.rpartition("-")[2]
            if not process.isdecimal() or not _is_alive(int(process)):
                shutil.rmtree(folder, ignore_errors=True)

    def record_of(self, part: Path) -> str:
        """Address of the commit record of the part."""
        return f"{self.name}/{COMMITS}/{part.name}.json"

    def sizes(self, part: Path, commit: Commit) -> dict[str, int]:
        """Sizes in bytes of the stored files of a part."""
        data = _attempt_folder(part, commit)
        return {name.removeprefix(f"{data}/"): meta["size"] for name, meta in self.list_objects(data).items()}

    def digest(self, part: Path, commit: Commit, file: str) -> str:
        """SHA-256 of a stored file of a part."""
        size = commit.files[file]["bytes"]
        return sha256(self.read_object(f"{_attempt_folder(part, commit)}/{file}", size)).hexdigest()

    def list_objects(self, folder: str) -> dict[str, Any]:
        """Metadata of all objects below a folder by name, in alphabetical order."""
        pages = self._request(lambda: list(self._objects.list(folder)))
        found = {meta["path"]: meta for page in pages for meta in page}
        return dict(sorted(found.items()))

    def read_object(self, name: str, n_bytes: int | None = None) -> bytes:
        """An object; a large one in ranges, several at a time.

        Args:
            name: Its name below the address.
            n_bytes: Its size, if known.

        Raises:
            FileNotFoundError: If there is none.
        """
        if n_bytes is None or n_bytes <= RANGE_BYTES:
            return self._request(lambda: self._objects.get(name).bytes().to_bytes())
        starts = list(range(0, n_bytes, RANGE_BYTES))
        ends = [min(start + RANGE_BYTES, n_bytes) for start in starts]
        ranges = self._request(lambda: self._objects.get_ranges(name, starts=starts, ends=ends))
        return b"".join(map(bytes, ranges))

    def put_object(self, name: str, content: bytes) -> None:
        """Put an object, over an earlier one if there is one."""
        self._request(lambda: self._objects.put(name, content))

    def put_if_absent(self, name: str, content: bytes) -> bool:
        """Put an object where there is none; whether the object there is now this one.

        An answer that is lost on its way leaves the object there: it is told by its content.
        """
        from obstore.exceptions import AlreadyExistsError

        try:
            self._request(lambda: self._objects.put(name, content, mode="create"))
        except AlreadyExistsError:
            return self.read_object(name) == content
        return True

    def remove_objects(self, names: Iterable[str]) -> None:
        """Remove objects; those that are not there are no fault."""
        listed = list(names)
        if listed:
            self._request(lambda: self._objects.delete(listed))

    def _request(self, request: Callable[[], T]) -> T:
        from obstore.exceptions import AlreadyExistsError, BaseError

        try:
            return request()
        except (FileNotFoundError, AlreadyExistsError):
            raise
        except (BaseError, OSError) as error:
            raise _refused(self.name, str(error)) from None

    def _root(self, name: str) -> bytes:
        try:
            return self.read_object(name)
        except FileNotFoundError:
            return b""

    def _mirror_file(self, name: str, content: bytes) -> None:
        """Put content into the mirror; a reader sees all of it or nothing."""
        if {"", ".", ".."} & set(name.split("/")):
            raise CorruptStoreError(f"{self.name} names a file outside of the store: {name[:120]!r}")
        path = self.path / name
        staged = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
        with writing(f"what was read of {self.name}"):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                staged.write_bytes(content)
                staged.replace(path)
            finally:
                staged.unlink(missing_ok=True)


def _in_parallel(work: Callable[[str], None], names: Iterable[str]) -> None:
    """Do something for each name, several at a time."""
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        list(pool.map(work, names))


def _mirrored_tag(folder: Path) -> str | None:
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


def _attempt_folder(part: Path, commit: Commit) -> str:
    return f"{PARTS}/{part.name}-{commit.attempt}"


def _mirror(url: str) -> Path:
    """Folder of the cache for an address; the same address of another server is another one."""
    servers = [os.environ.get(name, "") for name in _ENDPOINTS]
    key = sha256("\n".join([url, *servers]).encode()).hexdigest()[:16]
    return cache_folder() / "stores" / key / (url.rsplit("/", 1)[-1] or "store")


def _connected(url: str) -> Any:
    """The object store at an address.

    The client settings replace the environment's, so that ``*_ALLOW_HTTP`` is read here.
    """
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError:
        raise MissingExtraError(
            f"{url} lies in an object store, which needs the package obstore\n"
            f"  Install it:  pip install 'graphhalu[cloud]'"
        ) from None
    allows_http = os.environ.get("AWS_ALLOW_HTTP", os.environ.get("AZURE_ALLOW_HTTP", "false"))
    client = {
        "timeout": timedelta(seconds=_ANSWER_S),
        "connect_timeout": timedelta(seconds=_CONNECT_S),
        "allow_http": allows_http.lower() in {"true", "1"},
    }
    retries = {
        "max_retries": 1000,
        "retry_timeout": timedelta(seconds=_timeout_s()),
        "backoff": {"base": 2.0, "init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5)},
    }
    try:
        return from_url(url, client_options=client, retry_config=retries)
    except (BaseError, ValueError) as error:
        raise UsageError(
            f"{url} is not an address of an object store: {_first_line(str(error))}\n"
            f"  Expected s3://BUCKET/NAME.zarr, gs://BUCKET/NAME.zarr or az://CONTAINER/NAME.zarr"
        ) from None


def _timeout_s() -> float:
    """How long a request is tried again, in seconds."""
    text = os.environ.get(TIMEOUT, "120")
    if re.fullmatch(r"\d{1,6}(\.\d{1,6})?", text):
        return float(text)
    raise UsageError(f"{TIMEOUT} must be a time in seconds, got {text!r}")


def _refused(url: str, text: str) -> StoreError:
    """The error for a request that was refused, or that got no answer."""
    line = _first_line(text)
    why = f"it does not answer: {line}"
    way = "Nothing is lost: run the same command again when it answers"
    if "169.254." in text or "metadata" in text.lower():
        why = "the environment holds no credentials for it"
        way = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or the variables of gs, az)"
    elif any(f" {code} " in line for code in (401, 403)):
        why, way = "access was refused", "Check the credentials in the environment"
    elif " 404 " in line:
        why, way = "there is no such bucket", "Check the address, or make the bucket first"
    return StoreError(f"{url} cannot be used: {why}\n  {way}")


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:200] if text.strip() else "no reason given"
