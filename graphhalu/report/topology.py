"""Table and figure of the topology of hallucinated answers against that of correct ones."""

from pathlib import Path

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from graphhalu.evaluation.topology import FALSE_DISCOVERIES, Effect, TopologyReport
from graphhalu.graphs.topology import MEANINGS, MEASURES
from graphhalu.report import drawing
from graphhalu.report.page import read_text
from graphhalu.report.plots import heat_maps
from graphhalu.report.tables import Table, make_table


def topology_table(report: TopologyReport, n_rows: int = 20) -> Table:
    """The largest length-adjusted effects; a star says that it counts after false discoveries."""
    known = [(row, row.raw, row.adjusted) for row in report.rows if row.adjusted and row.raw]
    known.sort(key=lambda each: -abs(each[2].value))
    rows = [
        {
            "row": row,
            "layer": str(row.layer),
            "raw": _text(raw),
            "adjusted": _text(adjusted),
            "meaning": MEANINGS[row.measure],
        }
        for row, raw, adjusted in known[:n_rows]
    ]
    return make_table(
        "topology",
        read_text("topology")["tables"]["topology"],
        rows,
        n_counting=sum(adjusted.is_discovery for *_, adjusted in known),
        n_rows=len(report.rows),
        limit=FALSE_DISCOVERIES,
        n_traces=report.n_traces,
        n_groups=report.n_groups,
        prevalence=report.prevalence,
    )


def topology_figure(report: TopologyReport) -> Figure:
    """Cliff's delta of every measure (down) in every layer (across), raw and length-adjusted.

    A dot marks an effect that counts after false-discovery control.
    """
    shape = (len(report.layers), len(MEASURES))
    largest = max(0.1, *(abs(e.value) for r in report.rows for e in (r.raw, r.adjusted) if e))
    panels = []
    for kind, title in (("raw", "as measured"), ("adjusted", "length-adjusted")):
        effects: list[Effect | None] = [getattr(row, kind) for row in report.rows]
        values = np.array([np.nan if e is None else e.value for e in effects]).reshape(shape)
        dots = np.array([e is not None and e.is_discovery for e in effects]).reshape(shape)
        panels.append(
            {
                "values": values.T,
                "title": title,
                "norm": Normalize(-largest, largest),
                "bar": "Cliff's delta (yellow: hallucinated answers have more)",
                "columns": report.layers,
                "rows": list(MEASURES),
                "dots": dots.T,
            }
        )
    return heat_maps(panels, cell_in=0.3, n_columns=2, labels=("layer", ""))


def save_figure(figure: Figure, folder: Path) -> list[Path]:
    """Write the figure as ``topology.png`` and ``topology.svg``; the same in every run."""
    return [drawing.save_figure(figure, folder / name) for name in ("topology.png", "topology.svg")]


def _text(effect: Effect) -> str:
    star = "*" if effect.is_discovery else ""
    return f"{effect.value:+.3f} [{effect.low:+.3f}, {effect.high:+.3f}]{star}"
