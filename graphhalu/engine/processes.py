"""Workers in processes of this machine."""

import multiprocessing
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Final

from graphhalu.engine.base import Done, Engine, Start, Work, Workers
from graphhalu.errors import ProcessLostError


class Processes(Engine):
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
            yield _Pool(pool)


class _Pool(Workers):
    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self.pool = pool

    def map(self, function: Work, items: Sequence[Any]) -> Generator[Done, None, None]:
        waiting: dict[Future[Any], int] = {
            self.pool.submit(_call, function, item): place for place, item in enumerate(items)
        }
        try:
            for future in as_completed(waiting):
                yield Done(waiting[future], future.result())
        except BrokenProcessPool:
            message = (
                "a worker process died, most likely for want of memory\n"
                "  Ask for fewer processes, or for one (--jobs 1)"
            )
            raise ProcessLostError(message) from None
        finally:
            for future in waiting:
                future.cancel()


_held: Final[dict[str, Any]] = {}


def _remember(start: Start) -> None:
    # the state is made with the first item, so that what goes wrong there is told
    _held["start"] = start


def _call(function: Work, item: Any) -> Any:
    if "state" not in _held:
        _held["state"] = _held["start"]()
    return function(_held["state"], item)
