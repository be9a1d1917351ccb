"""Tables: columns described once as data, and shown as HTML, Markdown or in a terminal."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final, Literal, NamedTuple

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from graphhalu.evaluation.bootstrap import Estimate
from graphhalu.evaluation.result import MetricValue

ABSENT: Final = "-"
CONTROL_MARK: Final = "°"
_SMALLEST_P: Final = 0.001
_KILO: Final = 1024

Row = Mapping[str, Any]
"""Values of a row of a table by name."""


class Cell(NamedTuple):
    """One cell of a table.

    Attributes:
        text: The text.
        detail: Smaller text below, such as an interval.
        value: What a column is sorted by; ``None`` sorts last.
    """

    text: str
    detail: str = ""
    value: float | None = None


class Column(NamedTuple):
    """One column.

    Attributes:
        name: Its head.
        is_number: Whether it is aligned to the right and sorted by value.
        is_better_low: Whether a low value is good.
    """

    name: str
    is_number: bool = False
    is_better_low: bool = False


@dataclass(frozen=True)
class Table:
    """A table with notes below it.

    Attributes:
        name: A word of letters, digits and hyphens.
        title: Its title.
        rows: Cells in the order of the columns.
        notes: One paragraph each.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def heads(self) -> list[str]:
        """Names of the columns."""
        return [column.name for column in self.columns]

    @property
    def texts(self) -> list[list[str]]:
        """Every cell on one line."""
        return [[f"{cell.text} {cell.detail}".strip() for cell in row] for row in self.rows]


def make_table(name: str, described: Mapping[str, Any], rows: Sequence[Row], /, **values: Any) -> Table:
    """A table from its description.

    Args:
        name: A word of letters, digits and hyphens.
        described: ``title``, ``notes``, ``columns``, and as ``low`` the columns in which a low value
            is good. A column is a head with the path of its value in a row, and the format of
            numbers behind it: ``AUROC: found.prediction.auroc .3f``; or a text with paths in braces, and
            behind a bar that of its detail: ``heads: "{n_found} of {n_heads} | {n_known} known"``. The
            head ``*`` is that of all values of a mapping. Without ``columns`` the rows are shown as
            they are, with their names as heads.
        rows: At least one: what the first name of a column's path stands for.
        **values: What braces in title and notes are filled with; a value of several lines makes as
            many notes.
    """
    low, shown = described.get("low", ()), list[dict[str, Cell]]()
    for row in rows:
        cells = dict[str, Cell]()
        for head, path in described.get("columns", {"*": ""}).items():
            if head == "*":
                cells |= {each: cell(value) for each, value in (row[path] if path else row).items()}
            else:
                cells[head] = _described_cell(row, path)
        shown.append(cells)
    columns = tuple(
        Column(head, any(cells[head].value is not None for cells in shown), head in low) for head in shown[0]
    )
    notes = "\n".join(filled(note, values) for note in described.get("notes", ())).splitlines()
    rows_of_cells = tuple(tuple(cells.values()) for cells in shown)
    return Table(name, filled(described["title"], values), columns, rows_of_cells, tuple(notes))


def filled(text: str, values: Mapping[str, Any]) -> str:
    """A text on one line, its braces filled with values."""
    return " ".join(text.split()).format(**values)


def cell(value: Any, form: str = "") -> Cell:  # noqa: PLR0911 - one return a kind of value
    """A value as a cell: a text, names, a number, a metric or an estimate; a dash for ``None`` or NaN.

    Args:
        value: Also a finished cell.
        form: Format of numbers: a format specification, ``p`` for a p-value, ``short`` for a
            duration, ``bytes`` for a size, ``count`` for a large number, ``model`` for a model without
            its organisation, ``words`` for a name with blanks.
    """
    if isinstance(value, Cell):
        return value
    if value is None or (isinstance(value, float) and not isfinite(value)):
        return Cell(ABSENT)
    if form in _FORMATS:
        number = None if isinstance(value, str) else float(value)
        return Cell(_FORMATS[form](value if number is None else number), value=number)
    if isinstance(value, str | bool):
        return Cell({True: "yes", False: "no"}[value] if isinstance(value, bool) else value)
    if isinstance(value, tuple | list):
        return Cell(", ".join(value) or ABSENT)
    if isinstance(value, MetricValue):
        interval = "" if value.low is None or value.high is None else f"[{value.low:.3f}, {value.high:.3f}]"
        # without leading zeros, so that intervals of many metrics fit side by side
        return Cell(f"{value.value:.3f}", re.sub(r"\b0\.", ".", interval), value.value)
    if isinstance(value, Estimate):
        return Cell(f"{value.value:{form}}", value.interval(form), value.value)
    return Cell(f"{value:{form or ('d' if isinstance(value, int) else '.3f')}}", value=value)


