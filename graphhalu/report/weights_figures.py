"""Figures of weight profiles: curves over depth, maps of heads, static against measured, risk."""

from itertools import cycle
from typing import Any, Final

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.report.drawing import FONT_SIZE, legend, new_figure, prepare, quiet_text
from graphhalu.report.palette import AROUND_CHANCE
from graphhalu.report.theme import LIGHT
from graphhalu.studies.weights.agreement import PAIRS, Agreement, Pair
from graphhalu.studies.weights.validation import Validation, paired_values
from graphhalu.weights.risk import reads_mixed
from graphhalu.weights.tables import WeightProfile

_WIDTH_IN: Final = 9.0
_DASHES: Final = ("-", (0, (5, 1.8)), (0, (1.2, 1.3)), (0, (6, 1.6, 1.2, 1.6)), (0, (2, 4)))
_MARKERS: Final = ("o", "s", "^", "D", "v")
_COLOURS: Final = ("probe", "graph", "scalar", "control", "muted")
_QUIET: Final = ("probe", "scalar", "control", "muted", "ink")
_DOT: Final = {"linestyle": "none", "markeredgewidth": 0}
_ZONE_MARKS: Final = {"valid": ("o", "probe"), "rough": ("s", "scalar"), "peaked": ("^", "graph")}


_PANELS: Final = (
    ("logit_variance", "logit variance s², mean of heads"),
    ("value_norm", "expected norm of values"),
    ("copying", "copying score, mean of heads"),
    ("gain_ratio", "gain: feed-forward / attention"),
)
"""Curves over depth: quantity and title; all but the copying score are logarithmic."""


_S2: Final = "s² of the head"
_NORMS: Final = ("expected norm of values", "measured norm of values")
_RATIOS: Final = ("gain ratio of the layer (estimate)", "measured ratio of outputs")
_SCATTERS: Final = {
    ("logit_variance", "entropy", "head"): (_S2, "measured entropy / log n", "x"),
    ("logit_variance", "sink_share", "head"): (_S2, "measured sink share", "x"),
    ("v_norm", "value_norm", "kv_head"): (*_NORMS, "xy"),
    ("gain_ratio", "output_ratio", "layer"): (*_RATIOS, "xy"),
}
"""Pairs that are drawn: labels of both axes, and which of them are logarithmic."""


def depth_figure(profiles: list[WeightProfile]) -> Figure:
    """Quantities by layer; several profiles share the panels, over depth as a share.

    An open mark stands where the quantity reads parts that are stored in more than one way.
    """
    is_shared = len(profiles) > 1
    figure = new_figure(_WIDTH_IN, 5.8)
    grid = figure.subplots(2, 2)
    for axes, (quantity, title) in zip(grid.flat, _PANELS, strict=True):
        prepare(axes)
        for place, profile in enumerate(profiles):
            _curve(axes, profile, quantity, place, is_shared=is_shared)
        axes.set_title(title, loc="left", **quiet_text())
        if quantity != "copying" and axes.lines and _all_positive(axes):
            _log_axis(axes, "y")
        if not is_shared:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in grid[1]:
        axes.set_xlabel("depth (first to last layer)" if is_shared else "layer")
    if is_shared:
        legend(grid.flat[0], loc="best")
    return figure


def heads_figure(profile: WeightProfile) -> Figure:
    """Maps of heads: logit variance, copying, norm of the OV circuit; a dot marks peaked heads.

    Raises:
        NotEnoughDataError: If no head has a number.
    """
    shown = (
        ("logit_variance", "logit variance s²; a dot: peaked, no estimate of entropy", True),
        ("copying", "copying score", False),
        ("ov_norm", "norm of the OV circuit", True),
    )
    n_heads = profile.n_heads
    row_in = 0.17 if n_heads <= 16 else 0.09  # noqa: PLR2004
    figure = new_figure(_WIDTH_IN, 0.8 + len(shown) * (0.75 + row_in * n_heads))
    panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (quantity, title, is_log) in zip(panels, shown, strict=True):
        prepare(axes, grid=False)
        drawn = _head_map(axes, profile.of_heads(quantity), is_log=is_log)
        axes.set_title(title, loc="left", **quiet_text())
        axes.set_ylabel("head", fontsize=FONT_SIZE)
        bar = figure.colorbar(drawn, ax=axes, pad=0.01, aspect=12)
        bar.ax.tick_params(labelsize=FONT_SIZE - 2, labelcolor=LIGHT["ink"], color=LIGHT["muted"])
        if is_log:
            bar.locator, bar.formatter = LogLocator(subs=(1.0, 2.0, 5.0)), FuncFormatter(_plain)
            bar.update_ticks()
        bar.minorlocator = NullLocator()
        bar.minorticks_off()
        bar.outline.set_visible(False)
    layer, head = np.nonzero(_zones(profile) == "peaked")
    panels[0].plot(layer, head + 0.5, marker="o", markersize=3, color="#0a0a0a", gid="mark", **_DOT)
    panels[-1].set_xlabel("layer", fontsize=FONT_SIZE)
    return figure


