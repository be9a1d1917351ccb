"""Executors: work on workers that hold a state, in this process, in others, or in Ray.

An executor runs ``function(state, item)`` for each item. The state (a model, an open store) is made
once a worker by ``start()``. A result never depends on which worker had the item.
"""

import multiprocessing
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeAlias

from graphhalu.core.errors import WorkerError

Start: TypeAlias = Callable[[], Any]
"""Makes the state of a worker; it can be sent to another process."""

Work: TypeAlias = Callable[[Any, Any], Any]
"""Gives the result of an item from the state and the item; a function of a module."""

Progress: TypeAlias = Callable[..., None]
"""Called after each step of long work with the steps done (from 1), the steps in all (0 if that is
not known) and, where it helps, one line that describes the step."""


def no_progress(done: int, total: int, detail: str = "") -> None:
    """Ignore a step: the default of ``on_progress``."""


@dataclass(frozen=True)
class TaskResult:
    """Result of one item.

    Attributes:
        place: Its position among the items.
        value: What the function returned; ``None`` if the item was quarantined.
        failure: Why it was quarantined; ``None`` if it was not.
    """

    place: int
    value: Any
    failure: str | None = None

    def result(self) -> Any:
        """The value.

        Raises:
            WorkerError: If the item was quarantined.
        """
        if self.failure is not None:
            raise WorkerError(self.failure)
        return self.value


Workers: TypeAlias = Callable[[Work, Sequence[Any]], Generator[TaskResult, None, None]]
"""Runs a function on each item and yields the results as soon as they are known, in any order.

Close the generator to stop early; nothing runs on after that. The first ``GraphhaluError`` that the
function or ``start`` raises ends the run."""


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
    """The results in the order of the items."""
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
        """This process; it makes the state with the first item."""
        state = cache(start)

        def run(function: Work, items: Sequence[Any]) -> Generator[TaskResult, None, None]:
            for place, item in enumerate(items):
                yield TaskResult(place, function(state(), item))

        yield run


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
            yield partial(_run_in_pool, pool)


def _run_in_pool(
    pool: ProcessPoolExecutor, function: Work, items: Sequence[Any]
) -> Generator[TaskResult, None, None]:
    waiting: dict[Future[Any], int] = {
        pool.submit(_call, function, item): place for place, item in enumerate(items)
    }
    try:
        for future in as_completed(waiting):
            yield TaskResult(waiting[future], future.result())
    except BrokenProcessPool:
        raise WorkerError(
            "a worker process died, most likely for want of memory\n"
            "  Ask for fewer processes, or for one (--jobs 1)"
        ) from None
    finally:
        for future in waiting:
            future.cancel()


_state: list[Callable[[], Any]] = []


def _remember(start: Start) -> None:
    # the state is made with the first item, so that an error there reaches the caller
    _state.append(cache(start))


def _call(function: Work, item: Any) -> Any:
    return function(_state[0](), item)
