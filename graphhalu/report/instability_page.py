"""The report of the study of inter-head instability: one page, and its figures beside it."""

from pathlib import Path
from typing import Final

from graphhalu.atomic import replace_file
from graphhalu.detectors.identity import Identity
from graphhalu.report import instability_figures as drawn
from graphhalu.report.drawing import save_figure
from graphhalu.report.frame import protocol, provenance_section
from graphhalu.report.html import report_html
from graphhalu.report.markdown import report_markdown
from graphhalu.report.page import (
    Cell,
    Column,
    Page,
    PageFigure,
    PageTable,
    Section,
    number,
    text_rows,
)
from graphhalu.report.write import ReportFiles
from graphhalu.studies.instability.calibrate import labelled_series
from graphhalu.studies.instability.calibration import (
    MAIN,
    TRACKER,
    Calibration,
    Estimate,
    MethodRow,
)
from graphhalu.studies.instability.series import SeriesFolder
from graphhalu.studies.instability.views import LEAST_PROMPTS, StudyView, study_view

PAGE_FILE: Final = "instability.html"


def write_study(folder: SeriesFolder, calibration: Calibration, out: Path) -> ReportFiles:
    """Write the page, its Markdown, and every figure as PNG and SVG.

    Args:
        folder: The measured prompts.
        calibration: Made from them.
        out: Folder, made if it is missing.

    Raises:
        DetectorMismatchError: If the calibration belongs to another model or prompt recipe.
        NotEnoughDataError: If parts of the folder are missing.
    """
    page = study_page(folder, calibration)
    out.mkdir(parents=True, exist_ok=True)
    figures = [
        save_figure(figure.figure, out / f"{figure.name}{suffix}")
        for figure in page.figures
        for suffix in (".png", ".svg")
    ]
    html, markdown = out / PAGE_FILE, (out / PAGE_FILE).with_suffix(".md")
    replace_file(html, report_html(page).encode())
    pictures = {figure.name: f"{figure.name}.png" for figure in page.figures}
    replace_file(markdown, report_markdown(page, pictures).encode())
    return ReportFiles(html, markdown, tuple(figures))


def study_page(folder: SeriesFolder, calibration: Calibration) -> Page:
    """What the report says.

    Raises:
        DetectorMismatchError: If the calibration belongs to another model or prompt recipe.
        NotEnoughDataError: If parts of the folder are missing.
    """
    calibration.fitted_on.check(Identity.of(folder.configuration))
    view = study_view(labelled_series(folder)[0], calibration)
    identity = calibration.fitted_on
    settings = {
        **calibration.settings.model_dump(mode="json"),
        **{f"gather: {k}": v for k, v in calibration.gather.model_dump(mode="json").items()},
    }
    return Page(
        f"Inter-head instability of {identity.model} under attack",
        headline(calibration),
        (
            ("model", f"{identity.model} ({identity.quantization or 'none'})"),
            ("attacks", str(calibration.n_attack)),
            ("benign prompts", str(calibration.n_benign)),
            ("groups", str(calibration.n_groups)),
            ("left out", str(calibration.n_left_out)),
            ("longest answer", f"{calibration.gather.max_new_tokens} tokens"),
        ),
        (
            Section("judgement", "What holds on unseen prompts", (_reading(),),
                    figures=_judgement_figures(calibration), tables=(_methods(calibration),)),
            Section("thresholds", "Thresholds", tables=(_points(calibration),)),
            Section("when", "Where and when", figures=_view_figures(calibration, view)),
            Section("choices", "What the folds chose", tables=(_choices(calibration),)),
            protocol(settings),
            provenance_section(calibration.provenance, {"prompt": dict(identity.prompt)}),
        ),
    )  # fmt: skip


def headline(calibration: Calibration) -> tuple[str, str]:
    """What instability is worth, and what it has to beat."""
    main = calibration.row(MAIN)
    gap = main.in_sample.value - main.auroc.value
    first = (
        f"Instability tells attacks from benign prompts with a nested AUROC of "
        f"{_interval(main.auroc)}; chosen and judged on the same prompts it would be "
        f"{main.in_sample.value:.3f} ({gap:+.3f})."
    )
    rivals = [row for row in calibration.rows if not row.name.startswith(MAIN)]
    best = max(rivals, key=lambda row: row.auroc.value)
    words = best.name.replace("_", " ")
    if best.difference is None or best.difference.low is None or best.difference.high is None:
        return first, f"The strongest other score is {words}."
    relation = (
        "is better" if best.difference.low > 0
        else "is worse" if best.difference.high < 0
        else "is not told apart from it"
    )  # fmt: skip
    second = (
        f"The strongest other score, {words}, has {_interval(best.auroc)}: it {relation} "
        f"(difference {_interval(best.difference, '+')})."
    )
    return first, second


def _judgement_figures(calibration: Calibration) -> tuple[PageFigure, ...]:
    return (
        PageFigure(
            "methods", "Nested and in-sample AUROC",
            "Filled circles: every choice (window, layers, heads, direction) was made without the "
            "prompts that are scored, with the interval over groups of prompts. Open diamonds: "
            "the same choice made and judged on all prompts. The gap is what choosing among many "
            "windows pretends. " + _listed(calibration),
            drawn.methods_figure(calibration),
        ),
        PageFigure(
            "roc", "ROC on unseen prompts",
            "Nested scores, mean over seeds: instability, Attention Tracker and the two best of "
            "the other scores by name, the rest in grey.",
            drawn.roc_figure(calibration),
        ),
    )  # fmt: skip


