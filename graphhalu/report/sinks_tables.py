"""Tables of the sink study."""

from collections.abc import Iterator, Sequence
from typing import Final

from graphhalu.report.page import ABSENT, Cell, Column, PageTable, number
from graphhalu.report.sinks_maps import size_text
from graphhalu.report.sinks_panels import MEANING_NAMES, Shown, model_name
from graphhalu.studies.sinks.findings import Estimate, Findings, RunResult
from graphhalu.studies.sinks.result import SinksResult

_SMALLEST_P: Final = 0.001
_LABEL_NAMES: Final[dict[str, str]] = {str(key): name for key, name in MEANING_NAMES.items()}
_RUN_COLUMNS: Final = (
    Column("task"), Column("label"), Column("model"), Column("K"), Column("queries"),
    Column("chat"),
)  # fmt: skip


def run_table(result: SinksResult) -> PageTable:
    """Every file of records, also those that could not be analysed."""
    columns = (
        Column("task"), Column("model"), Column("K", is_number=True), Column("queries"),
        Column("chat"), Column("quantisation"), Column("layers x heads"),
        Column("records", is_number=True), Column("without NaN", is_number=True),
        Column("accuracy", is_number=True), Column("commonest answer"), Column("not analysed"),
    )  # fmt: skip
    rows = tuple(
        (
            Cell(run.task), Cell(model_name(run.model)), number(run.sink_tokens, "d"),
            Cell(run.query_mode), Cell(run.chat), Cell(run.quantization),
            Cell(f"{run.n_layers} x {run.n_heads}"), number(run.n_records, ",d"),
            number(run.n_usable, ",d"), number(run.accuracy),
            Cell(ABSENT) if run.commonest_share is None
            else Cell(f"{run.commonest_answer}, {run.commonest_share:.0%}"),
            Cell("; ".join(f"{_LABEL_NAMES[m]}: {why}" for m, why in run.left_out.items())),
        )
        for run in result.runs
    )  # fmt: skip
    notes = (
        "Accuracy counts every record with an answer, also those whose sink mass is NaN.",
        (
            "Where a model nearly always chooses one letter, whether it is right depends on the "
            "input alone, and what predicts the label reads the input, not the model's doubt."
        ),
    )
    return PageTable("table-runs", "Files of records", columns, rows, notes)


def shift_table(result: SinksResult) -> PageTable:
    """H1 of every run."""
    columns = (
        *_RUN_COLUMNS, Column("n1", is_number=True), Column("n0", is_number=True),
        Column("mean difference", is_number=True), Column("median difference", is_number=True),
        Column("Cohen's d", is_number=True), Column("p", is_number=True, is_better_low=True),
        Column("d without length", is_number=True),
        Column("p", is_number=True, is_better_low=True), Column("d of length", is_number=True),
        Column("r with length", is_number=True), Column("r with entropy", is_number=True),
    )  # fmt: skip
    rows = tuple(
        (
            *_run_cells(run, found), number(found.n_positive, ",d"), number(found.n_negative, ",d"),
            _cell(found.shift.mean_difference, 4), _cell(found.shift.median_difference, 4),
            _cell(found.shift.cohens_d), _p(found.shift.p_permutation),
            _cell(found.shift.adjusted_d), _p(found.shift.adjusted_p),
            _cell(found.shift.length_d), number(found.shift.length_pearson, "+.2f"),
            number(found.shift.entropy_pearson, "+.2f"),
        )
        for run, found in _all(result)
    )  # fmt: skip
    notes = (
        "n1, n0: records with label 1 and 0; differences are label 1 minus label 0.",
        (
            "p: permutation test of the difference of means; where most questions have both "
            "classes labels are exchanged within questions."
        ),
    )
    return PageTable("table-shift", "Shift of sink mass", columns, rows, notes)


def prediction_table(result: SinksResult) -> PageTable:
    """H2 of every run."""
    columns = (
        *_RUN_COLUMNS, Column("share of label 1", is_number=True),
        Column("AUROC", is_number=True), Column("AUROC without length", is_number=True),
        Column("AUPRC (average precision)", is_number=True),
        Column("AUPRC (trapezoid)", is_number=True), Column("per-head probe", is_number=True),
        Column("answer letter", is_number=True),
    )  # fmt: skip
    rows = tuple(
        (
            *_run_cells(run, found), number(found.prediction.prevalence),
            _cell(found.prediction.auroc, 3, is_signed=False),
            _cell(found.prediction.adjusted_auroc, 3, is_signed=False),
            _cell(found.prediction.auprc, 3, is_signed=False),
            number(found.prediction.auprc_trapezoid), _model(found, "heads"),
            _model(found, "answer"),
        )
        for run, found in _all(result)
    )  # fmt: skip
    note = (
        "The last two are AUROC of cross-fitted models: on the sink mass of every head, and on "
        "nothing but the letter that the model chose."
    )
    return PageTable("table-prediction", "What sink mass predicts", columns, rows, (note,))


