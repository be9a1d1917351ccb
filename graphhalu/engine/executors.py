"""Work spread over workers that hold a state: in this process, in others, or in Ray.

An executor runs ``function(state, item)`` for each item. The state (a model, an open store) is made
once a worker by ``start()``. Nothing here knows what the work is, and a result never depends on
which worker had the item.
"""

import multiprocessing
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from graphhalu.core.errors import ProcessLostError

Start = Callable[[], Any]
"""Makes the state of a worker; it can be sent to another process."""

Work = Callable[[Any, Any], Any]
"""Gives the result of an item from the state and the item; a function of a module."""


@dataclass(frozen=True)
class TaskResult:
    """What became of an item.

    Attributes:
        place: Its place among the items.
        value: What the function gave; ``None`` if the item was quarantined.
        failure: Why it was quarantined; ``None`` if it was not.
    """

    place: int
    value: Any
    failure: str | None = None

    def result(self) -> Any:
        """What the function gave.

        Raises:
            ProcessLostError: If the item was quarantined.
        """
        if self.failure is not None:
            raise ProcessLostError(self.failure)
        return self.value


class Workers(ABC):
    """Workers that are there, each with its state or about to make it."""

    @abstractmethod
    def map(self, function: Work, items: Sequence[Any]) -> Generator[TaskResult, None, None]:
        """What became of each item, as soon as it is known and in any order.

        Whoever stops early closes the iterator; nothing runs on after that.

        Raises:
            GraphhaluError: The first such error that the function or ``start`` raises.
        """


class Executor(ABC):
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


def in_order(results: Iterable[TaskResult]) -> Generator[TaskResult, None, None]:
    """The same in the order of the items; what comes early is kept until its turn."""
    early: dict[int, TaskResult] = {}
    place = 0
    for result in results:
        early[result.place] = result
        while place in early:
            yield early.pop(place)
            place += 1


class SerialExecutor(Executor):
    """Does the items one after another in this process, in their order."""

    @contextmanager
    def workers(self, start: Start, at_most: int) -> Iterator[Workers]:
        """The one worker."""
        yield _SerialWorker(start)


class _SerialWorker(Workers):
    def __init__(self, start: Start) -> None:
        self.state = cache(start)

    def map(self, function: Work, items: Sequence[Any]) -> Generator[TaskResult, None, None]:
        for place, item in enumerate(items):
            yield TaskResult(place, function(self.state(), item))


class ProcessExecutor(Executor):
    """Starts processes afresh (spawn), which share nothing with this one.

    Args:
        n_processes: How many, at most.
    """

    def __init__(self, n_processes: int) -> None:
        self.n_processes = n_processes

    @contextmanager
    def workers(self, start: Start, at_most: int) -> Iterator[Workers]:
        """Processes, started as items come."""
        with ProcessPoolExecutor(
            max(1, min(self.n_processes, at_most)),
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_remember,
            initargs=(start,),
        ) as pool:
            yield _ProcessWorkers(pool)


class _ProcessWorkers(Workers):
    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self.pool = pool

    def map(self, function: Work, items: Sequence[Any]) -> Generator[TaskResult, None, None]:
        waiting: dict[Future[Any], int] = {
            self.pool.submit(_call, function, item): place for place, item in enumerate(items)
        }
        try:
            for future in as_completed(waiting):
                yield TaskResult(waiting[future], future.result())
        except BrokenProcessPool:
            message = (
                "a worker process died, most likely for want of memory\n"
                "  Ask for fewer processes, or for one (--jobs 1)"
            )
            raise ProcessLostError(message) from None
        finally:
            for future in waiting:
                future.cancel()


_state: list[Callable[[], Any]] = []


def _remember(start: Start) -> None:
    # the state is made with the first item, so that what goes wrong there is told
    _state.append(cache(start))


def _call(function: Work, item: Any) -> Any:
    return function(_state[0](), item)
