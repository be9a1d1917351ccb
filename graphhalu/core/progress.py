"""Progress of long work: the one protocol by which a function tells its caller how far it is."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Called after each step of a long piece of work."""

    def __call__(self, done: int, total: int, detail: str = "") -> None:
        """Take note of a step.

        Args:
            done: Steps done, counted from 1.
            total: Steps in all; 0 if that is not known.
            detail: What the step was, on one line: a detector and its fold, a question.
        """


def no_progress(done: int, total: int, detail: str = "") -> None:
    """Take note of nothing: the default where a caller does not ask."""
