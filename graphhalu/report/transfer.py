"""The report of a transfer from store to store."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from matplotlib.figure import Figure

from graphhalu.evaluation.files import read_document
from graphhalu.evaluation.transfer import KIND, TRANSFER_FILE, TransferResult
from graphhalu.report.comparison import around_chance
from graphhalu.report.frame import data, frame, metric_cells, metric_meanings, protocol_text
from graphhalu.report.page import Page, Section, make_page, say, sections
from graphhalu.report.plots import heat_maps
from graphhalu.report.tables import ABSENT, Row, cell, cut

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
    cards = [
        data(store, f"data-{number}")
        for number, store in enumerate(found.stores.values())
        if isinstance(store, Mapping)
    ]
    # two stores of one data set need its card once
    different = {
        card.tables[0].title if card.tables else str(card.paragraphs): card for card in reversed(cards)
    }
    ready = {"data": list(reversed(different.values())), **frame(found.config, found.provenance, {})}
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


def transfer_sections(found: TransferResult) -> tuple[Section, ...]:
    """Heat map, table and failures, for the report of a comparison."""
    return sections("transfer", **_content(found))


def headline(found: TransferResult) -> tuple[str, str]:
    """Which detector transfers best, and what transfer costs it."""
    means = {name: _mean_auroc(found, name, is_home=False) for name in detectors_by_transfer(found)}
    best = next((name for name, value in means.items() if value is not None), None)
    if best is None:
        return _say("nothing"), _say("reasons")
    home = _mean_auroc(found, best, is_home=True)
    at_home = "has no AUROC at home" if home is None else f"{home:.3f} at home"
    return _say("best", best=best, away=means[best], at_home=at_home), _say("means")


def detectors_by_transfer(found: TransferResult) -> list[str]:
    """Detectors by falling mean AUROC on stores that they were not trained on."""
    means = {name: _mean_auroc(found, name, is_home=False) for name in found.detectors()}
    return sorted(means, key=lambda name: -(means[name] or 0.0))


def transfer_figure(found: TransferResult, detectors: list[str]) -> Figure:
    """AUROC of detectors trained on one store (down) and tested on another (across), a panel each.

    Raises:
        NotEnoughDataError: If no cell of them has an AUROC.
    """
    names = list(dict.fromkeys(each.train for each in found.cells))
    aurocs = {
        (each.detector, each.train, each.test): each.metrics["auroc"].value
        for each in found.cells
        if "auroc" in each.metrics
    }
    short = [cut(name, 14) for name in names]
    panels: list[dict[str, Any]] = []
    for detector in detectors:
        values = [[aurocs.get((detector, a, b), float("nan")) for b in names] for a in names]
        panels.append(
            {
                "values": values,
                "title": cut(detector, 32),
                "bar": "AUROC (0.5 = chance)",
                "columns": short,
                "rows": short,
                "texts": [
                    ["failed" if value != value else f"{value:.3f}" for value in row] for row in values
                ],
            }
        )
    norm = around_chance([panel["values"] for panel in panels])
    labels = ("tested on", "trained on")
    return heat_maps([{**panel, "norm": norm} for panel in panels], cell_in=0.62, n_columns=2, labels=labels)


def _content(found: TransferResult) -> dict[str, Any]:
    """Figures and tables by name."""
    detectors = detectors_by_transfer(found)
    shown = [name for name in detectors if _mean_auroc(found, name, is_home=None) is not None]
    ordered = [each for name in detectors for each in found.cells if each.detector == name]
    rows: list[Row] = []
    for each, metrics in zip(ordered, metric_cells(ordered), strict=True):
        sizes = {
            "answers": cell(each.n_traces, ",.0f"),
            "dropped": cell(each.n_dropped, ",.0f"),
            "coverage": cell(each.coverage, ".0%"),
        }
        rows.append(
            {"detector": each.detector, "trained on": each.train, "tested on": each.test, **metrics, **sizes}
        )
    failures = [{"cell": each} for each in found.cells if each.failure is not None]
    return {
        "figures": {"transfer": partial(transfer_figure, found, shown[:_MOST_PANELS])} if shown else {},
        "tables": {"transfer-table": rows, "transfer-failures": failures},
    }


def _mean_auroc(found: TransferResult, detector: str, *, is_home: bool | None) -> float | None:
    """Mean over cells at home or away; over all of them if ``is_home`` is ``None``."""
    values = [
        each.metrics["auroc"].value
        for each in found.cells
        if each.detector == detector
        and "auroc" in each.metrics
        and is_home in {None, each.train == each.test}
    ]
    return sum(values) / len(values) if values else None
