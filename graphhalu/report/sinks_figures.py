"""Figures of the sink study: distributions, accuracy by sink mass, and what models add.

Hallucinated answers are orange and solid, correct ones blue and dashed; what is told by colour is
told by dash, mark or place too, so that a print in grey says the same.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from scipy.stats import gaussian_kde

from graphhalu.report.drawing import FONT_SIZE, new_figure, prepare
from graphhalu.report.palette import LIGHT
from graphhalu.report.sinks_panels import (
    CLASS_NAMES,
    NEGATIVE_LOOK,
    POSITIVE_LOOK,
    WIDTH_IN,
    Shown,
    key_above,
    panel_title,
    panels,
)
from graphhalu.studies.sinks.findings import Estimate

_N_GRID: Final = 256
_ROW_IN: Final = 0.32
_CHANCE: Final = 0.5
_MARGIN: Final = 0.06
_MODEL_LOOKS: Final[dict[str, dict[str, Any]]] = {
    "sink": {"color": LIGHT["scalar"], "marker": "s"},
    "entropy": {"color": LIGHT["control"], "marker": "v"},
    "entropy+sink": {"color": LIGHT["graph"], "marker": "D"},
    "heads": {"color": LIGHT["probe"], "marker": "o"},
}
_GAIN_LOOKS: Final = (("entropy+sink", "graph", "D"), ("entropy+heads", "probe", "o"))
_MODEL_NAMES: Final = {
    "sink": "sink mass", "entropy": "entropy", "entropy+sink": "entropy + sink mass",
    "heads": "every head",
}  # fmt: skip


def minus(text: str) -> str:
    """A number with a minus sign that is as wide as a plus."""
    return text.replace("-", "\N{MINUS SIGN}")


def estimate_text(estimate: Estimate, digits: int = 2) -> str:
    """A value with its interval, with signs."""
    return minus(
        f"{estimate.value:+.{digits}f} [{estimate.low:+.{digits}f}, {estimate.high:+.{digits}f}]"
    )


def shift_figure(shown: Sequence[Shown]) -> Figure:
    """Density and violin of sink mass for both classes of every run, with Cohen's d."""
    has_long = any("\n" in each.lines for each in shown)
    figure, axes = panels(len(shown), n_columns=2, height_in=2.7 if has_long else 2.5)
    for each, panel in zip(shown, axes, strict=True):
        _draw_shift(panel, each)
    for panel in axes[-2:]:
        panel.set_xlabel("sink mass")
    key_above(figure, _class_key(shown), n_columns=2)
    return figure


def accuracy_figure(shown: Sequence[Shown]) -> Figure:
    """Share of label 0 by quantile of sink mass; the line is the share over all records."""
    figure, axes = panels(len(shown), n_columns=3, height_in=2.3, extra_in=0.4)
    for place, (each, panel) in enumerate(zip(shown, axes, strict=True)):
        bins = each.found.prediction.bins
        x = [b.mean_mass for b in bins]
        y = [b.share_negative.value for b in bins]
        ends = np.array([[b.share_negative.low, b.share_negative.high] for b in bins]).T
        overall = each.found.n_negative / (each.found.n_negative + each.found.n_positive)
        panel.axhline(overall, color=LIGHT["faint"], linewidth=1.4, zorder=1)
        panel.vlines(x, ends[0], ends[1], color=LIGHT["probe"], linewidth=1.8, zorder=2)
        panel.plot(
            x, y, color=LIGHT["probe"], marker="o", markersize=5.5, linewidth=1.4, zorder=3,
            gid=f"accuracy-{place}",
        )  # fmt: skip
        panel.set_ylim(0, 1)
        panel.xaxis.set_major_locator(MaxNLocator(4))
        # three panels a row leave room for half a name on a line
        panel_title(panel, each.name.replace(", ", "\n", 1))
        if place % 3 == 0:
            panel.set_ylabel(_share_name(shown))
    for panel in axes[-3:]:
        panel.set_xlabel("sink mass")
    return figure


