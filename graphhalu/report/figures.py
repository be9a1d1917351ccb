"""Curves of a comparison: one panel a family of detectors, the best few of it named in place.

Forty lines in one picture say nothing. Each panel shows every detector in grey and the best of
its family in colour, with dashes that tell them apart without it. Names stand above the panel,
where no curve runs; the panels of all families stand in one row.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.evaluation.metrics import N_BINS
from graphhalu.evaluation.result import DetectorRow, Result
from graphhalu.report.curves import Curve, precision_recall, reliability, risk_coverage, roc
from graphhalu.report.drawing import FONT_SIZE, new_figure, prepare, quiet_text
from graphhalu.report.palette import FAMILIES, FAMILY_TITLES, Line, family, line
from graphhalu.report.theme import LIGHT

N_NAMED: Final = 3
_WIDTH_IN: Final = 9.0
_LEFT_IN, _RIGHT_IN, _GAP_IN, _BELOW_IN = 0.72, 0.12, 0.2, 0.62
_PANEL_IN: Final = (2.9, 2.9, 2.5, 2.2)
"""Height of a panel, by how many there are."""
_LINE_PT, _TITLE_PT, _SAMPLE_PT = 15.0, 20.0, 20.0
_MANY: Final = 4
"""So many panels in a row are so narrow that numbers need lines of their own below the names."""


class Kind(NamedTuple):
    """What a figure of curves shows.

    Attributes:
        metric: Metric that stands beside a name.
        x: Label of the horizontal axis.
        y: Label of the vertical axis.
        reference: What the line of comparison is called.
    """

    title: str
    metric: str
    x: str
    y: str
    reference: str


KINDS: Final[Mapping[str, Kind]] = {
    "roc": Kind("ROC", "auroc", "correct answers flagged", "hallucinations found", "chance"),
    "precision-recall": Kind(
        "Precision and recall", "auprc", "hallucinations found (recall)", "precision", "prevalence"
    ),
    "calibration": Kind("Calibration", "ece", "calibrated probability", "share hallucinated", "perfect"),
    "risk-coverage": Kind(
        "Risk and coverage", "aurc", "share of answers kept", "share hallucinated", "all answers"
    ),
}
_SQUARE: Final = ("roc", "calibration")
_REFERENCE_DASHES: Final = (0, (2, 2))
_METRIC_TITLES: Final = {"auroc": "AUROC", "auprc": "AUPRC", "ece": "ECE", "aurc": "AURC"}


def named_rows(result: Result) -> dict[str, list[DetectorRow]]:
    """The best few detectors of each family, best first; families without a score are absent."""
    found: dict[str, list[DetectorRow]] = {}
    for name in FAMILIES:
        rows = [row for row in result.ranked() if row.failure is None and family(row) == name]
        if rows:
            found[name] = rows[:N_NAMED]
    return found


def curve_figure(result: Result, kind: str) -> Figure:
    """One figure of curves; the name of each line is its ``gid``.

    Args:
        result: A comparison.
        kind: One of :data:`KINDS`.

    Raises:
        NotEnoughDataError: If no detector has what is to be drawn.
    """
    curves = _curves(result, kind)
    panels = {
        name: kept[: 1 if kind == "calibration" else N_NAMED]
        for name, rows in named_rows(result).items()
        if (kept := [row for row in rows if row.detector in curves])
    }
    if not panels:
        message = f"no detector has a {KINDS[kind].title} curve to draw"
        raise NotEnoughDataError(message)
    n_lines = 1 + max(len(rows) for rows in panels.values()) * (2 if len(panels) == _MANY else 1)
    figure, row = _panels(len(panels), n_lines)
    limits = _limits(kind, [curves[r.detector] for rows in panels.values() for r in rows], result)
    for axes, (name, rows) in zip(row, panels.items(), strict=True):
        if kind == "calibration":
            _band(axes, result)
        _draw_panel(axes, name, rows, curves, KINDS[kind])
        reference = _Entry(_reference(axes, kind, result.prevalence))
        named = _entries(name, rows, KINDS[kind].metric, is_narrow=len(panels) == _MANY)
        _write_key(axes, name, [*named, reference])
        axes.set(xlim=limits.x, ylim=limits.y)
        axes.xaxis.set_major_locator(FixedLocator(_few_ticks(limits.x)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_locator(FixedLocator(_ticks(limits.y)))
    _name_axes(figure, KINDS[kind])
    return figure


def _panels(n_panels: int, n_lines: int) -> tuple[Figure, Any]:
    """Panels at fixed places, which is much faster than a layout that measures every word."""
    width = _WIDTH_IN if n_panels > 1 else 0.6 * _WIDTH_IN
    above = (_TITLE_PT + _LINE_PT * n_lines + 8) / 72
    height = above + _PANEL_IN[n_panels - 1] + _BELOW_IN
    panel_in = (width - _LEFT_IN - _RIGHT_IN - _GAP_IN * (n_panels - 1)) / n_panels
    figure = new_figure(width, height, is_laid_out=False)
    grid = figure.subplots(
        1,
        n_panels,
        squeeze=False,
        sharex=True,
        sharey=True,
        gridspec_kw={
            "left": _LEFT_IN / width,
            "right": 1 - _RIGHT_IN / width,
            "bottom": _BELOW_IN / height,
            "top": 1 - above / height,
            "wspace": _GAP_IN / panel_in,
        },
    )
    return figure, grid[0]


def _name_axes(figure: Figure, kind: Kind) -> None:
    width, height = figure.get_size_inches()
    style: dict[str, Any] = {"fontsize": FONT_SIZE, "color": LIGHT["ink"]}
    figure.text(0.5, 0.06 / height, kind.x, ha="center", va="bottom", **style)
    middle = (_BELOW_IN + _PANEL_IN[len(figure.axes) - 1] / 2) / height
    figure.text(0.04 / width, middle, kind.y, rotation=90, ha="left", va="center", **style)


class _Limits(NamedTuple):
    x: tuple[float, float]
    y: tuple[float, float]


def _curves(result: Result, kind: str) -> dict[str, Curve]:
    """Curves by detector, of those that have one."""
    done = [row.detector for row in result.ranked() if row.failure is None]
    if kind == "calibration":
        found = {name: reliability(result.samples, name) for name in done}
        return {name: curve for name, curve in found.items() if curve is not None}
    draw = {"roc": roc, "precision-recall": precision_recall, "risk-coverage": risk_coverage}[kind]
    drawn = {}
    for name in done:
        try:
            drawn[name] = draw(result.samples, name)
        except NotEnoughDataError:  # a seed that tested one class only has no curve
            continue
    return drawn


def _draw_panel(
    axes: Axes, name: str, rows: Sequence[DetectorRow], curves: Mapping[str, Curve], kind: Kind
) -> None:
    prepare(axes)
    here = {row.detector for row in rows}
    is_calibration = kind.metric == "ece"
    for detector, curve in curves.items():
        # other bins would hide the few that are named
        if detector not in here and not is_calibration:
            axes.plot(*curve, color=LIGHT["faint"], linewidth=0.8, zorder=2, gid=detector)
    for rank, row in reversed(list(enumerate(rows))):
        look = line(name, rank)
        marker = look.marker if is_calibration else ""
        axes.plot(
            *curves[row.detector],
            color=look.colour,
            linestyle=look.dashes,
            linewidth=2.2,
            marker=marker,
            markersize=4.5,
            zorder=4,
            gid=row.detector,
        )


class _Entry(NamedTuple):
    """A line of a key; without a look it is the line of comparison, without a sample a number."""

    text: str
    look: Line | None = None
    has_sample: bool = True


def _entries(name: str, rows: Sequence[DetectorRow], metric: str, *, is_narrow: bool) -> list[_Entry]:
    """The named lines of a family; where there is little room each number gets a line."""
    found = []
    for rank, row in enumerate(rows):
        words, look = (_name(row), _value(row, metric)), line(name, rank)
        if is_narrow:
            number = f"{_METRIC_TITLES[metric]} {words[1]}" if words[1] else ""
            found += [_Entry(words[0], look), _Entry(number, look, has_sample=False)]
        else:
            found.append(_Entry(" ".join(words).rstrip(), look))
    return found


def _write_key(axes: Axes, name: str, entries: Sequence[_Entry]) -> None:
    """The family and the entries above a panel."""
    for place, entry in enumerate(reversed(entries)):
        _write_entry(axes, entry, 10 + _LINE_PT * place)
    axes.set_title(
        FAMILY_TITLES[name],
        loc="left",
        fontsize=FONT_SIZE + 1,
        color=LIGHT[name],
        fontweight="bold",
        pad=6 + _LINE_PT * len(entries),
    )


def _write_entry(axes: Axes, entry: _Entry, above_pt: float) -> None:
    """A line of the key, so many points above the panel."""
    look = entry.look or Line(LIGHT["muted"], _REFERENCE_DASHES, "")
    if entry.has_sample:
        figure = axes.get_figure(root=True)
        assert figure is not None
        box, points = axes.bbox, 72 / figure.dpi
        height = 1 + above_pt / (box.height * points)
        axes.plot(
            [0, _SAMPLE_PT / (box.width * points)],
            [height, height],
            transform=axes.transAxes,
            color=look.colour,
            linestyle=look.dashes,
            linewidth=2.2 if entry.look else 1.1,
            clip_on=False,
            gid="key",
        )
    axes.annotate(
        entry.text,
        (0, 1),
        (_SAMPLE_PT + 4, above_pt),
        xycoords="axes fraction",
        textcoords="offset points",
        va="center",
        annotation_clip=False,
        **quiet_text(fontsize=FONT_SIZE - 1, color=look.colour),
    )


def _band(axes: Axes, result: Result) -> None:
    """Where 95 % of the bins lie by chance alone if the probabilities are right."""
    n_tested = len(pc.unique(result.samples["trace_id"]))
    share = np.linspace(0, 1, 101)
    reach = 1.96 * np.sqrt(share * (1 - share) * N_BINS / max(n_tested, N_BINS))
    axes.fill_between(
        share,
        np.maximum(share - reach, 0),
        np.minimum(share + reach, 1),
        color=LIGHT["grid"],
        linewidth=0,
        zorder=1,
        gid="band",
    )


def _name(row: DetectorRow) -> str:
    """A long name is cut in the figure, and stands whole in the table."""
    return row.detector if len(row.detector) <= _LONGEST else f"{row.detector[: _LONGEST - 1]}…"


def _value(row: DetectorRow, metric: str) -> str:
    value = row.metric(metric)
    return "" if value is None else f"{value:.3f}".replace("0.", ".", 1)


_LONGEST: Final = 19


def metric_title_of(kind: str) -> str:
    """The name of the metric that stands beside the names of a figure."""
    return _METRIC_TITLES[KINDS[kind].metric]


def _reference(axes: Axes, kind: str, prevalence: float) -> str:
    """Draw the line of comparison, and give its name."""
    style: dict[str, Any] = {
        "color": LIGHT["muted"],
        "linewidth": 1.1,
        "linestyle": _REFERENCE_DASHES,
        "zorder": 3,
        "gid": "reference",
    }
    if kind in _SQUARE:
        axes.plot([0, 1], [0, 1], **style)
        return KINDS[kind].reference
    axes.plot([0, 1], [prevalence] * 2, **style)
    return f"{KINDS[kind].reference} {prevalence:.0%}"


def _ticks(limits: tuple[float, float]) -> list[float]:
    """Round values within the limits and within 0 … 1."""
    values = MaxNLocator(6).tick_values(*limits)
    return [float(v) for v in values if max(0, limits[0]) <= round(v, 6) <= min(1, limits[1])]


def _few_ticks(limits: tuple[float, float]) -> list[float]:
    """The ends and the middle of 0 … 1, or three of what is shown of it: panels are narrow."""
    is_whole = limits[0] <= 0 and limits[1] >= 1
    return [0.0, 0.5, 1.0] if is_whole else _ticks(limits)[::2]


def _limits(kind: str, curves: Sequence[Curve], result: Result) -> _Limits:
    """As much of the square as the named curves need."""
    if kind == "roc":
        return _Limits((-0.01, 1.01), (-0.01, 1.01))
    if kind == "calibration":
        values = np.concatenate([np.concatenate(curve) for curve in curves])
        low, high = float(values.min()), float(values.max())
        pad = 0.04 + 0.04 * (high - low)
        both = max(low - pad, -0.02), min(high + pad, 1.02)
        return _Limits(both, both)
    # the first few answers decide the left end, and swing widely
    settled = np.concatenate([curve.y[curve.x >= 0.05] for curve in curves])  # noqa: PLR2004
    values = np.append(settled, result.prevalence)
    low, high = float(values.min()), float(values.max())
    span = max(high - low, 0.05)
    pad = 0.12 * span
    return _Limits((-0.01, 1.01), (max(low - pad, -0.02), min(high + pad, 1.02)))
