"""The sink study as one page: what was found, the figures, and the numbers behind them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from graphhalu.atomic import replace_file
from graphhalu.errors import NotEnoughDataError
from graphhalu.labels.labels import MEANINGS
from graphhalu.report.drawing import save_figure
from graphhalu.report.frame import provenance_section
from graphhalu.report.html import report_html
from graphhalu.report.markdown import report_markdown
from graphhalu.report.page import Page, PageFigure, Section
from graphhalu.report.sinks_figures import (
    accuracy_figure,
    forest_figure,
    models_figure,
    shift_figure,
)
from graphhalu.report.sinks_maps import depth_figure, heads_figure, scaling_figure
from graphhalu.report.sinks_panels import Shown, shown_findings
from graphhalu.report.sinks_tables import (
    calibration_table,
    gain_table,
    head_table,
    overlap_table,
    prediction_table,
    run_table,
    scaling_table,
    sensitivity_table,
    shift_table,
    task_table,
)
from graphhalu.report.write import ReportFiles
from graphhalu.studies.sinks.result import SinksResult

PAGE_FILE: Final = "sinks.html"


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
    folder.mkdir(parents=True, exist_ok=True)
    figures = [
        save_figure(each.figure, folder / f"{each.name}{suffix}")
        for each in page.figures
        for suffix in (".png", ".svg")
    ]
    html = folder / PAGE_FILE
    replace_file(html, report_html(page).encode())
    markdown = html.with_suffix(".md")
    pictures = {each.name: f"{each.name}.png" for each in page.figures}
    replace_file(markdown, report_markdown(page, pictures).encode())
    return ReportFiles(html, markdown, tuple(figures))


def sinks_page(
    result: SinksResult, *, sink_tokens: int | None = None, query_mode: str | None = None
) -> Page:
    """The page; arguments as those of :func:`write_sinks_report`."""
    shown = shown_findings(result, sink_tokens=sink_tokens, query_mode=query_mode)
    sections = (
        _shift(result, shown), _prediction(result, shown), _beyond_entropy(result, shown),
        _localisation(shown), _across(result), _runs(result), _reading(),
        provenance_section(result.provenance, {"settings": result.settings}),
    )  # fmt: skip
    return Page(
        title="Sink mass against hallucination",
        headline=headline(shown),
        facts=_facts(result, shown),
        sections=sections,
    )


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


def _shift(result: SinksResult, shown: Sequence[Shown]) -> Section:
    figures = (
        PageFigure(
            "sinks-shift", "Sink mass of both classes",
            "Density above, violin with quartiles and median below; orange and solid is label 1 "
            "(hallucinated, or a bad input), blue and dashed is label 0. d is Cohen's d with its "
            "95 % interval over questions; a d of 0.2 is called small.",
            shift_figure(shown),
        ),
        PageFigure(
            "sinks-effects", "Cohen's d, with and without length",
            "Diamonds as measured, circles after a fit on the logarithm of the length. A filled "
            "mark has an interval that excludes zero.",
            forest_figure(shown),
        ),
    )  # fmt: skip
    return Section("shift", "H1: is the distribution shifted?", (), figures, (shift_table(result),))


def _prediction(result: SinksResult, shown: Sequence[Shown]) -> Section:
    figure = PageFigure(
        "sinks-accuracy", "Accuracy by sink mass",
        "Records in five bins of equal size by their sink mass; bars are 95 % intervals over "
        "questions, the grey line is the share over all records. A flat line says that sink mass "
        "tells nothing.",
        accuracy_figure(shown),
    )  # fmt: skip
    tables = (prediction_table(result), calibration_table(result))
    return Section("prediction", "H2: what does sink mass predict?", (), (figure,), tables)


def _beyond_entropy(result: SinksResult, shown: Sequence[Shown]) -> Section:
    text = (
        "Models are cross-fitted: components and penalty are chosen in folds inside of each "
        "training side, and calibration too. The control 'answer' knows only which letter the "
        "model chose; a probe on the heads must beat it, since heads that look at the options know "
        "the letter."
    )
    figure = PageFigure(
        "sinks-models", "What models add",
        "Left the AUROC of four models, right what sink mass (diamond) and the probe on every head "
        "(circle) add to entropy; filled marks have an interval that excludes zero.",
        models_figure(shown),
    )  # fmt: skip
    return Section(
        "beyond", "H3: does it add to entropy?", (text,), (figure,), (gain_table(result),)
    )


def _localisation(shown: Sequence[Shown]) -> Section:
    figures = (
        PageFigure(
            "sinks-heads", "Where heads differ",
            "Mean sink mass of label 1 minus that of label 0 for every layer (across) and head "
            "(down); blue and dark is less, yellow and bright is more. Each panel has a scale of "
            "its own, named in its title. A dot marks a head that counts after false-discovery "
            "control over all heads of its panel.",
            heads_figure(shown),
        ),
        PageFigure(
            "sinks-depth", "Sink mass by depth",
            "Left the mean sink mass of each layer, right its difference between the classes with "
            "a 95 % band, on relative depth, so that models of different size can be laid over "
            "each other.",
            depth_figure(shown),
        ),
    )  # fmt: skip
    tables = (head_table(shown), *overlap_table(shown))
    return Section("localisation", "H4: where is the difference?", (), figures, tables)


def _across(result: SinksResult) -> Section:
    figures: tuple[PageFigure, ...] = ()
    text: tuple[str, ...] = ()
    try:
        figures = (
            PageFigure(
                "sinks-scaling", "Effect by model size",
                "Cohen's d (left), AUROC of the scalar sink mass (squares) and of the probe on "
                "every head (circles, right) by number of parameters; bars are 95 % intervals. "
                "Models of one size stand side by side.",
                scaling_figure(result.scaling),
            ),
        )  # fmt: skip
    except NotEnoughDataError as error:
        text = (f"There is no figure by model size: {error}.",)
    tables = [scaling_table(result), task_table(result), sensitivity_table(result)]
    found = tuple(table for table in tables if table is not None)
    return Section("across", "Size, task, chat and window", text, figures, found)


def _runs(result: SinksResult) -> Section:
    return Section("runs", "All runs", result.notes, (), (run_table(result),))


def _reading() -> Section:
    text = (
        (
            "Sink mass is the attention that query rows pay to the first K tokens, averaged over "
            "heads and then over layers. Rows of the sink itself, which can look at little else, "
            "do not count. With a chat template the first tokens are those of the template, "
            "without one they are words of the prompt: values across chat modes are not of one "
            "kind."
        ),
        (
            "No score is flipped: an AUROC of the scalar below 0.5 means that label 1 has less "
            "sink mass. Cross-fitted models learn the sign inside of each fold."
        ),
        (
            "Intervals resample questions. Of many comparisons one in twenty excludes zero by "
            "chance; q-values are corrected over the heads of one run, not over runs."
        ),
        (
            "Records with NaN are counted and left out, and nothing is imputed: a head that some "
            "record lacks, as in a sliding window, is no column of a probe."
        ),
    )
    return Section("reading", "How to read this", text)