def scatter_figure(profile: WeightProfile, found: Validation) -> Figure:
    """Static quantities against measured ones, with the correlation of each.

    Raises:
        NotEnoughDataError: If nothing was measured.
    """
    drawn = [pair for pair in PAIRS if pair[:3] in _SCATTERS]
    cells = [(pair, *_points(pair, profile, found)) for pair in drawn]
    cells = [cell for cell in cells if cell[1].size]
    if not cells:
        message = "no quantity was measured: there is nothing to draw"
        raise NotEnoughDataError(message)
    n_rows = -(-len(cells) // 2)
    figure = new_figure(_WIDTH_IN, 0.3 + 3.3 * n_rows)
    grid = figure.subplots(n_rows, 2, squeeze=False)
    for axes, (pair, static, measured, zones) in zip(grid.flat, cells, strict=False):
        prepare(axes)
        for zone, (marker, colour) in _ZONE_MARKS.items():
            here = zones == zone
            mark = {"marker": marker, "color": LIGHT[colour], "label": zone, **_DOT}
            axes.plot(static[here], measured[here], markersize=4, alpha=0.75, **mark)
        xlabel, ylabel, logarithmic = _SCATTERS[pair[:3]]
        for axis in logarithmic:
            _log_axis(axes, axis)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        rows = [r for r in found.rows if (r.static, r.measured, r.level) == pair[:3]]
        title = "".join(f"{_rho(row)}: {row.verdict}" for row in rows[:1])
        axes.set_title(title, loc="left", **quiet_text())
    for axes in grid.flat[len(cells) :]:
        axes.set_visible(False)
    if cells[0][0].level == "head":
        handles, names = grid.flat[0].get_legend_handles_labels()
        figure.legend(
            handles,
            [f"estimate of entropy: {name}" for name in names],
            ncols=3,
            frameon=False,
            loc="outside upper center",
            fontsize=FONT_SIZE - 1,
            labelcolor=LIGHT["ink"],
        )
    return figure


def risk_figure(found: Validation) -> Figure:
    """The risk curve with its components, and below it what it should predict.

    Raises:
        NotEnoughDataError: If it was not validated: it is never shown alone.
    """
    if not found.detection:
        message = (
            "the risk curve has no validation, and is never shown alone "
            f"({found.missing.get('detection by layer') or '; '.join(found.missing.values())})"
        )
        raise NotEnoughDataError(message)
    figure = new_figure(_WIDTH_IN, 6.6)
    above, below = figure.subplots(2, 1, sharex=True)
    layers = np.arange(len(found.risk.values))
    prepare(above)
    for name, values, colour, dash in zip(
        found.risk.components, found.risk.components.values(), cycle(_QUIET), cycle(_DASHES), strict=False
    ):
        label = name.replace("_", " ")
        line = {"color": LIGHT[colour], "linestyle": dash, "label": label}
        above.plot(layers, values, linewidth=1.1, alpha=0.75, **line)
    above.plot(layers, found.risk.values, color=LIGHT["graph"], linewidth=2.6, label="risk")
    above.set(ylabel="share of layers below", ylim=(-0.03, 1.03))
    above.set_title("a hypothesis: risk from weights alone", loc="left", **quiet_text())
    prepare(below)
    words = {row.measured: f"{_rho(row)}\n{row.verdict}" for row in found.rows if row.static == "risk"}
    for place, each in enumerate(found.detection):
        colour = LIGHT[("probe", "scalar")[place % 2]]
        shift = 0.12 * (2 * place - len(found.detection) + 1)
        below.errorbar(
            layers + shift,
            each.auroc,
            yerr=[each.auroc - each.low, each.high - each.auroc],
            color=colour,
            marker=_MARKERS[place],
            markersize=4.5,
            linewidth=1.4,
            linestyle=_DASHES[place],
            elinewidth=0.8,
            label=f"by {each.inputs}\n{words.get(f'AUROC by {each.inputs}', '')}",
        )
    below.axhline(0.5, color=LIGHT["muted"], linewidth=1, linestyle=(0, (2, 2)))
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    below.set(xlabel="layer", ylabel="AUROC of one layer alone")
    below.set_title("its validation: what each layer alone detects", loc="left", **quiet_text())
    for axes in (above, below):
        legend(axes, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _curve(axes: Axes, profile: WeightProfile, quantity: str, place: int, *, is_shared: bool) -> None:
    values = profile.of_layers(quantity)
    if not np.isfinite(values).any():
        return
    layers = np.arange(len(values))
    colour = LIGHT[_COLOURS[place % len(_COLOURS)]]
    axes.plot(
        layers / max(1, len(values) - 1) if is_shared else layers,
        values,
        color=colour,
        linestyle=_DASHES[place % len(_DASHES)],
        linewidth=1.8,
        marker=_MARKERS[place % len(_MARKERS)],
        markersize=4.5,
        markerfacecolor=LIGHT["paper"] if reads_mixed(profile, quantity) else colour,
        label=profile.name,
    )


def _plain(value: float, _place: int | None = None) -> str:
    return f"{value:g}"


def _log_axis(axes: Axes, axis: str) -> None:
    """Plain numbers on the axis, few of them, also where it spans less than a decade."""
    getattr(axes, f"set_{axis}scale")("log")
    low, high = getattr(axes, f"get_{axis}lim")()
    steps = (1.0,) if high > 300 * low else (1.0, 2.0, 5.0)
    chosen = getattr(axes, f"{axis}axis")
    chosen.set_major_locator(LogLocator(subs=steps))
    chosen.set_major_formatter(FuncFormatter(_plain))
    chosen.set_minor_locator(NullLocator())


def _all_positive(axes: Axes) -> bool:
    drawn = [np.asarray(line.get_ydata(), dtype=np.float64) for line in axes.lines]
    return all(bool((values[np.isfinite(values)] > 0).all()) for values in drawn)


def _head_map(axes: Axes, values: Float[np.ndarray, "layer head"], *, is_log: bool) -> Any:
    n_layers, n_heads = values.shape
    there = values[np.isfinite(values)]
    if not there.size:
        message = "no head has a number: there is nothing to draw"
        raise NotEnoughDataError(message)
    positive = there[there > 0]
    norm: Normalize = Normalize(float(there.min()), float(there.max()))
    if is_log and positive.size:
        norm = LogNorm(float(np.quantile(positive, 0.02)), float(positive.max()))
    elif not is_log:
        reach = max(float(np.abs(there).max()), 1e-9)
        norm = Normalize(-reach, reach)
    drawn = axes.imshow(
        np.ma.masked_invalid(values.T),
        cmap=AROUND_CHANCE,
        norm=norm,
        aspect="auto",
        interpolation="none",
        extent=(-0.5, n_layers - 0.5, n_heads, 0),
    )
    step = max(1, -(-n_heads // 6))
    axes.set_yticks([h + 0.5 for h in range(0, n_heads, step)], map(str, range(0, n_heads, step)))
    axes.spines[:].set_visible(False)
    return drawn


def _zones(profile: WeightProfile) -> Any:
    zones = np.array(profile.heads["entropy_zone"].to_pylist())
    return zones.reshape(profile.n_layers, profile.n_heads)


def _points(pair: Pair, profile: WeightProfile, found: Validation) -> tuple[Any, Any, Any]:
    """Finite pairs, and the zone of the entropy estimate where heads are drawn."""
    static, measured = paired_values(pair, profile, found.measured)
    zones = _zones(profile) if pair.level == "head" else np.full(static.shape, "valid")
    both = np.isfinite(static) & np.isfinite(measured)
    return static[both], measured[both], zones[both]


def _rho(row: Agreement) -> str:
    if not np.isfinite(row.rho):
        return "no correlation"
    return f"rho = {row.rho:+.2f}"
