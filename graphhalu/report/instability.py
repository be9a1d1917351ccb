"""The page of the study of inter-head instability."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from scipy.stats import rankdata

from graphhalu.detectors.identity import Identity
from graphhalu.evaluation.bootstrap import Estimate, EvaluationSet
from graphhalu.evaluation.metrics import mean_curve
from graphhalu.heads.table import mean_of_present
from graphhalu.report.page import figure_words, frame, make_page, say
from graphhalu.report.plots import (
    DOTS,
    FAINT,
    REFERENCE,
    WIDTH_IN,
    distributions,
    estimate_line,
    heat_maps,
    intervals,
    lines,
    look,
)
from graphhalu.report.theme import LIGHT
from graphhalu.report.write import ReportFiles, write_page
from graphhalu.studies.instability.calibrate import cases_of, labelled_series
from graphhalu.studies.instability.methods import window_scores
from graphhalu.studies.instability.series import PromptSeries, SeriesFolder, padded_steps
from graphhalu.studies.instability.settings import MAIN, TRACKER, Calibration
from graphhalu.studies.rows import Row
from graphhalu.studies.sinks.effects import correlation

LEAST_PROMPTS: Final = 5
"""Prompts of a class below which a step has no mean."""

RELATED: Final = {"entropy": "token entropy (nat)", "agreement": "head agreement"}
PAGE_FILE: Final = "instability.html"
_CLASSES: Final = {
    "attack": {"color": LIGHT["graph"], "marker": "D"},
    "benign": {"color": LIGHT["probe"], "marker": "o"},
}
_N_NAMED: Final = 4
_say = partial(say, "instability")
_words = partial(figure_words, "instability")


class StudyView(NamedTuple):
    """Prompts as the figures show them.

    Attributes:
        is_attack: Their class.
        score: Instability over the chosen window, as measured: no direction is applied.
        relations: Entropy and head agreement by name: their means over the steps of the window, NaN where
            there is none, and the text of their correlations with the score.
        attack: Mean spread of the attacks; NaN where fewer than 5 prompts have a value.
        benign: Mean spread of the benign prompts.
    """

    is_attack: Bool[np.ndarray, "prompt"]
    score: Float[np.ndarray, "prompt"]
    relations: Mapping[str, tuple[Float[np.ndarray, "prompt"], str]]
    attack: Float[np.ndarray, "step layer"]
    benign: Float[np.ndarray, "step layer"]


def study_view(series: Sequence[PromptSeries], calibration: Calibration) -> StudyView:
    """The view of measured prompts through a calibration.

    Args:
        series: Prompts with a class and a measurement.
        calibration: Whose window and spread are shown.
    """
    spread, window = calibration.window.spread, calibration.window
    cases, layers = cases_of(series), padded_steps(series, spread)
    is_attack, sample = cases.labels == 1, EvaluationSet(*cases)
    score = window_scores(layers, [window])[:, 0]
    steps = slice(window.start, window.end + 1)
    relations = {}
    for name, text in RELATED.items():
        values = mean_of_present(padded_steps(series, name)[:, steps], axis=-1)
        relations[text] = values, correlation_text(score, values, sample)
    maps = (_mean_map(layers[members]) for members in (is_attack, ~is_attack))
    return StudyView(is_attack, score, relations, *maps)


def correlation_text(
    score: Float[np.ndarray, "prompt"], values: Float[np.ndarray, "prompt"], sample: EvaluationSet
) -> str:
    """Linear correlation and that of the ranks, with their intervals; none where one has no spread."""
    kept = np.isfinite(score) & np.isfinite(values)
    found: list[Estimate | None] = [None, None]
    if kept.sum() >= LEAST_PROMPTS:
        known = EvaluationSet(sample.labels[kept], sample.groups[kept])
        pairs = (score[kept], values[kept]), (rankdata(score[kept]), rankdata(values[kept]))
        found = [correlation(known, *pair) for pair in pairs]
    named = zip(("r", "rank"), found, strict=True)
    return "\n".join(f"{name}: none" if each is None else f"{name} = {each:+.2f}" for name, each in named)


def _mean_map(values: Float[np.ndarray, "prompt step layer"]) -> Float[np.ndarray, "step layer"]:
    is_enough = np.isfinite(values).sum(axis=0) >= LEAST_PROMPTS
    return np.where(is_enough, mean_of_present(values), np.nan)


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
    identity, rows = calibration.identity, calibration.rows
    identity.check(Identity.of(folder.configuration))
    view = study_view(labelled_series(folder)[0], calibration)
    gather = {"gather": calibration.gather.model_dump(mode="json")}
    settings = calibration.settings.model_dump(mode="json") | gather
    figures = {
        "methods": partial(methods_figure, calibration),
        "roc": partial(roc_figure, calibration),
        "violin": partial(violin_figure, view, calibration),
        "stepwise": partial(stepwise_figure, calibration),
        "maps": partial(map_figure, view, calibration),
        "scatter": partial(scatter_figure, view, calibration),
    }
    n_folds = calibration.settings.n_folds * len(calibration.settings.seeds)
    with_choice = [row for row in rows if row.n_candidates > 1 or row.name == TRACKER]
    judged = [row for row in rows if row.name in {MAIN, TRACKER}]
    tables = {
        "methods-table": [{"row": row, "way": "higher" if row.direction == 1 else "lower"} for row in rows],
        "points": [{"row": row, "point": point} for row in judged for point in row.points],
        "choices-table": [
            {"row": row, "chosen": each, "n_folds": n_folds} for row in with_choice for each in row.choices
        ],
    }
    level = "" if calibration.tracker.k is None else f" at k = {calibration.tracker.k:g}"
    listed = [f"{words(r.name)} {r.auroc.value:.3f} and {r.in_sample.value:.3f}" for r in _by_auroc(rows)]
    related = [f"{name}: {text}".replace("\n", ", ") for name, (_, text) in view.relations.items()]
    page = make_page(
        "instability",
        headline(calibration),
        figures=figures,
        tables=tables,
        ready=frame(settings, calibration.provenance, {"prompt": dict(identity.prompt)}),
        calibration=calibration,
        quantization=identity.quantization or "none",
        window=calibration.window.text(),
        least=LEAST_PROMPTS,
        least_rate=1 / calibration.n_benign,
        heads=f"{len(calibration.tracker.heads)} heads on all prompts{level}",
        listed="; ".join(listed),
        correlations="; ".join(related),
    )
    return write_page(page, out / PAGE_FILE, has_svg=True)


def headline(calibration: Calibration) -> tuple[str, str]:
    """What instability is worth, and what it has to beat."""
    main = calibration.row(MAIN)
    first = _say("nested", main=main, gap=main.in_sample.value - main.auroc.value)
    others = [row for row in calibration.rows if not row.name.startswith(MAIN)]
    best = max(others, key=lambda row: row.auroc.value)
    if best.difference is None or not best.difference.has_interval:
        return first, _say("strongest", name=words(best.name))
    relation = "is better" if best.difference.value > 0 else "is worse"
    if not best.difference.excludes_zero:
        relation = "is not told apart from it"
    return first, _say("compared", name=words(best.name), best=best, relation=relation)


def methods_figure(calibration: Calibration) -> Figure:
    """Nested AUROC of every method with its interval, and the in-sample one beside it."""
    rows = [{"name": words(row.name), "row": row} for row in _by_auroc(calibration.rows)]
    return intervals(rows, _words("methods"))


def roc_figure(calibration: Calibration) -> Figure:
    """Nested ROC, mean over seeds: instability, Attention Tracker, and the best of the others."""
    samples, named = _samples(calibration), named_rows(calibration)
    drawn: list[dict[str, Any]] = []
    for row in [*named, *(row for row in calibration.rows if row not in named)]:
        curve = mean_curve(samples, row.name, "roc")
        style: dict[str, Any] = dict(FAINT)
        if row in named:
            label = f"{words(row.name)} {row.auroc.value:.3f}"
            style = {**look(len(drawn)), "marker": "", "linewidth": 2.2, "label": label, "zorder": 3}
        drawn.append({"x": curve.x, "y": curve.y, "gid": row.name, **style})
    drawn.append({"x": [0, 1], "y": [0, 1], "label": "chance", **REFERENCE})
    panel = {"lines": drawn, "xlim": (-0.01, 1.01), "ylim": (-0.01, 1.01), **_words("roc")}
    return lines([panel], size_in=(0.72 * WIDTH_IN, 5.2), key="above")


def violin_figure(view: StudyView, calibration: Calibration) -> Figure:
    """Instability of both classes over the chosen window, every prompt a mark."""
    is_there, choice = np.isfinite(view.score), calibration.window
    classes = {f"attack ({calibration.n_attack})": view.score[view.is_attack & is_there]}
    classes[f"benign ({calibration.n_benign})"] = view.score[~view.is_attack & is_there]
    aims = sorted(point.aim for point in calibration.rows[0].points)
    aim = aims[len(aims) // 2]
    level = choice.direction * calibration.threshold(MAIN, aim), f"threshold at {aim:.0%} FPR"
    return distributions({"": classes}, xlabel=_words("violin")[choice.spread], level=level, has_points=True)


def stepwise_figure(calibration: Calibration) -> Figure:
    """AUROC of each decode step, and below it how many prompts reach that step."""
    points = [point for point in calibration.steps if point.instability is not None]
    steps, window = [point.step for point in points], calibration.window
    found = [point.instability for point in points if point.instability is not None]
    drawn = [
        estimate_line(steps, found, label="instability", **look(0)),
        {"x": steps, "y": [point.entropy for point in points], "label": "token entropy", **look(1)},
        {"x": steps, "y": [point.focus for point in points], "label": "focus, all heads", **look(2)},
    ]
    counts = []
    for name, dashes in (("attack", "-"), ("benign", (0, (5, 1.8)))):
        values = [getattr(point, f"n_{name}") for point in calibration.steps]
        style = {"label": name, "color": _CLASSES[name]["color"], "linestyle": dashes}
        counts.append({"x": range(len(values)), "y": values, **style})
    panels, span = _words("stepwise"), (window.start - 0.5, window.end + 0.5)
    above = {"lines": [{**line, "marker": ""} for line in drawn], "span": span, **panels["above"]}
    below = {"lines": counts, **panels["below"]}
    return lines([above, below], n_columns=1, heights=(3.0, 1.0), size_in=(WIDTH_IN, 2.8), key="right")


def map_figure(view: StudyView, calibration: Calibration) -> Figure:
    """Mean spread over heads by step and layer: attacks, benign prompts, and the difference."""
    both, difference = np.stack([view.attack, view.benign]), view.attack - view.benign
    n_steps = int(np.flatnonzero(np.isfinite(both).any(axis=(0, 2))).max()) + 1
    reach = max(float(np.nanmax(np.abs(difference), initial=0.0)), 1e-9)
    shared = {"norm": Normalize(float(np.nanmin(both)), float(np.nanmax(both))), "cmap": "cividis"}
    shared |= {"bar": "mean spread over heads"}
    window = calibration.window
    box = (window.start, window.first_layer, window.length, window.stop_layer - window.first_layer)
    apart = {"norm": Normalize(-reach, reach), "bar": "difference"}
    panels = [
        {"values": view.attack, "title": "attack", **shared},
        {"values": view.benign, "title": "benign", **shared},
        {"values": difference, "title": "attack minus benign", **apart},
    ]
    panels = [{**panel, "values": panel["values"][:n_steps].T, "frame": box} for panel in panels]
    n_layers = view.attack.shape[1]
    return heat_maps(panels, cell_in=max(0.06, 1.6 / n_layers), labels=("decode step", "layer"))


def scatter_figure(view: StudyView, calibration: Calibration) -> Figure:
    """Instability against entropy and against head agreement, with correlations."""
    panels = []
    for measure, (values, text) in view.relations.items():
        marks = []
        for name, members in (("attack", view.is_attack), ("benign", ~view.is_attack)):
            style = {"label": name, "markersize": 5.5, "alpha": 0.75, **DOTS, **_CLASSES[name]}
            marks.append({"x": values[members], "y": view.score[members], **style})
        panels.append({"lines": marks, "title": text, "xlabel": measure})
    panels[0]["ylabel"] = _words("violin")[calibration.window.spread]
    return lines(panels, size_in=(WIDTH_IN, 4.2))


def named_rows(calibration: Calibration) -> list[Row]:
    """Instability, Attention Tracker, and the best of the others by nested AUROC."""
    first = [calibration.row(MAIN), calibration.row(TRACKER)]
    others = [row for row in calibration.rows if row not in first]
    return [*first, *_by_auroc(others)[: _N_NAMED - len(first)]]


def words(name: str) -> str:
    """Name of a method with blanks."""
    return name.replace("_", " ")


def _by_auroc(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: -row.auroc.value)


def _samples(calibration: Calibration) -> pa.Table:
    """Nested scores in the layout that curves are drawn from."""
    rows = [
        {"detector": name, "seed": seed, "label": label, "score": score, "is_valid": True}
        for name, seeds in calibration.scores.items()
        for seed, scores in enumerate(seeds)
        for label, score in zip(calibration.labels, scores, strict=True)
    ]
    return pa.Table.from_pylist(rows)
