"""Heat maps: what single heads say, and transfer from store to store.

The colours go from blue below chance over grey to yellow above it, and from dark to light on the
way, so that a greyscale print keeps the order.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.evaluation.transfer import TransferCell
from graphhalu.evaluation.univariate import FALSE_DISCOVERIES, HeadMap, HeadMaps
from graphhalu.report.drawing import FONT_SIZE, new_figure, prepare, quiet_text
from graphhalu.report.palette import AROUND_CHANCE
from graphhalu.report.theme import LIGHT

MAP_TITLES: Final = {
    "sink_mass_k4": "attention to the first 4 tokens (sink)",
    "self_attention_log": "attention to itself, log",
    "lookback_ratio": "share of attention that looks back at the prompt",
    "attention_entropy_mean": "entropy of attention",
}
MARK_TEXT: Final = f"q < {FALSE_DISCOVERIES}".replace("0.", ".")
_WIDTH_IN: Final = 9.0
_DARK_CELL: Final = "#0a0a0a"
_LIGHT_CELL: Final = "#fdfdfd"
_MIDDLE: Final = 0.5
_GAP: Final = 0.6
_LONGEST: Final = 18


def maps_figure(found: HeadMaps) -> Figure:
    """AUROC of each head alone, a panel a feature; layers across, heads down, means at the foot.

    A dot marks what counts after false-discovery control over all panels.

    Raises:
        NotEnoughDataError: If there is no map, or no head has an AUROC.
    """
    reach = _reach([value for each in found.maps for row in each.auroc for value in row])
    n_heads = len(found.maps[0].auroc[0])
    row_in = 0.17 if n_heads <= 16 else 0.1  # noqa: PLR2004
    height = 0.9 + len(found.maps) * (0.75 + row_in * (n_heads + 1 + _GAP))
    figure = new_figure(_WIDTH_IN, height + 0.15 * len(found.maps))
    # else a title stands on the row above it
    figure.set_layout_engine("constrained", h_pad=0.13)
    panels = figure.subplots(len(found.maps), 1, sharex=True, squeeze=False)[:, 0]
    norm = Normalize(_MIDDLE - reach, _MIDDLE + reach)
    for axes, each in zip(panels, found.maps, strict=True):
        _draw_map(axes, each, norm)
    panels[-1].set_xlabel("layer", fontsize=FONT_SIZE)
    _colour_bar(figure, panels, norm, "AUROC of one head alone")
    return figure


def transfer_figure(cells: Sequence[TransferCell], detectors: Sequence[str]) -> Figure:
    """AUROC of detectors trained on one store (down) and tested on another (across).

    Args:
        cells: The matrix.
        detectors: Which of its detectors; a panel each.

    Raises:
        NotEnoughDataError: If no cell of them has an AUROC.
    """
    names = list(dict.fromkeys(cell.train for cell in cells))
    found = {(c.detector, c.train, c.test): _auroc(c) for c in cells}
    reach = _reach([found[d, a, b] for d in detectors for a in names for b in names])
    norm = Normalize(_MIDDLE - reach, _MIDDLE + reach)
    n_columns = min(2, len(detectors))
    n_rows = -(-len(detectors) // n_columns)
    side = 1.1 + 0.62 * len(names)
    figure = new_figure(_WIDTH_IN * (0.62, 1.0)[n_columns - 1], 0.4 + (side + 0.6) * n_rows)
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharey=True)
    for axes, detector in zip(grid.flat, detectors, strict=False):
        values = np.array([[_or_nan(found[detector, train, test]) for test in names] for train in names])
        _draw_matrix(axes, values, names, norm)
        axes.set_title(_short(detector), loc="left", fontsize=FONT_SIZE, color=LIGHT["ink"], parse_math=False)
    for axes in grid.flat[len(detectors) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("trained on", fontsize=FONT_SIZE)
    _colour_bar(figure, grid, norm, "AUROC")
    return figure


def n_marked(found: HeadMap) -> int:
    """Heads that count after false-discovery control."""
    return sum(_counts(q) for row in found.q_value for q in row)


def _draw_map(axes: Axes, each: HeadMap, norm: Normalize) -> None:
    prepare(axes, grid=False)
    values = np.array([[_or_nan(v) for v in row] for row in each.auroc]).T
    means = np.array([[_or_nan(v) for v in each.layer_auroc]])
    n_heads, n_layers = values.shape
    foot = n_heads + _GAP
    for block, top in ((values, 0.0), (means, foot)):
        # an image is one element where cells would be thousands
        axes.imshow(
            np.ma.masked_invalid(block),
            cmap=AROUND_CHANCE,
            norm=norm,
            aspect="auto",
            interpolation="none",
            extent=(-0.5, n_layers - 0.5, top + len(block), top),
        )
    _mark(axes, each, norm, foot)
    axes.set(xlim=(-0.5, n_layers - 0.5), ylim=(foot + 1, 0))
    step = max(1, -(-n_layers // 15))
    axes.set_xticks(range(0, n_layers, step), [str(n) for n in each.layers[::step]])
    step = max(1, -(-n_heads // 6))
    heads = list(range(0, n_heads, step))
    axes.set_yticks([h + 0.5 for h in heads] + [foot + 0.5], [*map(str, heads), "mean"])
    axes.set_ylabel("head", fontsize=FONT_SIZE)
    axes.spines[:].set_visible(False)
    title = MAP_TITLES.get(each.feature, each.feature)
    axes.set_title(
        f"{title}: {n_marked(each)} of {values.size} heads with {MARK_TEXT}",
        loc="left",
        fontsize=FONT_SIZE,
        color=LIGHT["ink"],
        parse_math=False,
    )


def _mark(axes: Axes, each: HeadMap, norm: Normalize, foot: float) -> None:
    """Dots that are dark on light cells and light on dark ones."""
    points: dict[str, list[tuple[int, float]]] = {}
    for layer in range(len(each.layers)):
        column = [*each.auroc[layer], each.layer_auroc[layer]]
        q_values = [*each.q_value[layer], each.layer_q_value[layer]]
        heights = [*(n + 0.5 for n in range(len(each.auroc[layer]))), foot + 0.5]
        for value, q_value, height in zip(column, q_values, heights, strict=True):
            if value is not None and _counts(q_value):
                points.setdefault(text_colour(value, norm), []).append((layer, height))
    for colour, places in points.items():
        axes.plot(
            *zip(*places, strict=True),
            linestyle="none",
            marker="o",
            markersize=3,
            color=colour,
            markeredgewidth=0,
            gid="mark",
        )


def _draw_matrix(
    axes: Axes, values: Float[np.ndarray, "train test"], names: Sequence[str], norm: Normalize
) -> None:
    prepare(axes, grid=False)
    axes.imshow(
        np.ma.masked_invalid(values), cmap=AROUND_CHANCE, norm=norm, interpolation="none", aspect="auto"
    )
    for (row, column), value in np.ndenumerate(values):
        is_there = bool(np.isfinite(value))
        axes.text(
            column,
            row,
            f"{value:.3f}" if is_there else "failed",
            ha="center",
            va="center",
            **quiet_text(color=text_colour(value, norm) if is_there else LIGHT["muted"]),
        )
    labels = [_short(name) for name in names]
    axes.set_xticks(range(len(names)))
    axes.set_xticklabels(labels, parse_math=False, rotation=20, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)))
    axes.set_yticklabels(labels, parse_math=False)
    axes.set_xlabel("tested on", fontsize=FONT_SIZE)
    axes.spines[:].set_visible(False)


def _colour_bar(figure: Figure, panels: Any, norm: Normalize, label: str) -> None:
    mappable = ScalarMappable(norm, AROUND_CHANCE)
    bar = figure.colorbar(mappable, ax=panels, location="top", aspect=45, pad=0.02, shrink=0.7)
    bar.set_label(f"{label} (0.5 = chance)", fontsize=FONT_SIZE, color=LIGHT["ink"])
    bar.ax.tick_params(labelsize=FONT_SIZE - 1, labelcolor=LIGHT["ink"], color=LIGHT["muted"])
    bar.outline.set_visible(False)


def _reach(values: Sequence[float | None]) -> float:
    """The largest distance from chance, rounded up to a twentieth."""
    distances = [abs(value - _MIDDLE) for value in values if value is not None]
    if not distances:
        message = "no cell has an AUROC: there is nothing to draw"
        raise NotEnoughDataError(message)
    return float(np.clip(np.ceil(max(distances) * 20) / 20, 0.05, 0.5))


def text_colour(value: float, norm: Normalize) -> str:
    """Dark on light cells, light on dark ones."""
    red, green, blue, _ = AROUND_CHANCE(float(norm(value)))
    is_light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.53  # noqa: PLR2004
    return _DARK_CELL if is_light else _LIGHT_CELL


def _auroc(cell: TransferCell) -> float | None:
    return cell.metrics["auroc"].value if "auroc" in cell.metrics else None


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _counts(q_value: float | None) -> bool:
    return q_value is not None and q_value < FALSE_DISCOVERIES


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
