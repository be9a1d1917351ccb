"""What commands print: results to stdout, everything else to stderr."""

import json
import logging
import math
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, SupportsFloat

if TYPE_CHECKING:
    from graphhalu.extract.run import Progress

_PLAIN_SECONDS = 15.0
"""How often progress is printed when stderr is no terminal."""


def say(text: str) -> None:
    """A line for the person at the terminal, on stderr."""
    print(clean(text), file=sys.stderr, flush=True)


class _Notes(logging.Handler):
    """Shows what the package logs to the person at the terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


_NOTES = _Notes(logging.INFO)


def show_notes() -> None:
    """Show what the package logs from the level INFO on, one line each."""
    logger = logging.getLogger("graphhalu")
    logger.setLevel(logging.INFO)
    logger.addHandler(_NOTES)  # a handler that is there already is not added again


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on stdout; numbers that are not finite become null."""
    from graphhalu.core.numerics import json_ready

    print(json.dumps(json_ready(value), indent=2, ensure_ascii=False, allow_nan=False))


def print_table(columns: list[str], rows: list[list[str]], *, title: str | None = None) -> None:
    """A table on stdout."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(escape(clean(cell)) for cell in row))
    Console().print(table)


def clean(text: str) -> str:
    """Text without control characters: what a model or a file says must not move the cursor."""
    return "".join(c for c in text if c in "\n\t" or (c.isprintable() or c.isspace()))


def number_text(value: float, form: str = ".3f") -> str:
    """A number, or a dash where it is NaN."""
    return "-" if math.isnan(value) else f"{value:{form}}"


def file_word(name: str) -> str:
    """The name of a model as a part of a path."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "model"


def megabytes(size: SupportsFloat) -> str:
    """A size in bytes as MiB, or KiB where it is small."""
    n_bytes = float(size)
    if n_bytes < 2**20:
        return f"{n_bytes / 2**10:,.1f} KiB"
    return f"{n_bytes / 2**20:,.1f} MiB"


def duration(seconds: float) -> str:
    """Seconds, or minutes and seconds."""
    if seconds < 100:  # noqa: PLR2004
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def read_numbers(option: str, text: str | None, kind: Any = int) -> Any:
    """The numbers of an option, as ``1,4``; ``None`` and ``auto`` stay what they are.

    Raises:
        UsageError: If it is anything else.
    """
    from graphhalu.core.errors import UsageError

    if text is None or text == "auto":
        return text
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        message = f"{option} takes numbers with commas, as 1,4; got {text!r}"
        raise UsageError(message) from None


class ProgressLine:
    """Progress with rate and remaining time: a bar on a terminal, now and then a line elsewhere.

    Args:
        what: What is counted, in the plural.
    """

    def __init__(self, what: str, bar: Any) -> None:
        self.what = what
        self.bar = bar
        self.task: Any = None
        self.last_seconds = 0.0
        self.started = time.monotonic()

    def __call__(self, progress: "Progress") -> None:
        """Show where an extraction stands."""
        self.show(progress.n_done, progress.n_total, progress.seconds)

    def count(self, done: int, total: int, detail: str = "") -> None:
        """Show how much is done since this display was made."""
        self.show(done, total, time.monotonic() - self.started)

    def show(self, n_done: int, n_total: int, seconds: float) -> None:
        """Show how much is done, how fast it goes and how long it will take."""
        rate = n_done / seconds if seconds > 0 else 0.0
        left = (n_total - n_done) / rate if rate > 0 else float("inf")
        text = f"{rate:.2f} {self.what}/s, {duration(left) if rate > 0 else '?'} left"
        if self.bar is not None:
            if self.task is None:
                self.task = self.bar.add_task(self.what, total=n_total, text="")
            self.bar.update(self.task, completed=n_done, text=text)
        elif seconds - self.last_seconds >= _PLAIN_SECONDS or n_done == n_total:
            self.last_seconds = seconds
            say(f"{n_done}/{n_total} {self.what}, {text}")


@contextmanager
def progress_line(what: str) -> Iterator[ProgressLine]:
    """A progress display that is taken down at the end, also after an error."""
    if not sys.stderr.isatty():
        yield ProgressLine(what, None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        yield ProgressLine(what, bar)
