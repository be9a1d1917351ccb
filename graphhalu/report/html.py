"""A report as one self-contained page; figures are the only markup that is passed in.

Frame and style are those of :mod:`graphhalu.report.theme`; the only script sorts tables.
"""

from markupsafe import Markup

from graphhalu.report.drawing import inline_svg
from graphhalu.report.page import Page
from graphhalu.report.theme import TEMPLATES, render


def report_html(page: Page) -> str:
    """A report as one HTML page."""
    drawn = {
        figure.name: Markup(  # noqa: S704  # drawn here, every text in it escaped
            inline_svg(figure.figure, f"fig-{figure.name}", title=figure.title, description=figure.caption)
        )
        for figure in page.figures
    }
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    return render("report.html", TEMPLATES, script=script, page=page, drawn=drawn)
