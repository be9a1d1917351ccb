"""Table and figure of the topology of hallucinated answers against that of correct ones."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from graphhalu.evaluation.univariate import FALSE_DISCOVERIES
from graphhalu.graphs.topology import MEASURES
from graphhalu.report import drawing
from graphhalu.report.page import read_text
from graphhalu.report.plots import heat_maps
from graphhalu.report.tables import Table, make_table

KINDS: Final = {"raw": "as measured", "adjusted": "length-adjusted"}


def topology_table(report: Mapping[str, Any], n_rows: int = 20) -> Table:
    """The largest length-adjusted effects; a star says that it counts after false discoveries.

    Args:
        report: What :func:`graphhalu.evaluation.univariate.compare_topology` gives.
        n_rows: Rows of the table.
    """
    known = [row for row in report["rows"] if row["adjusted"] and row["raw"]]
    known.sort(key=lambda row: -abs(row["adjusted"]["value"]))
    rows = []
    for row in known[:n_rows]:
        effects = {kind: _text(row[kind]) for kind in KINDS}
        rows.append({**row, **effects, "layer": str(row["layer"]), "meaning": MEASURES[row["measure"]]})
    described = read_text("topology")["tables"]["topology"]
    counts = {"n_counting": sum(_counts(row["adjusted"]) for row in known), "n_all": len(report["rows"])}
    return make_table("topology", described, rows, limit=FALSE_DISCOVERIES, report=report, **counts)


def topology_figure(report: Mapping[str, Any]) -> Figure:
    """Cliff's delta of every measure (down) in every layer (across), raw and length-adjusted.

    A dot marks an effect that counts after false-discovery control.
    """
    shape, panels = (len(report["layers"]), len(MEASURES)), list[dict[str, Any]]()
    for kind, title in KINDS.items():
        effects = [row[kind] for row in report["rows"]]
        values = np.array([np.nan if e is None else e["value"] for e in effects]).reshape(shape)
        dots = np.array([_counts(e) for e in effects]).reshape(shape)
        panels.append({"values": values.T, "title": title, "dots": dots.T})
    largest = max(0.1, *(float(np.nanmax(np.abs(panel["values"]), initial=0.0)) for panel in panels))
    same: dict[str, Any] = {"norm": Normalize(-largest, largest), "rows": list(MEASURES)}
    same |= {"bar": "Cliff's delta (yellow: hallucinated answers have more)", "columns": report["layers"]}
    return heat_maps(panels, cell_in=0.3, n_columns=2, labels=("layer", ""), **same)


def save_figure(figure: Figure, folder: Path) -> list[Path]:
    """Write the figure as ``topology.png`` and ``topology.svg``; the same in every run."""
    return [drawing.save_figure(figure, folder / name) for name in ("topology.png", "topology.svg")]


def _counts(effect: Mapping[str, float] | None) -> bool:
    """Whether an effect counts after false-discovery control."""
    return effect is not None and effect["q_value"] < FALSE_DISCOVERIES


def _text(effect: Mapping[str, float]) -> str:
    star = "*" if _counts(effect) else ""
    return f"{effect['value']:+.3f} [{effect['low']:+.3f}, {effect['high']:+.3f}]{star}"
