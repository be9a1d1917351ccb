"""The report of a comparison of detectors: page, figures, and the table of the terminal."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow.compute as pc
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from rich.table import Table as RichTable

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.detectors.registry import DETECTORS
from graphhalu.evaluation.bootstrap import Estimate
from graphhalu.evaluation.metrics import Curve, calibration_band, mean_curve
from graphhalu.evaluation.result import Comparison, DetectorRow, MethodTest, Result
from graphhalu.evaluation.settings import registered_name
from graphhalu.evaluation.significance import METRIC_OF
from graphhalu.evaluation.univariate import FALSE_DISCOVERIES, HeadMap, HeadMaps
from graphhalu.labels.labels import MEANINGS
from graphhalu.report.page import (
    Page,
    Section,
    data,
    figure_words,
    frame,
    make_page,
    metric_cells,
    metric_meanings,
    named,
    protocol_text,
    read_text,
    say,
)
from graphhalu.report.plots import DASHES, FAINT, REFERENCE, WIDTH_IN, heat_maps, intervals, lines
from graphhalu.report.tables import ABSENT, CONTROL_MARK, Cell, Row, cell, cut, make_table, p_text
from graphhalu.report.tables import terminal_table as shown_in_terminal
from graphhalu.report.theme import LIGHT

CURVES: Final = ("roc", "precision-recall", "calibration", "risk-coverage")
FAMILIES: Final = ("graph", "probe", "scalar", "control")
_METRICS: Final = {"auroc": "AUROC", "auprc": "average precision"}
_TITLES: Final = {"answer": "detectors of hallucinations", "token": "detectors of hallucinated tokens"}
_INPUT_LETTERS: Final = {"attention": "A", "hidden": "H", "likelihood": "P", "text": "T", "length": "N"}
"""Letters of inputs in the terminal; likelihood is P as in probability, length N."""
_N_NAMED: Final = 3
_N_BEST: Final = 5
"""Detectors on the first screen, beside the controls."""
_N_MISTAKES: Final = 5
_SMALL_CLASS: Final = 30
"""Tested answers of a class below which a report warns."""
_say = partial(say, "comparison")


def comparison_page(result: Result, maps: HeadMaps | None = None, more: Sequence[Section] = ()) -> Page:
    """The report of a comparison.

    Args:
        result: The comparison.
        maps: AUROC of single heads, if they were computed.
        more: Sections of a transfer that was run with it.
    """
    tests, done, warning = ordered_tests(result), _done(result), small_class_warning(result)
    figures = {kind: partial(curve_figure, result, kind) for kind in CURVES if done}
    first = _first_rows(result)
    if tests:
        figures["forest"] = partial(forest_figure, result, [row.detector for row in first])
        figures["forest-all"] = partial(forest_figure, result)
    if maps is not None and maps.maps:
        figures["maps"] = partial(maps_figure, maps)
    ranked = result.ranked()
    metrics = [
        {"row": row, "name": _marked_name(result, row), "metrics": cells}
        for row, cells in zip(ranked, metric_cells(ranked), strict=True)
    ]
    tables = {
        "best": [_best_row(result, row) for row in first],
        "metrics": metrics,
        "tests": [{"test": test, "difference": _difference(test)} for test in tests],
        "methods": [{"method": each, "verdict": each.verdict()} for each in _ordered_methods(result)],
        "by-group": _subgroup_rows(result),
        "cost": [_cost_row(result, row) for row in ranked],
        "worst": worst_mistakes(result),
        "failures": [{"row": row} for row in result.rows if row.failure is not None],
        "metric-words": metric_meanings(row.metrics for row in result.rows),
    }
    baseline = [_say("baseline")] if result.baseline else []
    framed = frame(result.config, result.provenance, result.store)
    return make_page(
        "comparison",
        headline(result),
        figures=figures,
        tables=tables,
        paragraphs={
            "glance": [_say("covers", result=result, held_out=_held_out(result)), *result.notes],
            "results": [warning] if warning else [],
            "heads": _map_words(maps),
        },
        ready={"transfer": more, "data": [data(result.store)], **framed},
        notes="\n".join(_notes(result) + baseline),
        margin=tests[0].margin if tests else 0,
        marked="; ".join(map(_map_title, maps.maps)) if maps else "",
        field=result.subgroups[0].field if result.subgroups else "",
        level=result.level.capitalize(),
        best=done[0].detector if done else "",
        baseline=result.baseline.detector if result.baseline else "",
        result=result,
        **_facts(result),
    )


def _first_rows(result: Result) -> list[DetectorRow]:
    """The five best detectors, then the controls."""
    done = _done(result)
    return [row for row in done if not row.is_control][:_N_BEST] + [row for row in done if row.is_control]


def _best_row(result: Result, row: DetectorRow) -> Row:
    method, metrics = result.method(row.detector), row.metrics
    is_baseline = result.baseline is not None and result.baseline.detector == row.detector
    return {
        "name": _marked_name(result, row),
        "auroc": metrics.get("auroc"),
        "within": metrics.get("within_category_auroc"),
        "held_out": metrics.get("category_auroc"),
        "verdict": "baseline" if is_baseline else method and method.verdict(),
        "p_holm": method and method.p_holm,
    }


def _held_out(result: Result) -> str:
    """What was held out, in words."""
    if not len(result.category_samples) or result.categories is None:
        return _say("by_question")
    return _say("by_category", n=result.categories.n, rule=result.categories.rule)


def terminal_table(result: Result) -> RichTable:
    """The comparison for a terminal of 80 columns, best first; failed detectors come last."""
    rows = []
    for row in result.ranked():
        metrics = {name: cell(row.metrics.get(name)) for name in ("auroc", "auprc", "tpr_at_5_fpr")}
        narrow = {
            name: each._replace(detail=each.detail.replace(", ", ",")) for name, each in metrics.items()
        }
        letters = "".join(_INPUT_LETTERS.get(name, "?") for name in row.inputs) or ABSENT
        failed = {"auroc": Cell("failed")} if row.failure else {}
        name = f"{row.detector} {CONTROL_MARK}" if row.is_control else row.detector
        rows.append({"row": row, "name": name, "letters": letters, **narrow, **failed})
    values = {**vars(result), "labels": result.labeller.get("name", ABSENT)}
    notes = [_say("size", **values), small_class_warning(result) or ""]
    notes = [*filter(None, notes), *(result.notes if result.level == "answer" else ()), *_notes(result)]
    notes.append("in: " + ", ".join(f"{letter} {name}" for name, letter in _INPUT_LETTERS.items()))
    notes += [f"{row.detector} failed: {row.failure}" for row in result.rows if row.failure]
    described = read_text("comparison")["tables"]["terminal"]
    return shown_in_terminal(make_table("terminal", described, rows, notes="\n".join(notes)))


def headline(result: Result) -> tuple[str, str]:
    """What won, by how much and against which baseline; and how that baseline was chosen."""
    done, tests = _done(result), ordered_tests(result)
    if not done:
        return _say("failed"), _say("reasons")
    if result.baseline is None or not tests:
        return _say("untested", **_about(result, "best", done[0].detector)), _say("chance")
    fitted = [test for test in tests if test.low > 0]
    baseline = result.baseline.detector
    rule = _say("rule", baseline=baseline, rule=result.baseline.rule, n_better=len(fitted), n_all=len(tests))
    if not result.methods:
        test = (fitted or tests)[0]
        about = {**_about(result, "best", test.detector), **_about(result, "baseline", baseline)}
        return _say("fitted", difference=_difference(test), **about), rule
    methods = _ordered_methods(result)
    better = [each for each in methods if each.verdict() == "better"]
    first, n_others = (better or methods)[0], len(better) - 1
    also = _say("others", n_others=n_others, verb="is" if n_others == 1 else "are") if n_others > 0 else ""
    about = {**_about(result, "best", first.detector), **_about(result, "baseline", baseline)}
    # the figures beside it are AUROCs
    metric = f" in {_METRICS['auprc']}" if first.metric == "auprc" else ""
    about |= {"p_holm": p_text(first.p_holm), "also": also, "metric": metric}
    return _say("won" if better else "lost", method=first, **about), rule


def _facts(result: Result) -> dict[str, Any]:
    """Title and numbers that frame a comparison; empty where there is nothing to say."""
    model, dataset = named(result.store, "model"), named(result.store, "dataset")
    counts, meaning = class_counts(result), result.labeller.get("meaning", "hallucinated")
    n_failed = sum(row.failure is not None for row in result.rows)
    return {
        "about": f"{model} on {dataset}: " if model and dataset else "Comparison of ",
        "what": _TITLES[result.level],
        "tokens": _say("tokens", of=result.counts) if result.counts else "",
        "tested": _say("tested", hallucinated=counts[0], correct=counts[1]) if counts else "",
        "siblings": f", {result.n_siblings:,} other beams" if result.n_siblings else "",
        "ones": "hallucinated" if meaning == "hallucinated" else "labelled 1",
        "labels": result.labeller.get("name", ABSENT),
        "meaning": MEANINGS.get(meaning, ABSENT),
        "n_detectors": len(result.rows),
        "failed": f" ({n_failed} failed)" if n_failed else "",
        "protocol": protocol_text(result.config),
        "metric": _METRICS[METRIC_OF[result.level]],
    }


def class_counts(result: Result) -> tuple[int, int] | None:
    """Hallucinated and correct items that one seed tests; ``None`` if all detectors failed."""
    samples = result.samples
    if not len(samples):
        return None
    first = (pc.field("detector") == samples["detector"][0]) & (pc.field("seed") == samples["seed"][0])
    labels = samples.filter(first)["label"].to_numpy()
    return int(labels.sum()), int((1 - labels).sum())


def small_class_warning(result: Result) -> str | None:
    """A warning where one class is so small that single answers move everything."""
    counts = class_counts(result)
    if counts is None or min(counts) >= _SMALL_CLASS:
        return None
    least, kind = min(counts), "hallucinated" if counts[0] < counts[1] else "correct"
    return _say("few", least=least, kind=kind, level=result.level, step=1 / max(1, least))


def ordered_tests(result: Result) -> list[Comparison]:
    """The tests, the largest difference first."""
    return sorted(result.comparisons, key=lambda test: -test.difference)


def _ordered_methods(result: Result) -> list[MethodTest]:
    return sorted(result.methods, key=lambda each: -each.difference)


def family(row: DetectorRow) -> str:
    """The kind of a detector; a control is one before anything else.

    Single scores learn a sign at most; one of another package counts as such if it learns nothing.
    """
    if row.is_control or row.is_graph:
        return "control" if row.is_control else "graph"
    path = DETECTORS.path(registered_name(row.detector)) or ""
    return "scalar" if ".scalars:" in path or row.is_supervised is False else "probe"


def named_rows(result: Result) -> dict[str, list[DetectorRow]]:
    """The best few detectors of each family, best first; families without a score are absent."""
    found = {name: [row for row in _done(result) if family(row) == name] for name in FAMILIES}
    return {name: rows[:_N_NAMED] for name, rows in found.items() if rows}


def curve_figure(result: Result, kind: str) -> Figure:
    """Curves, a panel a family: the best few in colour, all others grey; a line's ``gid`` is its name.

    Args:
        result: A comparison.
        kind: One of :data:`CURVES`.

    Raises:
        NotEnoughDataError: If no detector has what is to be drawn.
    """
    words, curves, panels = figure_words("comparison", kind), _curves(result, kind), []
    named_curves: list[Curve] = []
    is_calibration, families = kind == "calibration", read_text("comparison")["families"]
    # other bins would hide the few that are named
    faint = {} if is_calibration else curves
    for name, rows in named_rows(result).items():
        shown = [row for row in rows if row.detector in curves][: 1 if is_calibration else _N_NAMED]
        if not shown:
            continue
        own = {row.detector: _named_curve(row, rank, words["metric"]) for rank, row in enumerate(shown)}
        marker = {"marker": families[name][1], "markersize": 4.5} if is_calibration else {}
        drawn = [{"x": curves[d].x, "y": curves[d].y, **style, **marker} for d, style in own.items()]
        named_curves += [curves[d] for d in own]
        others = [{"x": c.x, "y": c.y, "gid": d, **FAINT} for d, c in faint.items() if d not in own]
        panel = {"lines": [*drawn, *_reference(result, kind, words), *others], "color": LIGHT[name]}
        panels.append({**panel, "title": f"{families[name][0]}s"})
    if not panels:
        raise NotEnoughDataError(f"no detector has a {kind} curve to draw")
    ylim, width = _limits(result, kind, named_curves), WIDTH_IN if len(panels) > 1 else 0.6 * WIDTH_IN
    labels = (words["x"], words["y"])
    return lines(panels, size_in=(width, 3.9), key="above", shared=labels, xlim=(-0.02, 1.02), ylim=ylim)


def forest_figure(result: Result, names: Sequence[str] | None = None) -> Figure:
    """Differences of AUROC from the baseline, largest first; of all detectors, or of those named.

    Left these fitted scorers, right the methods. Filled marks are differences whose interval excludes
    zero, the band is the margin within which a difference counts as none; the numbers are beside each row.

    Raises:
        NotEnoughDataError: If nothing was tested against a baseline.
    """
    tests = [test for test in ordered_tests(result) if names is None or test.detector in names]
    if not tests:
        raise NotEnoughDataError("no detector was tested against a baseline: there is no difference to draw")
    kinds = {row.detector: family(row) for row in result.rows}
    rows = []
    for test in tests:
        # one of the series has a value
        kind, method = kinds.get(test.detector, "scalar"), result.method(test.detector)
        values = {**dict.fromkeys(FAMILIES), kind: _difference(test)}
        estimate = method and Estimate(method.difference, method.low, method.high, method.n_fits)
        values |= {f"{name}_method": estimate if name == kind else None for name in FAMILIES}
        rows.append({"name": cut(test.detector, 24), **values})
    words = figure_words("comparison", "forest") | {"xlabel": "difference of AUROC"}
    if not result.methods:
        words = {**words, "panels": words["panels"][:1]}
    methods = [result.method(test.detector) for test in tests]
    p_texts = [p_text(None if method is None else method.p_holm) for method in methods]
    texts = [f"{_difference(test):+.3f}   {p}" for test, p in zip(tests, p_texts, strict=True)]
    return intervals(rows, words, texts=texts, band=tests[0].margin)


def maps_figure(found: HeadMaps) -> Figure:
    """AUROC of each head alone, a panel a feature; layers across, heads down, means at the foot.

    A dot marks what counts after false-discovery control over all panels.

    Raises:
        NotEnoughDataError: If there is no map, or no head has an AUROC.
    """
    grids = [_with_means(each.auroc, each.layer_auroc) for each in found.maps]
    n_heads = len(found.maps[0].auroc[0])
    panels = []
    for each, values in zip(found.maps, grids, strict=True):
        dots = _with_means(each.q_value, each.layer_q_value) < FALSE_DISCOVERIES
        panel = {"values": values, "title": _map_title(each), "dots": dots}
        panels.append({**panel, "columns": each.layers, "rows": [*range(n_heads), "", "mean"]})
    bar = "AUROC of one head alone (0.5 = chance)"
    cell_in = 0.17 if n_heads <= 16 else 0.1  # noqa: PLR2004
    return heat_maps(panels, cell_in=cell_in, norm=around_chance(grids), bar=bar)


def around_chance(grids: Iterable[Any]) -> Normalize:
    """Scale of AUROCs around chance, as wide as the largest distance, rounded up to a twentieth.

    Raises:
        NotEnoughDataError: If there is no AUROC.
    """
    distances = np.concatenate([np.abs(np.ravel(grid) - 0.5) for grid in grids])
    if not np.isfinite(distances).any():
        raise NotEnoughDataError("no cell has an AUROC: there is nothing to draw")
    reach = float(np.clip(np.ceil(np.nanmax(distances) * 20) / 20, 0.05, 0.5))
    return Normalize(0.5 - reach, 0.5 + reach)


def worst_mistakes(result: Result) -> list[Row]:
    """The answers or tokens that the best detector ranks most wrongly, in the first seed."""
    best = next((row.detector for row in _done(result)), "")
    mine = result.samples.filter((pc.field("detector") == best) & pc.field("is_valid"))
    if not len(mine):
        return []
    mine, rows = mine.filter(pc.field("seed") == mine["seed"][0]), list[Row]()
    for label, order, what in ((0, "descending", "correct"), (1, "ascending", "hallucinated")):
        worst = mine.filter(pc.field("label") == label).sort_by([("score", order)]).slice(0, _N_MISTAKES)
        for sample in worst.to_pylist():
            token = "" if sample["token"] is None else f", token {sample['token']}"
            rows.append({**sample, "place": f"{sample['trace_id']}{token}", "label": what})
    return rows


def _cost_row(result: Result, row: DetectorRow) -> Row:
    settings = ", ".join(f"{name} = {value}" for name, value in row.settings.items()) or "default"
    kind = read_text("comparison")["families"][family(row)][0]
    return {"row": row, "name": _marked_name(result, row), "kind": kind, "settings": settings}


def _subgroup_rows(result: Result) -> list[Row]:
    shown = [row.detector for rows in named_rows(result).values() for row in rows[:2]]
    rows: dict[str, dict[str, Any]] = {}
    for group in result.subgroups:
        sizes = {"answers": cell(group.n_traces, ",.0f"), "hallucinated": cell(group.prevalence, ".0%")}
        empty = dict.fromkeys(f"AUROC of {name}" for name in shown)
        row = rows.setdefault(group.name, {group.field: group.name, **sizes, **empty})
        if group.detector in shown:
            row[f"AUROC of {group.detector}"] = group.metrics.get("auroc")
    return list(rows.values())


def _notes(result: Result) -> list[str]:
    level, n_seeds = result.config.get("level", 0.95), len(result.config.get("seeds", []))
    notes = [_say("intervals", coverage=level, n_seeds=n_seeds)]
    notes += [_say("control")] * any(row.is_control for row in result.rows)
    for row in result.ranked():
        if row.coverage is not None and row.coverage < 1 and row.auroc_invalid_at_median is not None:
            notes.append(_say("incomplete", name=row.detector, auroc=row.auroc_invalid_at_median))
    return notes


def _map_words(maps: HeadMaps | None) -> list[str]:
    if maps is None:
        return []
    missing = [f"{name} is not shown: {reason}" for name, reason in maps.missing.items()]
    return [_say("maps", n_traces=maps.n_traces, n_groups=maps.n_groups), *missing]


def _map_title(each: HeadMap) -> str:
    limit, title = f"{FALSE_DISCOVERIES}".replace("0.", "."), figure_words("comparison", "maps")
    marked = [q is not None and q < FALSE_DISCOVERIES for row in each.q_value for q in row]
    count = f"{sum(marked)} of {len(marked)} heads with q < {limit}"
    return f"{title.get(each.feature, each.feature)}: {count}"


def _with_means(heads: Any, means: Any) -> Any:
    """Heads down and layers across, an empty row, and the row of the means."""
    values, foot = (np.array(each, dtype=np.float64) for each in (heads, means))
    return np.vstack([values.T, np.full(len(foot), np.nan), foot])


def _curves(result: Result, kind: str) -> dict[str, Curve]:
    """Curves by detector, of those that have one."""
    drawn = {}
    for row in _done(result):
        try:
            drawn[row.detector] = mean_curve(result.samples, row.detector, kind)
        except NotEnoughDataError:  # a seed that tested one class only has no curve
            continue
    return drawn


def _named_curve(row: DetectorRow, rank: int, metric: str) -> dict[str, Any]:
    value = row.metric(metric)
    number = "" if value is None else f" {value:.3f}".replace("0.", ".", 1)
    look = {"color": LIGHT[family(row)], "linestyle": DASHES[rank], "zorder": 4 - 0.1 * rank}
    return {"gid": row.detector, "label": f"{cut(row.detector, 32)}{number}", **look}


def _reference(result: Result, kind: str, words: dict[str, str]) -> list[dict[str, Any]]:
    """The line of comparison, and where calibrated bins lie by chance."""
    height = [0, 1] if kind in {"roc", "calibration"} else [result.prevalence] * 2
    label = words["line"].format(prevalence=result.prevalence)
    line = {"x": [0, 1], "y": height, "label": label, **REFERENCE}
    if kind != "calibration":
        return [line]
    (low, high), share = calibration_band(result.samples)
    return [{"x": share, "low": low, "high": high, "color": LIGHT["grid"]}, line]


def _limits(result: Result, kind: str, curves: Sequence[Curve]) -> tuple[float, float]:
    """Limits of the vertical axis: the whole, or as much of it as the named curves need."""
    if kind in {"roc", "calibration"}:
        return -0.02, 1.02
    # the first few answers decide the left end, and swing widely
    settled = np.concatenate([curve.y[curve.x >= 0.05] for curve in curves])  # noqa: PLR2004
    low, high = (float(end(np.append(settled, result.prevalence))) for end in (np.min, np.max))
    pad = 0.12 * max(high - low, 0.05)
    return max(low - pad, -0.02), min(high + pad, 1.02)


def _difference(test: Comparison) -> Estimate:
    return Estimate(test.difference, test.low, test.high)


def _done(result: Result) -> list[DetectorRow]:
    return [row for row in result.ranked() if row.failure is None]


def _about(result: Result, role: str, detector: str) -> dict[str, str]:
    """Name of a detector, and the AUROC that it is ranked by: traces without a score at the median."""
    row = next(row for row in result.rows if row.detector == detector)
    value = row.auroc_invalid_at_median
    name = f"{detector} (a control)" if row.is_control and role == "best" else detector
    return {role: name, f"{role}_auroc": ABSENT if value is None else f"{value:.3f}"}


def _marked_name(result: Result, row: DetectorRow) -> str:
    is_baseline = result.baseline is not None and result.baseline.detector == row.detector
    return f"{row.detector} {CONTROL_MARK * row.is_control}{'†' * is_baseline}".strip()
