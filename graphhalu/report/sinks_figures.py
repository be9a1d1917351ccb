"""Figures of the study of sink mass.

Hallucinated answers are orange and solid, correct ones blue and dashed; what is told by colour is
told by dash, mark or place too, so that a print in grey says the same.
"""

import string
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from scipy.stats import gaussian_kde

from graphhalu.core.errors import NotEnoughDataError, UsageError
from graphhalu.evaluation.bootstrap import Estimate
from graphhalu.labels.labels import Meaning
from graphhalu.report.drawing import (
    FONT_SIZE,
    Style,
    colour_bar,
    interval_mark,
    new_figure,
    prepare,
    quiet_text,
)
from graphhalu.report.heatmaps import text_colour
from graphhalu.report.palette import AROUND_CHANCE
from graphhalu.report.theme import LIGHT
from graphhalu.studies.rows import Row
from graphhalu.studies.sinks.effects import FALSE_DISCOVERIES
from graphhalu.studies.sinks.result import Findings, RunResult, Scaling, SinksResult

MEANING_NAMES: Final[dict[Meaning, str]] = {"hallucinated": "own output", "input": "input label"}
CLASS_NAMES: Final[dict[Meaning, tuple[str, str]]] = {
    "hallucinated": ("hallucinated", "correct"),
    "input": ("input bad", "input good"),
}
"""Names of the records with label 1 and of those with label 0."""
_WIDTH_IN: Final = 9.0
_ROW_IN: Final = 0.32
_N_GRID: Final = 256
_MARGIN: Final = 0.06
_CLIP: Final = 0.99
_LEAST_REACH: Final = 0.01
_LONGEST: Final = 80
_LINE: Final = 30
_DASHES: Final = ("-", (0, (5, 1.8)), (0, (1.2, 1.3)), (0, (6, 1.6, 1.2, 1.6)), "-", (0, (5, 1.8)))
_COLOURS: Final = ("probe", "graph", "scalar", "control", "ink", "muted")
_CLASS_STYLES: Final[tuple[Style, ...]] = (
    {"color": LIGHT["graph"], "linestyle": "-"},
    {"color": LIGHT["probe"], "linestyle": (0, (4, 1.6))},
)
_MARKS: Final = {
    "sink": ("sink mass", "scalar", "s"),
    "entropy": ("entropy", "control", "v"),
    "entropy+sink": ("entropy + sink mass", "graph", "D"),
    "heads": ("every head", "probe", "o"),
    "cohens_d": ("Cohen's d", "graph", "D"),
    "auroc": ("sink mass", "scalar", "s"),
    "probe_auroc": ("every head", "probe", "o"),
    "as measured": ("as measured", "graph", "D"),
    "adjusted": ("length taken away", "control", "o"),
}
"""Label, colour and marker of each quantity."""


class Shown(NamedTuple):
    """One run under one label, with what tells it from the others that are shown."""

    run: RunResult
    found: Findings
    name: str

    @property
    def lines(self) -> str:
        """The name, a long one with its first part on a line of its own."""
        return self.name if len(self.name) <= _LINE else self.name.replace(", ", "\n", 1)

    @property
    def line_name(self) -> str:
        """Model, chat template and quantisation."""
        return ", ".join(part for part in _parts(self.run, self.found)[1:4] if part)


def shown_findings(
    result: SinksResult, *, sink_tokens: int | None = None, query_mode: str | None = None
) -> list[Shown]:
    """The runs of one sink and one query mode that could be analysed, by task, label and model.

    Args:
        result: The analysis.
        sink_tokens: By default the largest.
        query_mode: By default ``last``, or what there is.

    Raises:
        UsageError: If there is no run of these.
        NotEnoughDataError: If no run could be analysed.
    """
    runs = [run for run in result.runs if run.findings]
    if not runs:
        reasons = {reason for run in result.runs for reason in run.left_out.values()}
        message = f"no run could be analysed: {'; '.join(sorted(reasons)) or 'there is none'}"
        raise NotEnoughDataError(message)
    modes = {run.query_mode for run in runs}
    mode = query_mode or ("last" if "last" in modes else min(modes))
    sizes = {run.sink_tokens for run in runs if run.query_mode == mode}
    size = sink_tokens if sink_tokens is not None else max(sizes, default=0)
    chosen = [run for run in runs if (run.query_mode, run.sink_tokens) == (mode, size)]
    if not chosen:
        there = ", ".join(sorted({f"K {r.sink_tokens} {r.query_mode}" for r in runs}))
        message = f"no run with K {size} and queries {mode!r}; there are {there}"
        raise UsageError(message)
    pairs = [(run, found) for run in chosen for found in run.findings]
    pairs.sort(key=lambda p: (p[0].task, p[1].meaning, p[0].n_parameters or 0, p[0].model, p[0].chat))
    columns = list(zip(*(_parts(*pair) for pair in pairs), strict=True))
    varying = [column for column in columns if len(set(column)) > 1] or [columns[1]]
    names = [", ".join(filter(None, parts)) for parts in zip(*varying, strict=True)]
    short = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name in names]
    return [Shown(*pair, name) for pair, name in zip(pairs, short, strict=True)]


