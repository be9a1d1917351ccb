"""The store that a user means when none is named."""

from pathlib import Path

from graphhalu.errors import StoreNotFoundError
from graphhalu.traces.lock import is_locked
from graphhalu.traces.place import part_folders


def newest_store(folder: Path) -> Path:
    """The store below a folder whose last part is the newest and that nobody is writing.

    Raises:
        StoreNotFoundError: If there is none with traces.
    """
    stores = {path: part_folders(path) for path in folder.glob("*.zarr")}
    finished = {
        path: parts[-1].stat().st_mtime for path, parts in stores.items()
        if parts and not is_locked(path)
    }  # fmt: skip
    if not finished:
        busy = " (one is being written now)" if any(stores.values()) else ""
        message = (
            f"no finished trace store below {folder}{busy}\n"
            f"  Make one:  graphhalu extract, or name one with --traces"
        )
        raise StoreNotFoundError(message)
    return max(finished, key=lambda path: finished[path])
