"""An executor that shows whether work can be done elsewhere, without the cost of a process."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from typing import Any

from graphhalu.engine.executors import Executor, Start, TaskResult, Work, Workers


class RemoteExecutor(Executor):
    """Sends everything through bytes, has a worker for each item, and ends them last one first.

    Work that leans on what this process holds, or on the order of the items, fails here as it
    does in another process.
    """

    @contextmanager
    def workers(self, start: Start, at_most: int) -> Iterator[Workers]:
        """A worker for each item."""

        def run(function: Work, items: Sequence[Any]) -> Generator[TaskResult, None, None]:
            for place in reversed(range(len(items))):
                started, there, item = _sent((start, function, items[place]))
                yield _sent(TaskResult(place, there(started(), item)))

        yield run


def _sent(value: Any) -> Any:
    return ForkingPickler.loads(ForkingPickler.dumps(value))