def forest_figure(shown: Sequence[Shown]) -> Figure:
    """Cohen's d of every run, as measured and with the length taken away."""
    figure = new_figure(WIDTH_IN, 1.5 + 2 * _ROW_IN * len(shown))
    axes = figure.subplots()
    prepare(axes)
    axes.grid(visible=False, axis="y")
    axes.axvline(0, color=LIGHT["ink"], linewidth=1.1, zorder=1)
    for place, each in enumerate(shown):
        for offset, estimate, look, gid in (
            (-0.17, each.found.shift.cohens_d, ("graph", "D"), "raw"),
            (0.17, each.found.shift.adjusted_d, ("control", "o"), "adjusted"),
        ):
            _interval(axes, place + offset, estimate, look, f"{gid}-{place}")
    axes.set_yticks(range(len(shown)))
    axes.set_yticklabels([each.lines for each in shown], parse_math=False)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("Cohen's d of sink mass (right: hallucinated, or bad input, has more)")
    _numbers(axes, [estimate_text(each.found.shift.cohens_d) for each in shown])
    key_above(
        figure,
        [_mark("graph", "D", "as measured"), _mark("control", "o", "length taken away")],
        n_columns=2,
    )
    return figure


def models_figure(shown: Sequence[Shown]) -> Figure:
    """AUROC of cross-fitted models, and what sink mass adds to entropy."""
    figure = new_figure(WIDTH_IN, 1.6 + 1.9 * _ROW_IN * len(shown))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for axes, middle in ((left, _CHANCE), (right, 0.0)):
        prepare(axes)
        axes.grid(visible=False, axis="y")
        axes.axvline(middle, color=LIGHT["ink"], linewidth=1.1, zorder=1)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    for place, each in enumerate(shown):
        for step, (name, look) in enumerate(_MODEL_LOOKS.items()):
            model = each.found.model(name)
            if model is not None:
                at = place - 0.27 + 0.18 * step
                _plain_interval(left, at, model.auroc, look, f"{name}-{place}")
        for step, (larger, part, marker) in enumerate(_GAIN_LOOKS):
            gain = next(
                (g for g in each.found.gains if (g.model, g.baseline) == (larger, "entropy")), None
            )
            if gain is not None:
                at, mark = place - 0.12 + 0.24 * step, (part, marker)
                _interval(right, at, gain.auroc, mark, f"{larger} {place}")
    left.set_yticks(range(len(shown)))
    left.set_yticklabels([each.lines for each in shown], parse_math=False)
    left.set_ylim(len(shown) - 0.5, -0.5)
    left.set_xlabel("AUROC, cross-fitted")
    right.set_xlabel("AUROC added to entropy")
    handles = [
        Line2D([], [], linewidth=2, markersize=7, label=_MODEL_NAMES[name], **look)
        for name, look in _MODEL_LOOKS.items()
    ]
    key_above(figure, handles)
    return figure


def _draw_shift(axes: Axes, each: Shown) -> None:
    classes = [
        np.array(values, dtype=np.float64)
        for values in (each.found.masses_positive, each.found.masses_negative)
    ]
    low, high = min(v.min() for v in classes), max(v.max() for v in classes)
    room = _MARGIN * max(high - low, 1e-9)
    grid = np.linspace(low - room, high + room, _N_GRID)
    curves = [density(values, grid) for values in classes]
    top = max(curve.max() for curve in curves)
    for place, (values, curve, look) in enumerate(
        zip(classes, curves, (POSITIVE_LOOK, NEGATIVE_LOOK), strict=True)
    ):
        axes.fill_between(grid, curve / top, color=look["color"], alpha=0.13, linewidth=0)
        axes.plot(grid, curve / top, linewidth=2, gid=f"density-{place}", **look)
        _violin(axes, grid, curve / top, values, (-0.26 - 0.4 * place, look))
    axes.set_ylim(-0.9, 1.1)
    axes.set_xlim(grid[0], grid[-1])
    axes.set_yticks([])
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.axhline(0, color=LIGHT["grid"], linewidth=1)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    panel_title(axes, f"{each.lines}\nd = {estimate_text(each.found.shift.cohens_d)}")


