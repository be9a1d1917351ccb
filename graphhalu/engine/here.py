"""One worker: this process."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from graphhalu.engine.base import Done, Engine, Start, Work, Workers


class Here(Engine):
    """Does the items one after another in this process, in their order."""

    @contextmanager
    def workers(self, start: Start, at_most: int) -> Iterator[Workers]:
        """The one worker."""
        yield _Here(start)


class _Here(Workers):
    def __init__(self, start: Start) -> None:
        self.start = start

    @cached_property
    def state(self) -> Any:
        return self.start()

    def map(self, function: Work, items: Sequence[Any]) -> Generator[Done, None, None]:
        for place, item in enumerate(items):
            yield Done(place, function(self.state, item))
