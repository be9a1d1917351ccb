"""Page of the study of sink mass: what was found, the figures, and the numbers behind them."""

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any, Final

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.labels.labels import MEANINGS
from graphhalu.report.frame import provenance_section
from graphhalu.report.page import ABSENT, Cell, Page, PageText, cell
from graphhalu.report.sinks_figures import (
    MEANING_NAMES,
    Shown,
    accuracy_figure,
    depth_figure,
    forest_figure,
    heads_figure,
    model_name,
    models_figure,
    parameters_text,
    scaling_figure,
    shift_figure,
    shown_findings,
)
from graphhalu.report.write import ReportFiles, write_page
from graphhalu.studies.sinks.result import SinksResult

PAGE_FILE: Final = "sinks.html"


def write_sinks_report(
    result: SinksResult, folder: Path, *, sink_tokens: int | None = None, query_mode: str | None = None
) -> ReportFiles:
    """Write ``sinks.html``, ``sinks.md``, and every figure as PNG and SVG.

    Args:
        result: The analysis.
        folder: Where the files go.
        sink_tokens: Sink of the runs that the figures show; by default the largest.
        query_mode: Query mode of these; by default ``last``. The tables show all runs.

    Raises:
        UsageError: If there is no run of these.
        NotEnoughDataError: If no run could be analysed.
    """
    page = sinks_page(result, sink_tokens=sink_tokens, query_mode=query_mode)
    return write_page(page, folder / PAGE_FILE, has_svg=True)


def sinks_page(result: SinksResult, *, sink_tokens: int | None = None, query_mode: str | None = None) -> Page:
    """The page; arguments as those of :func:`write_sinks_report`."""
    shown = shown_findings(result, sink_tokens=sink_tokens, query_mode=query_mode)
    text = PageText("sinks", scaling=_scaling_notes(result))
    rows = _rows(result)
    sizes, reason = {}, []
    try:
        sizes = {"sinks-scaling": scaling_figure(result.scaling)}
    except NotEnoughDataError as error:
        reason = [f"There is no figure by model size: {error}."]
    sections = (
        text.section(
            "shift",
            figures={"sinks-shift": shift_figure(shown), "sinks-effects": forest_figure(shown)},
            tables={"table-shift": rows},
        ),
        text.section(
            "prediction",
            figures={"sinks-accuracy": accuracy_figure(shown)},
            tables={"table-prediction": rows, "table-calibration": rows},
        ),
        text.section(
            "beyond",
            figures={"sinks-models": models_figure(shown)},
            tables={
                "table-gains": [
                    {**row, "gain": gain, "larger": row["found"].model(gain.model)}
                    for row in rows
                    for gain in row["found"].gains
                ]
            },
        ),
        text.section(
            "localisation",
            figures={"sinks-heads": heads_figure(shown), "sinks-depth": depth_figure(shown)},
            tables={
                "table-heads": _head_rows(shown),
                "table-overlap": [
                    {"shown": each, "overlap": overlap}
                    for each in shown
                    for overlap in each.found.localisation.overlaps
                ],
            },
        ),
        text.section(
            "across",
            figures=sizes,
            tables={
                "table-scaling": _scaling_rows(result),
                "table-tasks": _task_rows(result),
                "table-sensitivity": [{"pair": pair} for pair in result.sensitivity],
            },
            paragraphs=reason,
        ),
        text.section("runs", tables={"table-runs": _run_rows(result)}, paragraphs=result.notes),
        text.section("reading"),
        provenance_section(result.provenance, {"settings": result.settings}),
    )
    title = "Sink mass against hallucination"
    return Page(title, headline(shown), _facts(result, shown), sections)


def headline(shown: Sequence[Shown]) -> tuple[str, str]:
    """Two sentences: what the scalar says, and what single heads say."""
    effects = [each.found.shift.cohens_d for each in shown]
    n_clear = sum(effect.excludes_zero for effect in effects)
    largest = max(abs(effect.value) for effect in effects)
    n_positive = sum(effect.value > 0 for effect in effects)
    signs = (
        "its sign is the same in all"
        if n_positive in (0, len(effects))
        else f"its sign is positive in {n_positive} and negative in {len(effects) - n_positive}"
    )
    gains = [g for s in shown for g in s.found.gains if g.model == "entropy+sink"]
    n_gains = sum(gain.auroc.low > 0 for gain in gains)
    aurocs = [m.auroc for s in shown if (m := s.found.model("heads")) is not None]
    n_probes = sum(auroc.low > 0.5 for auroc in aurocs)  # noqa: PLR2004
    first = (
        f"The interval of Cohen's d of the scalar sink mass excludes zero in {n_clear} of "
        f"{len(effects)} comparisons; the largest size is {largest:.2f}, and {signs}."
    )
    second = f"Sink mass adds to entropy in {n_gains} of {len(gains)} comparisons"
    if aurocs:
        second += (
            f"; a probe on every head is above chance in {n_probes} of {len(aurocs)}, with AUROC "
            f"from {min(a.value for a in aurocs):.2f} to {max(a.value for a in aurocs):.2f}"
        )
    return first, f"{second}."


