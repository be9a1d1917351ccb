"""Pages: sections of text, figures and tables, written as one self-contained HTML file and as Markdown.

Texts and columns are those of ``text/<name>.yaml``; the module of a page gives figures, rows and
values. The only markup that is passed to the template is that of the figures. Around every page
stand its protocol, its data set, its provenance and the names of its metrics.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import Any, Final

from markupsafe import Markup
from matplotlib.figure import Figure

from graphhalu.core.config import read_yaml
from graphhalu.core.errors import NotEnoughDataError
from graphhalu.core.numerics import json_ready
from graphhalu.datasets.registry import DATASETS
from graphhalu.evaluation.result import DetectorRow
from graphhalu.evaluation.transfer import TransferCell
from graphhalu.report.drawing import inline_svg
from graphhalu.report.tables import (
    Cell,
    Row,
    Table,
    cell,
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


@cache
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


_MOST: int = 60
"""Items of a list that a setting shows."""


def metric_cells(rows: Sequence[DetectorRow | TransferCell]) -> list[dict[str, Cell]]:
    """Metrics of each row by their titles, in the order of a table; a failed one says so first.

    Metrics without a title of their own come last.
    """
    known, names = read_text("frame")["metrics"], {name for row in rows for name in row.metrics}
    titles = {name: title for name, (title, _) in known.items() if name in names}
    titles |= {name: name for name in sorted(names - known.keys())}
    made = [{title: cell(row.metrics.get(name)) for name, title in titles.items()} for row in rows]
    for row, cells in zip(rows, made, strict=True):
        if row.failure is not None and cells:
            cells[next(iter(cells))] = Cell("failed")
    return made


def metric_meanings(found: Iterable[Iterable[str]]) -> list[Row]:
    """What metrics say, a row each.

    Args:
        found: Names of metrics, one collection a detector.
    """
    known, names = read_text("frame")["metrics"], {name for each in found for name in each}
    return [{"title": title, "meaning": said} for name, (title, said) in known.items() if name in names]


def protocol_text(config: Mapping[str, Any]) -> str:
    """Folds and seeds in a few words."""
    seeds = config.get("seeds", [])
    words = f"{len(seeds)} seed{'' if len(seeds) == 1 else 's'}"
    if config.get("quick"):
        return f"one 60 / 20 / 20 split by question, {words}; a fifth of the answers is tested"
    return f"{config.get('n_folds', '?')} grouped folds, {words}"


def frame(
    config: Mapping[str, Any], provenance: Mapping[str, Any], store: Mapping[str, Any]
) -> dict[str, list[Section]]:
    """The finished sections ``protocol`` and ``provenance`` of a page.

    Args:
        config: Every setting.
        provenance: Versions, machine and code state.
        store: Where the traces are from; its path loses its folders.
    """
    names = read_text("frame")["settings"]
    settings = _table("settings", {names.get(field, field): value for field, value in config.items()})
    protocol = [Section("protocol", "Protocol", tables=settings)] if settings else []
    said = {name: value for name, value in provenance.items() if value not in ({}, [], None)}
    if isinstance(packages := said.get("packages"), Mapping):
        said["packages"] = ", ".join(f"{name} {version}" for name, version in packages.items())
    whole: dict[str, Any] = {
        name: file_name(str(value)) if name == "path" else value for name, value in store.items()
    }
    made_from = {name: value for name, value in whole.items() if name != "configuration"}
    made_from |= whole.get("configuration") or {}
    tables = (*_table("made-with", said), *_table("made-from", made_from))
    text = json.dumps(json_ready({"provenance": provenance, "store": whole}), ensure_ascii=False, indent=1)
    made = Section("provenance", "Provenance", tables=tables, folded=(("The same as JSON", text),))
    return {"protocol": protocol, "provenance": [made] if tables else []}


def data(store: Mapping[str, Any], name: str = "data") -> Section:
    """The data set of the questions, with its licence and its known faults."""
    dataset = named(store, "dataset")
    if dataset not in DATASETS:
        said = f"{dataset!r} is none of the known data sets" if dataset else "The store names none"
        return Section(name, "Data set", (f"{said}: its licence is not known here.",))
    card = DATASETS.get(dataset).card
    rows = [(field, getattr(card, field)) for field in ("name", "task", "licence", "source", "citation")]
    rows += [("label rule that suits it", card.label_rule)]
    rows += [("known fault", fault) for fault in card.artefacts]
    described = read_text("frame")["tables"]["card"]
    cells = [{"name": what, "value": value} for what, value in rows]
    table = make_table(f"{name}-card", described, cells, card=card.name)
    return Section(name, "Data set and licence", tables=(table,))


def named(store: Mapping[str, Any], what: str) -> str:
    """The name of the model or the data set of a store; empty where it names none."""
    part = store.get("configuration", {}).get(what)
    name = part.get("name") if isinstance(part, Mapping) else None
    return str(name) if name else ""


def file_name(path: str) -> str:
    """The last part of a path; a report that is passed on need not tell somebody's folders."""
    return PureWindowsPath(PurePosixPath(path).name).name


def _table(name: str, values: Mapping[str, Any]) -> tuple[Table, ...]:
    """Names and values as a table of two columns; nothing where there are none."""
    described = read_text("frame")["tables"][name]
    rows = [row for field, value in values.items() for row in _rows(str(field), value)]
    return (make_table(name, described, rows),) if rows else ()


def _rows(name: str, value: Any) -> list[Row]:
    """A value as rows: one for each of its fields, their names joined by a dot."""
    if isinstance(value, Mapping) and value:
        return [row for field, below in value.items() for row in _rows(f"{name} · {field}", below)]
    return [{"name": name, "value": _plain(value)}]


def _plain(value: Any) -> str:
    if value is None or value in ({}, [], ()):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(item, str | int) for item in value):
        listed = ", ".join(str(item) for item in value[:_MOST])
        return listed + (f" and {len(value) - _MOST} more" if len(value) > _MOST else "")
    return json.dumps(value, ensure_ascii=False)
