"""The report of a comparison of detectors: page, figures, and the table of the terminal."""

from collections.abc import Iterable, Mapping, Sequence
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
from graphhalu.evaluation.curves import Curve, calibration_band, mean_curve
from graphhalu.evaluation.detector_specs import registered_name
from graphhalu.evaluation.maps import FALSE_DISCOVERIES, HeadMap, HeadMaps
from graphhalu.evaluation.result import Comparison, DetectorRow, Result
from graphhalu.labels.labels import MEANINGS
from graphhalu.report.frame import data, frame, metric_meanings, metric_titles, named, protocol_text
from graphhalu.report.page import Page, Section, read_text, sections
from graphhalu.report.plots import DASHES, FAINT, REFERENCE, WIDTH_IN, heat_maps, intervals, lines
from graphhalu.report.tables import ABSENT, CONTROL_MARK, Cell, Row, cell, cut, make_table, p_text
from graphhalu.report.tables import terminal_table as shown_in_terminal
from graphhalu.report.theme import LIGHT

BASELINE_MARK: Final = "†"
FAMILIES: Final = {
    "graph": ("graph network", "graph", "D"),
    "probe": ("trained probe", "probe", "o"),
    "scalar": ("single score", "scalar", "s"),
    "control": ("control", "control", "v"),
}
"""Label, colour and marker of each kind of detector."""
KINDS: Final[Mapping[str, Mapping[str, str]]] = {
    "roc": {"metric": "auroc", "x": "correct answers flagged", "y": "hallucinations found", "line": "chance"},
    "precision-recall": {
        "metric": "auprc",
        "x": "hallucinations found (recall)",
        "y": "precision",
        "line": "prevalence",
    },
    "calibration": {
        "metric": "ece",
        "x": "calibrated probability",
        "y": "share hallucinated",
        "line": "perfect",
    },
    "risk-coverage": {
        "metric": "aurc",
        "x": "share of answers kept",
        "y": "share hallucinated",
        "line": "all answers",
    },
}
"""Figures of curves: the metric beside a name, labels of the axes, the name of the line of comparison."""
MAP_TITLES: Final = {
    "sink_mass_k4": "attention to the first 4 tokens (sink)",
    "self_attention_log": "attention to itself, log",
    "lookback_ratio": "share of attention that looks back at the prompt",
    "attention_entropy_mean": "entropy of attention",
}
_TITLES: Final = {"answer": "detectors of hallucinations", "token": "detectors of hallucinated tokens"}
_INPUT_LETTERS: Final = {"attention": "A", "hidden": "H", "likelihood": "P", "text": "T", "length": "N"}
"""Letters of inputs in the terminal; likelihood is P as in probability, length N."""
_N_NAMED: Final = 3
_N_MISTAKES: Final = 5
_SMALL_CLASS: Final = 30
"""Tested answers of a class below which a report warns."""
_SIGNIFICANT: Final = 0.05


def comparison_page(result: Result, maps: HeadMaps | None = None, more: Sequence[Section] = ()) -> Page:
    """The report of a comparison.

    Args:
        result: The comparison.
        maps: AUROC of single heads, if they were computed.
        more: Sections of a transfer that was run with it.
    """
    tests, warning = ordered_tests(result), small_class_warning(result)
    figures = {kind: partial(curve_figure, result, kind) for kind in KINDS if _done(result)}
    if tests:
        figures["forest"] = partial(forest_figure, result)
    if maps is not None and maps.maps:
        figures["maps"] = partial(maps_figure, maps)
    worst, found = worst_mistakes(result), {name for row in result.rows for name in row.metrics}
    made = sections(
        "comparison",
        figures=figures,
        tables={
            "metrics": _metric_rows(result),
            "tests": [{"test": test, "difference": _difference(test)} for test in tests],
            "by-group": _subgroup_rows(result),
            "cost": [_cost_row(result, row) for row in result.ranked()],
            "worst": worst,
            "failures": [{"row": row} for row in result.rows if row.failure is not None],
            "metric-words": metric_meanings(found),
        },
        paragraphs={"results": [*([warning] if warning else []), *result.notes], "heads": _map_words(maps)},
        ready={
            "transfer": more,
            "data": [data(result.store)],
            **frame(result.config, result.provenance, result.store),
        },
        notes=_notes(result),
        margin=tests[0].margin if tests else 0,
        marked="; ".join(map(_map_title, maps.maps)) if maps else "",
        field=result.subgroups[0].field if result.subgroups else "",
        level=result.level.capitalize(),
        best=_done(result)[0].detector if worst else "",
    )
    model, dataset = named(result.store, "model"), named(result.store, "dataset")
    what = _TITLES[result.level]
    title = f"{model} on {dataset}: {what}" if model and dataset else f"Comparison of {what}"
    return Page(title, headline(result), facts(result), made)


