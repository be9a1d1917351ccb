"""Which runs the figures of the sink study show, what they are called, and how panels stand."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from graphhalu.errors import NotEnoughDataError, UsageError
from graphhalu.labels.labels import Meaning
from graphhalu.report.drawing import FONT_SIZE, new_figure, prepare
from graphhalu.report.palette import LIGHT
from graphhalu.studies.sinks.findings import Findings, RunResult
from graphhalu.studies.sinks.result import SinksResult

WIDTH_IN: Final = 9.0
POSITIVE_LOOK: Final[dict[str, Any]] = {"color": LIGHT["graph"], "linestyle": "-"}
NEGATIVE_LOOK: Final[dict[str, Any]] = {"color": LIGHT["probe"], "linestyle": (0, (4, 1.6))}
CLASS_NAMES: Final[dict[Meaning, tuple[str, str]]] = {
    "hallucinated": ("hallucinated", "correct"), "input": ("input bad", "input good"),
}  # fmt: skip
"""What the records with label 1 and those with label 0 are called."""
MEANING_NAMES: Final[dict[Meaning, str]] = {"hallucinated": "own output", "input": "input label"}
LINE_LOOKS: Final[tuple[dict[str, Any], ...]] = (
    {"color": LIGHT["probe"], "linestyle": "-", "marker": "o"},
    {"color": LIGHT["graph"], "linestyle": (0, (5, 1.8)), "marker": "D"},
    {"color": LIGHT["scalar"], "linestyle": (0, (1.2, 1.3)), "marker": "s"},
    {"color": LIGHT["control"], "linestyle": (0, (6, 1.6, 1.2, 1.6)), "marker": "v"},
    {"color": LIGHT["ink"], "linestyle": "-", "marker": "^"},
    {"color": LIGHT["muted"], "linestyle": (0, (5, 1.8)), "marker": "X"},
)
"""Lines that differ in colour, dashes and mark; more than these start again."""
_LONGEST: Final = 80
_LINE: Final = 30


class Shown(NamedTuple):
    """One run under one label, with what tells it from the others that are shown."""

    run: RunResult
    found: Findings
    name: str

    @property
    def lines(self) -> str:
        """The name, a long one with its first part on a line of its own."""
        return self.name if len(self.name) <= _LINE else self.name.replace(", ", "\n", 1)


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
    chosen = [run for run in runs if run.query_mode == mode and run.sink_tokens == size]
    if not chosen:
        there = ", ".join(sorted({f"K {r.sink_tokens} {r.query_mode}" for r in runs}))
        message = f"no run with K {size} and queries {mode!r}; there are {there}"
        raise UsageError(message)
    pairs = [(run, found) for run in chosen for found in run.findings]
    pairs.sort(
        key=lambda p: (p[0].task, p[1].meaning, p[0].n_parameters or 0, p[0].model, p[0].chat)
    )
    parts = [_parts(run, found) for run, found in pairs]
    varying = [len({row[place] for row in parts}) > 1 for place in range(len(parts[0]))]
    names = [
        ", ".join(part for part, varies in zip(row, varying, strict=True) if varies) or row[1]
        for row in parts
    ]
    return [Shown(*pair, _short(name)) for pair, name in zip(pairs, names, strict=True)]


def model_name(name: str) -> str:
    """A model without its organisation."""
    return name.rsplit("/", maxsplit=1)[-1]


def panels(
    n_panels: int, *, n_columns: int, height_in: float, extra_in: float = 0.5
) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, row by row; what is left over of the last row is hidden."""
    columns = 3 if n_panels == 3 else min(n_columns, n_panels)  # noqa: PLR2004 - none stands alone
    n_rows = -(-n_panels // columns)
    figure = new_figure(WIDTH_IN, n_rows * height_in + extra_in)
    grid = figure.subplots(n_rows, columns, squeeze=False)
    axes = list(grid.flat)
    for each in axes[n_panels:]:
        each.set_visible(False)
    for each in axes[:n_panels]:
        prepare(each)
    return figure, axes[:n_panels]


def panel_title(axes: Axes, text: str) -> None:
    """A title on the left whose words may come from a user."""
    axes.set_title(text, loc="left", fontsize=FONT_SIZE - 1, color=LIGHT["ink"], parse_math=False)


def key_above(figure: Figure, handles: Sequence[Any], *, n_columns: int = 4) -> None:
    """One key for all panels, above them."""
    figure.legend(
        handles=list(handles), loc="outside upper left", ncols=n_columns, frameon=False,
        fontsize=FONT_SIZE - 1, labelcolor=LIGHT["ink"], handlelength=2.6, columnspacing=1.4,
    )  # fmt: skip


def _order(run: RunResult, found: Findings) -> tuple[str, str, float, str, str]:
    return run.task, found.meaning, run.n_parameters or 0.0, run.model, run.chat


def _parts(run: RunResult, found: Findings) -> tuple[str, ...]:
    return (
        run.task, model_name(run.model), f"chat {run.chat}",
        "" if run.quantization == "none" else run.quantization, MEANING_NAMES[found.meaning],
    )  # fmt: skip


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
