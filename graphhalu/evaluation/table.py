"""The rows of a comparison as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

from graphhalu.evaluation.records import DetectorRow
from graphhalu.evaluation.significance import Comparison

_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r", "\n")


def csv_table(rows: Sequence[DetectorRow], comparisons: Sequence[Comparison] = ()) -> str:
    """The rows as CSV; text that a spreadsheet would run as a formula is quoted with ``'``."""
    return csv_text(*table_columns(rows, comparisons))


def csv_text(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV under these columns; what a row lacks is empty."""
    stream = io.StringIO(newline="")  # a carriage return in a cell stays what it is
    writer = csv.DictWriter(stream, names, restval="")
    writer.writeheader()
    writer.writerows({name: spreadsheet_cell(value) for name, value in row.items()} for row in rows)
    return stream.getvalue()


def table_columns(
    rows: Sequence[DetectorRow], comparisons: Sequence[Comparison] = ()
) -> tuple[list[str], list[dict[str, Any]]]:
    """Names of the columns in reading order, and the cells of each row that has some."""
    tests = {comparison.detector: comparison for comparison in comparisons}
    flat = [_flat(row, tests.get(row.detector)) for row in rows]
    columns = max(flat, key=len, default={})  # a failed row has no metrics
    # a row with metrics and no test, as that of the baseline, comes before the last column
    names = [name for name in columns if name != "failure"]
    names += [name for row in flat for name in row if name not in columns]
    return [*dict.fromkeys(names), *(["failure"] if flat else [])], flat


def _flat(row: DetectorRow, test: Comparison | None) -> dict[str, Any]:
    """Columns in reading order: what the detector is, its metrics, its test, its costs."""
    card = ("detector", "inputs", "is_supervised", "is_control", "is_graph")
    costs = ("coverage", "auroc_invalid_at_median", "fit_s", "score_ms", "trace_bytes")
    flat = {name: getattr(row, name) for name in card} | {"inputs": " ".join(row.inputs)}
    for name, metric in row.metrics.items():
        parts = vars(metric).items()
        flat |= {name if part == "value" else f"{name}_{part}": value for part, value in parts}
    if test is not None:
        known = {name: value for name, value in vars(test).items() if name != "detector"}
        named = {"low": "difference_low", "high": "difference_high"}
        flat |= {named.get(name, name): value for name, value in known.items()}
    return flat | {name: getattr(row, name) for name in (*costs, "n_parameters", "failure")}


def spreadsheet_cell(value: object) -> object:
    """The value, as text that no spreadsheet takes for a formula."""
    if isinstance(value, str) and value.startswith(_FORMULA_STARTS):
        return f"'{value}"
    return value
