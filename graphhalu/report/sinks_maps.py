"""Figures of the sink study by place in the model: heads, depth, and size of models."""

import string
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from graphhalu.errors import NotEnoughDataError
from graphhalu.report.drawing import FONT_SIZE, quiet_text
from graphhalu.report.heatmaps import text_colour
from graphhalu.report.palette import AROUND_CHANCE, LIGHT
from graphhalu.report.sinks_panels import (
    LINE_LOOKS,
    Shown,
    key_above,
    model_name,
    panel_title,
    panels,
)
from graphhalu.studies.sinks.findings import Matrix
from graphhalu.studies.sinks.heads import FALSE_DISCOVERIES
from graphhalu.studies.sinks.result import Scaling, ScalingPoint

_CLIP: Final = 0.99
_LEAST_REACH: Final = 0.01
_MARK_TEXT: Final = f"q < {FALSE_DISCOVERIES}".replace("0.", ".")


def heads_figure(shown: Sequence[Shown]) -> Figure:
    """Difference of every head between the classes; a dot marks what counts after correction.

    Each panel has a scale of its own, named in its title: differences of one task can be ten
    times those of another.
    """
    n_heads = max(each.run.n_heads for each in shown)
    height = 0.95 + (0.13 if n_heads <= 16 else 0.085) * n_heads  # noqa: PLR2004
    figure, axes = panels(len(shown), n_columns=2, height_in=height, extra_in=0.9)
    for each, panel in zip(shown, axes, strict=True):
        _draw_heads(panel, each, _norm(as_array(each.found.localisation.difference)))
    for place, panel in enumerate(axes):
        if place % 2 == 0:
            panel.set_ylabel("head")
    for panel in axes[-2:]:
        panel.set_xlabel("layer")
    bar = figure.colorbar(
        ScalarMappable(Normalize(-1, 1), AROUND_CHANCE), ax=axes,
        location="top", aspect=45, shrink=0.7,
        pad=0.01, extend="both",
    )  # fmt: skip
    bar.set_label(
        "sink mass: hallucinated (or bad input) minus correct", fontsize=FONT_SIZE,
        color=LIGHT["ink"],
    )  # fmt: skip
    bar.set_ticks([-1, 0, 1], labels=["\N{MINUS SIGN}scale", "0", "+scale"])
    bar.ax.tick_params(labelsize=FONT_SIZE - 1, labelcolor=LIGHT["ink"], color=LIGHT["muted"])
    bar.outline.set_visible(False)
    return figure


def depth_figure(shown: Sequence[Shown]) -> Figure:
    """Sink mass by relative depth (left) and its difference between the classes (right)."""
    groups: dict[str, list[Shown]] = {}
    for each in shown:
        what = "own output" if each.found.meaning == "hallucinated" else "input label"
        groups.setdefault(f"{each.run.task}, {what}", []).append(each)
    figure, axes = panels(2 * len(groups), n_columns=2, height_in=2.6, extra_in=0.6)
    names = list(dict.fromkeys(_line_name(each) for each in shown))
    looks = {name: LINE_LOOKS[n % len(LINE_LOOKS)] for n, name in enumerate(names)}
    for place, (title, members) in enumerate(groups.items()):
        left, right = axes[2 * place], axes[2 * place + 1]
        for each in members:
            _draw_depth(left, right, each, looks[_line_name(each)])
        right.axhline(0, color=LIGHT["ink"], linewidth=1)
        left.set_ylim(bottom=0)
        panel_title(left, title)
        panel_title(right, "hallucinated minus correct" if "own" in title else "bad minus good")
        left.set_ylabel("sink mass")
    for panel in axes:
        panel.set_xlim(0, 1)
    for panel in axes[-2:]:
        panel.set_xlabel("relative depth (0 first layer, 1 last)")
    handles = [
        Line2D([], [], label=name, linewidth=2, markersize=6, **looks[name]) for name in names
    ]
    key_above(figure, handles, n_columns=2)
    return figure


def scaling_figure(scaling: Sequence[Scaling]) -> Figure:
    """Cohen's d (left), AUROC of sink mass and of the per-head probe (right), by model size.

    Letters name the models.

    Raises:
        NotEnoughDataError: If there are no two models to compare.
    """
    if not scaling:
        message = "a question of size needs two models or more on one task"
        raise NotEnoughDataError(message)
    letters = _letters(scaling)
    figure, axes = panels(2 * len(scaling), n_columns=2, height_in=3.1, extra_in=1.0)
    for place, each in enumerate(scaling):
        left, right = axes[2 * place], axes[2 * place + 1]
        sides = (
            (left, {"cohens_d": ("graph", "D")}, 0.0),
            (right, {"auroc": ("scalar", "s"), "probe_auroc": ("probe", "o")}, 0.5),
        )
        for panel, fields, zero in sides:
            _draw_sizes(panel, each, fields, zero=zero)
            _name_points(panel, each, tuple(fields), letters)
        left.set_ylabel("Cohen's d")
        right.set_ylabel("AUROC")
        panel_title(left, each.series.partition(", quantisation")[0])
    for panel in axes:
        panel.set_xlabel("parameters")
    handles = [
        Line2D([], [], color=LIGHT[part], marker=mark, linewidth=2, markersize=7, label=label)
        for part, mark, label in (
            ("graph", "D", "Cohen's d"), ("scalar", "s", "sink mass"), ("probe", "o", "every head"),
        )
    ]  # fmt: skip
    handles += [
        Line2D([], [], linestyle="none", marker=f"${letter}$", markersize=7, color=LIGHT["ink"],
               label=name)
        for name, letter in letters.items()
    ]  # fmt: skip
    key_above(figure, handles, n_columns=3)
    return figure


