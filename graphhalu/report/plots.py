"""Kinds of figures: lines, rows with intervals, heat maps and distributions, in the theme of the pages.

Each kind takes data and labels and gives a figure. Whatever is told by colour is told by dash, mark
or place too, so that a print in grey says the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from graphhalu.evaluation.bootstrap import Estimate
from graphhalu.report.drawing import FONT_SIZE, STYLE
from graphhalu.report.tables import Row, value_at
from graphhalu.report.theme import LIGHT, RISING

Style = Mapping[str, Any]
"""Arguments of a line or a mark."""
WIDTH_IN: Final = 9.0
AROUND_CHANCE: Final = LinearSegmentedColormap.from_list("around_chance", RISING)
"""Blue below the middle, grey on it, yellow above; it also rises from dark to light, so that a
greyscale print keeps the order."""
DASHES: Final = ("-", (0, (5, 1.8)), (0, (1.2, 1.3)), (0, (6, 1.6, 1.2, 1.6)))
REFERENCE: Final = {"color": LIGHT["muted"], "linewidth": 1.1, "linestyle": (0, (2, 2)), "gid": "reference"}
"""Style of a line of comparison, such as chance."""
FAINT: Final = {"color": LIGHT["faint"], "linewidth": 0.8}
DOTS: Final[Style] = {"linestyle": "none", "markeredgewidth": 0}
"""Style of marks without a line."""
_COLOURS: Final = ("graph", "scalar", "probe", "control", "ink", "muted")
_MARKERS: Final = "Dso^vX"
_DOT: Final[Style] = dict(DOTS) | {"marker": "o", "markersize": 3.6, "color": "#0a0a0a", "gid": "mark"}
_RIM: Final = {"markeredgecolor": "#fdfdfd", "markeredgewidth": 0.6}
"""With a dot in it, what is seen on dark and on light cells."""
_WIDE_RANGE: Final = 300
"""Ratio of both ends of a logarithmic axis above which powers of ten are enough."""

Key = Literal["above", "right", "figure"]
"""Where the key is: above each panel with its title, right of it, or once above all panels."""


def look(rank: int) -> dict[str, Any]:
    """Colour, dashes and marker of the line of this rank."""
    kinds: Sequence[Sequence[Any]] = (_COLOURS, DASHES, _MARKERS)
    colour, dashes, marker = (each[rank % len(each)] for each in kinds)
    return {"color": LIGHT[colour], "linestyle": dashes, "marker": marker}


@mpl.rc_context(fname=STYLE)
def lines(
    panels: Sequence[Mapping[str, Any]],
    *,
    size_in: tuple[float, float] = (WIDTH_IN, 2.9),
    n_columns: int = 2,
    heights: Sequence[float] | None = None,
    key: Key = "figure",
    shared: tuple[str, str] | None = None,
    **same: Any,
) -> Figure:
    """Panels of lines, bands and marks.

    Args:
        panels: Of each panel ``lines``; as wanted ``title``, ``color`` of the title, ``level`` or
            ``span`` (a horizontal line, a marked range of x) and arguments of ``Axes.set``. A line
            has ``x`` and ``y``, a band or with ``bars`` an interval from ``low`` to ``high``, and
            arguments of ``Axes.plot``.
        size_in: Width of the figure and height of a row of panels.
        n_columns: Panels in a row.
        heights: Ratios of the heights of the rows.
        key: Where the key stands.
        shared: Labels of both axes where all panels share them.
        **same: What is the same in all panels.
    """
    figure, grid = _grid(len(panels), n_columns, size_in, heights=heights, is_shared=shared is not None)
    for axes, given in zip(grid, panels, strict=True):
        panel = {**same, **given}
        for line in panel["lines"]:
            _line(axes, line)
        if "level" in panel:
            axes.axhline(panel["level"], color=LIGHT["ink"], linewidth=1)
        if "span" in panel:
            axes.axvspan(*panel["span"], color=LIGHT["grid"], zorder=0)
        _label(axes, panel, key)
    if shared is not None:
        figure.supxlabel(shared[0], fontsize=FONT_SIZE, color=LIGHT["ink"])
        figure.supylabel(shared[1], fontsize=FONT_SIZE, color=LIGHT["ink"])
    handles = dict[str, Any]()
    for axes in grid:
        handles |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    if key == "figure" and handles:
        _key_above(figure, handles)
    return figure


def estimate_line(x: Any, estimates: Sequence[Estimate], **style: Any) -> dict[str, Any]:
    """A line of estimates with the ends of their intervals, for :func:`lines`."""
    ends = {end: [getattr(each, end) for each in estimates] for end in ("low", "high")}
    return {"x": x, "y": [each.value for each in estimates], **ends, **style}


@mpl.rc_context(fname=STYLE)
def intervals(
    rows: Sequence[Row], words: Mapping[str, Any], *, texts: Sequence[str] = (), band: float = 0.0
) -> Figure:
    """Rows of values with their intervals (a forest plot).

    Args:
        rows: From above; the ``name`` of each, and the values that the paths lead to.
        words: ``styles``, the colour and the marker of each series by its label; ``panels``, each with
            ``xlabel``, ``zero`` (where a value says nothing) and ``series``, the path of an estimate by
            the label; as wanted ``open`` (series drawn as outlines), in a panel its ``title``, ``is_tested``
            (a mark whose interval does not exclude that value is an outline) and its ``width``, ``gap``
            (distance of the series of a row), and ``texts``, the head of the texts.
        texts: A text at the right of each row.
        band: Distance from zero that does not matter.
    """
    gap, styles = words.get("gap", 0.0), words["styles"]
    figure = Figure((WIDTH_IN, 1.5 + (0.46 if gap else 0.27) * len(rows)), layout="constrained")
    widths = [panel.get("width", 1) for panel in words["panels"]]
    grid = figure.subplots(1, len(widths), sharey=True, squeeze=False, width_ratios=widths)[0]
    used = dict[str, Line2D]()
    for axes, panel in zip(grid, words["panels"], strict=True):
        zero, series = panel["zero"], panel["series"]
        axes.grid(visible=False, axis="y")
        axes.axvspan(zero - band, zero + band, color=LIGHT["grid"], linewidth=0, zorder=0, gid="margin")
        axes.axvline(zero, color=LIGHT["ink"], linewidth=1.1, zorder=1, gid="zero")
        for place, row in enumerate(rows):
            for rank, (label, path) in enumerate(series.items()):
                if (found := value_at(row, path)) is None:
                    continue
                estimate = found if isinstance(found, Estimate) else Estimate(found)
                is_open = label in words.get("open", ()) or (
                    panel.get("is_tested") and not estimate.excludes(float(zero))
                )
                y, colour = place + gap * (rank - (len(series) - 1) / 2), LIGHT[styles[label][0]]
                if estimate.has_interval:
                    axes.plot([estimate.low, estimate.high], [y, y], color=colour, zorder=2)
                mark: Style = {"color": colour, "marker": styles[label][1], "markersize": 7}
                face = {"markerfacecolor": LIGHT["paper"] if is_open else colour, "markeredgewidth": 1.6}
                axes.plot(estimate.value, y, gid=f"{label}: {row['name']}", zorder=3, **mark, **face)
                used[label] = Line2D([], [], **mark)
        axes.set_xlabel(words["xlabel"] if "xlabel" in words else panel["xlabel"])
        axes.set_title(panel.get("title", ""), loc="left")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    grid[0].set_yticks(range(len(rows)), [row["name"] for row in rows])
    grid[0].set_ylim(len(rows) - 0.4, -0.6)
    if texts:
        _texts_right(grid[-1], texts, words.get("texts", ""))
    _key_above(figure, {label: used[label] for label in styles if label in used})
    return figure


@mpl.rc_context(fname=STYLE)
def heat_maps(
    panels: Sequence[Mapping[str, Any]],
    *,
    cell_in: float,
    n_columns: int = 1,
    labels: tuple[str, str] = ("layer", "head"),
    **same: Any,
) -> Figure:
    """Heat maps, each distinct scale with a bar of its own.

    Args:
        panels: Of each panel ``values``, ``title``, ``norm`` and ``bar`` (what the colours say; panels
            with the same one share a bar); as wanted ``rows`` and ``columns`` (names), ``cmap``,
            ``dots`` (cells that are marked), ``texts`` (written into the cells), ``frame`` (first
            column, first row, columns and rows of a rectangle) and ``ticks`` of the bar (pairs of
            place and text).
        cell_in: Height of a row of cells.
        n_columns: Panels in a row.
        labels: Of both axes.
        **same: What is the same in all panels.
    """
    panels = [{**same, **panel} for panel in panels]
    n_cells = max(len(panel["values"]) for panel in panels)
    bars = dict.fromkeys(panel["bar"] for panel in panels)
    size = (WIDTH_IN, 0.95 + cell_in * n_cells)
    figure, grid = _grid(len(panels), n_columns, size, extra_in=0.7 if len(bars) == 1 else 0.3)
    for place, (axes, panel) in enumerate(zip(grid, panels, strict=True)):
        _heat_map(axes, panel)
        axes.set_title(panel["title"])
        axes.set_xlabel(labels[0] if place >= len(panels) - n_columns else "")
        axes.set_ylabel(labels[1] if place % n_columns == 0 else "")
    for bar in bars:
        here = [(axes, panel) for axes, panel in zip(grid, panels, strict=True) if panel["bar"] == bar]
        shape: Style = {"location": "top", "aspect": 45, "shrink": 0.7, "pad": 0.02}
        if len(bars) > 1:
            shape = {"pad": 0.02, "aspect": 12 * len(here)}
        _bar(figure, [axes for axes, _ in here], here[0][1], shape)
    return figure


@mpl.rc_context(fname=STYLE)
def distributions(
    panels: Mapping[str, Mapping[str, Float[np.ndarray, "_"]]],
    *,
    xlabel: str,
    level: tuple[float, str] | None = None,
    has_points: bool = False,
) -> Figure:
    """Densities of classes, and below them violins with quartiles.

    Args:
        panels: Values by class, by the title of the panel; all panels have the same classes.
        xlabel: What the values are.
        level: A value that is marked, with its name.
        has_points: Whether every value is a mark.
    """
    n_columns = min(2, len(panels))
    n_rows = -(-len(panels) // n_columns)
    width = WIDTH_IN if n_columns > 1 else 0.8 * WIDTH_IN
    figure = Figure((width, (2.9 if n_columns > 1 else 4.4) * n_rows + 0.5), layout="constrained")
    grid = figure.subplots(2 * n_rows, n_columns, squeeze=False, height_ratios=[3, 2] * n_rows)
    above, below = list(grid[::2].flat), list(grid[1::2].flat)
    for axes in (*above[len(panels) :], *below[len(panels) :]):
        axes.remove()
    solid: dict[str, Any] = {"color": LIGHT["graph"]}
    dashed: dict[str, Any] = {"color": LIGHT["probe"], "linestyle": (0, (4, 1.6))}
    mark: Style = {"color": LIGHT["ink"], "linewidth": 1.3, "linestyle": (0, (5, 2))}
    violin: Style = {"orient": "h", "inner": "quart", "density_norm": "width"}
    violin = {**violin, "native_scale": True, "linewidth": 1.2, "alpha": 0.25}
    jitter = np.random.default_rng(0)
    for top, low, (title, classes) in zip(above, below, panels.items(), strict=False):
        low.sharex(top)
        for place, (values, style) in enumerate(zip(classes.values(), (solid, dashed), strict=True)):
            colour, heights = style["color"], np.full(len(values), float(place))
            # equal values have no density
            density: Style = {"x": values, "ax": top, "warn_singular": False}
            sns.kdeplot(fill=True, alpha=0.13, linewidth=0, color=colour, **density)
            sns.kdeplot(**density, **style)
            sns.violinplot(x=values, y=heights, ax=low, color=colour, linecolor=colour, **violin)
            if has_points:
                heights += jitter.uniform(-0.08, 0.08, len(values))
                low.plot(values, heights, marker="Do"[place], markersize=3.5, alpha=0.7, color=colour, **DOTS)
        for axes in (top, low):
            axes.set(yticks=[], xlabel="", ylabel="")
            axes.spines["left"].set_visible(False)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            if level is not None:
                axes.axvline(level[0], **mark)
        top.tick_params(labelbottom=False)
        top.set_title(title)
        low.invert_yaxis()
        low.set_xlabel(xlabel)
    styles = zip(next(iter(panels.values())), (solid, dashed), strict=True)
    named = [*styles, *([(level[1], mark)] if level else [])]
    _key_above(figure, {name: Line2D([], [], **style) for name, style in named})
    return figure


def _grid(
    n_panels: int,
    n_columns: int,
    size_in: tuple[float, float],
    *,
    heights: Sequence[float] | None = None,
    is_shared: bool = False,
    extra_in: float = 0.4,
) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, row by row."""
    columns = min(n_columns, n_panels)
    n_rows = -(-n_panels // columns)
    width, height = size_in
    figure = Figure((width, n_rows * height + extra_in), layout="constrained")
    share: Any = True if is_shared else ("col" if columns == 1 else False)
    made: Any = figure.subplots(
        n_rows, columns, squeeze=False, sharex=share, sharey=is_shared, height_ratios=heights
    )
    grid = list(made.flat)
    for axes in grid[n_panels:]:
        axes.remove()
    for axes in grid[:n_panels][-columns:]:
        axes.tick_params(labelbottom=True)
    return figure, grid[:n_panels]


def _line(axes: Axes, line: Mapping[str, Any]) -> None:
    style = dict(line)
    x, y, low, high = (style.pop(name, None) for name in ("x", "y", "low", "high"))
    is_bars = style.pop("bars", False)
    if is_bars:
        axes.vlines(x, low, high, color=style["color"], linewidth=1.6)
    elif low is not None:
        alpha = 1.0 if y is None else 0.18
        axes.fill_between(x, low, high, color=style["color"], alpha=alpha, linewidth=0, zorder=1)
    if y is not None:
        axes.plot(x, y, **style)


def _label(axes: Axes, panel: Mapping[str, Any], key: Key) -> None:
    """Titles, scales, ticks and the key of a panel."""
    known = {"lines", "title", "color", "level", "span"}
    axes.set(**{name: value for name, value in panel.items() if name not in known})
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            _plain_logarithm(axis)
    if panel.get("xlabel") in {"layer", "decode step"}:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    title, style = panel.get("title", ""), {"color": panel.get("color", LIGHT["ink"])}
    if key == "above":
        corner: Style = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2, "borderpad": 0}
        made = axes.legend(title=title, alignment="left", **corner)
        made.get_title().set(size=FONT_SIZE + 1, weight="bold", **style)
    else:
        axes.set_title(title, **style)
    if key == "right":
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def _plain_logarithm(axis: Any) -> None:
    """Plain numbers on a logarithmic axis, few of them, also where it spans less than a decade."""
    axis.set_minor_locator(NullLocator())
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0,) if high > _WIDE_RANGE * low else (1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:g}")