def terminal_table(result: Result) -> RichTable:
    """The comparison for a terminal of 80 columns, best first; failed detectors come last."""
    rows = [
        {
            "row": row,
            "name": f"{row.detector} {CONTROL_MARK}" if row.is_control else row.detector,
            "letters": "".join(_INPUT_LETTERS.get(name, "?") for name in row.inputs) or ABSENT,
            **{
                name: _narrow(cell(row.metrics.get(metric)))
                for name, metric in (("auroc", "auroc"), ("auprc", "auprc"), ("tpr", "tpr_at_5_fpr"))
            },
            **({"auroc": Cell("failed")} if row.failure else {}),
        }
        for row in result.ranked()
    ]
    described = read_text("comparison")["tables"]["terminal"]
    return shown_in_terminal(make_table("terminal", described, rows, notes=caption(result)))


def caption(result: Result) -> str:
    """What the numbers mean, and why a detector has none; one line each."""
    level, seeds = result.config.get("level", 0.95), result.config.get("seeds", [])
    found = [
        (
            f"{result.n_traces:,} traces of {result.n_groups:,} questions, labels "
            f"{result.labeller.get('name', ABSENT)!r} ({result.n_left_out:,} without a valid one "
            f"left out), prevalence {result.prevalence:.1%} = AUPRC of chance"
        ),
        f"[low, high]: {level:.0%} bootstrap over questions; means over {len(seeds)} seed(s)",
        "in: " + ", ".join(f"{letter} {name}" for name, letter in _INPUT_LETTERS.items()),
    ]
    if any(row.is_control for row in result.rows):
        found.append(f"{CONTROL_MARK} control: a detector proves nothing unless it beats these")
    found += [
        f"{row.detector}: AUROC {row.auroc_invalid_at_median:.3f} over all traces, those without "
        f"a score at the median; its rank follows this number"
        for row in _incomplete(result)
    ]
    return "\n".join(found + [f"{row.detector} failed: {row.failure}" for row in result.rows if row.failure])


def headline(result: Result) -> tuple[str, str]:
    """What won, by how much and against which baseline; and how that baseline was chosen."""
    done = _done(result)
    if not done:
        return ("No detector has a score: all of them failed.", "Their reasons are below.")
    if result.baseline is None or not result.comparisons:
        return (
            f"The highest AUROC is {_auroc(result, done[0].detector)}, of {_marked(result, done[0].detector)}.",
            "No difference was tested against a baseline, so this says nothing of chance.",
        )
    tests = ordered_tests(result)
    rule = f"The baseline is {result.baseline.detector}: {result.baseline.rule}."
    better = [test for test in tests if test.low > 0]
    if not better:
        best = tests[0]
        return (
            f"No detector beats the baseline by an interval that excludes zero: {best.baseline} has "
            f"AUROC {_auroc(result, best.baseline)}, the best of the others is "
            f"{_marked(result, best.detector)}, with a difference of {_difference(best):+.3f}.",
            rule,
        )
    best, others = better[0], len(better) - 1
    also = f", and {others} more {'does' if others == 1 else 'do'} so too" if others else ""
    if best.p_holm is None or best.p_holm >= _SIGNIFICANT:
        also += f"; after Holm's correction over {len(tests)} tests it is not significant"
    return (
        f"{_marked(result, best.detector)} beats the baseline {best.baseline} by an interval that "
        f"excludes zero: AUROC {_auroc(result, best.detector)} against {_auroc(result, best.baseline)}, "
        f"a difference of {_difference(best):+.3f} (Holm p {p_text(best.p_holm)}){also}.",
        rule,
    )


