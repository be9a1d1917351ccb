"""Page of the study of sink mass: what was found, the figures, and the numbers behind them."""

from collections.abc import Iterator, Sequence
from math import isfinite
from pathlib import Path
from typing import Final

from graphhalu.errors import NotEnoughDataError
from graphhalu.labels.labels import MEANINGS
from graphhalu.report.frame import provenance_section
from graphhalu.report.page import (
    ABSENT,
    Cell,
    Page,
    PageText,
    Row,
    estimate_cell,
    number,
)
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
from graphhalu.studies.sinks.result import Findings, RunResult, SinksResult

PAGE_FILE: Final = "sinks.html"
_SMALLEST_P: Final = 0.001


def write_sinks_report(
    result: SinksResult,
    folder: Path,
    *,
    sink_tokens: int | None = None,
    query_mode: str | None = None,
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


def sinks_page(
    result: SinksResult, *, sink_tokens: int | None = None, query_mode: str | None = None
) -> Page:
    """The page; arguments as those of :func:`write_sinks_report`."""
    shown = shown_findings(result, sink_tokens=sink_tokens, query_mode=query_mode)
    text = PageText("sinks", scaling=_scaling_notes(result))
    sizes, reason = {}, []
    try:
        sizes = {"sinks-scaling": scaling_figure(result.scaling)}
    except NotEnoughDataError as error:
        reason = [f"There is no figure by model size: {error}."]
    sections = (
        text.section(
            "shift",
            figures={"sinks-shift": shift_figure(shown), "sinks-effects": forest_figure(shown)},
            tables={"table-shift": _shift_rows(result)},
        ),
        text.section(
            "prediction",
            figures={"sinks-accuracy": accuracy_figure(shown)},
            tables={
                "table-prediction": _prediction_rows(result),
                "table-calibration": _calibration_rows(result),
            },
        ),
        text.section(
            "beyond",
            figures={"sinks-models": models_figure(shown)},
            tables={"table-gains": _gain_rows(result)},
        ),
        text.section(
            "localisation",
            figures={"sinks-heads": heads_figure(shown), "sinks-depth": depth_figure(shown)},
            tables={"table-heads": _head_rows(shown), "table-overlap": _overlap_rows(shown)},
        ),
        text.section(
            "across",
            figures=sizes,
            tables={
                "table-scaling": _scaling_rows(result),
                "table-tasks": _task_rows(result),
                "table-sensitivity": _sensitivity_rows(result),
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


def _shift_rows(result: SinksResult) -> list[Row]:
    """H1 of every run."""
    return [
        {
            **_run_cells(run, found),
            "n1": number(found.n_positive, ",d"),
            "n0": number(found.n_negative, ",d"),
            "mean difference": estimate_cell(found.shift.mean_difference, "+.4f"),
            "median difference": estimate_cell(found.shift.median_difference, "+.4f"),
            "Cohen's d": estimate_cell(found.shift.cohens_d, "+.2f"),
            "p": _p(found.shift.p_permutation),
            "d without length": estimate_cell(found.shift.adjusted_d, "+.2f"),
            "p without length": _p(found.shift.adjusted_p),
            "d of length": estimate_cell(found.shift.length_d, "+.2f"),
            "r with length": number(found.shift.length_pearson, "+.2f"),
            "r with entropy": number(found.shift.entropy_pearson, "+.2f"),
        }
        for run, found in _pairs(result)
    ]


def _prediction_rows(result: SinksResult) -> list[Row]:
    """H2 of every run."""
    return [
        {
            **_run_cells(run, found),
            "share of label 1": number(found.prediction.prevalence),
            "AUROC": estimate_cell(found.prediction.auroc),
            "AUROC without length": estimate_cell(found.prediction.adjusted_auroc),
            "AUPRC (average precision)": estimate_cell(found.prediction.auprc),
            "AUPRC (trapezoid)": number(found.prediction.auprc_trapezoid),
            "per-head probe": _auroc(found, "heads"),
            "answer letter": _auroc(found, "answer"),
        }
        for run, found in _pairs(result)
    ]


def _calibration_rows(result: SinksResult) -> list[Row]:
    """How good probabilities from the scalar are."""
    return [
        {
            **_run_cells(run, found),
            "ECE": number(found.prediction.ece),
            "Brier": number(found.prediction.brier),
            "Brier of the share": number(found.prediction.brier_of_prevalence),
            "log-loss": estimate_cell(model and model.log_loss, ".4f"),
        }
        for run, found in _pairs(result)
        for model in [found.model("sink")]
    ]


def _gain_rows(result: SinksResult) -> list[Row]:
    """H3 of every run."""
    return [
        {
            **_run_cells(run, found),
            "larger model": gain.model,
            "against": gain.baseline,
            "AUROC": _auroc(found, gain.model),
            "AUROC gained": estimate_cell(gain.auroc, "+.3f"),
            "p": _p(gain.p_auroc),
            "log-loss gained": estimate_cell(gain.log_loss, "+.4f"),
            "p of log-loss": _p(gain.p_log_loss),
        }
        for run, found in _pairs(result)
        for gain in found.gains
    ]


def _head_rows(shown: Sequence[Shown]) -> list[Row]:
    """The heads that differ most, of the runs in the figures."""
    return [
        {
            "run": each.name,
            "layer": number(head.layer, "d"),
            "head": number(head.head, "d"),
            "difference": estimate_cell(head.difference, "+.3f"),
            "z": number(head.z, "+.1f"),
            "q": _p(head.q_value),
            "q without length": _p(head.adjusted_q_value),
            "stability": number(head.stability, ".0%"),
            "heads that count": Cell(
                f"{where.n_significant} of {where.n_heads}",
                f"{where.n_significant_adjusted} without length",
            ),
        }
        for each in shown
        for where in [each.found.localisation]
        for head in where.top[:5]
    ]


def _overlap_rows(shown: Sequence[Shown]) -> list[Row]:
    """Whether these heads have a role; nothing without a table of heads."""
    return [
        {
            "run": each.name,
            "role": overlap.role,
            "heads of each": number(overlap.k, "d"),
            "both": number(overlap.n_shared, "d"),
            "by chance": number(overlap.n_expected, ".2f"),
            "p": _p(overlap.p_value),
            "rank correlation": number(overlap.spearman, "+.2f"),
            "p of correlation": _p(overlap.p_spearman),
        }
        for each in shown
        for where in [each.found.localisation]
        for overlap in where.overlaps
    ]


def _scaling_rows(result: SinksResult) -> list[Row]:
    """Models by size."""
    return [
        {
            "series": each.series,
            "model": model_name(point.model),
            "chat": point.chat,
            "parameters": Cell(parameters_text(point.n_parameters), value=point.n_parameters),
            "Cohen's d": estimate_cell(point.cohens_d, "+.2f"),
            "AUROC": estimate_cell(point.auroc),
            "per-head probe": estimate_cell(point.probe_auroc),
        }
        for each in result.scaling
        for point in each.points
    ]


def _task_rows(result: SinksResult) -> list[Row]:
    """Tasks of one model."""
    return [
        {
            "series": each.series,
            "task": row.task,
            "label": MEANING_NAMES[row.meaning],
            "Cohen's d": estimate_cell(row.cohens_d, "+.2f"),
            "d without length": estimate_cell(row.adjusted_d, "+.2f"),
            "AUROC": estimate_cell(row.auroc),
            "heterogeneity": Cell(
                f"Q = {each.cochran_q:.1f}, I2 = {each.i_squared:.0%}",
                f"p {_p(each.p_value).text}; {each.n_positive_d} of {len(each.rows)} positive",
            )
            if isfinite(each.cochran_q)
            else ABSENT,
        }
        for each in result.tasks
        for row in each.rows
    ]


def _sensitivity_rows(result: SinksResult) -> list[Row]:
    """Runs that differ in one setting."""
    return [
        {
            "setting": each.setting,
            "from": each.first,
            "to": each.second,
            "series": each.series,
            "records": number(each.n_both, ",d"),
            "mean sink mass": estimate_cell(each.mass_difference, "+.3f"),
            "r": number(each.mass_pearson, "+.2f"),
            "accuracy": estimate_cell(each.accuracy_difference, "+.3f"),
            "other answer": number(each.share_changed, ".0%"),
            "d before": number(each.d_first, "+.2f"),
            "d after": number(each.d_second, "+.2f"),
            "difference of d": estimate_cell(each.d_difference, "+.2f"),
        }
        for each in result.sensitivity
    ]


def _run_rows(result: SinksResult) -> list[Row]:
    """Every file of records, also those that could not be analysed."""
    return [
        {
            "task": run.task,
            "model": model_name(run.model),
            "K": number(run.sink_tokens, "d"),
            "queries": run.query_mode,
            "chat": run.chat,
            "quantisation": run.quantization,
            "layers x heads": f"{run.n_layers} x {run.n_heads}",
            "records": number(run.n_records, ",d"),
            "without NaN": number(run.n_usable, ",d"),
            "accuracy": number(run.accuracy),
            "commonest answer": ABSENT
            if run.commonest_share is None
            else f"{run.commonest_answer}, {run.commonest_share:.0%}",
            "not analysed": "; ".join(
                f"{MEANING_NAMES[meaning]}: {why}" for meaning, why in run.left_out.items()
            ),
        }
        for run in result.runs
    ]


def _scaling_notes(result: SinksResult) -> str:
    notes = []
    for each in result.scaling:
        test = f"{each.spearman:+.2f}, p {_p(each.p_spearman).text}"
        more = f". Rank correlation with d: {test}" if isfinite(each.spearman) else ""
        notes.append(f"{each.series}: {each.note}{more}")
    return "; ".join(notes)


def _pairs(result: SinksResult) -> Iterator[tuple[RunResult, Findings]]:
    for run in result.runs:
        for found in run.findings:
            yield run, found


def _run_cells(run: RunResult, found: Findings) -> dict[str, Cell | str]:
    more = "" if run.quantization == "none" else f", {run.quantization}"
    return {
        "task": run.task,
        "label": MEANING_NAMES[found.meaning],
        "model": model_name(run.model),
        "K": str(run.sink_tokens),
        "queries": run.query_mode,
        "chat": f"{run.chat}{more}",
    }


def _auroc(found: Findings, name: str) -> Cell:
    model = found.model(name)
    return estimate_cell(model and model.auroc)


def _p(value: float) -> Cell:
    return Cell("<0.001", value=value) if value < _SMALLEST_P else number(value)
