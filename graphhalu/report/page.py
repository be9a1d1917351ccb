"""Page of a report, before it is HTML or Markdown: sections of text, tables and figures."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from matplotlib.figure import Figure

from graphhalu.config import read_yaml
from graphhalu.evaluation.bootstrap import Estimate
from graphhalu.evaluation.result import MetricValue

ABSENT: Final = "-"
TEXT: Final = Path(__file__).parent / "text"


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


Row = Mapping[str, Cell | str]
"""Cells of a table by the head of their column."""


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


def estimate_cell(estimate: Estimate | None, form: str = ".3f") -> Cell:
    """An estimate above its interval."""
    if estimate is None:
        return Cell(ABSENT)
    return Cell(f"{estimate.value:{form}}", estimate.interval(form), estimate.value)


def table(
    name: str,
    title: str,
    rows: Sequence[Row],
    notes: Sequence[str] = (),
    *,
    low: Sequence[str] = (),
) -> PageTable:
    """A table of rows that name their columns.

    Args:
        name: A word of letters, digits and hyphens.
        title: What it is.
        rows: Cells by the head of their column, all rows with the same heads in the same order;
            a text is a cell without a value. A column with a value in any row holds numbers.
        notes: One paragraph each.
        low: Columns in which a low value is good.
    """
    heads = list(rows[0]) if rows else []
    cells = [
        [cell if isinstance(cell, Cell) else Cell(cell) for cell in row.values()] for row in rows
    ]
    columns = tuple(
        Column(head, any(row[place].value is not None for row in cells), head in low)
        for place, head in enumerate(heads)
    )
    return PageTable(name, title, columns, tuple(map(tuple, cells)), tuple(notes))


class PageText:
    """Words of a page: titles, captions and notes, from ``text/<name>.yaml``.

    The file holds ``sections`` (a title, or a title with ``paragraphs``), ``figures`` (title and
    caption) and ``tables`` (title, ``notes``, and as ``low`` the columns in which a low value is
    good), each by name. Braces in it are filled with values of the page.

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

        ``paragraphs`` come behind those of the file.
        """
        said = self._text["sections"][name]
        words = {"title": said} if isinstance(said, str) else said
        drawn = tuple(
            PageFigure(key, *map(self._filled, self._text["figures"][key]), figure)
            for key, figure in figures.items()
        )
        shown = tuple(self._table(key, rows) for key, rows in tables.items() if rows)
        whole = (*map(self._filled, words.get("paragraphs", ())), *paragraphs)
        return Section(name, words["title"], whole, drawn, shown)

    def _table(self, name: str, rows: Sequence[Row]) -> PageTable:
        words = self._text["tables"][name]
        notes = [self._filled(note) for note in words.get("notes", ())]
        return table(name, words["title"], rows, notes, low=words.get("low", ()))

    def _filled(self, text: str) -> str:
        return " ".join(text.split()).format(**self._values)


def text_rows(rows: Sequence[Sequence[str]]) -> tuple[tuple[Cell, ...], ...]:
    """Rows of plain texts."""
    return tuple(tuple(Cell(text) for text in row) for row in rows)
