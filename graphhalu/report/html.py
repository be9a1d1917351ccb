"""A report as one self-contained page; figures are the only markup that is passed in.

Frame and style are those of :mod:`graphhalu.look.page`; the only script sorts tables.
"""

from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from graphhalu.look import page as look
from graphhalu.report.drawing import inline_svg
from graphhalu.report.page import Page

TEMPLATES: Final = Path(__file__).parent / "templates"


def report_html(page: Page) -> str:
    """A report as one HTML page."""
    drawn = {
        figure.name: Markup(  # noqa: S704  # drawn here, every text in it escaped
            inline_svg(
                figure.figure, f"fig-{figure.name}", title=figure.title, description=figure.caption
            )
        )
        for figure in page.figures
    }
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    return render("report.html", script=script, page=page, drawn=drawn)


def render(template: str, *, script: str = "", **values: Any) -> str:
    """A template of the reports in the house style; see :func:`graphhalu.look.page.render`.

    Args:
        template: File in :data:`TEMPLATES`; it extends ``base.html``.
        script: The only code that the page may run.
        **values: What the template shows; all of it is escaped but ``Markup``.
    """
    return look.render(template, TEMPLATES, script=script, **values)
