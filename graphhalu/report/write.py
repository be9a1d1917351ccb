"""Files of a page: HTML, Markdown, and figures beside them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from graphhalu.core.errors import DataFileError
from graphhalu.core.files import replace_file
from graphhalu.evaluation.methods import with_methods
from graphhalu.evaluation.result import RESULT_FILE, has_result, read_result
from graphhalu.evaluation.transfer import TRANSFER_FILE
from graphhalu.evaluation.univariate import read_maps
from graphhalu.report.comparison import comparison_page
from graphhalu.report.drawing import save_figure
from graphhalu.report.page import Page, report_html, report_markdown
from graphhalu.report.transfer import read_transfer, transfer_page, transfer_sections

REPORT_FILE: Final = "report.html"


@dataclass(frozen=True)
class ReportFiles:
    """Files of a written page."""

    html: Path
    markdown: Path
    figures: tuple[Path, ...]


def write_report(folder: Path, out: Path | None = None, *, has_svg: bool = False) -> ReportFiles:
    """Write the report of a comparison, a transfer, or both, from the files of its folder.

    Args:
        folder: Folder of the run.
        out: The HTML file; Markdown and figures are written beside it. By default ``report.html``
            in the folder. Another name than ``report`` is put before the figures' names.
        has_svg: Whether figures are also written as SVG files.

    Raises:
        DataFileError: If the folder holds no result, or one that cannot be read.
        CorruptStoreError: If scores are not those that the result was written with.
    """
    page = read_page(folder)
    target = out or folder / REPORT_FILE
    prefix = "" if target.stem == Path(REPORT_FILE).stem else f"{target.stem}-"
    return write_page(page, target, has_svg=has_svg, prefix=prefix)


def write_page(page: Page, target: Path, *, has_svg: bool = False, prefix: str = "") -> ReportFiles:
    """Write a page as HTML, as Markdown, and its figures beside them.

    Args:
        page: The page.
        target: The HTML file; its folder is made if it is missing.
        has_svg: Whether figures are also written as SVG files.
        prefix: Put before the names of the figures' files.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    kinds, figures = (".png", ".svg") if has_svg else (".png",), list[Path]()
    for figure in page.figures:
        stem = f"{prefix}{figure.name}"
        figures += [save_figure(figure.figure, target.parent / f"{stem}{kind}") for kind in kinds]
    replace_file(target, report_html(page).encode())
    pictures = {figure.name: f"{prefix}{figure.name}.png" for figure in page.figures}
    markdown = target.with_suffix(".md")
    replace_file(markdown, report_markdown(page, pictures).encode())
    return ReportFiles(target, markdown, tuple(figures))


def read_page(folder: Path) -> Page:
    """The report of a run.

    Raises:
        DataFileError: If the folder holds no result, or one that cannot be read.
        CorruptStoreError: If scores are not those that the result was written with.
    """
    transfer = read_transfer(folder)
    if has_result(folder):
        more = transfer_sections(transfer) if transfer is not None else ()
        return comparison_page(with_methods(read_result(folder)), read_maps(folder), more)
    if transfer is None:
        raise DataFileError(
            f"no result in {folder}: neither {RESULT_FILE} nor {TRANSFER_FILE} is there\n"
            f"  Run:  graphhalu compare"
        )
    return transfer_page(transfer)