def shift_figure(shown: Sequence[Shown]) -> Figure:
    """Density and violin of sink mass for both classes of every run, with Cohen's d."""
    has_long = any("\n" in each.lines for each in shown)
    figure, axes = _panels(len(shown), n_columns=2, height_in=2.7 if has_long else 2.5)
    for each, panel in zip(shown, axes, strict=True):
        _draw_shift(panel, each)
    for panel in axes[-2:]:
        panel.set_xlabel("sink mass")
    meanings = list(dict.fromkeys(each.found.meaning for each in shown))
    names = [" or ".join(CLASS_NAMES[meaning][side] for meaning in meanings) for side in (0, 1)]
    _key_above(figure, zip(names, _CLASS_STYLES, strict=True), n_columns=2)
    return figure


def accuracy_figure(shown: Sequence[Shown]) -> Figure:
    """Share of label 0 by quantile of sink mass; the line is the share over all records."""
    figure, axes = _panels(len(shown), n_columns=3, height_in=2.3, extra_in=0.4)
    colour = LIGHT["probe"]
    for place, (each, panel) in enumerate(zip(shown, axes, strict=True)):
        bins = [(b.mean_mass, b.share_negative) for b in each.found.prediction.bins]
        overall = each.found.n_negative / (each.found.n_negative + each.found.n_positive)
        panel.axhline(overall, color=LIGHT["faint"], linewidth=1.4, zorder=1)
        for mass, share in bins:
            panel.vlines(mass, share.low, share.high, color=colour, linewidth=1.8, zorder=2)
        line: Style = {"color": colour, "linewidth": 1.4, "zorder": 3}
        masses, shares = zip(*((mass, share.value) for mass, share in bins), strict=True)
        panel.plot(masses, shares, gid=f"accuracy-{place}", marker="o", markersize=5.5, **line)
        panel.set_ylim(0, 1)
        panel.xaxis.set_major_locator(MaxNLocator(4))
        # three panels a row leave room for half a name on a line
        _title(panel, each.name.replace(", ", "\n", 1))
    meanings = {each.found.meaning for each in shown}
    words = {"hallucinated": "accuracy", "input": "share of good inputs"}
    for panel in axes[::3]:
        panel.set_ylabel(words[min(meanings)] if len(meanings) == 1 else "share right, or good")
    for panel in axes[-3:]:
        panel.set_xlabel("sink mass")
    return figure


def forest_figure(shown: Sequence[Shown]) -> Figure:
    """Cohen's d of every run, as measured and with the length taken away."""
    figure = new_figure(_WIDTH_IN, 1.5 + 2 * _ROW_IN * len(shown))
    axes = figure.subplots()
    _prepare_rows(axes, 0.0)
    for place, each in enumerate(shown):
        shift = each.found.shift
        _mark(axes, place - 0.17, shift.cohens_d, "as measured", has_test=True)
        _mark(axes, place + 0.17, shift.adjusted_d, "adjusted", has_test=True)
    _name_rows(axes, shown)
    axes.set_xlabel("Cohen's d of sink mass (right: hallucinated, or bad input, has more)")
    # the values as a second column of tick labels, so that the layout leaves room for them
    right = axes.twinx()
    right.set_ylim(axes.get_ylim())
    texts = [_signed(each.found.shift.cohens_d) for each in shown]
    right.set_yticks(range(len(texts)), texts, fontsize=FONT_SIZE - 1, color=LIGHT["ink"])
    right.tick_params(axis="y", length=0)
    right.spines[:].set_visible(False)
    _key_above(figure, _keys("as measured", "adjusted"), n_columns=2)
    return figure