def facts(result: Result) -> dict[str, str]:
    """The numbers that frame a comparison."""
    meaning = result.labeller.get("meaning", "hallucinated")
    left_out = f"{result.n_left_out:,} without a valid label"
    if result.n_siblings:
        left_out += f", {result.n_siblings:,} other beams"
    n_failed = sum(row.failure is not None for row in result.rows)
    found = {"answers": f"{result.n_traces:,} to {result.n_groups:,} questions"}
    if (tokens := result.counts) is not None:
        found["tokens"] = (
            f"{tokens.n_tokens:,}, of them {tokens.n_hallucinated_tokens:,} in {tokens.n_spans:,} marked spans"
        )
    if (counts := class_counts(result)) is not None:
        found["tested in a seed"] = f"{counts[0]:,} hallucinated, {counts[1]:,} correct"
    ones = "hallucinated" if meaning == "hallucinated" else "labelled 1"
    return found | {
        "left out": left_out,
        "prevalence": f"{result.prevalence:.1%} {ones}",
        "labels": f"{result.labeller.get('name', ABSENT)}; 1 means: {MEANINGS.get(meaning, ABSENT)}",
        "detectors": f"{len(result.rows)}" + (f" ({n_failed} failed)" if n_failed else ""),
        "protocol": protocol_text(result.config),
    }


def class_counts(result: Result) -> tuple[int, int] | None:
    """Hallucinated and correct items that one seed tests; ``None`` if all detectors failed."""
    samples = result.samples
    if not len(samples):
        return None
    first = samples.filter(
        (pc.field("detector") == samples["detector"][0]) & (pc.field("seed") == samples["seed"][0])
    )
    n_hallucinated = int(pc.sum(first["label"]).as_py())
    return n_hallucinated, len(first) - n_hallucinated


def small_class_warning(result: Result) -> str | None:
    """A warning where one class is so small that single answers move everything."""
    counts = class_counts(result)
    if counts is None or min(counts) >= _SMALL_CLASS:
        return None
    kind = "hallucinated" if counts[0] < counts[1] else "correct"
    return (
        f"Only {min(counts)} {kind} {result.level}s are tested in a seed: each of them moves every "
        f"curve by {1 / max(1, min(counts)):.0%} of its height or width, and small differences "
        "mean nothing."
    )


def ordered_tests(result: Result) -> list[Comparison]:
    """The tests, the largest difference first."""
    return sorted(result.comparisons, key=lambda test: -test.difference)


