"""The report of a run, of a transfer among them, and its files: HTML, Markdown, figures beside them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pandas as pd
from matplotlib.figure import Figure

from graphhalu.core.documents import read_document
from graphhalu.core.errors import DataFileError
from graphhalu.core.files import replace_file
from graphhalu.evaluation.result import RESULT_FILE, has_result, read_result
from graphhalu.evaluation.significance import with_methods
from graphhalu.evaluation.transfer import KIND, TRANSFER_FILE, TransferResult
from graphhalu.evaluation.univariate import read_maps
from graphhalu.report.comparison import around_chance, comparison_page
from graphhalu.report.drawing import save_figure
from graphhalu.report.page import (
    Page,
    data,
    frame,
    make_page,
    metric_cells,
    metric_meanings,
    named,
    protocol_text,
    report_html,
    report_markdown,
    say,
    sections,
)
from graphhalu.report.plots import heat_maps
from graphhalu.report.tables import ABSENT, cut

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
        more = sections("transfer", **_content(transfer)) if transfer is not None else ()
        return comparison_page(with_methods(read_result(folder)), read_maps(folder), more)
    if transfer is None:
        raise DataFileError(
            f"no result in {folder}: neither {RESULT_FILE} nor {TRANSFER_FILE} is there\n"
            f"  Run:  graphhalu compare"
        )
    return transfer_page(transfer)


_MOST_PANELS: Final = 6
_say = partial(say, "transfer")


def read_transfer(folder: Path) -> TransferResult | None:
    """The transfer of a folder, or ``None`` if there is none.

    Raises:
        DataFileError: If the file is of another format or version, or does not validate.
    """
    path = folder / TRANSFER_FILE
    return read_document(path, TransferResult, KIND) if path.exists() else None


def transfer_page(found: TransferResult) -> Page:
    """The report of a transfer alone."""
    stores = [store for store in found.stores.values() if isinstance(store, Mapping)]
    # two stores of one data set need its card once
    cards = {named(store, "dataset"): store for store in reversed(stores)}
    ready = frame(found.config, found.provenance, {})
    ready["data"] = [data(each, f"data-{n}") for n, each in enumerate(reversed(cards.values()))]
    content = _content(found)
    content["tables"]["metric-words"] = metric_meanings(each.metrics for each in found.cells)
    return make_page(
        "transfer",
        headline(found),
        ready=ready,
        n_stores=len(found.stores),
        stores=", ".join(found.stores) or ABSENT,
        n_detectors=len(found.detectors()),
        protocol=protocol_text(found.config),
        **content,
    )


def headline(found: TransferResult) -> tuple[str, str]:
    """Which detector transfers best, and what transfer costs it."""
    aurocs = _aurocs(found)
    away = aurocs[aurocs.train != aurocs.test].groupby("detector").auroc.mean()
    if away.empty:
        return _say("nothing"), _say("reasons")
    best = str(away.idxmax())
    home = aurocs[(aurocs.train == aurocs.test) & (aurocs.detector == best)].auroc.mean()
    at_home = "has no AUROC at home" if home != home else f"{home:.3f} at home"  # noqa: PLR0124
    return _say("best", best=best, away=away[best], at_home=at_home), _say("means")


def transfer_figure(found: TransferResult, detectors: list[str]) -> Figure:
    """AUROC of detectors trained on one store (down) and tested on another (across), a panel each.

    Raises:
        NotEnoughDataError: If no cell of them has an AUROC.
    """
    stores, panels = list(dict.fromkeys(each.train for each in found.cells)), []
    aurocs = _aurocs(found).set_index(["detector", "train", "test"]).auroc
    for detector in detectors:
        values = aurocs[detector].unstack().reindex(index=stores, columns=stores)
        texts = values.map("{:.3f}".format).where(values.notna(), "failed").to_numpy()
        panels.append({"values": values.to_numpy(), "title": cut(detector, 32), "texts": texts})
    same = {"norm": around_chance(panel["values"] for panel in panels), "bar": "AUROC (0.5 = chance)"}
    names = [cut(store, 14) for store in stores]
    labels = ("tested on", "trained on")
    return heat_maps(panels, cell_in=0.62, n_columns=2, labels=labels, rows=names, columns=names, **same)


def _content(found: TransferResult) -> dict[str, Any]:
    """Figures and tables by name, detectors by falling mean AUROC on other stores."""
    aurocs = _aurocs(found)
    away = aurocs[aurocs.train != aurocs.test].groupby("detector").auroc.mean()
    detectors = sorted(found.detectors(), key=lambda name: -away.get(name, 0.0))
    shown = [name for name in detectors if name in set(aurocs.detector)]
    ordered = [each for name in detectors for each in found.cells if each.detector == name]
    pairs = zip(ordered, metric_cells(ordered), strict=True)
    tables = {"transfer-table": [{"cell": each, "metrics": metrics} for each, metrics in pairs]}
    tables["transfer-failures"] = [{"cell": each} for each in found.cells if each.failure is not None]
    figures = {"transfer": partial(transfer_figure, found, shown[:_MOST_PANELS])} if shown else {}
    return {"figures": figures, "tables": tables}


def _aurocs(found: TransferResult) -> pd.DataFrame:
    """AUROC by detector and both stores, without failed cells."""
    known = [each for each in found.cells if "auroc" in each.metrics]
    rows = [(each.detector, each.train, each.test, each.metrics["auroc"].value) for each in known]
    return pd.DataFrame(rows, columns=["detector", "train", "test", "auroc"])