def density(
    values: Float[np.ndarray, "value"], grid: Float[np.ndarray, "point"]
) -> Float[np.ndarray, "point"]:
    """Gaussian kernel density (Scott's rule) on a grid; one peak where all values are equal."""
    if len(values) < 2 or not values.std() > 0:  # noqa: PLR2004
        width = (grid[-1] - grid[0]) / 40
        peak: Float[np.ndarray, point] = np.exp(-(((grid - values[0]) / width) ** 2) / 2) / width
        return peak
    found: Float[np.ndarray, point] = gaussian_kde(values)(grid)
    return found


def _violin(
    axes: Axes,
    grid: Float[np.ndarray, "point"],
    curve: Float[np.ndarray, "point"],
    values: Float[np.ndarray, "value"],
    where: tuple[float, dict[str, Any]],
) -> None:
    """The density once more, as a body with median and quartiles, below the curves."""
    middle, look = where
    colour = look["color"]
    half = 0.17 * curve / curve.max()
    axes.fill_between(grid, middle - half, middle + half, color=colour, alpha=0.25, linewidth=0)
    for side in (-half, half):
        axes.plot(grid, middle + side, linewidth=1, **look)
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    axes.plot([low, high], [middle, middle], color=colour, linewidth=4, solid_capstyle="butt")
    axes.plot(
        median, middle, marker="o", markersize=6, color=LIGHT["paper"],
        markeredgecolor=colour, markeredgewidth=1.6,
    )  # fmt: skip


def _interval(axes: Axes, y: float, estimate: Estimate, look: tuple[str, str], gid: str) -> None:
    """An interval whose mark is filled where it excludes zero."""
    colour = LIGHT[look[0]]
    axes.plot([estimate.low, estimate.high], [y, y], color=colour, linewidth=2, zorder=2)
    axes.plot(
        estimate.value, y, marker=look[1], markersize=7, color=colour, markeredgewidth=1.6,
        markerfacecolor=colour if estimate.excludes_zero else LIGHT["paper"], zorder=3, gid=gid,
    )  # fmt: skip


def _plain_interval(
    axes: Axes, y: float, estimate: Estimate, look: dict[str, Any], gid: str
) -> None:
    axes.plot([estimate.low, estimate.high], [y, y], color=look["color"], linewidth=1.6, zorder=2)
    axes.plot(estimate.value, y, markersize=6, zorder=3, gid=gid, **look)


def _numbers(axes: Axes, texts: Sequence[str]) -> None:
    """The values as a second column of tick labels, so that the layout leaves room for them."""
    right = axes.twinx()
    right.set_ylim(axes.get_ylim())
    right.set_yticks(range(len(texts)))
    right.set_yticklabels(texts, fontsize=FONT_SIZE - 1, color=LIGHT["ink"])
    right.tick_params(axis="y", length=0)
    right.spines[:].set_visible(False)


def _class_key(shown: Sequence[Shown]) -> list[Line2D]:
    meanings = list(dict.fromkeys(each.found.meaning for each in shown))
    names = [" or ".join(CLASS_NAMES[m][side] for m in meanings) for side in (0, 1)]
    looks = (POSITIVE_LOOK, NEGATIVE_LOOK)
    return [
        Line2D([], [], linewidth=2, label=name, **look)
        for name, look in zip(names, looks, strict=True)
    ]


def _mark(part: str, marker: str, label: str) -> Line2D:
    return Line2D([], [], color=LIGHT[part], marker=marker, markersize=7, linewidth=2, label=label)


def _share_name(shown: Sequence[Shown]) -> str:
    """What label 0 is called where all panels share an axis."""
    is_own = {each.found.meaning == "hallucinated" for each in shown}
    words: dict[tuple[bool, ...], str] = {
        (True,): "accuracy",
        (False,): "share of good inputs",
    }
    return words.get(tuple(is_own), "share right, or good")
