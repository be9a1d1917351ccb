"""What commands print: results to stdout, everything else to stderr.

A command returns :class:`Shown`: the values that ``--json`` prints, and the name of a template in
``text/`` that shows the same values to a person. What stands below a line ``---`` in a template goes
to stderr.
"""

import json
import logging
import math
import re
import sys
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple, SupportsFloat

from markupsafe import Markup

from graphhalu.cli import library

_LEAST_P = 0.001
_NOTES_BELOW = "\0"
"""Stands for the line ``---`` of a template; no inserted text can hold it, since those are cleaned."""
_N_WORDS = 3
"""Words of a cell that has one for ``None``, too."""
BARS = ExitStack()
"""Takes down the progress bars of a command when it ends, also after an error."""
_PLAIN_SECONDS = 15.0
"""How often progress is printed when stderr is not a terminal."""


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
    plain = library.json_ready(value)
    return json.dumps(plain, indent=indent, ensure_ascii=False, allow_nan=False, default=str)


class Shown(NamedTuple):
    """What a command shows, which is what it returns.

    Attributes:
        values: Printed as one JSON object with ``--json``.
        template: Name of the template that shows the values as text.
        more: Further objects that the template reads.
        then: Raised after printing: an exit code, or a failure.
    """

    values: Mapping[str, Any]
    template: str
    more: Mapping[str, Any] = {}
    then: Exception | None = None

    def show(self, *, as_json: bool) -> None:
        """Print, and raise what is to be raised then."""
        if as_json:
            print(json_text(self.values))
        else:
            shown = _template(self.template).render({"values": self.values, **self.values, **self.more})
            text, _, notes = shown.partition(_NOTES_BELOW)
            print(text, end="")
            if notes.strip():
                print(notes.rstrip("\n"), file=sys.stderr, flush=True)
        if self.then is not None:
            raise self.then


@cache
def _template(name: str) -> Any:
    """A template of the folder ``text``; what it inserts loses its control characters."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    def source(file: str) -> str:
        text = (Path(__file__).parent / "text" / file).read_text(encoding="utf-8")
        return re.sub(r"^---\n", _NOTES_BELOW, text, flags=re.MULTILINE)

    environment = Environment(
        loader=FunctionLoader(source),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if hasattr(value, "__html__") else clean(str(value)),
        autoescape=False,  # noqa: S701 - the result is text for a terminal
    )
    environment.globals |= {"table": table, "grid": grid, "render": render, "interval": interval}
    environment.filters |= {
        "bytes": megabytes,
        "duration": duration,
        "number": lambda value, spec=".4g": "none" if value is None else format(value, spec),
        "quoted": repr,
        "cell": lambda row, template: cell(template, row, is_short=True),
    }
    return environment.get_template(f"{name}.txt")


def render(renderable: Any, *, is_wrapped: bool = True) -> Markup:
    """What rich makes of an object, for the terminal that stdout is."""
    from rich.console import Console

    console = Console(soft_wrap=not is_wrapped)
    with console.capture() as capture:
        console.print(renderable)
    return Markup(capture.get())  # noqa: S704 - a mark for text that is printed as it is, bold and coloured


def table(
    rows: Iterable[Any], columns: Mapping[str, str], title: str | None = None, *, is_short: bool = False
) -> Markup:
    """A table with a line a row.

    Args:
        rows: Objects or mappings.
        columns: Template of each column, see :func:`cell`.
        title: Stands above the table.
        is_short: Whether numbers lose the zero before the point.
    """
    cells = ([cell(template, row, is_short=is_short) for template in columns.values()] for row in rows)
    return grid(list(columns), cells, title)


def grid(columns: Sequence[str], rows: Iterable[Any], title: str | None = None) -> Markup:
    """A table of texts; rows are lists, or mappings from columns."""
    from rich.markup import escape
    from rich.table import Table

    made = Table(*columns, title=title and escape(clean(title)), title_justify="left")
    for row in rows:
        texts = row.values() if isinstance(row, Mapping) else row
        made.add_row(*(escape(clean(text)) for text in texts))
    return render(made)


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
        words = format_spec.split("|")
        if (value is None and len(words) < _N_WORDS) or (isinstance(value, float) and math.isnan(value)):
            return "-"
        self.n_known += 1
        if value is None or isinstance(value, bool):
            yes, no, *rest = words if len(words) > 1 else ("yes", "no")
            return rest[0] if value is None else yes if value else no
        if isinstance(value, list | tuple):
            return ", ".join(map(str, value))
        if format_spec == "p":
            return "<.001" if value < _LEAST_P else f"{value:.3f}".removeprefix("0")
        if format_spec.endswith("…"):
            return textwrap.shorten(value, int(format_spec[:-1]), placeholder="…")
        return megabytes(value) if format_spec == "bytes" else format(value, format_spec)


def cell(template: str, row: Any, *, is_short: bool = False) -> str:
    """The text of a template filled from a row; dashes stand for missing values.

    Args:
        template: As ``"{mean:.3f} ({count})"``, with attributes or keys of the row; ``"{}"`` is the
            row itself. A bool is yes or no, or a word of ``"{is_attack:attack|benign|unknown}"``, whose
            last one is for ``None``; ``"{p_holm:p}"`` is a p-value, ``"{n:bytes}"`` a size,
            ``"{text:30…}"`` text cut at 30 characters.
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


def clean(text: str) -> str:
    """Text without control characters: what a model or a file says must not move the cursor."""
    return "".join(c for c in text if c in "\n\t" or (c.isprintable() or c.isspace()))


def file_word(name: str) -> str:
    """The name of a model as a part of a path."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "model"


def megabytes(size: SupportsFloat) -> str:
    """A size in bytes as MiB, or KiB where it is small."""
    n_bytes = float(size)
    return f"{n_bytes / 2**10:,.1f} KiB" if n_bytes < 2**20 else f"{n_bytes / 2**20:,.1f} MiB"


def duration(seconds: float) -> str:
    """Seconds, or minutes and seconds."""
    if seconds < 100:  # noqa: PLR2004
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


class ProgressLine:
    """Progress with rate and remaining time: a bar on a terminal, now and then a line elsewhere.

    Args:
        what: What is counted, in the plural.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.bar: Any = None
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
        if sys.stderr.isatty():
            self.bar = self.bar or _bar(self.what)
            self.bar.update(self.bar.task_ids[0], completed=done, total=total, text=text)
        elif seconds - self.last_seconds >= _PLAIN_SECONDS or done == total:
            self.last_seconds = seconds
            say(f"{done}/{total} {self.what}, {text}")


def _bar(what: str) -> Any:
    """A bar of rich on stderr, with a text behind it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    BARS.close()  # rich shows one at a time
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    bar = Progress(*columns, TextColumn("{task.fields[text]}"), console=Console(stderr=True))
    bar.add_task(what, text="")
    bar.start()
    BARS.callback(bar.stop)
    return bar
