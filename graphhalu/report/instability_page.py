"""Page of the study of inter-head instability, and its figures beside it."""

from pathlib import Path
from typing import Final

from graphhalu.detectors.identity import Identity
from graphhalu.report import instability_figures as drawn
from graphhalu.report.frame import protocol, provenance_section
from graphhalu.report.page import Page, PageText
from graphhalu.report.write import ReportFiles, write_page
from graphhalu.studies.instability.calibrate import labelled_series
from graphhalu.studies.instability.calibration import MAIN, TRACKER, Calibration
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
    return write_page(study_page(folder, calibration), out / PAGE_FILE, has_svg=True)


def study_page(folder: SeriesFolder, calibration: Calibration) -> Page:
    """What the report says.

    Raises:
        DetectorMismatchError: If the calibration belongs to another model or prompt recipe.
        NotEnoughDataError: If parts of the folder are missing.
    """
    identity = calibration.identity
    identity.check(Identity.of(folder.configuration))
    view = study_view(labelled_series(folder)[0], calibration)
    gather = calibration.gather.model_dump(mode="json")
    settings = {
        **calibration.settings.model_dump(mode="json"),
        **{f"gather: {name}": value for name, value in gather.items()},
    }
    text = _page_text(calibration, view)
    named = [(row, drawn.words(row.name)) for row in calibration.rows]
    n_folds = calibration.settings.n_folds * len(calibration.settings.seeds)
    ways = {1: "higher", -1: "lower"}
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
            text.section(
                "judgement",
                figures={"methods": drawn.methods_figure(calibration), "roc": drawn.roc_figure(calibration)},
                tables={
                    "methods-table": [
                        {"row": row, "name": name, "way": ways[row.direction]} for row, name in named
                    ]
                },
            ),
            text.section(
                "thresholds",
                tables={
                    "points": [
                        {"name": drawn.words(name), "point": point}
                        for name in (MAIN, TRACKER)
                        for point in calibration.row(name).points
                    ]
                },
            ),
            text.section(
                "when",
                figures={
                    "violin": drawn.violin_figure(view, calibration),
                    "stepwise": drawn.stepwise_figure(calibration),
                    "maps": drawn.map_figure(view, calibration),
                    "scatter": drawn.scatter_figure(view, calibration),
                },
            ),
            text.section(
                "choices",
                tables={
                    "choices-table": [
                        {"name": name, "chosen": each, "folds": f"{each.n_folds} of {n_folds}"}
                        for row, name in named
                        if row.n_candidates > 1 or row.name == TRACKER
                        for each in row.choices
                    ]
                },
            ),
            protocol(settings),
            provenance_section(calibration.provenance, {"prompt": dict(identity.prompt)}),
        ),
    )


def headline(calibration: Calibration) -> tuple[str, str]:
    """What instability is worth, and what it has to beat."""
    main = calibration.row(MAIN)
    gap = main.in_sample.value - main.auroc.value
    first = (
        f"Instability tells attacks from benign prompts with a nested AUROC of "
        f"{main.auroc:.3f}; chosen and judged on the same prompts it would be "
        f"{main.in_sample.value:.3f} ({gap:+.3f})."
    )
    others = [row for row in calibration.rows if not row.name.startswith(MAIN)]
    best = max(others, key=lambda row: row.auroc.value)
    name = drawn.words(best.name)
    if best.difference is None or not best.difference.has_interval:
        return first, f"The strongest other score is {name}."
    relation = "is better" if best.difference.value > 0 else "is worse"
    if not best.difference.excludes_zero:
        relation = "is not told apart from it"
    second = (
        f"The strongest other score, {name}, has {best.auroc:.3f}: it {relation} "
        f"(difference {best.difference:+.3f})."
    )
    return first, second


def _page_text(calibration: Calibration, view: StudyView) -> PageText:
    ranked = sorted(calibration.rows, key=lambda row: -row.auroc.value)
    tracker, n_benign = calibration.tracker, calibration.n_benign
    level = "" if tracker.k is None else f" at k = {tracker.k:g}"
    return PageText(
        "instability",
        window=calibration.window.window.text(),
        least=LEAST_PROMPTS,
        n_benign=n_benign,
        least_rate=1 / n_benign,
        heads=f"{len(tracker.heads)} heads on all prompts{level}",
        listed="; ".join(
            f"{drawn.words(row.name)} {row.auroc.value:.3f} and {row.in_sample.value:.3f}" for row in ranked
        ),
        correlations="; ".join(
            f"{relation.name}: {drawn.correlation_text(relation)}".replace("\n", ", ")
            for relation in view.relations
        ),
    )