def models_figure(shown: Sequence[Shown]) -> Figure:
    """AUROC of cross-fitted models, and what sink mass adds to entropy."""
    figure = new_figure(_WIDTH_IN, 1.6 + 1.9 * _ROW_IN * len(shown))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    _prepare_rows(left, 0.5)
    _prepare_rows(right, 0.0)
    names = ("sink", "entropy", "entropy+sink", "heads")
    for place, each in enumerate(shown):
        for step, name in enumerate(names):
            if (model := each.found.model(name)) is not None:
                _mark(left, place - 0.27 + 0.18 * step, model.auroc, name)
        gains = {gain.model: gain.auroc for gain in each.found.gains if gain.baseline == "entropy"}
        for offset, larger, name in (
            (-0.12, "entropy+sink", "entropy+sink"),
            (0.12, "entropy+heads", "heads"),
        ):
            if larger in gains:
                _mark(right, place + offset, gains[larger], name, has_test=True)
    _name_rows(left, shown)
    left.set_xlabel("AUROC, cross-fitted")
    right.set_xlabel("AUROC added to entropy")
    _key_above(figure, _keys(*names))
    return figure


def heads_figure(shown: Sequence[Shown]) -> Figure:
    """Difference of every head between the classes; a dot marks what counts after correction.

    Each panel has a scale of its own, named in its title: differences of one task can be ten
    times those of another.
    """
    n_heads = max(each.run.n_heads for each in shown)
    height = 0.95 + (0.13 if n_heads <= 16 else 0.085) * n_heads  # noqa: PLR2004
    figure, axes = _panels(len(shown), n_columns=2, height_in=height, extra_in=0.9)
    for each, panel in zip(shown, axes, strict=True):
        _draw_heads(panel, each)
    for panel in axes[::2]:
        panel.set_ylabel("head")
    for panel in axes[-2:]:
        panel.set_xlabel("layer")
    label = "sink mass: hallucinated (or bad input) minus correct"
    place: Style = {"location": "top", "aspect": 45, "shrink": 0.7, "pad": 0.01, "extend": "both"}
    bar = colour_bar(figure, axes, Normalize(-1, 1), AROUND_CHANCE, label, **place)
    bar.set_ticks([-1, 0, 1], labels=["\N{MINUS SIGN}scale", "0", "+scale"])
    return figure


def depth_figure(shown: Sequence[Shown]) -> Figure:
    """Sink mass by relative depth (left) and its difference between the classes (right)."""
    groups: dict[tuple[str, Meaning], list[Shown]] = {}
    for each in shown:
        groups.setdefault((each.run.task, each.found.meaning), []).append(each)
    figure, axes = _panels(2 * len(groups), n_columns=2, height_in=2.6, extra_in=0.6)
    names = dict.fromkeys(each.line_name for each in shown)
    styles = {
        name: {"color": LIGHT[colour], "linestyle": dashes, "marker": marker}
        for name, colour, dashes, marker in zip(
            names, cycle(_COLOURS), cycle(_DASHES), cycle("oDsv^X"), strict=False
        )
    }
    for ((task, meaning), members), left, right in zip(groups.items(), axes[::2], axes[1::2], strict=True):
        for each in members:
            _draw_depth(left, right, each, styles[each.line_name])
        right.axhline(0, color=LIGHT["ink"], linewidth=1)
        left.set_ylim(bottom=0)
        left.set_ylabel("sink mass")
        is_own = meaning == "hallucinated"
        _title(left, f"{task}, {MEANING_NAMES[meaning]}")
        _title(right, "hallucinated minus correct" if is_own else "bad minus good")
    for panel in axes:
        panel.set_xlim(0, 1)
    for panel in axes[-2:]:
        panel.set_xlabel("relative depth (0 first layer, 1 last)")
    _key_above(figure, styles.items(), n_columns=2)
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
    models = dict.fromkeys(_point_name(point) for each in scaling for point in each.points)
    letters = dict(zip(models, string.ascii_lowercase, strict=False))
    figure, axes = _panels(2 * len(scaling), n_columns=2, height_in=3.1, extra_in=1.0)
    for each, left, right in zip(scaling, axes[::2], axes[1::2], strict=True):
        _draw_sizes(left, each, ("cohens_d",), letters, zero=0.0)
        _draw_sizes(right, each, ("auroc", "probe_auroc"), letters, zero=0.5)
        left.set_ylabel("Cohen's d")
        right.set_ylabel("AUROC")
        _title(left, each.series.partition(", quantisation")[0])
    style: Style = {"linestyle": "none", "color": LIGHT["ink"]}
    named = [(name, {**style, "marker": f"${letter}$"}) for name, letter in letters.items()]
    quantities = _keys("cohens_d", "auroc", "probe_auroc")
    _key_above(figure, [*quantities, *named], n_columns=3)
    return figure


def model_name(name: str) -> str:
    """A model without its organisation."""
    return name.rsplit("/", maxsplit=1)[-1]


