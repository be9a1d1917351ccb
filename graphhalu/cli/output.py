"""What commands print: results to stdout, everything else to stderr."""

import json
import logging
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from string import Formatter
from typing import Any, NamedTuple, SupportsFloat

_LEAST_P = 0.001
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


def json_text(value: Mapping[str, Any], indent: int = 2) -> str:
    """An object as JSON; numbers that are not finite become null."""
    from graphhalu.core.numerics import json_ready

    return json.dumps(json_ready(value), indent=indent, ensure_ascii=False, allow_nan=False)


class Shown(NamedTuple):
    """What a command shows, which is what it returns.

    Attributes:
        values: Printed as one JSON object with ``--json``.
        text: Prints the same as text.
        note: A line for the person at the terminal, after the text.
        then: Raised after printing: an exit code, or a failure.
    """

    values: Mapping[str, Any]
    text: Callable[[], object]
    note: str = ""
    then: Exception | None = None

    def show(self, *, as_json: bool) -> None:
        """Print, and raise what is to be raised then."""
        if as_json:
            print(json_text(self.values))
        else:
            self.text()
            if self.note:
                say(self.note)
        if self.then is not None:
            raise self.then


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None) -> None:
    """A table on stdout."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(escape(clean(cell)) for cell in row))
    Console().print(table)


class _CellFormatter(Formatter):
    """Fills templates such as ``"{auroc.value:.3f}"`` from the attributes or keys of a row."""

    n_known = 0

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        value = args[0]
        for name in field_name.split("."):
            if value is not None and name != "0":  # "0" is what "{}" becomes
                value = value.get(name) if isinstance(value, Mapping) else getattr(value, name)
        return value, field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return "-"
        self.n_known += 1
        if isinstance(value, bool):
            return "yes" if value else format_spec or "no"
        if format_spec == "p":
            return "<.001" if value < _LEAST_P else f"{value:.3f}".removeprefix("0")
        return format(value, format_spec)


def cell(template: str, row: Any, *, is_short: bool = False) -> str:
    """The text of a template filled from a row; dashes stand for missing values.

    Args:
        template: As ``"{mean:.3f} ({count})"``, with attributes or keys of the row; ``"{}"`` is the
            row itself. A bool is yes or no, or as in ``"{passes:NO}"``; ``"{p_holm:p}"`` is a p-value.
        row: An object or a mapping.
        is_short: Whether numbers lose the zero before the point, so that tables fit 80 columns.
    """
    formatter = _CellFormatter()
    text = formatter.vformat(template, (row,), {})
    if not formatter.n_known:
        return "-"
    return re.sub(r"(?<![\d.])0\.", ".", text) if is_short else text


def interval(field: str, form: str = ".3f", *, ends: str = "") -> str:
    """The template of an estimate with its interval, as ``.712 [.654,.771]``."""
    ends = ends or form
    return f"{{{field}.value:{form}}} [{{{field}.low:{ends}}},{{{field}.high:{ends}}}]"


def print_rows(
    rows: Iterable[Any],
    columns: Mapping[str, str | Callable[[Any], str]],
    *,
    title: str | None = None,
    is_short: bool = False,
) -> None:
    """A table on stdout with a line a row.

    Args:
        rows: Objects or mappings.
        columns: Template of each column (see :func:`cell`), or a function of the row.
        title: Stands above the table.
        is_short: Whether numbers lose the zero before the point.
    """
    made = [
        [each(row) if callable(each) else cell(each, row, is_short=is_short) for each in columns.values()]
        for row in rows
    ]
    print_table(list(columns), made, title=title)


def clean(text: str) -> str:
    """Text without control characters: what a model or a file says must not move the cursor."""
    return "".join(c for c in text if c in "\n\t" or (c.isprintable() or c.isspace()))


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


class ProgressLine:
    """Progress with rate and remaining time: a bar on a terminal, now and then a line elsewhere.

    Args:
        what: What is counted, in the plural.
        bar: A bar of rich, or ``None`` where stderr is no terminal.
    """

    def __init__(self, what: str, bar: Any) -> None:
        self.what, self.bar = what, bar
        self.task: Any = None
        self.first: tuple[int, float] | None = None
        self.last_seconds = 0.0

    def __call__(self, done: int, total: int, detail: str = "") -> None:
        """Show how much is done, how fast it goes and how long it will take.

        The rate is that since the first call, so that neither the start of a model nor what an
        earlier run did counts.
        """
        now = time.monotonic()
        self.first = self.first or (done, now)
        n_new, seconds = done - self.first[0], now - self.first[1]
        rate = n_new / seconds if seconds > 0 else 0.0
        left = duration((total - done) / rate) if rate > 0 else "?"
        text = f"{rate:.2f} {self.what}/s, {left} left"
        if self.bar is not None:
            if self.task is None:
                self.task = self.bar.add_task(self.what, total=total, text="")
            self.bar.update(self.task, completed=done, total=total, text=text)
        elif seconds - self.last_seconds >= _PLAIN_SECONDS or done == total:
            self.last_seconds = seconds
            say(f"{done}/{total} {self.what}, {text}")


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