def p_text(value: float | None) -> str:
    """A p-value to three digits; ``-`` where there is none."""
    if value is None:
        return ABSENT
    return f"<{_SMALLEST_P}" if value < _SMALLEST_P else f"{value:.3f}"


def short_text(value: float) -> str:
    """Two digits after the point below 10, none above; never the exponent form."""
    if value < 0.01:  # noqa: PLR2004
        return "<0.01"
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"  # noqa: PLR2004


def size_text(n_bytes: float) -> str:
    """Bytes as KiB or MiB."""
    if n_bytes < _KILO:
        return f"{n_bytes:.0f} B"
    return f"{n_bytes / _KILO:,.1f} KiB" if n_bytes < _KILO**2 else f"{n_bytes / _KILO**2:,.1f} MiB"


def count_text(number: float) -> str:
    """A large number as 135M or 7B."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.0f}"


def model_name(name: str) -> str:
    """A model without its organisation."""
    return name.rsplit("/", maxsplit=1)[-1]


_FORMATS: Final[Mapping[str, Callable[[Any], str]]] = {
    "p": p_text,
    "short": short_text,
    "bytes": size_text,
    "count": count_text,
    "model": model_name,
    "words": lambda name: name.replace("_", " "),
}


def cut(text: str, most: int) -> str:
    """A text, cut where it is too long for a figure."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def terminal_table(table: Table) -> RichTable:
    """A table for the terminal; details are below their values in all rows, and nothing is cut off."""
    # Text, since rich would read [brackets] in a plain string as markup
    caption = Text("\n".join(table.notes))
    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=0, caption=caption, caption_justify="left")
    for place, column in enumerate(table.columns):
        justify: Literal["left", "right"] = "right" if column.is_number else "left"
        width = max([len(column.name), *(len(row[place].detail) for row in table.rows)])
        shown.add_column(column.name, justify=justify, overflow="fold", min_width=width, no_wrap=place == 0)
    for row in table.rows:
        texts = [Text(f"{each.text}\n{each.detail}".rstrip("\n")) for each in row]
        shown.add_row(*texts, style="dim" if row[0].text.endswith(CONTROL_MARK) else "")
    return shown


def markdown_table(table: Table) -> str:
    """A table as Markdown, each cell on one line."""
    rules = "|" + "".join("---:|" if column.is_number else ":---|" for column in table.columns)
    head, *lines = (f"| {' | '.join(map(markdown_cell, texts))} |" for texts in [table.heads, *table.texts])
    return "\n".join([head, rules, *lines])


def markdown_cell(text: str) -> str:
    """Text that no Markdown reader takes for a table, a tag, code, a link or emphasis."""
    escaped = re.sub(r"([\\|<`*])", r"\\\1", " ".join(text.split()))
    return escaped.replace("](", "]\\(").replace("&", "&amp;")


def markdown_text(text: str) -> str:
    """A paragraph that no Markdown reader takes for a heading, a list or a quotation."""
    escaped = markdown_cell(text)
    return re.sub(r"^(\d+)([.)]\s)", r"\1\\\2", re.sub(r"^([#>+=~-])", r"\\\1", escaped))


def _described_cell(row: Row, path: str) -> Cell:
    if "{" in path:
        text, _, detail = path.format(**row).partition(" | ")
        return Cell(text, detail)
    path, _, form = path.partition(" ")
    return cell(value_at(row, path), form)


def value_at(row: Row, path: str) -> Any:
    """The value at a dotted path; ``None`` where a part of it is ``None``."""
    first, *rest = path.split(".")
    value = row[first]
    for part in rest:
        value = None if value is None else getattr(value, part)
    return value