def parameters_text(n_parameters: float) -> str:
    """Parameters as 135M or 7B."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if n_parameters >= unit:
            return f"{n_parameters / unit:.3g}{name}"
    return f"{n_parameters:.0f}"


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


def _panels(
    n_panels: int, *, n_columns: int, height_in: float, extra_in: float = 0.5
) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, row by row; what is left over of the last row is hidden."""
    columns = 3 if n_panels == 3 else min(n_columns, n_panels)  # noqa: PLR2004 - none stands alone
    n_rows = -(-n_panels // columns)
    figure = new_figure(_WIDTH_IN, n_rows * height_in + extra_in)
    axes = list(figure.subplots(n_rows, columns, squeeze=False).flat)
    for each in axes[n_panels:]:
        each.set_visible(False)
    for each in axes[:n_panels]:
        prepare(each)
    return figure, axes[:n_panels]


def _prepare_rows(axes: Axes, middle: float) -> None:
    """Axes with one run a row, and a line at what says nothing."""
    prepare(axes)
    axes.grid(visible=False, axis="y")
    axes.axvline(middle, color=LIGHT["ink"], linewidth=1.1, zorder=1)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _name_rows(axes: Axes, shown: Sequence[Shown]) -> None:
    axes.set_yticks(range(len(shown)))
    axes.set_yticklabels([each.lines for each in shown], parse_math=False)
    axes.set_ylim(len(shown) - 0.5, -0.5)


def _mark(axes: Axes, y: float, estimate: Estimate, name: str, *, has_test: bool = False) -> None:
    """The mark of a quantity; of a test it is filled where the interval excludes zero."""
    _, colour, marker = _MARKS[name]
    is_open = has_test and not estimate.excludes_zero
    interval_mark(axes, y, estimate, colour=LIGHT[colour], marker=marker, is_open=is_open, gid=name)


def _keys(*names: str) -> list[tuple[str, Style]]:
    """Label and style of quantities."""
    marks = (_MARKS[name] for name in names)
    return [(label, {"color": LIGHT[colour], "marker": mark}) for label, colour, mark in marks]


def _key_above(figure: Figure, keys: Iterable[tuple[str, Style]], *, n_columns: int = 4) -> None:
    """One key for all panels, above them."""
    size: Style = {"linewidth": 2, "markersize": 7}
    figure.legend(
        handles=[Line2D([], [], label=label, **{**size, **style}) for label, style in keys],
        loc="outside upper left",
        ncols=n_columns,
        frameon=False,
        fontsize=FONT_SIZE - 1,
        labelcolor=LIGHT["ink"],
        handlelength=2.6,
        columnspacing=1.4,
    )


def _title(axes: Axes, text: str) -> None:
    """A title on the left whose words may come from a user."""
    axes.set_title(text, loc="left", **quiet_text(fontsize=FONT_SIZE - 1))


def _signed(estimate: Estimate) -> str:
    """With a minus sign that is as wide as a plus."""
    return f"{estimate:+.2f}".replace("-", "\N{MINUS SIGN}")


def _draw_shift(axes: Axes, each: Shown) -> None:
    classes = (each.found.masses_positive, each.found.masses_negative)
    low, high = min(v.min() for v in classes), max(v.max() for v in classes)
    room = _MARGIN * max(high - low, 1e-9)
    grid = np.linspace(low - room, high + room, _N_GRID)
    curves = [density(values, grid) for values in classes]
    top = max(curve.max() for curve in curves)
    for place, (values, curve) in enumerate(zip(classes, curves, strict=True)):
        style = _CLASS_STYLES[place]
        axes.fill_between(grid, curve / top, color=style["color"], alpha=0.13, linewidth=0)
        axes.plot(grid, curve / top, linewidth=2, gid=f"density-{place}", **style)
        _violin(axes, -0.26 - 0.4 * place, (grid, curve), values, style)
    axes.set_ylim(-0.9, 1.1)
    axes.set_xlim(grid[0], grid[-1])
    axes.set_yticks([])
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.axhline(0, color=LIGHT["grid"], linewidth=1)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    _title(axes, f"{each.lines}\nd = {_signed(each.found.shift.cohens_d)}")


def _violin(
    axes: Axes,
    middle: float,
    line: tuple[Float[np.ndarray, "point"], Float[np.ndarray, "point"]],
    values: Float[np.ndarray, "value"],
    style: Style,
) -> None:
    """The density once more, as a body with median and quartiles, below the curves."""
    grid, curve = line
    colour = style["color"]
    half = 0.17 * curve / curve.max()
    axes.fill_between(grid, middle - half, middle + half, color=colour, alpha=0.25, linewidth=0)
    for side in (-half, half):
        axes.plot(grid, middle + side, linewidth=1, **style)
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    axes.plot([low, high], [middle, middle], color=colour, linewidth=4, solid_capstyle="butt")
    dot: Style = {"marker": "o", "markersize": 6, "color": LIGHT["paper"], "markeredgewidth": 1.6}
    axes.plot(median, middle, markeredgecolor=colour, **dot)


def _draw_heads(axes: Axes, each: Shown) -> None:
    where = each.found.localisation
    values = where.difference.T
    sizes = np.abs(values[np.isfinite(values)])
    # the few largest values share the end of the scale
    reach = max(float(np.quantile(sizes, _CLIP)) if sizes.size else 0.0, _LEAST_REACH)
    norm = Normalize(-reach, reach)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    drawn: Style = {"cmap": AROUND_CHANCE, "norm": norm, "aspect": "auto", "interpolation": "none"}
    axes.imshow(np.ma.masked_invalid(values), **drawn)
    counts = np.argwhere(where.q_value.T < FALSE_DISCOVERIES)
    points: dict[str, list[tuple[int, int]]] = {}
    for head, layer in counts.tolist():
        points.setdefault(text_colour(float(values[head, layer]), norm), []).append((layer, head))
    dot: Style = {"linestyle": "none", "marker": "o", "markersize": 2.4, "markeredgewidth": 0}
    for colour, places in points.items():
        axes.plot(*zip(*places, strict=True), color=colour, gid="mark", **dot)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    limit = f"{FALSE_DISCOVERIES}".replace("0.", ".")
    count = f"{len(counts)} of {where.n_heads} heads q < {limit}"
    _title(axes, f"{each.lines}\n{count}, scale {reach:.3f}")


def _draw_depth(left: Axes, right: Axes, each: Shown, style: Style) -> None:
    where, found = each.found.localisation, each.found
    classes = np.stack([where.profile_positive, where.profile_negative])
    mean = np.average(classes, axis=0, weights=(found.n_positive, found.n_negative))
    depth = np.linspace(0, 1, len(mean)) if len(mean) > 1 else np.zeros(1)
    more: Style = {"markevery": max(1, len(mean) // 8), "markersize": 5, "linewidth": 1.8}
    left.plot(depth, mean, gid=f"depth {each.name}", **style, **more)
    unseen = Estimate(float("nan"))
    rows = [estimate or unseen for estimate in where.profile_difference]
    low, high = [row.low for row in rows], [row.high for row in rows]
    right.fill_between(depth, low, high, color=style["color"], alpha=0.15, linewidth=0)
    right.plot(depth, [row.value for row in rows], **style, **more)


def _draw_sizes(
    axes: Axes, scaling: Scaling, fields: tuple[str, ...], letters: Mapping[str, str], *, zero: float
) -> None:
    """Estimates of models by their size, those of one size moved a little apart."""
    axes.axhline(zero, color=LIGHT["ink"], linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: parameters_text(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    sizes = [point.n_parameters for point in scaling.points]
    places = [size * 1.16 ** sizes[:rank].count(size) for rank, size in enumerate(sizes)]
    for field in fields:
        _, part, marker = _MARKS[field]
        for x, point in zip(places, scaling.points, strict=True):
            estimate = getattr(point, field)
            axes.plot([x, x], [estimate.low, estimate.high], color=LIGHT[part], linewidth=2)
            mark: Style = {"marker": marker, "markersize": 7, "color": LIGHT[part]}
            axes.plot(x, estimate.value, gid=field, **mark)
    axes.set_xlim(min(sizes) / 1.9, max(sizes) * 1.9)
    axes.set_xticks(sorted(set(sizes)))
    axes.set_xlabel("parameters")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.08 * (high - low))
    text: Style = {"ha": "center", "va": "bottom", **quiet_text(fontsize=FONT_SIZE - 1)}
    for x, point in zip(places, scaling.points, strict=True):
        top = max(getattr(point, field).high for field in fields)
        axes.text(x, top + 0.015 * (high - low), letters.get(_point_name(point), ""), **text)


def _point_name(point: Row) -> str:
    return f"{model_name(point.model)}, chat {point.chat}"


def _parts(run: RunResult, found: Findings) -> tuple[str, ...]:
    quantization = "" if run.quantization == "none" else run.quantization
    return (run.task, model_name(run.model), f"chat {run.chat}", quantization, MEANING_NAMES[found.meaning])
