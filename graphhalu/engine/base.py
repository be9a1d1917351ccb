"""Work spread over workers that hold a state: here, in processes of this machine, or in Ray.

An engine runs ``function(state, item)`` for each item. The state (a model, an open store) is made
once a worker by ``start()``. Nothing here knows what the work is, and a result never depends on
which worker had the item.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from graphhalu.errors import ProcessLostError

Start = Callable[[], Any]
"""Makes the state of a worker; it can be sent to another process."""

Work = Callable[[Any, Any], Any]
"""Gives the result of an item from the state and the item; a function of a module."""


@dataclass(frozen=True)
class Done:
    """What became of an item.

    Attributes:
        place: Its place among the items.
        value: What the function gave; ``None`` if the item was set aside.
        failure: Why it was set aside; ``None`` if it was not.
    """

    place: int
    value: Any
    failure: str | None = None

    def result(self) -> Any:
        """What the function gave.

        Raises:
            ProcessLostError: If the item was set aside.
        """
        if self.failure is not None:
            raise ProcessLostError(self.failure)
        return self.value


class Workers(ABC):
    """Workers that are there, each with its state or about to make it."""

    @abstractmethod
    def map(self, function: Work, items: Sequence[Any]) -> Generator[Done, None, None]:
        """What became of each item, as soon as it is known and in any order.

        Whoever stops early closes the iterator; nothing runs on after that.

        Raises:
            GraphhaluError: The first such error that the function or ``start`` raises.
        """


class Engine(ABC):
    """A way to have workers."""

    @property
    def n_threads(self) -> int | None:
        """Threads that a worker should use; ``None`` leaves it to the work."""
        return None

    @abstractmethod
    def workers(self, start: Start, at_most: int) -> AbstractContextManager[Workers]:
        """Workers, until the context ends.

        Args:
            start: Makes the state of each of them.
            at_most: More of them would have nothing to do.
        """


def in_order(found: Iterable[Done]) -> Generator[Done, None, None]:
    """The same in the order of the items; what comes early is kept until its turn."""
    early: dict[int, Done] = {}
    place = 0
    for done in found:
        early[done.place] = done
        while place in early:
            yield early.pop(place)
            place += 1
