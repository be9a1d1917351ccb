"""The report of a transfer from store to store."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from graphhalu.core.documents import read_document
from graphhalu.core.errors import NotEnoughDataError
from graphhalu.evaluation.transfer import KIND, TRANSFER_FILE, TransferCell, TransferResult
from graphhalu.report.frame import data, frame_sections, protocol_text
from graphhalu.report.heatmaps import transfer_figure
from graphhalu.report.labels import METRIC_NAMES, metric_names, metric_title
from graphhalu.report.page import (
    ABSENT,
    Cell,
    Column,
    Page,
    PageFigure,
    PageTable,
    Section,
    metric_cell,
    number,
    text_rows,
)

_MOST_PANELS: Final = 6


def read_transfer(folder: Path) -> TransferResult | None:
    """The transfer of a folder, or ``None`` if there is none.

    Raises:
        DataFileError: If the file is of another format or version, or does not validate.
    """
    path = folder / TRANSFER_FILE
    if not path.exists():
        return None
    return read_document(path, TransferResult, KIND)


def transfer_page(found: TransferResult) -> Page:
    """The report of a transfer alone."""
    names = list(found.stores)
    detectors = found.detectors()
    sections = transfer_sections(found)
    reading = Section(
        "reading",
        "How to read this",
        (
            (
                "Every fold of a store is fitted once. On the diagonal it scores its own test side; "
                "beside it, answers of another store to questions that it has not seen."
            ),
        ),
        tables=(
            PageTable(
                "metric-words",
                "The metrics",
                (Column("metric"), Column("meaning")),
                text_rows(
                    [
                        [m.title, m.meaning]
                        for n, m in METRIC_NAMES.items()
                        if any(n in cell.metrics for cell in found.cells)
                    ]
                ),
            ),
        ),
    )
    frame = frame_sections(found.config, found.provenance, {}, reading)
    cards = [
        data(store, f"data-{number}")
        for number, store in enumerate(found.stores.values())
        if isinstance(store, Mapping)
    ]
    kept = [section for section in frame if section.name != "data"]
    all_sections = (*sections, *kept[:1], *_different(cards), *kept[1:])
    return Page(
        f"Transfer between {len(names)} stores",
        headline(found),
        (
            ("stores", ", ".join(names) or ABSENT),
            ("detectors", str(len(detectors))),
            ("protocol", protocol_text(found.config)),
        ),
        tuple(s for s in all_sections if s.paragraphs or s.figures or s.tables),
    )


def headline(found: TransferResult) -> tuple[str, str]:
    """Which detector transfers best, and what transfer costs it."""
    means = {name: _mean_auroc(found, name, is_home=False) for name in detectors_by_transfer(found)}
    best = next((name for name, value in means.items() if value is not None), None)
    if best is None:
        return "No detector could be tested on another store.", "The reasons stand below."
    away, home = means[best], _mean_auroc(found, best, is_home=True)
    at_home = "has no AUROC at home" if home is None else f"{home:.3f} at home"
    return (
        f"The best transfer is that of {best}: mean AUROC {away:.3f} on other stores, {at_home}.",
        (
            "Intervals of single cells stand below; a mean over cells has none, since they share "
            "questions and models."
        ),
    )


def transfer_sections(found: TransferResult) -> list[Section]:
    """Heat map, table and failures."""
    detectors = detectors_by_transfer(found)
    shown = [name for name in detectors if _mean_auroc(found, name, is_home=None) is not None]
    figures: tuple[PageFigure, ...] = ()
    try:
        drawn = transfer_figure(found.cells, shown[:_MOST_PANELS])
    except (NotEnoughDataError, IndexError):
        pass
    else:
        caption = (
            "AUROC of detectors trained on one store (down) and tested on another (across); on "
            "the diagonal, cross-fit within a store. "
            f"{'The best six by transfer are shown.' if len(shown) > _MOST_PANELS else ''}"
        ).strip()
        figures = (PageFigure("transfer", "Transfer matrix", caption, drawn),)
    names = metric_names({name for cell in found.cells for name in cell.metrics})
    columns = (
        Column("detector"),
        Column("trained on"),
        Column("tested on"),
        *(Column(metric_title(name), is_number=True) for name in names),
        Column("answers", is_number=True),
        Column("dropped", is_number=True),
        Column("coverage", is_number=True),
    )
    rows = tuple(_row(cell, names) for name in detectors for cell in found.cells if cell.detector == name)
    notes = ("Dropped: answers to questions that every fold of the training store had seen.",)
    table = PageTable("transfer-table", "Every cell", columns, rows, notes)
    failures = [
        [cell.detector, cell.train, cell.test, cell.failure]
        for cell in found.cells
        if cell.failure is not None
    ]
    sections = [Section("transfer", "Transfer", figures=figures, tables=(table,))]
    if failures:
        heads = ("detector", "trained on", "tested on", "reason")
        failed = PageTable(
            "transfer-failures", "Cells without metrics", tuple(map(Column, heads)), text_rows(failures)
        )
        sections.append(Section("transfer-failed", "Failed cells", tables=(failed,)))
    return sections


def detectors_by_transfer(found: TransferResult) -> list[str]:
    """Detectors by falling mean AUROC on stores that they were not trained on."""
    means = {name: _mean_auroc(found, name, is_home=False) for name in found.detectors()}
    return sorted(means, key=lambda name: -(means[name] or 0.0))


def _mean_auroc(found: TransferResult, detector: str, *, is_home: bool | None) -> float | None:
    """Mean over cells at home or away; over all of them if ``is_home`` is ``None``."""
    values = [
        cell.metrics["auroc"].value
        for cell in found.cells
        if cell.detector == detector
        and "auroc" in cell.metrics
        and is_home in {None, cell.train == cell.test}
    ]
    return sum(values) / len(values) if values else None


def _row(cell: TransferCell, names: list[str]) -> tuple[Cell, ...]:
    metrics = [metric_cell(cell.metrics.get(name)) for name in names]
    if cell.failure is not None and metrics:
        metrics[0] = Cell("failed")
    return (
        Cell(cell.detector),
        Cell(cell.train),
        Cell(cell.test),
        *metrics,
        number(cell.n_traces, ",.0f"),
        number(cell.n_dropped, ",.0f"),
        number(cell.coverage, ".0%"),
    )


def _different(cards: list[Section]) -> list[Section]:
    """Two stores of one data set need its card once."""
    found: dict[str, Section] = {}
    for card in cards:
        key = card.tables[0].title if card.tables else str(card.paragraphs)
        found.setdefault(key, card)
    return list(found.values())
