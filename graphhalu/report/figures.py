"""Figures of a comparison, drawn without pyplot: no global state, no display."""

from itertools import count
from pathlib import Path
from typing import Final, NamedTuple

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from graphhalu.errors import NotEnoughDataError, UsageError
from graphhalu.evaluation.metrics import roc_curve
from graphhalu.evaluation.result import DetectorRow, Result

# Okabe and Ito's colours for the colour-blind, without yellow, which is too light on white
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
# dashes times markers tell 20 lines apart without any colour
_DASHES: Final = ("-", (0, (6, 2)), (0, (1.2, 1.2)), (0, (6, 2, 1.2, 2)), (0, (3, 1.2)))
_MARKERS: Final = ("", "o", "s", "^")
_CONTROL_COLOURS: Final = ("#8A8A8A", "#B0B0B0", "#6E6E6E")
_SIDE_IN: Final = 5.6
_GRID: Final = np.linspace(0, 1, 501)
_SUFFIXES: Final = (".png", ".svg")


class _Look(NamedTuple):
    colour: str
    dashes: object
    marker: str
    width: float


def _look(rank: int, colours: tuple[str, ...], width: float) -> _Look:
    marker = _MARKERS[rank // len(_DASHES) % len(_MARKERS)]
    return _Look(colours[rank % len(colours)], _DASHES[rank % len(_DASHES)], marker, width)


class _MeanCurve(NamedTuple):
    false_positive_rate: Float[np.ndarray, "point"]
    true_positive_rate: Float[np.ndarray, "point"]


def plot_roc(result: Result, path: Path) -> Path:
    """Draw :func:`roc_figure` into a PNG or SVG file, by the path's suffix.

    Raises:
        UsageError: If the suffix is neither ``.png`` nor ``.svg``.
        NotEnoughDataError: If no detector has a score.
    """
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        message = f"a figure is written as {' or '.join(_SUFFIXES)}, got {path.name!r}"
        raise UsageError(message)
    figure = roc_figure(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    # without these two an SVG would differ from run to run
    metadata = {"Date": None} if suffix == ".svg" else None
    with mpl.rc_context({"svg.hashsalt": "graphhalu"}):
        # the tight box lets the picture grow with the legend
        figure.savefig(
            path, format=suffix[1:], dpi=160, bbox_inches="tight", pad_inches=0.15,
            metadata=metadata,
        )  # fmt: skip
    return path


def roc_figure(result: Result) -> Figure:
    """ROC curves of all detectors that have scores, best first, with the line of chance.

    A curve over several seeds is their mean at each false-positive rate. Controls are grey.

    Raises:
        NotEnoughDataError: If no detector has a score.
    """
    rows = [row for row in result.ranked() if row.failure is None]
    if not rows:
        message = "no detector has a score to draw: all of them failed"
        raise NotEnoughDataError(message)
    figure = Figure(figsize=(_SIDE_IN, _SIDE_IN))
    axes = figure.add_axes((0, 0, 1, 1))
    _chance(axes)
    lines = [_draw(axes, result, row, look) for row, look in zip(rows, _looks(rows), strict=True)]
    _frame(axes, result)
    _legend(axes, rows, lines)
    return figure


def _draw(axes: Axes, result: Result, row: DetectorRow, look: _Look) -> Line2D:
    curve = _mean_roc(result.samples, row.detector)
    (line,) = axes.plot(
        *curve, color=look.colour, linestyle=look.dashes, linewidth=look.width,
        marker=look.marker, markevery=0.13, markersize=6, markeredgecolor="white",
        zorder=2 if row.is_control else 3, gid=row.detector,
    )  # fmt: skip
    return line


def _mean_roc(samples: pa.Table, detector: str) -> _MeanCurve:
    """The exact curve of one seed, or the mean of several on a fine grid."""
    mine = samples.filter((pc.field("detector") == detector) & pc.field("is_valid"))
    curves = []
    for seed in pc.unique(mine["seed"]).to_pylist():
        chosen = mine.filter(pc.field("seed") == seed)
        curves.append(
            roc_curve(chosen["score"].to_numpy(), chosen["label"].to_numpy().astype(np.int64))
        )
    if len(curves) == 1:
        return _MeanCurve(curves[0].false_positive_rate, curves[0].true_positive_rate)
    heights = [np.interp(_GRID, c.false_positive_rate, c.true_positive_rate) for c in curves]
    return _MeanCurve(np.append(0.0, _GRID), np.append(0.0, np.mean(heights, axis=0)))


def _looks(rows: list[DetectorRow]) -> list[_Look]:
    """Colour, dashes and marker by rank; controls are counted apart, thinner and grey."""
    ranks = {True: count(), False: count()}
    return [
        _look(next(ranks[True]), _CONTROL_COLOURS, 1.5)
        if row.is_control
        else _look(next(ranks[False]), _COLOURS, 2.3)
        for row in rows
    ]


def _chance(axes: Axes) -> None:
    axes.plot([0, 1], [0, 1], color="#9A9A9A", linewidth=1, zorder=1, gid="chance")
    axes.annotate(
        "chance", (0.86, 0.86), (0, -11), textcoords="offset points", rotation=45,
        rotation_mode="anchor", ha="center", va="center", fontsize=11, color="#6E6E6E",
    )  # fmt: skip


def _frame(axes: Axes, result: Result) -> None:
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set_xlabel("false-positive rate (correct answers flagged)", fontsize=13)
    axes.set_ylabel("true-positive rate (hallucinations found)", fontsize=13)
    axes.tick_params(labelsize=12)
    axes.grid(color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(
        f"{result.n_traces:,} answers, {result.prevalence:.0%} hallucinated",
        loc="left", fontsize=13,
    )  # fmt: skip


def _legend(axes: Axes, rows: list[DetectorRow], lines: list[Line2D]) -> None:
    labels = [_label(row) for row in rows]
    axes.legend(
        lines, labels, title="AUROC  detector", loc="upper left", bbox_to_anchor=(1.02, 1.0),
        frameon=False, fontsize=12, title_fontsize=12, alignment="left", handlelength=3.2,
        borderaxespad=0,
    )  # fmt: skip


def _label(row: DetectorRow) -> str:
    label = f"{row.metrics['auroc'].value:.3f}  {row.detector}"
    if row.coverage is not None and row.coverage < 1:
        label += f" ({row.coverage:.0%} scored)"
    if row.is_control:
        label += " (control)"
    return label.replace("$", r"\$")  # a dollar sign would start a formula
