"""The comparison as a table for the terminal."""

import re
from collections.abc import Callable
from typing import Final, Literal

from rich import box
from rich.table import Table
from rich.text import Text

from graphhalu.evaluation.result import DetectorRow, MetricValue, Result

COLUMNS: Final = (
    "detector",
    "inputs",
    "supervised",
    "AUROC",
    "AUPRC",
    "TPR@5%FPR",
    "coverage",
    "fit s",
    "ms/trace",
)
_NARROW_COLUMNS: Final = ("detector", "in", "AUROC", "AUPRC", "TPR@5%FPR", "cov.", "fit s", "ms")
CONTROL_MARK: Final = "°"
_ABSENT: Final = "-"
_N_TEXT_COLUMNS: Final = 2
_INPUT_LETTERS: Final = {"attention": "A", "hidden": "H", "likelihood": "P", "text": "T", "length": "N"}
"""Letters of inputs in a narrow table; likelihood is P as in probability, length N."""
_INTERVAL_WIDTH: Final = len("[.123,.456]")
_METRIC_COLUMNS: Final = range(2, 5)


def terminal_table(result: Result) -> Table:
    """A rich table, best first; controls are dim, failed detectors come last.

    Intervals stand below their values in all rows alike; nothing is cut off.
    """
    # Text, since rich would read [brackets] in a plain string as markup
    note = Text(caption(result))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0, caption=note, caption_justify="left")
    for number, column in enumerate(_NARROW_COLUMNS):
        justify: Literal["left", "right"] = "left" if number < _N_TEXT_COLUMNS else "right"
        width = _INTERVAL_WIDTH if number in _METRIC_COLUMNS else len(column)
        table.add_column(column, justify=justify, overflow="fold", min_width=width, no_wrap=number == 0)
    for row in result.ranked():
        cells = [Text(cell) for cell in _narrow_cells(row)]
        table.add_row(*cells, style="dim" if row.is_control else "")
    return table


def table_cells(row: DetectorRow) -> tuple[str, ...]:
    """The texts of one row, in the order of :data:`COLUMNS`."""
    return (
        _marked_name(row),
        ", ".join(row.inputs) or _ABSENT,
        {True: "yes", False: "no", None: _ABSENT}[row.is_supervised],
        *_metric_cells(row, _interval),
        *_cost_cells(row),
    )


def _narrow_cells(row: DetectorRow) -> tuple[str, ...]:
    """The texts of one row for 80 columns; inputs are one letter each."""
    letters = "".join(_INPUT_LETTERS.get(name, "?") for name in row.inputs) or _ABSENT
    return (_marked_name(row), letters, *_metric_cells(row, _narrow_interval), *_cost_cells(row))


def _marked_name(row: DetectorRow) -> str:
    return f"{row.detector} {CONTROL_MARK}" if row.is_control else row.detector


def _metric_cells(row: DetectorRow, write: Callable[[MetricValue], str]) -> tuple[str, ...]:
    metrics = [
        write(row.metrics[name]) if name in row.metrics else _ABSENT
        for name in ("auroc", "auprc", "tpr_at_5_fpr")
    ]
    return ("failed" if row.failure else metrics[0], *metrics[1:])


def _cost_cells(row: DetectorRow) -> tuple[str, ...]:
    return (_number(row.coverage, "{:.0%}".format), _number(row.fit_s, _short), _number(row.score_ms, _short))


def caption(result: Result) -> str:
    """What the numbers mean, and why a detector has none; one line each."""
    level, seeds = result.config.get("level", 0.95), result.config.get("seeds", [])
    lines = [
        (
            f"{result.n_traces:,} traces of {result.n_groups:,} questions, labels "
            f"{result.labeller.get('name', _ABSENT)!r} ({result.n_left_out:,} without a valid one "
            f"left out), prevalence {result.prevalence:.1%} = AUPRC of chance"
        ),
        f"[low, high]: {level:.0%} bootstrap over questions; means over {len(seeds)} seed(s)",
        "in: " + ", ".join(f"{letter} {name}" for name, letter in _INPUT_LETTERS.items()),
    ]
    if any(row.is_control for row in result.rows):
        lines.append(f"{CONTROL_MARK} control: a detector proves nothing unless it beats these")
    lines += [
        f"{row.detector}: AUROC {row.auroc_invalid_at_median:.3f} over all traces, those without "
        f"a score at the median; its rank follows this number"
        for row in result.ranked()
        if row.coverage is not None and row.coverage < 1 and row.auroc_invalid_at_median is not None
    ]
    return "\n".join(lines + [f"{row.detector} failed: {row.failure}" for row in _failed(result)])


def _failed(result: Result) -> list[DetectorRow]:
    return [row for row in result.rows if row.failure]


def _interval(metric: MetricValue) -> str:
    return f"{metric.value:.3f} [{metric.low:.3f}, {metric.high:.3f}]"


def _narrow_interval(metric: MetricValue) -> str:
    """Without leading zeros, the interval on a line of its own in every row."""
    return re.sub(r"\b0\.", ".", _interval(metric).replace(", ", ",").replace(" [", "\n["))


def _number(value: float | None, write: Callable[[float], str]) -> str:
    return _ABSENT if value is None else write(value)


def _short(value: float) -> str:
    """Two significant digits below 10, none after the point above; never the exponent form."""
    if value < 0.01:  # noqa: PLR2004
        return "<0.01"
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"  # noqa: PLR2004
