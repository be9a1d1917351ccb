"""``graphhalu push`` and ``graphhalu pull``: detectors and stores on the hub."""

from pathlib import Path

from graphhalu.cli import library
from graphhalu.cli.options import Place, command
from graphhalu.cli.output import Shown


@command("push")
def push(path: Path, repository: str, *, private: bool = False, licence: str = "apache-2.0") -> Shown:
    """Upload a trained detector or a trace store to the hub, with a card and checksums.

    Args:
        path: A run of graphhalu train, or a trace store.
        repository: OWNER/NAME; is made if it is missing.
        private: Make it private.
        licence: As the hub writes it.
    """
    address = library.push(path, repository, is_private=private, licence=licence)
    return Shown({"path": path, "address": address}, "push")


@command("pull")
def pull(address: str, *, out: Place = None, store: bool = False) -> Shown:
    """Download a detector or a trace store from the hub, and compare every file with its checksum.

    Args:
        address: OWNER/NAME, with @REVISION where one is meant.
        out: Folder to write to; by default the hub's cache.
        store: It is a trace store.
    """
    folder = library.pull(address, out, is_store=store)
    return Shown({"address": address, "folder": folder}, "pull")
