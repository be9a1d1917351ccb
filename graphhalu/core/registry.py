"""Registries: names to objects by one table of strings, imported when asked for.

Other packages join through the entry-point groups ``graphhalu.detectors``, ``graphhalu.features``,
``graphhalu.datasets``, ``graphhalu.labellers`` and ``graphhalu.models``; a module of the user's own
is named as ``module:Attribute``. A plug-in that cannot be used fails alone, with its reason.
"""

import difflib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from graphhalu.core.errors import UnknownNameError, UsageError, missing_extra
from graphhalu.core.files import shortened, shown

T = TypeVar("T")

_NAME: Final = re.compile(r"\w[\w.+-]*")
_MOST_REASON: Final = 240


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for an unknown name: the nearest names first, then all of them."""
    names, name = sorted(known), name[:80]
    nearest = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(n) for n in nearest)}?" if nearest else ""
    return UnknownNameError(f"no {kind} named {name!r}.{hint}\n  Known: {', '.join(names)}")


def class_path(found: type) -> str:
    """Path of a class, as ``module:Class``."""
    return f"{found.__module__}:{found.__qualname__}"


def fault_text(error: BaseException, base: type = object) -> str:
    """An exception on one line: its class, what it says, and the line of the plug-in's file.

    Args:
        error: What a plug-in raised.
        base: What the plug-in inherits. The line is the last one of the package of the object
            of this class that was at work; none is given if there was no such object.
    """
    text = shortened(" ".join(str(error).split()), _MOST_REASON)
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    frames = list(traceback.walk_tb(error.__traceback__))
    owners = [frame.f_locals.get("self") for frame, _ in frames]
    packages = [_package(type(owner).__module__) for owner in owners if isinstance(owner, base)]
    if base is object or not packages:
        return said
    own = [each for each in frames if _package(each[0].f_globals.get("__name__")) == packages[-1]]
    frame, line = (own or frames)[-1]
    return f"{said} ({Path(frame.f_code.co_filename).name}, line {line})"


def _package(module: str | None) -> str:
    """The outermost package of a module."""
    return (module or "").partition(".")[0]


@contextmanager
def _working_directory_on_path() -> Iterator[None]:
    """Let modules of the working directory be imported, as ``python -m`` does."""
    folder = str(Path.cwd())
    is_added = folder not in map(os.path.realpath, sys.path)
    if is_added:
        sys.path.insert(0, folder)
    try:
        yield
    finally:
        if is_added and folder in sys.path:  # the module may have changed the path too
            sys.path.remove(folder)


class Registry(Generic[T]):
    """A lazy table from names to objects.

    Args:
        kind: What is registered, in the singular (``"detector"``); plug-ins use the
            entry-point group ``graphhalu.<kind>s``.
        table: Name to ``"module:attribute"``.
        base: What plug-ins must be: objects of this class where it is a dataclass, else classes
            that inherit it. ``None`` accepts anything.
        card: Class of the attribute ``card`` that bears their name; ``None`` if they have none
            and bear it themselves.
        name_field: Attribute that holds the name.
        adapt: Turns an object that a user names into one of this kind, or gives it back.
    """

    def __init__(
        self,
        kind: str,
        table: Mapping[str, str],
        base: type | None = None,
        *,
        card: type | None = None,
        name_field: str = "name",
        adapt: Callable[[Any], Any] = lambda found: found,
    ) -> None:
        self.kind = kind
        self._table = dict(table)
        self._base = base
        self._holds_objects = base is not None and is_dataclass(base)
        self._card = card
        self._name_field = name_field
        self.adapt = adapt

    def names(self) -> list[str]:
        """All registered names in the order of the table, plug-ins last; none is imported."""
        return [*self._table, *sorted(self._plugins().keys() - self._table.keys())]

    def get(self, name: str) -> T:
        """Import and return the object of this name, or of ``module:Attribute``.

        A module is looked for in the working directory too. Names read from a file go to
        :meth:`registered`: a file must not choose what is imported.

        Raises:
            UnknownNameError: If the name is not registered; lists the nearest names.
            UsageError: If a plug-in or a module of the user cannot be imported, or is of another kind.
        """
        return self._of_path(name) if ":" in name and name not in self else self.registered(name)

    def registered(self, name: str) -> T:
        """The object of a registered name; a path to a module is not allowed.

        Raises:
            UnknownNameError: If the name is not registered; lists the nearest names.
            UsageError: If it is that of a plug-in that cannot be used.
        """
        if name in self._table:
            module, _, attribute = self._table[name].partition(":")
            found: T = getattr(import_module(module), attribute)
            return found
        plugins = self._plugins()
        if name not in plugins:
            raise unknown_name(self.kind, name, self.names())
        return self._of_plugin(plugins[name])

    def load_all(self) -> tuple[dict[str, T], dict[str, str]]:
        """Import everything that is registered.

        Returns:
            The objects by name; and for each that cannot be used, a plug-in or one whose extra is not
            installed, the reason on one line.
        """
        objects: dict[str, T] = {}
        failures: dict[str, str] = {}
        for name in self._table:
            try:
                objects[name] = self.get(name)
            except ModuleNotFoundError as error:
                if (missing := missing_extra(error)) is None:
                    raise
                failures[name] = " ".join(str(missing).split())
        plugins = self._plugins()
        for name in self.names()[len(self._table) :]:
            try:
                objects[name] = self._of_plugin(plugins[name])
            except UsageError as error:
                failures[name] = str(error).partition("\n")[0]
        for point in self._points():
            if point.name in self._table or plugins[point.name].value != point.value:
                failures[f"{point.name} ({point.value})"] = "another one has this name already"
        return objects, failures

    def path(self, name: str) -> str | None:
        """Path of an object, as ``module:attribute``; nothing is imported.

        ``None`` for a name in no table, and for one of another package.
        """
        return self._table.get(name)

    def check(self, found: object, what: str, *, name: str | None = None) -> None:
        """Refuse an object that is not what plug-ins of this kind must be.

        Args:
            found: Of another package, or of a user.
            what: How to call it in the error.
            name: The name that it must bear; ``None`` for any.

        Raises:
            UsageError: Says what was expected and what came.
        """
        if self._base is not None and (fault := self._fault(found, name)):
            raise UsageError(f"{what} cannot be used: {fault}")

    def __contains__(self, name: object) -> bool:
        # the entry points of all installed packages take longer to find than a table
        return name in self._table or name in self._plugins()

    @property
    def _expected(self) -> str:
        if self._base is None:
            return f"a {self.kind}"
        form = "an object of" if self._holds_objects else "a class that inherits"
        return f"{form} {_dotted(self._base)}"

    def _fault(self, found: Any, name: str | None) -> str | None:
        """The fault of an object of another package, or ``None``."""
        base: Any = self._base
        is_class = isinstance(found, type) and issubclass(found, base)
        if not (isinstance(found, base) if self._holds_objects else is_class):
            return f"expected {self._expected}, got {shown(found)}"
        missing = sorted(getattr(found, "__abstractmethods__", ()))
        if missing:
            return f"it lacks {', '.join(missing)} of {_dotted(base)}"
        card = getattr(found, "card", None)
        if self._card is not None and not isinstance(card, self._card):
            return f"expected a class attribute card of {_dotted(self._card)}, got {shown(card)}"
        return self._name_fault(found, getattr(card or found, self._name_field, None), name)

    def _name_fault(self, found: object, stated: object, name: str | None) -> str | None:
        """The fault of the name of an object, or ``None``."""
        if not isinstance(stated, str) or not _NAME.fullmatch(stated):
            return f"expected a name of letters, digits and _ . + -, got {shown(stated)}"
        if name is not None and stated != name:
            return f"it calls itself {stated!r} and is registered as {name!r}"
        if stated in self._table and self.get(stated) is not found:
            return f"its name {stated!r} is that of graphhalu's own {self.kind}; give it another"
        return None

    def _of_path(self, path: str) -> T:
        """The object at a user's ``module:Attribute``."""
        module, _, attribute = path.partition(":")
        what = f"{self.kind} {shown(path)}"
        advice = (
            f"Expected module:Attribute, {self._expected}, in a module of the working directory "
            f"or of an installed package"
        )
        with _working_directory_on_path(), _importing(what, advice):
            found: T = self.adapt(attrgetter(attribute)(import_module(module)))
        self.check(found, what)
        return found

    def _of_plugin(self, point: EntryPoint) -> T:
        """The object that an installed package registers."""
        what = f"{self.kind} {point.name!r} of the plug-in {point.value}"
        with _importing(what, "Update the package that brings it, or uninstall it"):
            found: T = point.load()
        self.check(found, what, name=point.name)
        return found

    def _plugins(self) -> dict[str, EntryPoint]:
        """Entry points by name; of several of one name, the first."""
        return {point.name: point for point in reversed(self._points())}

    def _points(self) -> list[EntryPoint]:
        """Of the group in the plural, and of the singular that version 0.1 asked for."""
        groups = (f"graphhalu.{self.kind}s", f"graphhalu.{self.kind}")
        points = [point for group in groups for point in entry_points(group=group)]
        return [point for point in points if ":" not in point.name]


def _dotted(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


@contextmanager
def _importing(what: str, advice: str) -> Iterator[None]:
    """Turn whatever the code of a plug-in raises into one error."""
    try:
        yield
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"{what} cannot be imported: {fault_text(error)}\n  {advice}") from error
