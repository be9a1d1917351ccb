"""Table and figure of the topology of hallucinated answers against that of correct ones."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from graphhalu.evaluation.univariate import FALSE_DISCOVERIES, Effect, TopologyReport
from graphhalu.graphs.topology import MEASURES
from graphhalu.report import drawing
from graphhalu.report.label_report import TextTable


def topology_table(report: TopologyReport, n_rows: int = 20) -> TextTable:
    """The largest length-adjusted effects; a star says that it counts after false discoveries."""
    known = [(row, row.raw, row.adjusted) for row in report.rows if row.adjusted and row.raw]
    known.sort(key=lambda each: -abs(each[2].value))
    rows = [
        [str(row.layer), row.measure, _text(raw), _text(adjusted), MEASURES[row.measure]]
        for row, raw, adjusted in known[:n_rows]
    ]
    n_counting = sum(adjusted.is_discovery for *_, adjusted in known)
    title = (
        f"{n_counting} of {len(report.rows)} effects count after length adjustment (q < "
        f"{FALSE_DISCOVERIES}); {report.n_traces} answers to {report.n_groups} questions, "
        f"{report.prevalence:.1%} hallucinated"
    )
    return TextTable(title, ["layer", "measure", "delta", "length-adjusted", "meaning"], rows)


def topology_figure(report: TopologyReport) -> Figure:
    """Cliff's delta of every measure (down) in every layer (across), raw and length-adjusted.

    A dot marks an effect that counts after false-discovery control.
    """
    width = 2.6 + 0.22 * len(report.layers)
    figure = drawing.new_figure(2 * width, 1.2 + 0.3 * len(MEASURES))
    panels = figure.subplots(1, 2, sharey=True)
    kinds = {"raw": "as measured", "adjusted": "length-adjusted"}
    drawn = [
        _heat_map(axes, report, kind, title)
        for axes, (kind, title) in zip(panels, kinds.items(), strict=True)
    ]
    label = "Cliff's delta (red: hallucinated more)"
    figure.colorbar(drawn[-1], ax=panels, shrink=0.8, label=label)
    return figure


def save_figure(figure: Figure, folder: Path) -> list[Path]:
    """Write the figure as ``topology.png`` and ``topology.svg``; the same in every run."""
    names = ("topology.png", "topology.svg")
    return [drawing.save_figure(figure, folder / name) for name in names]


def _heat_map(axes: Axes, report: TopologyReport, kind: str, title: str) -> Any:
    effects: list[Effect | None] = [getattr(row, kind) for row in report.rows]
    shape = (len(report.layers), len(MEASURES))
    values = np.array([np.nan if e is None else e.value for e in effects]).reshape(shape).T
    is_counting = np.array([e is not None and e.is_discovery for e in effects]).reshape(shape).T
    largest = max(0.1, *(abs(e.value) for r in report.rows for e in (r.raw, r.adjusted) if e))
    drawn = axes.imshow(values, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
    measure, place = np.nonzero(is_counting)
    axes.plot(place, measure, "k.", markersize=3.5)
    step = max(1, len(report.layers) // 10)
    axes.set_xticks(range(0, len(report.layers), step), list(map(str, report.layers[::step])))
    axes.set_yticks(range(len(MEASURES)), list(MEASURES))
    axes.set_xlabel("layer")
    axes.set_title(title, loc="left")
    return drawn


def _text(effect: Effect) -> str:
    star = "*" if effect.is_discovery else ""
    return f"{effect.value:+.3f} [{effect.low:+.3f}, {effect.high:+.3f}]{star}"