def as_array(matrix: Matrix) -> Float[np.ndarray, "layer head"]:
    """A matrix with NaN where there is nothing."""
    return np.array([[np.nan if v is None else v for v in row] for row in matrix])


def _norm(values: Float[np.ndarray, "layer head"]) -> Normalize:
    """Symmetric colours; the few largest values share the end of the scale."""
    sizes = np.abs(values[np.isfinite(values)])
    reach = max(float(np.quantile(sizes, _CLIP)) if sizes.size else 0.0, _LEAST_REACH)
    return Normalize(-reach, reach)


def _draw_heads(axes: Axes, each: Shown, norm: Normalize) -> None:
    where = each.found.localisation
    values, q_values = as_array(where.difference).T, as_array(where.q_value).T
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.imshow(
        np.ma.masked_invalid(values), cmap=AROUND_CHANCE, norm=norm, aspect="auto",
        interpolation="none",
    )  # fmt: skip
    with np.errstate(invalid="ignore"):
        counts: Bool[np.ndarray, "head layer"] = q_values < FALSE_DISCOVERIES
    points: dict[str, list[tuple[int, int]]] = {}
    for head, layer in np.argwhere(counts).tolist():
        points.setdefault(text_colour(float(values[head, layer]), norm), []).append((layer, head))
    for colour, places in points.items():
        axes.plot(
            *zip(*places, strict=True), linestyle="none", marker="o", markersize=2.4, color=colour,
            markeredgewidth=0, gid="mark",
        )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    count = f"{int(counts.sum())} of {where.n_heads} heads {_MARK_TEXT}"
    panel_title(axes, f"{each.lines}\n{count}, scale {norm.vmax or 0:.3f}")


def _draw_depth(left: Axes, right: Axes, each: Shown, look: dict[str, Any]) -> None:
    where = each.found.localisation
    positive, negative = (
        np.array([np.nan if v is None else v for v in profile])
        for profile in (where.profile_positive, where.profile_negative)
    )
    weights = (each.found.n_positive, each.found.n_negative)
    mean = (positive * weights[0] + negative * weights[1]) / sum(weights)
    depth = np.linspace(0, 1, len(mean)) if len(mean) > 1 else np.zeros(1)
    step = max(1, len(mean) // 8)
    style = {**look, "markevery": step, "markersize": 5, "linewidth": 1.8}
    left.plot(depth, mean, gid=f"depth {each.name}", **style)
    rows = np.array(
        [(np.nan,) * 3 if e is None else (e.value, e.low, e.high) for e in where.profile_difference]
    ).T
    right.fill_between(depth, rows[1], rows[2], color=look["color"], alpha=0.15, linewidth=0)
    right.plot(depth, rows[0], **style)


def _draw_sizes(
    axes: Axes, scaling: Scaling, fields: dict[str, tuple[str, str]], *, zero: float
) -> None:
    axes.axhline(zero, color=LIGHT["ink"], linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size_text(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    for field, (part, marker) in fields.items():
        for x, point in zip(_spread(scaling), scaling.points, strict=True):
            estimate = getattr(point, field)
            colour = LIGHT[part]
            axes.plot([x, x], [estimate.low, estimate.high], color=colour, linewidth=2)
            axes.plot(x, estimate.value, marker=marker, markersize=7, color=colour, gid=field)
    sizes = [point.n_parameters for point in scaling.points]
    axes.set_xlim(min(sizes) / 1.9, max(sizes) * 1.9)
    axes.set_xticks(sorted(set(sizes)))


def _spread(scaling: Scaling) -> list[float]:
    """Sizes, moved a little apart where several points share one."""
    seen: dict[float, int] = {}
    places = []
    for point in scaling.points:
        rank = seen.setdefault(point.n_parameters, 0)
        seen[point.n_parameters] = rank + 1
        places.append(point.n_parameters * 1.16**rank)
    return places


def _letters(scaling: Sequence[Scaling]) -> dict[str, str]:
    """A letter for each model."""
    names = dict.fromkeys(_point_name(point) for each in scaling for point in each.points)
    return dict(zip(names, string.ascii_lowercase, strict=False))


def _point_name(point: ScalingPoint) -> str:
    return f"{model_name(point.model)}, chat {point.chat}"


def _name_points(
    axes: Axes, scaling: Scaling, fields: tuple[str, ...], letters: dict[str, str]
) -> None:
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.08 * (high - low))
    for x, point in zip(_spread(scaling), scaling.points, strict=True):
        top = max(getattr(point, field).high for field in fields)
        axes.text(
            x, top + 0.015 * (high - low), letters.get(_point_name(point), ""),
            ha="center", va="bottom", **quiet_text(fontsize=FONT_SIZE - 1),
        )  # fmt: skip


def size_text(n_parameters: float) -> str:
    """Parameters as 135M or 7B."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if n_parameters >= unit:
            return f"{n_parameters / unit:.3g}{name}"
    return f"{n_parameters:.0f}"


def _line_name(each: Shown) -> str:
    more = "" if each.run.quantization == "none" else f", {each.run.quantization}"
    return f"{model_name(each.run.model)}, chat {each.run.chat}{more}"