def family(row: DetectorRow) -> str:
    """The kind of a detector; a control is one before anything else.

    Single scores learn a sign at most; one of another package counts as such if it learns nothing.
    """
    if row.is_control:
        return "control"
    if row.is_graph:
        return "graph"
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
        kind: One of :data:`KINDS`.

    Raises:
        NotEnoughDataError: If no detector has what is to be drawn.
    """
    words, curves = KINDS[kind], _curves(result, kind)
    is_calibration = kind == "calibration"
    panels = []
    for name, rows in named_rows(result).items():
        shown = [row for row in rows if row.detector in curves][: 1 if is_calibration else _N_NAMED]
        if not shown:
            continue
        title = f"{FAMILIES[name][0]}s"
        own = [_curve(row, rank, name, kind, curves[row.detector]) for rank, row in enumerate(shown)]
        # other bins would hide the few that are named
        names = {row.detector for row in shown} | (curves.keys() if is_calibration else set())
        others = [
            {"x": curve.x, "y": curve.y, "gid": detector, **FAINT}
            for detector, curve in curves.items()
            if detector not in names
        ]
        panels.append(
            {"lines": [*own, *_reference(result, kind), *others], "title": title, "color": LIGHT[name]}
        )
    if not panels:
        message = f"no detector has a {kind} curve to draw"
        raise NotEnoughDataError(message)
    limits = _limits(
        result,
        kind,
        [curves[r.detector] for rows in named_rows(result).values() for r in rows if r.detector in curves],
    )
    panels = [{**panel, **limits} for panel in panels]
    width = WIDTH_IN if len(panels) > 1 else 0.6 * WIDTH_IN
    return lines(panels, size_in=(width, 3.9), key="above", shared=(words["x"], words["y"]))


def forest_figure(result: Result) -> Figure:
    """Differences of AUROC from the baseline, largest first.

    Filled marks are differences whose interval excludes zero, the band is the margin within which
    a difference counts as none; the numbers are beside each row.

    Raises:
        NotEnoughDataError: If nothing was tested against a baseline.
    """
    tests = ordered_tests(result)
    if not tests:
        message = "no detector was tested against a baseline: there is no difference to draw"
        raise NotEnoughDataError(message)
    kinds = {row.detector: family(row) for row in result.rows}
    marks = [
        {
            "row": place,
            "estimate": _difference(test),
            "series": kinds.get(test.detector, "scalar"),
            "is_open": not _difference(test).excludes_zero,
            "gid": test.detector,
        }
        for place, test in enumerate(tests)
    ]
    panel = {
        "xlabel": f"AUROC minus that of {tests[0].baseline}",
        "zero": 0.0,
        "band": tests[0].margin,
        "marks": marks,
    }
    texts = [f"{_difference(test):+.3f}   {p_text(test.p_holm)}" for test in tests]
    return intervals(
        [cut(test.detector, 24) for test in tests],
        [panel],
        FAMILIES,
        texts=[text.replace("-", "\N{MINUS SIGN}") for text in texts],
        text_title="difference [interval]   Holm p",
    )


def maps_figure(found: HeadMaps) -> Figure:
    """AUROC of each head alone, a panel a feature; layers across, heads down, means at the foot.

    A dot marks what counts after false-discovery control over all panels.

    Raises:
        NotEnoughDataError: If there is no map, or no head has an AUROC.
    """
    grids = [_with_means(each.auroc, each.layer_auroc) for each in found.maps]
    norm = around_chance(grids)
    n_heads = len(found.maps[0].auroc[0])
    panels = [
        {
            "values": values,
            "title": _map_title(each),
            "norm": norm,
            "bar": "AUROC of one head alone (0.5 = chance)",
            "columns": each.layers,
            "rows": [*range(n_heads), "", "mean"],
            "dots": _with_means(each.q_value, each.layer_q_value) < FALSE_DISCOVERIES,
        }
        for each, values in zip(found.maps, grids, strict=True)
    ]
    return heat_maps(panels, cell_in=0.17 if n_heads <= 16 else 0.1)  # noqa: PLR2004


def around_chance(grids: Iterable[Any]) -> Normalize:
    """Scale of AUROCs around chance, as wide as the largest distance, rounded up to a twentieth.

    Raises:
        NotEnoughDataError: If there is no AUROC.
    """
    distances = np.concatenate([np.abs(np.ravel(grid) - 0.5) for grid in grids])
    if not np.isfinite(distances).any():
        message = "no cell has an AUROC: there is nothing to draw"
        raise NotEnoughDataError(message)
    reach = float(np.clip(np.ceil(np.nanmax(distances) * 20) / 20, 0.05, 0.5))
    return Normalize(0.5 - reach, 0.5 + reach)


def n_marked(found: HeadMap) -> int:
    """Heads that count after false-discovery control."""
    return sum(q is not None and q < FALSE_DISCOVERIES for row in found.q_value for q in row)


def worst_mistakes(result: Result) -> list[Row]:
    """The answers or tokens that the best detector ranks most wrongly, in the first seed."""
    done = _done(result)
    mine = result.samples.filter(pc.field("is_valid"))
    mine = mine.filter(pc.field("detector") == (done[0].detector if done else ""))
    if not len(mine):
        return []
    mine = mine.filter(pc.field("seed") == mine["seed"][0].as_py())
    rows: list[Row] = []
    for label, order, what in ((0, "descending", "correct"), (1, "ascending", "hallucinated")):
        worst = mine.filter(pc.field("label") == label).sort_by([("score", order)]).slice(0, _N_MISTAKES)
        for sample in worst.to_pylist():
            token = "" if sample["token"] is None else f", token {sample['token']}"
            rows.append({**sample, "place": f"{sample['trace_id']}{token}", "label": what})
    return rows


def _metric_rows(result: Result) -> list[Row]:
    titles = metric_titles(name for row in result.rows for name in row.metrics)
    rows = []
    for row in result.ranked():
        metrics = {title: cell(row.metrics.get(name)) for name, title in titles.items()}
        if row.failure is not None and metrics:
            metrics[next(iter(metrics))] = Cell("failed")
        rows.append(
            {
                "detector": _marked_name(result, row),
                **metrics,
                "coverage": cell(row.coverage, ".0%"),
                "inputs": row.inputs,
            }
        )
    return rows


def _cost_row(result: Result, row: DetectorRow) -> Row:
    return {
        "row": row,
        "name": _marked_name(result, row),
        "kind": FAMILIES[family(row)][0],
        "settings": ", ".join(f"{name} = {value}" for name, value in row.settings.items()) or "default",
    }


def _subgroup_rows(result: Result) -> list[Row]:
    found = {(group.name, group.detector): group for group in result.subgroups}
    shown = [row.detector for rows in named_rows(result).values() for row in rows[:2]]
    rows = []
    for name in dict.fromkeys(name for name, _ in found):
        some = next(group for key, group in found.items() if key[0] == name)
        metrics = {d: found[name, d].metrics if (name, d) in found else {} for d in shown}
        rows.append(
            {
                some.field: name,
                "answers": cell(some.n_traces, ",.0f"),
                "hallucinated": cell(some.prevalence, ".0%"),
                **{f"AUROC of {d}": cell(of_detector.get("auroc")) for d, of_detector in metrics.items()},
            }
        )
    return rows


def _notes(result: Result) -> str:
    level, seeds = result.config.get("level", 0.95), result.config.get("seeds", [])
    notes = [
        f"In brackets the {level:.0%} interval of a bootstrap over questions; values are means "
        f"over {len(seeds)} seed{'' if len(seeds) == 1 else 's'}. The spread over seeds and "
        "the mean within folds are in result.json and table.csv."
    ]
    if any(row.is_control for row in result.rows):
        notes.append(f"{CONTROL_MARK} control: a detector proves nothing unless it beats these.")
    if result.baseline is not None:
        notes.append(f"{BASELINE_MARK} baseline, which all others are tested against.")
    notes += [
        f"{row.detector} has no score for some answers: AUROC {row.auroc_invalid_at_median:.3f} "
        "over all of them, with those at the median. Detectors are ranked by this number."
        for row in _incomplete(result)
    ]
    return "\n".join(notes)


def _map_words(maps: HeadMaps | None) -> list[str]:
    if maps is None:
        return []
    lead = (
        f"One feature of one head alone, over all {maps.n_traces:,} labelled answers to "
        f"{maps.n_groups:,} questions. This describes the store; no choice is made from it, and no "
        "detector sees it. Above 0.5 hallucinated answers have more of the feature, below 0.5 less."
    )
    return [lead, *(f"{name} is not shown: {reason}" for name, reason in maps.missing.items())]


def _map_title(each: HeadMap) -> str:
    limit = f"{FALSE_DISCOVERIES}".replace("0.", ".")
    count = f"{n_marked(each)} of {sum(map(len, each.auroc))} heads with q < {limit}"
    return f"{MAP_TITLES.get(each.feature, each.feature)}: {count}"


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


def _curve(row: DetectorRow, rank: int, name: str, kind: str, curve: Curve) -> dict[str, Any]:
    value = row.metric(KINDS[kind]["metric"])
    number = "" if value is None else f" {value:.3f}".replace("0.", ".", 1)
    return {
        "x": curve.x,
        "y": curve.y,
        "gid": row.detector,
        "label": f"{cut(row.detector, 32)}{number}",
        "color": LIGHT[name],
        "linestyle": DASHES[rank],
        "marker": FAMILIES[name][2] if kind == "calibration" else "",
        "markersize": 4.5,
        "zorder": 4 - 0.1 * rank,
    }


def _reference(result: Result, kind: str) -> list[dict[str, Any]]:
    """The line of comparison, and where calibrated bins lie by chance."""
    if kind in {"roc", "calibration"}:
        line = {"x": [0, 1], "y": [0, 1], "label": KINDS[kind]["line"], **REFERENCE}
    else:
        label = f"{KINDS[kind]['line']} {result.prevalence:.0%}"
        line = {"x": [0, 1], "y": [result.prevalence] * 2, "label": label, **REFERENCE}
    if kind != "calibration":
        return [line]
    (low, high), share = calibration_band(result.samples)
    return [{"x": share, "low": low, "high": high, "color": LIGHT["grid"]}, line]


def _limits(result: Result, kind: str, curves: Sequence[Curve]) -> dict[str, tuple[float, float]]:
    """Limits of the axes: the whole square, or as much of its height as the named curves need."""
    whole = (-0.02, 1.02)
    if kind in {"roc", "calibration"}:
        return {"xlim": whole, "ylim": whole}
    # the first few answers decide the left end, and swing widely
    settled = np.concatenate([curve.y[curve.x >= 0.05] for curve in curves])  # noqa: PLR2004
    values = np.append(settled, result.prevalence)
    low, high = float(values.min()), float(values.max())
    pad = 0.12 * max(high - low, 0.05)
    return {"xlim": whole, "ylim": (max(low - pad, -0.02), min(high + pad, 1.02))}


def _difference(test: Comparison) -> Estimate:
    return Estimate(test.difference, test.low, test.high)


def _done(result: Result) -> list[DetectorRow]:
    return [row for row in result.ranked() if row.failure is None]


def _incomplete(result: Result) -> list[DetectorRow]:
    """Detectors without a score for some answers."""
    return [
        row
        for row in result.ranked()
        if row.coverage is not None and row.coverage < 1 and row.auroc_invalid_at_median is not None
    ]


def _auroc(result: Result, detector: str) -> str:
    """The value that detectors are ranked by: traces without a score at the median."""
    value = next(row for row in result.rows if row.detector == detector).auroc_invalid_at_median
    return ABSENT if value is None else f"{value:.3f}"


def _marked(result: Result, detector: str) -> str:
    is_control = any(row.detector == detector and row.is_control for row in result.rows)
    return f"{detector} (a control)" if is_control else detector


def _marked_name(result: Result, row: DetectorRow) -> str:
    marks = CONTROL_MARK if row.is_control else ""
    if result.baseline is not None and result.baseline.detector == row.detector:
        marks += BASELINE_MARK
    return f"{row.detector} {marks}".strip()


def _narrow(metric: Cell) -> Cell:
    return metric._replace(detail=metric.detail.replace(", ", ","))
