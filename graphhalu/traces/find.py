"""The store that a user means when none is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from graphhalu.core.errors import StoreNotFoundError
from graphhalu.traces.local import is_locked
from graphhalu.traces.storage import part_folders
from graphhalu.traces.store import open_traces

LEAST_ANSWERS: Final = 50
"""A store with fewer answers is taken for a trial: too few to train on and to compare with."""


def newest_store(folder: Path, on_note: Callable[[str], None] = lambda _: None) -> Path:
    """The store below a folder whose last part is the newest and that nobody is writing.

    Stores with fewer than :data:`LEAST_ANSWERS` answers are passed over, unless there is no
    larger one. All stored answers count, whether or not a labeller could decide them: when a
    store is looked for, no labeller has been chosen yet.

    Args:
        folder: Where stores lie side by side.
        on_note: Told in one line which stores were passed over.

    Raises:
        StoreNotFoundError: If there is none with traces.
    """
    stores = {path: part_folders(path) for path in folder.glob("*.zarr")}
    finished = {
        path: parts[-1].stat().st_mtime for path, parts in stores.items() if parts and not is_locked(path)
    }
    if not finished:
        busy = " (one is being written now)" if any(stores.values()) else ""
        message = (
            f"no finished trace store below {folder}{busy}\n"
            f"  Make one:  graphhalu extract, or name one with --traces"
        )
        raise StoreNotFoundError(message)
    small: dict[Path, int] = {}
    for path in sorted(finished, key=lambda path: finished[path], reverse=True):
        n_answers = len(open_traces(path))
        if n_answers >= LEAST_ANSWERS:
            _tell(small, on_note)
            return path
        small[path] = n_answers
    return next(iter(small))


def _tell(small: dict[Path, int], on_note: Callable[[str], None]) -> None:
    if small:
        listed = ", ".join(f"{path} ({n_answers})" for path, n_answers in small.items())
        on_note(f"passed over with fewer than {LEAST_ANSWERS} answers, unless named: {listed}")