def _view_figures(calibration: Calibration, view: StudyView) -> tuple[PageFigure, ...]:
    window = calibration.window.window
    where = f"{window.text()} (chosen on all prompts)"
    correlations = "; ".join(
        f"{relation.name}: {drawn.correlation_text(relation)}".replace("\n", ", ")
        for relation in view.relations
    )
    return (
        PageFigure(
            "violin", "Instability of both classes",
            f"Mean spread over heads in {where}. Every mark is a prompt; lines are quartiles. "
            f"The window was chosen on these prompts: the picture is optimistic.",
            drawn.violin_figure(view, calibration),
        ),
        PageFigure(
            "stepwise", "AUROC by decode step",
            f"Above 0.5 attacks have more. No direction is learned, and only prompts that reach a "
            f"step count (at least {LEAST_PROMPTS} of each class); how many do stands below. "
            f"Step 0 reads the prompt only. Grey: the chosen window.",
            drawn.stepwise_figure(calibration),
        ),
        PageFigure(
            "maps", "Mean spread over heads by step and layer",
            f"Attacks, benign prompts, and their difference; empty where fewer than "
            f"{LEAST_PROMPTS} prompts reach a step. The frame is the chosen window.",
            drawn.map_figure(view, calibration),
        ),
        PageFigure(
            "scatter", "Instability against entropy and head agreement",
            f"Means over the chosen window, one mark a prompt; r is Pearson's correlation, rank "
            f"Spearman's, over both classes. {correlations}.",
            drawn.scatter_figure(view, calibration),
        ),
    )  # fmt: skip


def _methods(calibration: Calibration) -> PageTable:
    columns = (
        Column("method"), Column("what it is"), Column("nested AUROC", is_number=True),
        Column("in sample", is_number=True), Column("minus instability", is_number=True),
        Column("p (Holm)", is_number=True), Column("nested F1", is_number=True),
        Column("candidates", is_number=True), Column("coverage", is_number=True),
        Column("attacks are"),
    )  # fmt: skip
    return PageTable(
        "methods-table", "Every method", columns,
        tuple(_method_row(row) for row in calibration.rows),
        (
            (
                f"Attention Tracker reads the last row of the prompt only; "
                f"{len(calibration.tracker.heads)} heads on all prompts"
                f"{'' if calibration.tracker.k is None else f' at k = {calibration.tracker.k:g}'}."
            ),
            (
                "Coverage: prompts with a score. Others count at the median in the AUROC, and "
                "are never flagged."
            ),
        ),
    )  # fmt: skip


def _method_row(row: MethodRow) -> tuple[Cell, ...]:
    return (
        Cell(row.name.replace("_", " ")), Cell(row.summary), _cell(row.auroc),
        _cell(row.in_sample), _cell(row.difference, "+"), number(row.p_holm, ".2g"),
        _cell(row.f1), number(row.n_candidates, ",.0f"), number(row.coverage, ".0%"),
        Cell("higher" if row.direction > 0 else "lower"),
    )  # fmt: skip


def _points(calibration: Calibration) -> PageTable:
    columns = (
        Column("method"), Column("aim", is_number=True), Column("achieved FPR", is_number=True),
        Column("achieved TPR", is_number=True), Column("in-sample FPR", is_number=True),
        Column("in-sample TPR", is_number=True), Column("threshold", is_number=True),
    )  # fmt: skip
    rows = tuple(
        (
            Cell(name.replace("_", " ")), number(point.aim, ".0%"), _cell(point.fpr),
            _cell(point.tpr), number(point.in_sample_fpr), number(point.in_sample_tpr),
            number(point.threshold, ".5f"),
        )
        for name in (MAIN, TRACKER)
        for point in calibration.row(name).points
    )  # fmt: skip
    n_benign = calibration.n_benign
    note = (
        f"Each threshold keeps the aimed rate on the benign prompts that chose it; with "
        f"{n_benign} of them a rate below {1 / n_benign:.1%} means none. Achieved rates are those "
        f"on unseen prompts over all seeds, with Wilson intervals that count groups of prompts."
    )
    return PageTable("points", "Operating points", columns, rows, (note,))


def _choices(calibration: Calibration) -> PageTable:
    n_all = calibration.settings.n_folds * len(calibration.settings.seeds)
    rows = [
        [row.name.replace("_", " "), chosen.text, f"{chosen.n_folds} of {n_all}"]
        for row in calibration.rows
        if row.n_candidates > 1 or row.name == TRACKER
        for chosen in row.choices
    ]
    columns = (Column("method"), Column("choice"), Column("folds"))
    note = "The five most frequent choices of each method. Many different ones mean none is firm."
    return PageTable("choices-table", "Choices", columns, text_rows(rows), (note,))


def _reading() -> str:
    return (
        "An AUROC of 0.5 is chance. Scores that vary over the answer are given the same windows "
        "to choose from; all but Attention Tracker learn on the training side which way attacks "
        "lie, so that a useless score can come out below 0.5."
    )


def _listed(calibration: Calibration) -> str:
    rows = sorted(calibration.rows, key=lambda row: -row.auroc.value)
    said = "; ".join(
        f"{row.name.replace('_', ' ')} {row.auroc.value:.3f} and {row.in_sample.value:.3f}"
        for row in rows
    )
    return f"Nested and in sample: {said}."


def _cell(estimate: Estimate | None, sign: str = "") -> Cell:
    if estimate is None:
        return number(None)
    has_interval = estimate.low is not None and estimate.high is not None
    detail = f"[{estimate.low:{sign}.3f}, {estimate.high:{sign}.3f}]" if has_interval else ""
    return Cell(f"{estimate.value:{sign}.3f}", detail, estimate.value)


def _interval(estimate: Estimate, sign: str = "") -> str:
    cell = _cell(estimate, sign)
    return f"{cell.text} {cell.detail}".strip()
