"""Names to objects by one table of strings; nothing is imported until it is asked for.

Other packages join through the entry-point group ``graphhalu.<kind>``.
"""

import difflib
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from graphhalu.errors import UnknownNameError

T = TypeVar("T")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for a name in no table: the nearest names first, then all of them."""
    names, name = sorted(known), name[:80]
    nearest = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(n) for n in nearest)}?" if nearest else ""
    return UnknownNameError(f"no {kind} named {name!r}.{hint}\n  Known: {', '.join(names)}")


class Registry(Generic[T]):
    """A lazy table from names to objects.

    Args:
        kind: What is registered, in the singular (``"detector"``); plug-ins use the
            entry-point group ``graphhalu.<kind>``.
        table: Name to ``"module:attribute"``.
    """

    def __init__(self, kind: str, table: Mapping[str, str]) -> None:
        self.kind = kind
        self._table = dict(table)

    def names(self) -> list[str]:
        """All registered names in the order of the table, plug-ins last."""
        return [*self._table, *sorted(self._plugins().keys() - self._table.keys())]

    def get(self, name: str) -> T:
        """Import and return the object of this name.

        Raises:
            UnknownNameError: If the name stands in no table; lists the nearest names.
        """
        if name in self._table:
            module, _, attribute = self._table[name].partition(":")
            found: T = getattr(import_module(module), attribute)
            return found
        plugins = self._plugins()
        if name in plugins:
            loaded: T = plugins[name].load()
            return loaded
        raise unknown_name(self.kind, name, self.names())

    def path(self, name: str) -> str | None:
        """Where an object is defined, as ``module:attribute``; nothing is imported.

        ``None`` for a name in no table, and for one of another package.
        """
        return self._table.get(name)

    def __contains__(self, name: object) -> bool:
        # the entry points of all installed packages take longer to find than a table
        return name in self._table or name in self._plugins()

    def _plugins(self) -> dict[str, Any]:
        return {point.name: point for point in entry_points(group=f"graphhalu.{self.kind}")}
