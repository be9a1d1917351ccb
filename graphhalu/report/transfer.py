"""The report of a transfer from store to store."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import pandas as pd
from matplotlib.figure import Figure

from graphhalu.core.documents import read_document
from graphhalu.evaluation.transfer import KIND, TRANSFER_FILE, TransferResult
from graphhalu.report.comparison import around_chance
from graphhalu.report.frame import data, frame, metric_cells, metric_meanings, named, protocol_text
from graphhalu.report.page import Page, Section, make_page, say, sections
from graphhalu.report.plots import heat_maps
from graphhalu.report.tables import ABSENT, cut

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


def transfer_sections(found: TransferResult) -> tuple[Section, ...]:
    """Heat map, table and failures, for the report of a comparison."""
    return sections("transfer", **_content(found))


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