def calibration_table(result: SinksResult) -> PageTable:
    """How good probabilities from the scalar are."""
    columns = (
        *_RUN_COLUMNS, Column("ECE", is_number=True, is_better_low=True),
        Column("Brier", is_number=True, is_better_low=True),
        Column("Brier of the share", is_number=True, is_better_low=True),
        Column("log-loss", is_number=True, is_better_low=True),
    )  # fmt: skip
    rows = tuple(
        (
            *_run_cells(run, found), number(found.prediction.ece),
            number(found.prediction.brier), number(found.prediction.brier_of_prevalence),
            _loss(found, "sink"),
        )
        for run, found in _all(result)
    )  # fmt: skip
    note = "Brier of the share: always saying the share of label 1. Less is better everywhere."
    return PageTable("table-calibration", "Probabilities from sink mass", columns, rows, (note,))


def gain_table(result: SinksResult) -> PageTable:
    """H3 of every run."""
    columns = (
        *_RUN_COLUMNS, Column("model"), Column("against"), Column("AUROC", is_number=True),
        Column("AUROC gained", is_number=True), Column("p", is_number=True, is_better_low=True),
        Column("log-loss gained", is_number=True),
        Column("p", is_number=True, is_better_low=True),
    )  # fmt: skip
    rows = tuple(
        (
            *_run_cells(run, found), Cell(gain.model), Cell(gain.baseline),
            _model(found, gain.model), _cell(gain.auroc, 3), _p(gain.p_auroc),
            _cell(gain.log_loss, 4), _p(gain.p_log_loss),
        )
        for run, found in _all(result)
        for gain in found.gains
    )  # fmt: skip
    note = "A positive gain of log-loss is an improvement. p: two-sided, by the bootstrap."
    return PageTable("table-gains", "What one model adds to another", columns, rows, (note,))


def head_table(shown: Sequence[Shown]) -> PageTable:
    """The heads that differ most, of the runs in the figures."""
    columns = (
        Column("run"), Column("layer", is_number=True), Column("head", is_number=True),
        Column("difference", is_number=True), Column("z", is_number=True),
        Column("q", is_number=True, is_better_low=True),
        Column("q without length", is_number=True, is_better_low=True),
        Column("stability", is_number=True), Column("heads that count"),
    )  # fmt: skip
    rows = tuple(
        (
            Cell(each.name), number(head.layer, "d"), number(head.head, "d"),
            _cell(head.difference, 3), number(head.z, "+.1f"), _p(head.q_value),
            _p(head.adjusted_q_value), number(head.stability, ".0%"),
            Cell(
                f"{each.found.localisation.n_significant} of {each.found.localisation.n_heads}",
                f"{each.found.localisation.n_significant_adjusted} without length",
            ),
        )
        for each in shown
        for head in each.found.localisation.top[:5]
    )  # fmt: skip
    note = (
        "The five heads of each run whose difference is largest for its standard error. "
        "Stability: share of resamples in which a head is among as many as are named in the "
        "analysis (10 by default)."
    )
    return PageTable("table-heads", "Heads that differ most", columns, rows, (note,))


def overlap_table(shown: Sequence[Shown]) -> tuple[PageTable, ...]:
    """Whether these heads have a role; nothing without a table of heads."""
    columns = (
        Column("run"), Column("role"), Column("heads of each", is_number=True),
        Column("both", is_number=True), Column("by chance", is_number=True),
        Column("p", is_number=True, is_better_low=True),
        Column("rank correlation", is_number=True),
        Column("p", is_number=True, is_better_low=True),
    )  # fmt: skip
    rows = tuple(
        (
            Cell(each.name), Cell(overlap.role), number(overlap.k, "d"),
            number(overlap.n_shared, "d"), number(overlap.n_expected, ".2f"),
            _p(overlap.p_value), number(overlap.spearman, "+.2f"), _p(overlap.p_spearman),
        )
        for each in shown
        for overlap in each.found.localisation.overlaps
    )  # fmt: skip
    note = (
        "Of as many heads of each kind: how many are both, and how many chance would give. The "
        "rank correlation is that of the size of a head's difference and its score in the role."
    )
    title = "Heads that differ and heads of a role"
    return (PageTable("table-overlap", title, columns, rows, (note,)),) if rows else ()