def _texts_right(axes: Axes, texts: Sequence[str], title: str) -> None:
    """A second column of tick labels, so that the layout leaves room for them."""
    right = axes.twinx()
    right.set_ylim(axes.get_ylim())
    # a minus sign is as wide as a plus
    right.set_yticks(range(len(texts)), [text.replace("-", "\N{MINUS SIGN}") for text in texts])
    right.tick_params(axis="y", length=0)
    right.spines[:].set_visible(False)
    right.grid(visible=False)
    place: Style = {"transform": right.get_yaxis_transform(), "va": "bottom", "fontsize": FONT_SIZE - 1}
    right.text(1.01, -0.62, title, color=LIGHT["muted"], **place)


def _key_above(figure: Figure, handles: Mapping[str, Any]) -> None:
    """One key for all panels."""
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=min(4, len(handles)))


def _heat_map(axes: Axes, panel: Mapping[str, Any]) -> None:
    values = np.asarray(panel["values"], dtype=np.float64)
    texts: Style = {}
    if "texts" in panel:
        texts = {"annot": np.array(panel["texts"], dtype=object), "fmt": "", "annot_kws": {"size": FONT_SIZE}}
    # an image is one element where cells would be thousands
    drawn: Style = {"mask": ~np.isfinite(values), "cbar": False, "rasterized": True, **texts}
    names = {"xticklabels": False, "yticklabels": False}
    cmap = panel.get("cmap", AROUND_CHANCE)
    sns.heatmap(pd.DataFrame(values), ax=axes, norm=panel["norm"], cmap=cmap, **drawn, **names)
    if "texts" in panel:
        for row, column in np.argwhere(~np.isfinite(values)):
            style: Style = {"ha": "center", "va": "center", "color": LIGHT["muted"]}
            axes.text(column + 0.5, row + 0.5, panel["texts"][row][column], **style)
    row, column = np.nonzero(panel.get("dots", np.zeros_like(values, dtype=bool)))
    if len(row):
        axes.plot(column + 0.5, row + 0.5, **{**_DOT, **_RIM})
    _name_cells(axes.xaxis, panel.get("columns", range(values.shape[1])), 15)
    _name_cells(axes.yaxis, panel.get("rows", range(len(values))), 6)
    axes.tick_params(axis="both", rotation=0)
    axes.grid(visible=False)
    if "frame" in panel:
        first, top, width, height = panel["frame"]
        for colour, line, dashes in (("paper", 2.4, "-"), ("ink", 1.2, (0, (4, 2)))):
            style = {"edgecolor": LIGHT[colour], "linewidth": line, "linestyle": dashes}
            axes.add_patch(Rectangle((first, top), width, height, fill=False, **style))


def _name_cells(axis: Any, names: Sequence[Any], most: int) -> None:
    """Every word as a name of its cell, and as many of the numbers as there is room for."""
    step = max(1, -(-len(names) // most))
    named = [(n, name) for n, name in enumerate(names) if isinstance(name, str) or n % step == 0]
    axis.set_ticks([n + 0.5 for n, _ in named], [str(name) for _, name in named])


def _bar(figure: Figure, panels: Sequence[Axes], panel: Mapping[str, Any], shape: Style) -> None:
    mappable = ScalarMappable(panel["norm"], panel.get("cmap", AROUND_CHANCE))
    bar = figure.colorbar(mappable, ax=panels, **shape)
    bar.set_label(panel["bar"])
    bar.outline.set_visible(False)
    if "ticks" in panel:
        places, labels = zip(*panel["ticks"], strict=True)
        bar.set_ticks(places, labels=labels)
    elif isinstance(panel["norm"], LogNorm):
        _plain_logarithm(bar.long_axis)
