"""Table and figure of the topology of hallucinated answers against that of correct ones."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from graphhalu.evaluation.univariate import FALSE_DISCOVERIES, Effect, TopologyReport
from graphhalu.graphs.topology import MEASURES
from graphhalu.report import drawing
from graphhalu.report.page import read_text
from graphhalu.report.plots import heat_maps
from graphhalu.report.tables import Table, make_table


def topology_table(report: TopologyReport, n_rows: int = 20) -> Table:
    """The largest length-adjusted effects; a star says that it counts after false discoveries."""
    known = [(row, row.raw, row.adjusted) for row in report.rows if row.adjusted and row.raw]
    known.sort(key=lambda each: -abs(each[2].value))
    rows = []
    for row, raw, adjusted in known[:n_rows]:
        effects = {"raw": _text(raw), "adjusted": _text(adjusted)}
        rows.append({"layer": str(row.layer), "row": row, "meaning": MEASURES[row.measure], **effects})
    described = read_text("topology")["tables"]["topology"]
    n_counting = sum(adjusted.is_discovery for *_, adjusted in known)
    return make_table(
        "topology",
        described,
        rows,
        n_counting=n_counting,
        n_all=len(report.rows),
        limit=FALSE_DISCOVERIES,
        report=report,
    )


def topology_figure(report: TopologyReport) -> Figure:
    """Cliff's delta of every measure (down) in every layer (across), raw and length-adjusted.

    A dot marks an effect that counts after false-discovery control.
    """
    shape, panels = (len(report.layers), len(MEASURES)), []
    largest = max(0.1, *(abs(e.value) for r in report.rows for e in (r.raw, r.adjusted) if e))
    for kind, title in (("raw", "as measured"), ("adjusted", "length-adjusted")):
        effects: list[Effect | None] = [getattr(row, kind) for row in report.rows]
        values = np.array([np.nan if e is None else e.value for e in effects]).reshape(shape)
        dots = np.array([e is not None and e.is_discovery for e in effects]).reshape(shape)
        panels.append({"values": values.T, "title": title, "dots": dots.T})
    same: dict[str, Any] = {
        "norm": Normalize(-largest, largest),
        "bar": "Cliff's delta (yellow: hallucinated answers have more)",
    }
    same |= {"rows": list(MEASURES), "columns": report.layers}
    return heat_maps(panels, cell_in=0.3, n_columns=2, labels=("layer", ""), **same)


def save_figure(figure: Figure, folder: Path) -> list[Path]:
    """Write the figure as ``topology.png`` and ``topology.svg``; the same in every run."""
    return [drawing.save_figure(figure, folder / name) for name in ("topology.png", "topology.svg")]


def _text(effect: Effect) -> str:
    star = "*" if effect.is_discovery else ""
    return f"{effect.value:+.3f} [{effect.low:+.3f}, {effect.high:+.3f}]{star}"
