"""Page of a report, before it is HTML or Markdown: sections of text, tables and figures."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from matplotlib.figure import Figure

from graphhalu.core.config import read_yaml
from graphhalu.evaluation.bootstrap import Estimate
from graphhalu.evaluation.result import MetricValue

ABSENT: Final = "-"
TEXT: Final = Path(__file__).parent / "text"
SMALLEST_P: Final = 0.001


class Cell(NamedTuple):
    """One cell of a table.

    Attributes:
        text: What it says.
        detail: Smaller text below, as an interval.
        value: What a column is sorted by; ``None`` sorts last.
    """

    text: str
    detail: str = ""
    value: float | None = None


class Column(NamedTuple):
    """One column.

    Attributes:
        name: Its head.
        is_number: Whether it is set to the right and sorted by value.
        is_better_low: Whether a low value is good.
    """

    name: str
    is_number: bool = False
    is_better_low: bool = False


Row = Mapping[str, Any]
"""Values of a row of a table by name."""


@dataclass(frozen=True)
class PageTable:
    """A table with notes below it.

    Attributes:
        name: A word of letters, digits and hyphens.
        title: What it is.
        rows: Cells in the order of the columns.
        notes: One paragraph each.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PageFigure:
    """A figure.

    Attributes:
        name: A word of letters, digits and hyphens; also the name of its files.
        title: What it is.
        caption: What it shows and how to read it, also for those who do not see it.
        figure: The drawing.
    """

    name: str
    title: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Section:
    """A part of a report."""

    name: str
    title: str
    paragraphs: tuple[str, ...] = ()
    figures: tuple[PageFigure, ...] = ()
    tables: tuple[PageTable, ...] = ()
    folded: tuple[tuple[str, str], ...] = ()
    """Long texts for those who ask, on the HTML page only: what each is, and its lines."""


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title: What was compared.
        headline: Two plain sentences that say what came of it.
        facts: The numbers that frame it, by name.
        sections: In reading order.
    """

    title: str
    headline: tuple[str, str]
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]

    @property
    def figures(self) -> tuple[PageFigure, ...]:
        """All figures."""
        return tuple(figure for section in self.sections for figure in section.figures)


def number(value: float | int | None, form: str = ".3f") -> Cell:  # noqa: PYI041 - checked at run time
    """A number as a cell; none where it is NaN."""
    is_there = value is not None and isfinite(value)
    return Cell(f"{value:{form}}", value=value) if is_there else Cell(ABSENT)


def metric_cell(metric: MetricValue | None) -> Cell:
    """A metric with its interval."""
    if metric is None:
        return Cell(ABSENT)
    has_interval = metric.low is not None and metric.high is not None
    interval = f"[{metric.low:.3f}, {metric.high:.3f}]" if has_interval else ""
    # without leading zeros, so that intervals of many metrics stand side by side in a size to read
    return Cell(f"{metric.value:.3f}", re.sub(r"\b0\.", ".", interval), metric.value)


def cell(value: Any, form: str = "") -> Cell:
    """A value as a cell: a text, a number or an estimate; nothing where it is ``None`` or NaN.

    Args:
        value: Also a finished cell.
        form: Format of numbers; ``p`` is that of a p-value.
    """
    if isinstance(value, Cell):
        return value
    if isinstance(value, str):
        return Cell(value)
    if isinstance(value, Estimate):
        return Cell(f"{value.value:{form}}", value.interval(form), value.value)
    if form == "p":
        is_small = value is not None and value < SMALLEST_P
        return Cell(f"<{SMALLEST_P}", value=value) if is_small else number(value)
    return number(value, form)


class PageText:
    """Words and tables of a page, from ``text/<name>.yaml``.

    The file holds by name ``sections`` (a title, or a title with ``paragraphs``), ``figures``
    (title and caption) and ``tables``: title, ``notes``, ``columns``, and as ``low`` the columns
    in which a low value is good. A column is a head with the path of its value in a row, and the
    format of numbers behind it: ``AUROC: found.prediction.auroc .3f``. A table without
    ``columns`` shows its rows as they are. Braces in texts are filled with values of the page.

    Args:
        name: Of the page.
        **values: What the braces stand for.
    """

    def __init__(self, name: str, **values: Any) -> None:
        self._text = read_yaml(TEXT / f"{name}.yaml")
        self._values = values

    def section(
        self,
        name: str,
        *,
        figures: Mapping[str, Figure] = MappingProxyType({}),
        tables: Mapping[str, Sequence[Row]] = MappingProxyType({}),
        paragraphs: Sequence[str] = (),
    ) -> Section:
        """A section with its figures and tables by name; a table without rows is left out.

        Args:
            name: Of the section.
            figures: Drawings.
            tables: Rows: what the first name of a column's path stands for, or the cells by the
                head of their column.
            paragraphs: They come behind those of the file.
        """
        said = self._text["sections"][name]
        words = {"title": said} if isinstance(said, str) else said
        drawn = []
        for key, figure in figures.items():
            title, caption = map(self._filled, self._text["figures"][key])
            drawn.append(PageFigure(key, title, caption, figure))
        shown = tuple(self._table(key, rows) for key, rows in tables.items() if rows)
        whole = (*map(self._filled, words.get("paragraphs", ())), *paragraphs)
        return Section(name, words["title"], whole, tuple(drawn), shown)

    def _table(self, name: str, rows: Sequence[Row]) -> PageTable:
        words = self._text["tables"][name]
        heads, low = words.get("columns", rows[0]), words.get("low", ())
        if "columns" in words:
            paths = [path.partition(" ") for path in heads.values()]
            cells = [[cell(_value(row, path), form) for path, _, form in paths] for row in rows]
        else:
            cells = [[cell(row[head]) for head in heads] for row in rows]
        columns = tuple(
            Column(head, any(row[place].value is not None for row in cells), head in low)
            for place, head in enumerate(heads)
        )
        # a value of several lines is as many notes
        notes = "\n".join(map(self._filled, words.get("notes", ()))).splitlines()
        return PageTable(name, words["title"], columns, tuple(map(tuple, cells)), tuple(notes))

    def _filled(self, text: str) -> str:
        return " ".join(text.split()).format(**self._values)


def _value(row: Row, path: str) -> Any:
    """The value at a dotted path; ``None`` where a part of it is ``None``."""
    first, *rest = path.split(".")
    value = row[first]
    for part in rest:
        value = None if value is None else getattr(value, part)
    return value


def text_rows(rows: Sequence[Sequence[str]]) -> tuple[tuple[Cell, ...], ...]:
    """Rows of plain texts."""
    return tuple(tuple(Cell(text) for text in row) for row in rows)
