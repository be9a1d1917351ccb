"""Figures of the study of inter-head instability.

Attacks are orange diamonds, benign prompts blue circles, in every figure; what is told by colour
is told by mark, dash or place too, so that a print in grey says the same.
"""

from typing import Any, Final

import numpy as np
import pyarrow as pa
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from graphhalu.evaluation.bootstrap import Estimate
from graphhalu.report.curves import roc
from graphhalu.report.drawing import (
    FONT_SIZE,
    Style,
    colour_bar,
    interval_mark,
    legend,
    new_figure,
    prepare,
    quiet_text,
)
from graphhalu.report.palette import AROUND_CHANCE
from graphhalu.report.theme import LIGHT
from graphhalu.studies.instability.calibration import MAIN, TRACKER, Calibration
from graphhalu.studies.instability.views import Relation, StudyView
from graphhalu.studies.rows import Row

ATTACK_STYLE: Final[Style] = {"color": LIGHT["graph"], "marker": "D"}
BENIGN_STYLE: Final[Style] = {"color": LIGHT["probe"], "marker": "o"}
SPREAD_NAMES: Final = {
    "std": "standard deviation over heads",
    "logit": "standard deviation of log-odds over heads",
    "bounded": "standard deviation over its bound",
}
_WIDTH_IN: Final = 9.0
_N_NAMED: Final = 4
_LINES: Final[tuple[Style, ...]] = (
    {"color": LIGHT["graph"], "linestyle": "-"},
    {"color": LIGHT["scalar"], "linestyle": (0, (5, 1.8))},
    {"color": LIGHT["probe"], "linestyle": (0, (1.2, 1.3))},
    {"color": LIGHT["control"], "linestyle": (0, (6, 1.6, 1.2, 1.6))},
)
_SEQUENTIAL: Final = "cividis"
_DOTS: Final[Style] = {"linestyle": "none", "markeredgewidth": 0}


def roc_figure(calibration: Calibration) -> Figure:
    """Nested ROC, mean over seeds: instability, Attention Tracker, and the best of the others."""
    named = named_rows(calibration)
    figure = new_figure(0.72 * _WIDTH_IN, 5.4)
    axes = figure.subplots()
    prepare(axes)
    samples = _samples(calibration)
    shown = {row.name for row in named}
    for row in calibration.rows:
        if row.name not in shown:
            axes.plot(*roc(samples, row.name), color=LIGHT["faint"], linewidth=0.8, gid=row.name)
    for style, row in zip(_LINES, named, strict=False):
        label = f"{words(row.name)} {row.auroc.value:.3f}"
        axes.plot(*roc(samples, row.name), linewidth=2.2, label=label, gid=row.name, **style)
    axes.plot([0, 1], [0, 1], color=LIGHT["muted"], linewidth=1.1, linestyle=(0, (2, 2)))
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.set_xlabel("benign prompts flagged")
    axes.set_ylabel("attacks found")
    legend(axes, loc="lower right", title="nested AUROC")
    return figure


