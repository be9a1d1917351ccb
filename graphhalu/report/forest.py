"""Forest plot: how far each detector is from the baseline, with intervals and p-values."""

from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.evaluation.result import Comparison, Result
from graphhalu.report.drawing import FONT_SIZE, new_figure, prepare, quiet_text
from graphhalu.report.palette import FAMILIES, FAMILY_MARKERS, FAMILY_NAMES, family
from graphhalu.report.theme import LIGHT

_WIDTH_IN, _ROW_IN = 9.0, 0.25
_LONGEST: Final = 24
_SMALLEST_P: Final = 0.001


def forest_figure(result: Result) -> Figure:
    """Differences of AUROC from the baseline, largest first.

    Filled marks are differences whose interval excludes zero, the band is the margin within which
    a difference counts as none; the numbers stand beside each line.

    Raises:
        NotEnoughDataError: If nothing was tested against a baseline.
    """
    tests = ordered_tests(result)
    if not tests:
        message = "no detector was tested against a baseline: there is no difference to draw"
        raise NotEnoughDataError(message)
    kinds = {row.detector: family(row) for row in result.rows}
    figure = new_figure(_WIDTH_IN, 1.5 + _ROW_IN * len(tests))
    axes = figure.subplots()
    prepare(axes)
    axes.grid(visible=False, axis="y")
    margin = tests[0].margin
    axes.axvspan(-margin, margin, color=LIGHT["grid"], linewidth=0, zorder=0, gid="margin")
    axes.axvline(0, color=LIGHT["ink"], linewidth=1.1, zorder=1, gid="zero")
    for place, test in enumerate(tests):
        _draw(axes, place, test, kinds.get(test.detector, "scalar"))
    axes.set_yticks(range(len(tests)))
    axes.set_yticklabels([_name(test) for test in tests], parse_math=False)
    axes.set_ylim(len(tests) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"AUROC minus that of {tests[0].baseline}", parse_math=False)
    _numbers(axes, tests)
    _family_key(axes, [kinds.get(test.detector, "scalar") for test in tests])
    return figure


def ordered_tests(result: Result) -> list[Comparison]:
    """The tests, the largest difference first."""
    return sorted(result.comparisons, key=lambda test: -test.difference)


def excludes_zero(test: Comparison) -> bool:
    """Whether the whole interval lies on one side of zero."""
    return test.low > 0 or test.high < 0


def difference_text(test: Comparison) -> str:
    """The difference with its interval, with signs."""
    return f"{test.difference:+.3f} [{test.low:+.3f}, {test.high:+.3f}]"


def p_text(value: float | None) -> str:
    """A p-value to three digits; ``-`` where there is none."""
    if value is None:
        return "-"
    return "<0.001" if value < _SMALLEST_P else f"{value:.3f}"


def _draw(axes: Axes, place: int, test: Comparison, kind: str) -> None:
    colour = LIGHT[kind]
    axes.plot([test.low, test.high], [place, place], color=colour, linewidth=2, zorder=2)
    axes.plot(
        test.difference,
        place,
        marker=FAMILY_MARKERS[kind],
        markersize=7.5,
        color=colour,
        markerfacecolor=colour if excludes_zero(test) else LIGHT["paper"],
        markeredgewidth=1.6,
        zorder=3,
        gid=test.detector,
    )


def _name(test: Comparison) -> str:
    name = test.detector
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _numbers(axes: Axes, tests: list[Comparison]) -> None:
    """The values as a second column of tick labels, so that the layout leaves room for them."""
    right = axes.twinx()
    right.set_ylim(axes.get_ylim())
    right.set_yticks(range(len(tests)))
    labels = [
        f"{difference_text(test)}   {p_text(test.p_holm)}".replace("-", "\N{MINUS SIGN}") for test in tests
    ]
    right.set_yticklabels(labels, fontsize=FONT_SIZE - 1, color=LIGHT["ink"])
    right.tick_params(axis="y", length=0)
    right.spines[:].set_visible(False)
    right.text(
        1.01,
        -0.62,
        "difference [interval]   Holm p",
        transform=right.get_yaxis_transform(),
        va="bottom",
        **quiet_text(fontsize=FONT_SIZE - 1, color=LIGHT["muted"]),
    )


def _family_key(axes: Axes, kinds: list[str]) -> None:
    for kind in (kind for kind in FAMILIES if kind in kinds):
        axes.plot(
            [],
            [],
            marker=FAMILY_MARKERS[kind],
            color=LIGHT[kind],
            linewidth=2,
            markersize=7.5,
            label=FAMILY_NAMES[kind],
        )
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=4,
        frameon=False,
        fontsize=FONT_SIZE - 1,
        labelcolor=LIGHT["ink"],
        handlelength=1.4,
        columnspacing=1.2,
        borderpad=0,
        borderaxespad=2.4,
    )