def _facts(result: SinksResult, shown: Sequence[Shown]) -> tuple[tuple[str, str], ...]:
    first = shown[0].run
    n_nan = sum(run.n_records - run.n_usable for run in result.runs)
    meanings = dict.fromkeys(each.found.meaning for each in shown)
    settings = result.settings
    n_models, n_tasks = len({r.model for r in result.runs}), len({r.task for r in result.runs})
    n_seeds = len(settings.get("fold_seeds", []))
    n_records = sum(run.n_records for run in result.runs)
    return (
        ("runs", f"{len(result.runs)}: {n_models} models on {n_tasks} tasks"),
        ("shown in the figures", f"{len(shown)}: K = {first.sink_tokens}, {first.query_mode}"),
        ("records", f"{n_records:,}, {n_nan:,} left out for NaN"),
        ("a label of 1 means", "; or ".join(MEANINGS[meaning] for meaning in meanings)),
        ("intervals", f"95 %, {settings.get('n_resamples', 0):,} resamples of questions"),
        ("cross-fitting", f"5 grouped folds, 3 inside of each; {n_seeds} seeds"),
    )


def _rows(result: SinksResult) -> list[dict[str, Any]]:
    """Every run under every label."""
    return [
        {
            "run": run,
            "found": found,
            "label": MEANING_NAMES[found.meaning],
            "model": model_name(run.model),
            "chat": run.chat if run.quantization == "none" else f"{run.chat}, {run.quantization}",
            **{name: found.model(name) for name in ("sink", "heads", "answer")},
        }
        for run in result.runs
        for found in run.findings
    ]


def _head_rows(shown: Sequence[Shown]) -> list[dict[str, Any]]:
    """The heads that differ most, of the runs in the figures."""
    rows = []
    for each in shown:
        where = each.found.localisation
        count = Cell(
            f"{where.n_significant} of {where.n_heads}", f"{where.n_significant_adjusted} without length"
        )
        rows += [{"shown": each, "head": head, "count": count} for head in where.top[:5]]
    return rows


def _scaling_rows(result: SinksResult) -> list[dict[str, Any]]:
    return [
        {
            "each": each,
            "point": point,
            "model": model_name(point.model),
            "parameters": Cell(parameters_text(point.n_parameters), value=point.n_parameters),
        }
        for each in result.scaling
        for point in each.points
    ]


def _scaling_notes(result: SinksResult) -> str:
    notes = []
    for each in result.scaling:
        test = f"{each.spearman:+.2f}, p {cell(each.p_spearman, 'p').text}"
        more = f". Rank correlation with d: {test}" if isfinite(each.spearman) else ""
        notes.append(f"{each.series}: {each.note}{more}")
    return "\n".join(notes)


def _task_rows(result: SinksResult) -> list[dict[str, Any]]:
    rows = []
    for each in result.tasks:
        test = Cell(
            f"Q = {each.cochran_q:.1f}, I2 = {each.i_squared:.0%}",
            f"p {cell(each.p_value, 'p').text}; {each.n_positive_d} of {len(each.rows)} positive",
        )
        test = test if isfinite(each.cochran_q) else Cell(ABSENT)
        rows += [
            {"each": each, "row": row, "label": MEANING_NAMES[row.meaning], "heterogeneity": test}
            for row in each.rows
        ]
    return rows


def _run_rows(result: SinksResult) -> list[dict[str, Any]]:
    """Every file of records, also those that could not be analysed."""
    return [
        {
            "run": run,
            "model": model_name(run.model),
            "shape": f"{run.n_layers} x {run.n_heads}",
            "commonest": None
            if run.commonest_share is None
            else f"{run.commonest_answer}, {run.commonest_share:.0%}",
            "left_out": "; ".join(f"{MEANING_NAMES[m]}: {why}" for m, why in run.left_out.items()),
        }
        for run in result.runs
    ]