def scaling_table(result: SinksResult) -> PageTable | None:
    """Models by size."""
    columns = (
        Column("series"), Column("model"), Column("chat"), Column("parameters", is_number=True),
        Column("Cohen's d", is_number=True), Column("AUROC", is_number=True),
        Column("per-head probe", is_number=True),
    )  # fmt: skip
    rows = tuple(
        (
            Cell(each.series), Cell(model_name(point.model)), Cell(point.chat),
            Cell(size_text(point.n_parameters), value=point.n_parameters), _cell(point.cohens_d),
            _cell(point.auroc, 3, is_signed=False), _cell(point.probe_auroc, 3, is_signed=False),
        )
        for each in result.scaling
        for point in each.points
    )  # fmt: skip
    notes = tuple(
        f"{each.series}: {each.note}"
        + (
            ""
            if each.spearman is None
            else f". Rank correlation with d: {each.spearman:+.2f}, p {_p_text(each.p_spearman)}"
        )
        for each in result.scaling
    )
    return PageTable("table-scaling", "Model size", columns, rows, notes) if rows else None


def task_table(result: SinksResult) -> PageTable | None:
    """Tasks of one model."""
    columns = (
        Column("series"), Column("task"), Column("label"), Column("Cohen's d", is_number=True),
        Column("d without length", is_number=True), Column("AUROC", is_number=True),
        Column("heterogeneity"),
    )  # fmt: skip
    rows = tuple(
        (
            Cell(each.series), Cell(row.task), Cell(MEANING_NAMES[row.meaning]),
            _cell(row.cohens_d), _cell(row.adjusted_d), _cell(row.auroc, 3, is_signed=False),
            Cell(
                f"Q = {each.cochran_q:.1f}, I2 = {each.i_squared or 0:.0%}",
                f"p {_p_text(each.p_value)}; {each.n_positive_d} of {len(each.rows)} positive",
            )
            if each.cochran_q is not None
            else Cell(ABSENT),
        )
        for each in result.tasks
        for row in each.rows
    )  # fmt: skip
    note = (
        "Q: Cochran's test that all tasks share one d, with the bootstrap's variances; I2: share "
        "of the variance between tasks that is more than chance. Tasks of one model share its "
        "weights, and two labels of one task its questions."
    )
    return PageTable("table-tasks", "Task dependence", columns, rows, (note,)) if rows else None


def sensitivity_table(result: SinksResult) -> PageTable | None:
    """Runs that differ in one setting."""
    columns = (
        Column("setting"), Column("from"), Column("to"), Column("series"),
        Column("records", is_number=True), Column("mean sink mass", is_number=True),
        Column("r", is_number=True), Column("accuracy", is_number=True),
        Column("other answer", is_number=True), Column("d before", is_number=True),
        Column("d after", is_number=True), Column("difference of d", is_number=True),
    )  # fmt: skip
    rows = tuple(
        (
            Cell(each.setting), Cell(each.first), Cell(each.second), Cell(each.series),
            number(each.n_both, ",d"), _cell(each.mass_difference, 3),
            number(each.mass_pearson, "+.2f"),
            Cell(ABSENT) if each.accuracy_difference is None
            else _cell(each.accuracy_difference, 3),
            number(each.share_changed, ".0%"), number(each.d_first, "+.2f"),
            number(each.d_second, "+.2f"), _cell(each.d_difference),
        )
        for each in result.sensitivity
    )  # fmt: skip
    note = (
        "Two runs on the same questions; differences are after minus before. r: correlation of the "
        "sink masses of a record in both runs."
    )
    title = "Sensitivity to chat template, window, query mode and quantisation"
    return PageTable("table-sensitivity", title, columns, rows, (note,)) if rows else None


def _all(result: SinksResult) -> Iterator[tuple[RunResult, Findings]]:
    for run in result.runs:
        for found in run.findings:
            yield run, found


def _run_cells(run: RunResult, found: Findings) -> tuple[Cell, ...]:
    more = "" if run.quantization == "none" else f", {run.quantization}"
    return (
        Cell(run.task), Cell(MEANING_NAMES[found.meaning]), Cell(model_name(run.model)),
        Cell(str(run.sink_tokens)), Cell(run.query_mode), Cell(f"{run.chat}{more}"),
    )  # fmt: skip


def _cell(estimate: Estimate, digits: int = 2, *, is_signed: bool = True) -> Cell:
    form = f"{'+' if is_signed else ''}.{digits}f"
    interval = f"[{estimate.low:{form}}, {estimate.high:{form}}]"
    return Cell(f"{estimate.value:{form}}", interval, estimate.value)


def _model(found: Findings, name: str) -> Cell:
    model = found.model(name)
    return Cell(ABSENT) if model is None else _cell(model.auroc, 3, is_signed=False)


def _loss(found: Findings, name: str) -> Cell:
    model = found.model(name)
    return Cell(ABSENT) if model is None else _cell(model.log_loss, 4, is_signed=False)


def _p(value: float | None) -> Cell:
    return Cell(ABSENT) if value is None else Cell(_p_text(value), value=value)


def _p_text(value: float | None) -> str:
    if value is None:
        return ABSENT
    return "<0.001" if value < _SMALLEST_P else f"{value:.3f}"
