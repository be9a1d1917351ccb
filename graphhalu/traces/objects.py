"""Objects below one address of an object store: S3, Google Cloud Storage, Azure.

Credentials come from the environment only (``AWS_ACCESS_KEY_ID``,
``GOOGLE_APPLICATION_CREDENTIALS``, ``AZURE_STORAGE_ACCOUNT_NAME`` and what else their own tools
read).
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, Final, NamedTuple, TypeVar

from graphhalu.core.errors import MissingExtraError, StoreError, UsageError

SCHEMES: Final = ("s3", "gs", "az")
"""Kinds of address that lead to an object store."""

RANGE_BYTES: Final = 8 * 2**20
"""Objects above this size are read in ranges of it, several at a time."""

TIMEOUT: Final = "GRAPHHALU_STORE_PATIENCE_S"
"""Environment variable: how long a request is tried again, in seconds; 120 by default."""

_CONNECTIONS: Final = 8
_ANSWER_S: Final = 60
_CONNECT_S: Final = 5

T = TypeVar("T")
V = TypeVar("V")


class Listed(NamedTuple):
    """What a listing says of an object: its size, and what changes when it is replaced."""

    n_bytes: int
    tag: str


class Objects:
    """Objects whose names begin with one address.

    Requests that fail by the network, or because the server is busy, are tried again with growing
    pauses until the timeout.

    Args:
        url: As ``s3://bucket/folder``.

    Raises:
        MissingExtraError: If obstore is not installed.
        UsageError: If the address, or what the environment says of it, cannot be used.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._store = _connected(self.url)

    def listed(self, folder: str) -> dict[str, Listed]:
        """All objects below a folder by name, in alphabetical order."""
        import obstore

        pages = self._asked(lambda: list(obstore.list(self._store, folder)))
        found = {
            each["path"]: Listed(each["size"], each["e_tag"] or str(each["last_modified"]))
            for page in pages
            for each in page
        }
        return dict(sorted(found.items()))

    def read(self, name: str, n_bytes: int | None = None) -> bytes:
        """An object; a large one in ranges, several at a time.

        Args:
            name: Its name below the address.
            n_bytes: Its size, if known.

        Raises:
            FileNotFoundError: If there is none.
        """
        import obstore

        if n_bytes is None or n_bytes <= RANGE_BYTES:
            return self._asked(lambda: obstore.get(self._store, name).bytes().to_bytes())
        starts = range(0, n_bytes, RANGE_BYTES)
        ends = [min(start + RANGE_BYTES, n_bytes) for start in starts]
        ranges = self._asked(lambda: obstore.get_ranges(self._store, name, starts=list(starts), ends=ends))
        return b"".join(map(bytes, ranges))

    def write(self, name: str, content: bytes) -> None:
        """Put an object, over an earlier one if there is one."""
        import obstore

        self._asked(lambda: obstore.put(self._store, name, content))

    def create(self, name: str, content: bytes) -> bool:
        """Put an object where there is none; whether the object there is now this one.

        An answer that is lost on its way leaves the object there: it is told by its content.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            self._asked(lambda: obstore.put(self._store, name, content, mode="create"))
        except AlreadyExistsError:
            return self.read(name) == content
        return True

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; those that are not there are no fault."""
        import obstore

        listed = list(names)
        if listed:
            self._asked(lambda: obstore.delete(self._store, listed))

    def each(self, work: Callable[[T], V], items: Iterable[T]) -> list[V]:
        """Do something for each item, several at a time; results in their order."""
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            return list(pool.map(work, items))

    def _asked(self, request: Callable[[], T]) -> T:
        from obstore.exceptions import AlreadyExistsError, BaseError

        try:
            return request()
        except (FileNotFoundError, AlreadyExistsError):
            raise
        except (BaseError, OSError) as error:
            raise _refused(self.url, str(error)) from None


def _connected(url: str) -> Any:
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError:
        raise MissingExtraError(
            f"{url} lies in an object store, which needs the package obstore\n"
            f"  Install it:  pip install 'graphhalu[cloud]'"
        ) from None
    try:
        return from_url(url, client_options=_client(), retry_config=_retries())
    except (BaseError, ValueError) as error:
        raise UsageError(
            f"{url} is no address of an object store: {_first_line(str(error))}\n"
            f"  Expected s3://BUCKET/NAME.zarr, gs://BUCKET/NAME.zarr or az://CONTAINER/NAME.zarr"
        ) from None


def _client() -> dict[str, Any]:
    """Settings of the connection; these replace the environment's, so that one is read here."""
    allowed = os.environ.get("AWS_ALLOW_HTTP", os.environ.get("AZURE_ALLOW_HTTP", "false"))
    return {
        "timeout": timedelta(seconds=_ANSWER_S),
        "connect_timeout": timedelta(seconds=_CONNECT_S),
        "allow_http": allowed.lower() in {"true", "1"},
    }


def _retries() -> dict[str, Any]:
    return {
        "max_retries": 1000,
        "retry_timeout": timedelta(seconds=timeout_s(os.environ)),
        "backoff": {"base": 2.0, "init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5)},
    }


def timeout_s(environment: Mapping[str, str]) -> float:
    """How long a request is tried again, in seconds.

    Raises:
        UsageError: If the environment says something that is no such time.
    """
    text = environment.get(TIMEOUT, "120")
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
