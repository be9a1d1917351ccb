"""What a reader is to the suite: a valid file, and how it is read."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


class Target(NamedTuple):
    """A file that is spoilt.

    Attributes:
        file: Its path within the reader's folder.
        kind: How it is spoilt; a name of ``mutations.STRUCTURED``, or ``bytes``.
        is_checked: Whether a checksum covers it, so that a change is refused or says the same.
        seal: Makes the checksums fit the spoilt file, so that what lies behind them is tried.
    """

    file: str
    kind: str = "bytes"
    is_checked: bool = False
    seal: Callable[[Path], None] | None = None


@dataclass(frozen=True)
class Reader:
    """One reader of the package.

    Attributes:
        name: As the table of results shows it.
        make: Writes valid files into a folder.
        read: Reads what a target belongs to; gives something that can be compared.
        targets: Files that are spoilt, one a case.
        n_slice: Cases in the tests.
        writes: Whether reading may change files in its own folder.
        share: Of the nightly cases; less than all where a case draws or builds networks, and
            another reader has the whole number on the same files.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    targets: tuple[Target, ...]
    n_slice: int = 60
    writes: bool = False
    share: float = 1.0
