"""The report of a comparison: which sections it has and what each says."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow.compute as pc

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.evaluation.metrics import LOWER_IS_BETTER
from graphhalu.evaluation.result import DetectorRow, Result
from graphhalu.evaluation.univariate import HeadMaps
from graphhalu.report.figures import KINDS, curve_figure, metric_title_of, named_rows
from graphhalu.report.forest import difference_text, forest_figure, ordered_tests, p_text
from graphhalu.report.frame import facts, frame_sections, page_title, small_class_warning
from graphhalu.report.headline import headline
from graphhalu.report.heatmaps import MAP_TITLES, maps_figure, n_marked
from graphhalu.report.labels import METRIC_NAMES, metric_names, metric_title, short_text, size_text
from graphhalu.report.page import (
    ABSENT,
    Cell,
    Column,
    Page,
    PageFigure,
    PageTable,
    Section,
    metric_cell,
    number,
    text_rows,
)
from graphhalu.report.palette import FAMILY_NAMES, family

CONTROL_MARK: Final = "°"
BASELINE_MARK: Final = "†"
_N_MISTAKES: Final = 5
_TITLES: Final = {"answer": "detectors of hallucinations", "token": "detectors of hallucinated tokens"}

_CAPTIONS: Final[Mapping[str, str]] = {
    "roc": "Hallucinations found against correct answers flagged; a curve further up and to the "
    "left is better, the dotted diagonal is chance.",
    "precision-recall": "Share of flagged answers that are hallucinated, against the share of "
    "hallucinations found; the dotted line is the prevalence, which flagging at random reaches.",
    "calibration": "Share of hallucinated answers against calibrated probability in 15 bins of "
    "equal mass, the best detector of each family. In the grey band lie 95 % of the bins of a "
    "detector whose probabilities are right; seeds are pooled.",
    "risk-coverage": "Share of hallucinated answers among those kept when the highest scores are "
    "rejected first; lower is better, the dotted line is keeping everything.",
}


def comparison_page(result: Result, maps: HeadMaps | None = None, more: Sequence[Section] = ()) -> Page:
    """The report of a comparison.

    Args:
        result: What was found; sections without anything to say are left out.
        maps: What single heads say, if that was looked at.
        more: Sections of a transfer that was run with it.
    """
    sections = [
        _results(result),
        _differences(result),
        _curves(result),
        *more,
        *([_heads(maps)] if maps is not None else []),
        _subgroups(result),
        _costs(result),
        _mistakes(result),
        _failed(result),
        *frame_sections(result.config, result.provenance, result.store, _reading(result)),
    ]
    return Page(
        page_title(result.store, _TITLES[result.level]),
        headline(result),
        facts(result),
        tuple(s for s in sections if s.paragraphs or s.figures or s.tables),
    )


def detector_cell(result: Result, row: DetectorRow) -> Cell:
    """The name of a detector with its marks."""
    marks = CONTROL_MARK if row.is_control else ""
    if result.baseline is not None and result.baseline.detector == row.detector:
        marks += BASELINE_MARK
    return Cell(f"{row.detector} {marks}".strip())


def _results(result: Result) -> Section:
    names = metric_names({name for row in result.rows for name in row.metrics})
    columns = [Column("detector")]
    columns += [
        Column(metric_title(name), is_number=True, is_better_low=name in LOWER_IS_BETTER) for name in names
    ]
    columns += [Column("coverage", is_number=True), Column("inputs")]
    rows = [
        (
            detector_cell(result, row),
            *(_metric_or_failed(row, name, place) for place, name in enumerate(names)),
            number(row.coverage, ".0%"),
            Cell(", ".join(row.inputs) or ABSENT),
        )
        for row in result.ranked()
    ]
    table = PageTable("metrics", "Every detector, best first", tuple(columns), tuple(rows), _notes(result))
    warning = small_class_warning(result)
    paragraphs = (*((warning,) if warning else ()), *result.notes)
    return Section("results", "Results", paragraphs, tables=(table,))


def _metric_or_failed(row: DetectorRow, name: str, place: int) -> Cell:
    if row.failure is not None and place == 0:
        return Cell("failed")
    return metric_cell(row.metrics.get(name))


def _notes(result: Result) -> tuple[str, ...]:
    level, seeds = result.config.get("level", 0.95), result.config.get("seeds", [])
    notes = [
        (
            f"In brackets the {level:.0%} interval of a bootstrap over questions; values are means "
            f"over {len(seeds)} seed{'' if len(seeds) == 1 else 's'}. The spread over seeds and "
            "the mean within folds stand in result.json and table.csv."
        )
    ]
    if any(row.is_control for row in result.rows):
        notes.append(f"{CONTROL_MARK} control: a detector proves nothing unless it beats these.")
    if result.baseline is not None:
        notes.append(f"{BASELINE_MARK} baseline, which all others are tested against.")
    notes += [
        f"{row.detector} has no score for some answers: AUROC {row.auroc_invalid_at_median:.3f} "
        "over all of them, with those at the median. Detectors are ranked by this number."
        for row in result.ranked()
        if row.coverage is not None and row.coverage < 1 and row.auroc_invalid_at_median is not None
    ]
    return tuple(notes)


def _differences(result: Result) -> Section:
    tests = ordered_tests(result)
    if not tests:
        return Section("differences", "Against the baseline")
    margin = tests[0].margin
    caption = (
        "AUROC minus that of the baseline, with bootstrap intervals over questions and p-values "
        "after Holm's correction. A filled mark has an interval that excludes zero; the grey "
        f"band is the margin of ±{margin:g}, within which a difference counts as none."
    )
    figure = PageFigure("forest", "Differences from the baseline", caption, forest_figure(result))
    columns = (
        Column("detector"),
        Column("difference", is_number=True),
        *(
            Column(name, is_number=True, is_better_low=True)
            for name in ("p bootstrap", "p DeLong", "p Holm", "p equivalent", "p not worse")
        ),
    )
    rows = tuple(
        (
            Cell(test.detector),
            Cell(difference_text(test), value=test.difference),
            *(
                Cell(p_text(p), value=p)
                for p in (test.p_bootstrap, test.p_delong, test.p_holm, test.p_equivalent, test.p_not_worse)
            ),
        )
        for test in tests
    )
    notes = (
        (
            "Holm's correction is applied to DeLong's p-value, with questions as groups. A small p "
            f"of “equivalent” says that the difference lies within ±{margin:g}; of “not worse”, "
            "that the detector is not worse by that much. A large p shows nothing."
        ),
    )
    table = PageTable("tests", "Tests of the differences", columns, rows, notes)
    return Section("differences", "Against the baseline", figures=(figure,), tables=(table,))


def _curves(result: Result) -> Section:
    figures = []
    for kind, words in KINDS.items():
        try:
            drawn = curve_figure(result, kind)
        except NotEnoughDataError:
            continue
        caption = f"{_CAPTIONS[kind]} Beside each name its {metric_title_of(kind)}."
        figures.append(PageFigure(kind, words.title, caption, drawn))
    if not figures:
        return Section("curves", "Curves")
    lead = (
        "A panel for each family of detectors names its best few; all others are grey."
        if len(result.rows) > 1
        else ""
    )
    return Section("curves", "Curves", (lead,) if lead else (), tuple(figures))


def _heads(maps: HeadMaps) -> Section:
    lead = (
        f"One feature of one head alone, over all {maps.n_traces:,} labelled answers to "
        f"{maps.n_groups:,} questions. This describes the store; no choice is made from it, and "
        "no detector sees it. Above 0.5 hallucinated answers have more of the feature, below "
        "0.5 less."
    )
    missing = [f"{name} is not shown: {reason}" for name, reason in maps.missing.items()]
    if not maps.maps:
        return Section("heads", "What single heads say", (lead, *missing))
    caption = (
        "Layers across, heads down, at the foot the mean over the heads of a layer. Dots: q < 0.05 "
        "after Benjamini and Hochberg over all panels, with questions as groups. "
    )
    caption += "; ".join(
        f"{MAP_TITLES.get(each.feature, each.feature)}: {n_marked(each)} of "
        f"{sum(map(len, each.auroc))} heads marked"
        for each in maps.maps
    )
    try:
        figure = PageFigure("maps", "AUROC of single heads", f"{caption}.", maps_figure(maps))
    except NotEnoughDataError as error:
        return Section("heads", "What single heads say", (lead, *missing, str(error)))
    return Section("heads", "What single heads say", (lead, *missing), (figure,))


def _subgroups(result: Result) -> Section:
    found = {(g.name, g.detector): g for g in result.subgroups}
    if not found:
        return Section("subgroups", "Subgroups")
    shown = [row.detector for rows in named_rows(result).values() for row in rows[:2]]
    names = list(dict.fromkeys(name for name, _ in found))
    field = result.subgroups[0].field
    columns = [Column(field), Column("answers", is_number=True)]
    columns += [Column("hallucinated", is_number=True)]
    columns += [Column(f"AUROC of {detector}", is_number=True) for detector in shown]
    rows = []
    for name in names:
        some = next(group for key, group in found.items() if key[0] == name)
        cells = [
            metric_cell(found[name, detector].metrics.get("auroc"))
            if (name, detector) in found
            else Cell(ABSENT)
            for detector in shown
        ]
        rows.append((Cell(name), number(some.n_traces, ",.0f"), number(some.prevalence, ".0%"), *cells))
    notes = (
        (
            "Tested answers of one seed, mean. No AUROC where a class is missing or nearly so. The "
            "best two of each family are shown; all detectors stand in result.json."
        ),
    )
    table = PageTable("by-group", f"AUROC by {field}", tuple(columns), tuple(rows), notes)
    return Section("subgroups", "Subgroups", tables=(table,))


def _costs(result: Result) -> Section:
    columns = (
        Column("detector"),
        Column("kind"),
        Column("inputs"),
        Column("learns"),
        Column("fit s", is_number=True, is_better_low=True),
        Column("score ms", is_number=True, is_better_low=True),
        Column("bytes a trace", is_number=True, is_better_low=True),
        Column("parameters", is_number=True, is_better_low=True),
        Column("settings"),
    )
    rows = tuple(
        (
            detector_cell(result, row),
            Cell(FAMILY_NAMES[family(row)]),
            Cell(", ".join(row.inputs) or ABSENT),
            Cell({True: "yes", False: "no", None: ABSENT}[row.is_supervised]),
            _cost(row.fit_s, short_text),
            _cost(row.score_ms, short_text),
            _cost(row.trace_bytes, size_text),
            number(row.n_parameters, ",d"),
            Cell(", ".join(f"{k} = {v}" for k, v in row.settings.items()) or "default"),
        )
        for row in result.ranked()
    )
    notes = (
        (
            "Seconds of one fit and milliseconds to score one trace, measured in this run on this "
            "machine, features included where they were not remembered from a detector before; "
            "bytes are those of the stored arrays that it reads, before compression."
        ),
    )
    table = PageTable("cost", "What each reads and costs", columns, rows, notes)
    return Section("costs", "Costs", tables=(table,))


def _cost(value: float | None, write: Any) -> Cell:
    return Cell(ABSENT) if value is None else Cell(write(value), value=value)


def _mistakes(result: Result) -> Section:
    """The answers or tokens that the best detector ranks most wrongly, in the first seed."""
    done = [row for row in result.ranked() if row.failure is None]
    if not done:
        return Section("mistakes", "Worst mistakes")
    best, samples = done[0].detector, result.samples
    mine = samples.filter((pc.field("detector") == best) & pc.field("is_valid"))
    if not len(mine):
        return Section("mistakes", "Worst mistakes")
    mine = mine.filter(pc.field("seed") == mine["seed"][0].as_py())
    rows = []
    for label, order, what in ((0, "descending", "correct"), (1, "ascending", "hallucinated")):
        of_class = mine.filter(pc.field("label") == label)
        worst = of_class.sort_by([("score", order)]).slice(0, _N_MISTAKES).to_pylist()
        rows += [
            (Cell(_place(sample)), Cell(what), number(sample["score"], ".3g"), number(sample["probability"]))
            for sample in worst
        ]
    columns = (
        Column("trace"),
        Column("label"),
        Column("score", is_number=True),
        Column("probability", is_number=True),
    )
    note = "Some of these are faults of the label: read them before trusting a difference."
    title = f"{result.level.capitalize()}s that {best} ranks most wrongly"
    table = PageTable("worst", title, columns, tuple(rows), (note,))
    return Section("mistakes", "Worst mistakes", tables=(table,))


def _place(sample: Mapping[str, Any]) -> str:
    """The trace, and the token in its answer where tokens are scored."""
    token = sample["token"]
    return sample["trace_id"] if token is None else f"{sample['trace_id']}, token {token}"


def _failed(result: Result) -> Section:
    rows = [[row.detector, row.failure] for row in result.rows if row.failure is not None]
    if not rows:
        return Section("failed", "Failed detectors")
    table = PageTable(
        "failures", "Detectors without metrics", (Column("detector"), Column("reason")), text_rows(rows)
    )
    return Section("failed", "Failed detectors", tables=(table,))


def _reading(result: Result) -> Section:
    found = metric_names({name for row in result.rows for name in row.metrics})
    rows = [[metric_title(n), METRIC_NAMES[n].meaning] for n in found if n in METRIC_NAMES]
    paragraphs = (
        (
            "A score is higher where hallucination is more likely, and no metric ever turns it "
            "round: an AUROC clearly below 0.5 is a wrong sign, not a find. All choices of a "
            "detector are made on the training and validation side of a fold; questions are never "
            "parted."
        ),
        (
            "Intervals hold the fitted models fixed and resample questions. An interval of a "
            "difference that excludes zero is a find for one test; of many tests some do so by "
            "chance, which Holm's correction accounts for."
        ),
    )
    table = PageTable("metric-words", "The metrics", (Column("metric"), Column("meaning")), text_rows(rows))
    tables = (table,) if rows else ()
    return Section("reading", "How to read this", paragraphs, tables=tables)
