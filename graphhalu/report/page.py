"""Pages: sections of text, figures and tables, written as one self-contained HTML file and as Markdown.

Texts and columns are those of ``text/<name>.yaml``; the module of a page gives figures, rows and
values. The only markup that is passed to the template is that of the figures.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from markupsafe import Markup
from matplotlib.figure import Figure

from graphhalu.core.config import read_yaml
from graphhalu.core.errors import NotEnoughDataError
from graphhalu.report.drawing import inline_svg
from graphhalu.report.tables import (
    Row,
    Table,
    filled,
    make_table,
    markdown_cell,
    markdown_table,
    markdown_text,
)
from graphhalu.report.theme import TEMPLATES, render

TEXT: Final = Path(__file__).parent / "text"
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(frozen=True)
class PageFigure:
    """A figure.

    Attributes:
        name: A word of letters, digits and hyphens; also the name of its files.
        title: Its title.
        caption: What is shown and how to read it, also for those who do not see it.
        figure: The drawing.
    """

    name: str
    title: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Section:
    """A part of a page."""

    name: str
    title: str
    paragraphs: tuple[str, ...] = ()
    figures: tuple[PageFigure, ...] = ()
    tables: tuple[Table, ...] = ()
    folded: tuple[tuple[str, str], ...] = ()
    """Long texts for those who ask, on the HTML page only: what each is, and its lines."""


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        title: What was compared or studied.
        headline: Two plain sentences that say the result.
        facts: The numbers that frame it, by name.
        sections: In reading order.
    """

    title: str
    headline: tuple[str, str]
    facts: Mapping[str, str]
    sections: tuple[Section, ...]

    @property
    def figures(self) -> tuple[PageFigure, ...]:
        """All figures."""
        return tuple(figure for section in self.sections for figure in section.figures)


def read_text(name: str) -> dict[str, Any]:
    """The texts of a page: ``sections``, ``figures``, ``tables`` and ``sentences`` by name."""
    return read_yaml(TEXT / f"{name}.yaml")


def say(name: str, key: str, /, **values: Any) -> str:
    """A sentence of a page, its braces filled with values."""
    return filled(read_text(name)["sentences"][key], values)


def figure_words(name: str, figure: str) -> dict[str, Any]:
    """Labels of a figure, which are behind its title and its caption."""
    words: dict[str, Any] = read_text(name)["figures"][figure][2]
    return words


def make_page(name: str, headline: tuple[str, str], /, **content: Any) -> Page:
    """A page with the ``title`` and the ``facts`` of its texts; facts without words are left out.

    Args:
        name: Of the page.
        headline: Two plain sentences that say the result.
        **content: As those of :func:`sections`.
    """
    text = read_text(name)
    facts = {fact: said for fact, words in text["facts"].items() if (said := filled(words, content))}
    return Page(filled(text["title"], content), headline, facts, sections(name, **content))


def sections(
    name: str,
    /,
    *,
    figures: Mapping[str, Callable[[], Figure]] = _NOTHING,
    tables: Mapping[str, Sequence[Row]] = _NOTHING,
    paragraphs: Mapping[str, Sequence[str]] = _NOTHING,
    ready: Mapping[str, Sequence[Section]] = _NOTHING,
    **values: Any,
) -> tuple[Section, ...]:
    """The sections of a page in the order of its texts; those without content are left out.

    A section in ``text/<name>.yaml`` is a title, or has a ``title``, ``paragraphs``, a ``lead`` that
    is shown with its figures and tables only, and the names of its ``figures`` and ``tables``. An
    empty one takes the finished sections of its name. A figure is a title with a caption and, as
    wanted, its labels, a table what :func:`graphhalu.report.tables.make_table` reads.

    Args:
        name: Of the page.
        figures: What draws each figure. Where that raises ``NotEnoughDataError`` the section says so.
        tables: Rows; a table without any is left out.
        paragraphs: By section; they come after those of the file.
        ready: Finished sections.
        **values: What braces in the texts are filled with.
    """
    text, made = read_text(name), list[Section]()
    for key, given in text["sections"].items():
        if given is None:
            made += ready.get(key, ())
            continue
        words = {"title": given} if isinstance(given, str) else given
        drawn, reasons = list[PageFigure](), list[str]()
        for each in (name for name in words.get("figures", ()) if name in figures):
            figure_title, caption, *_ = text["figures"][each]
            try:
                drawn.append(PageFigure(each, figure_title, filled(caption, values), figures[each]()))
            except NotEnoughDataError as error:
                reasons.append(f"{figure_title} is not shown: {error}.")
        with_rows = (each for each in words.get("tables", ()) if tables.get(each))
        shown = [make_table(each, text["tables"][each], tables[each], **values) for each in with_rows]
        lead = words.get("lead", ()) if drawn or shown else ()
        said = [filled(each, values) for each in (*lead, *words.get("paragraphs", ()))]
        said += [*paragraphs.get(key, ()), *reasons]
        if said or drawn or shown:
            made.append(Section(key, words["title"], tuple(said), tuple(drawn), tuple(shown)))
    return tuple(made)


def report_html(page: Page) -> str:
    """A page as HTML; its only script sorts tables."""
    drawn = {
        figure.name: Markup(  # noqa: S704  # drawn here, every text in it escaped
            inline_svg(figure.figure, f"fig-{figure.name}", title=figure.title, description=figure.caption)
        )
        for figure in page.figures
    }
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    return render("report.html", TEMPLATES, script=script, page=page, drawn=drawn)


def report_markdown(page: Page, pictures: Mapping[str, str]) -> str:
    """A page as Markdown.

    Args:
        page: The page.
        pictures: File of each figure, by its name.
    """
    blocks = [f"# {markdown_text(page.title)}", *map(markdown_text, page.headline)]
    blocks.append("\n".join(f"- **{name}**: {markdown_text(value)}" for name, value in page.facts.items()))
    for section in page.sections:
        blocks += [f"## {markdown_text(section.title)}", *map(markdown_text, section.paragraphs)]
        for figure in section.figures:
            blocks.append(f"![{markdown_cell(figure.title)}]({pictures[figure.name]})")
            blocks.append(markdown_text(figure.caption))
        for table in section.tables:
            blocks += [f"### {markdown_text(table.title)}", markdown_table(table)]
            blocks += map(markdown_text, table.notes)
    return "\n\n".join(blocks) + "\n"
