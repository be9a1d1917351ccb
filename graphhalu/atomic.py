"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write into, flushed and moved into its place at the end.

    After a fault nothing is left of it, and an earlier file stays as it was. A folder that is
    missing is made.

    Args:
        path: The file that comes to be, or is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole; see :func:`written_aside`."""
    with written_aside(path) as aside:
        aside.write_bytes(content)