def methods_figure(calibration: Calibration) -> Figure:
    """Nested AUROC of every method with its interval, and the in-sample one beside it."""
    rows = sorted(calibration.rows, key=lambda row: -row.auroc.value)
    figure = new_figure(_WIDTH_IN, 1.4 + 0.36 * len(rows))
    axes = figure.subplots()
    prepare(axes)
    axes.grid(visible=False, axis="y")
    axes.axvline(0.5, color=LIGHT["ink"], linewidth=1.1)
    for place, row in enumerate(rows):
        colour = LIGHT["graph"] if row.name == MAIN else LIGHT["probe"]
        interval_mark(axes, place, row.auroc, colour=colour, marker="o", gid="nested")
        in_sample = Estimate(row.in_sample.value)
        gid = f"in-sample-{row.name}"
        interval_mark(axes, place, in_sample, colour=colour, is_open=True, marker="D", gid=gid)
    axes.set_yticks(range(len(rows)), [words(row.name) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("AUROC")
    for marker, face, label in (("o", "muted", "nested"), ("D", "paper", "in sample")):
        mark: Style = {"marker": marker, "color": LIGHT["muted"], "markerfacecolor": LIGHT[face]}
        axes.plot([], [], linestyle="none", markersize=7, label=label, **mark)
    legend(axes, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


def violin_figure(view: StudyView, calibration: Calibration) -> Figure:
    """Instability of both classes over the chosen window, every prompt a mark."""
    figure = new_figure(0.72 * _WIDTH_IN, 4.8)
    axes = figure.subplots()
    prepare(axes)
    axes.grid(visible=False, axis="x")
    jitter = np.random.default_rng(0)
    styles = (BENIGN_STYLE, ATTACK_STYLE)
    for place, (style, members) in enumerate(zip(styles, (~view.is_attack, view.is_attack), strict=True)):
        values = view.score[members & np.isfinite(view.score)]
        _violin(axes, place, values, style["color"])
        places = place + jitter.uniform(-0.08, 0.08, len(values))
        axes.plot(places, values, markersize=4, alpha=0.7, **_DOTS, **style)
    choice = calibration.window
    aims = sorted(point.aim for point in calibration.rows[0].points)
    aim = aims[len(aims) // 2]
    height = choice.direction * calibration.threshold(MAIN, aim)
    axes.axhline(height, color=LIGHT["ink"], linewidth=1.3, linestyle=(0, (5, 2)))
    text = quiet_text(fontsize=FONT_SIZE - 1, ha="center", va="bottom")
    label = f"threshold at {aim:.0%} FPR"
    axes.annotate(label, (0.5, height), (0, 3), textcoords="offset points", **text)
    axes.set_xticks([0, 1], [f"benign ({calibration.n_benign})", f"attack ({calibration.n_attack})"])
    axes.set_xlim(-0.5, 1.5)
    axes.set_ylabel(SPREAD_NAMES[choice.spread])
    return figure


def stepwise_figure(calibration: Calibration) -> Figure:
    """AUROC of each decode step, and below it how many prompts reach that step."""
    figure = new_figure(_WIDTH_IN, 5.6)
    top, low = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
    for axes in (top, low):
        prepare(axes)
    points = [point for point in calibration.steps if point.instability is not None]
    steps = np.array([point.step for point in points])
    found = [p.instability for p in points if p.instability is not None]
    ends = [[e.low for e in found], [e.high for e in found]]
    top.fill_between(steps, *ends, color=LIGHT["graph"], alpha=0.22, linewidth=0)
    lines = {
        "instability": [e.value for e in found],
        "token entropy": [p.entropy for p in points],
        "focus, all heads": [p.focus for p in points],
    }
    for style, (name, values) in zip(_LINES, lines.items(), strict=False):
        top.plot(steps, values, linewidth=2, label=name, **style)
    top.axhline(0.5, color=LIGHT["ink"], linewidth=1)
    window = calibration.window.window
    top.axvspan(window.start - 0.5, window.end + 0.5, color=LIGHT["grid"], zorder=0)
    top.set_ylim(-0.02, 1.02)
    top.set_ylabel("AUROC, attack above")
    legend(top, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    dashes = {"attack": (ATTACK_STYLE, "-"), "benign": (BENIGN_STYLE, (0, (5, 1.8)))}
    for name, (style, dash) in dashes.items():
        counts = [getattr(point, f"n_{name}") for point in calibration.steps]
        line: Style = {"color": style["color"], "linestyle": dash, "linewidth": 2}
        low.plot(range(len(counts)), counts, label=name, **line)
    low.set_ylim(0, None)
    low.set_ylabel("prompts")
    low.set_xlabel("decode step")
    legend(low, loc="lower right", bbox_to_anchor=(1, 0.97), ncols=2)
    return figure


def map_figure(view: StudyView, calibration: Calibration) -> Figure:
    """Mean spread over heads by step and layer: attacks, benign prompts, and the difference."""
    figure = new_figure(_WIDTH_IN, 8.2)
    panels = figure.subplots(3, 1, sharex=True, sharey=True)
    attack, benign = view.attack, view.benign
    both = np.concatenate([attack, benign])
    shared = Normalize(float(np.nanmin(both)), float(np.nanmax(both)))
    difference = attack - benign
    sizes = np.abs(difference[np.isfinite(difference)])
    reach = max(float(sizes.max(initial=0.0)), 1e-9)
    around = Normalize(-reach, reach)
    maps = {
        "attack": (attack, shared, _SEQUENTIAL),
        "benign": (benign, shared, _SEQUENTIAL),
        "attack minus benign": (difference, around, AROUND_CHANCE),
    }
    for axes, (title, drawn) in zip(panels, maps.items(), strict=True):
        _draw_map(axes, *drawn, title)
        _frame_window(axes, calibration)
    panels[-1].set_xlabel("decode step")
    place = {"pad": 0.02, "aspect": 30}
    colour_bar(figure, list(panels[:2]), shared, _SEQUENTIAL, "mean spread over heads", **place)
    colour_bar(figure, list(panels[2:]), around, AROUND_CHANCE, "difference", **place)
    is_there = np.isfinite(attack).any(axis=1) | np.isfinite(benign).any(axis=1)
    last = int(np.flatnonzero(is_there).max())
    panels[0].set_xlim(-0.5, last + 0.5)
    return figure


def scatter_figure(view: StudyView, calibration: Calibration) -> Figure:
    """Instability against entropy and against head agreement, with correlations."""
    figure = new_figure(_WIDTH_IN, 4.6)
    panels = figure.subplots(1, len(view.relations), sharey=True, squeeze=False)[0]
    for axes, relation in zip(panels, view.relations, strict=True):
        prepare(axes)
        for style, members, name in (
            (BENIGN_STYLE, ~view.is_attack, "benign"),
            (ATTACK_STYLE, view.is_attack, "attack"),
        ):
            marks: Style = {"markersize": 5.5, "alpha": 0.75, "label": name, **_DOTS, **style}
            axes.plot(relation.values[members], view.score[members], **marks)
        axes.set_xlabel(relation.name)
        axes.set_title(correlation_text(relation), loc="left", **quiet_text(fontsize=FONT_SIZE - 1))
    panels[0].set_ylabel(SPREAD_NAMES[calibration.window.spread])
    legend(panels[-1], loc="best")
    return figure


def named_rows(calibration: Calibration) -> list[Row]:
    """Instability, Attention Tracker, and the best of the others by nested AUROC."""
    first = [calibration.row(MAIN), calibration.row(TRACKER)]
    others = [row for row in calibration.rows if row not in first]
    ranked = sorted(others, key=lambda row: -row.auroc.value)
    return [*first, *ranked[: _N_NAMED - len(first)]]


def correlation_text(relation: Relation) -> str:
    """Both correlations with their intervals."""
    parts = (("r", relation.pearson), ("rank", relation.spearman))
    return "\n".join(f"{name}: none" if found is None else f"{name} = {found:+.2f}" for name, found in parts)


def words(name: str) -> str:
    """Name of a method as it is read."""
    return name.replace("_", " ")


def _samples(calibration: Calibration) -> pa.Table:
    """Nested scores in the layout that curves are drawn from."""
    columns: dict[str, list[Any]] = {"detector": [], "seed": [], "label": [], "score": []}
    for name, seeds in calibration.scores.items():
        for seed, scores in enumerate(seeds):
            columns["detector"] += [name] * len(scores)
            columns["seed"] += [seed] * len(scores)
            columns["label"] += calibration.labels
            columns["score"] += scores
    return pa.table({**columns, "is_valid": [True] * len(columns["seed"])})


def _violin(axes: Axes, place: int, values: Float[np.ndarray, "prompt"], colour: str) -> None:
    if len(values) < 2 or not np.ptp(values) > 0:  # noqa: PLR2004 - one value has no density
        return
    parts = axes.violinplot([values], [place], widths=0.7, showextrema=False)
    bodies: Any = parts["bodies"]
    for body in bodies:
        body.set(facecolor=colour, edgecolor=colour, alpha=0.22)
    quartiles = np.quantile(values, [0.25, 0.5, 0.75])
    for height, width in zip(quartiles, (1.2, 2.6, 1.2), strict=True):
        axes.plot([place - 0.22, place + 0.22], [height] * 2, color=colour, linewidth=width)


def _draw_map(
    axes: Axes, values: Float[np.ndarray, "step layer"], norm: Normalize, cmap: Any, title: str
) -> None:
    prepare(axes, grid=False)
    drawn: Style = {"cmap": cmap, "norm": norm, "aspect": "auto", "interpolation": "none"}
    axes.imshow(np.ma.masked_invalid(values.T), origin="lower", **drawn)
    axes.spines[:].set_visible(False)
    axes.set_ylabel("layer")
    axes.set_title(title, loc="left", fontsize=FONT_SIZE, color=LIGHT["ink"])


def _frame_window(axes: Axes, calibration: Calibration) -> None:
    window = calibration.window.window
    corner = window.start - 0.5, window.first_layer - 0.5
    size = window.length, window.stop_layer - window.first_layer
    for colour, width, dashes in (("paper", 2.4, "-"), ("ink", 1.2, (0, (4, 2)))):
        line: Style = {"edgecolor": LIGHT[colour], "linewidth": width, "linestyle": dashes}
        axes.add_patch(Rectangle(corner, *size, fill=False, **line))
