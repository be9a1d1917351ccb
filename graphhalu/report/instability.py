"""The page of the study of inter-head instability."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from graphhalu.detectors.identity import Identity
from graphhalu.evaluation.bootstrap import Estimate
from graphhalu.evaluation.curves import mean_curve
from graphhalu.report.frame import frame
from graphhalu.report.page import Page, sections
from graphhalu.report.plots import (
    DOTS,
    FAINT,
    REFERENCE,
    WIDTH_IN,
    distributions,
    heat_maps,
    intervals,
    lines,
    look,
)
from graphhalu.report.theme import LIGHT
from graphhalu.report.write import ReportFiles, write_page
from graphhalu.studies.instability.calibrate import labelled_series
from graphhalu.studies.instability.calibration import MAIN, TRACKER, Calibration, MethodRow
from graphhalu.studies.instability.series import SeriesFolder
from graphhalu.studies.instability.views import LEAST_PROMPTS, Relation, StudyView, study_view

PAGE_FILE: Final = "instability.html"
SPREAD_NAMES: Final = {
    "std": "standard deviation over heads",
    "logit": "standard deviation of log-odds over heads",
    "bounded": "standard deviation over its bound",
}
_CLASSES: Final = {
    "attack": {"color": LIGHT["graph"], "marker": "D"},
    "benign": {"color": LIGHT["probe"], "marker": "o"},
}
_N_NAMED: Final = 4


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
    """The page; arguments and errors as those of :func:`write_study`."""
    identity, n_benign = calibration.identity, calibration.n_benign
    identity.check(Identity.of(folder.configuration))
    view = study_view(labelled_series(folder)[0], calibration)
    settings = {
        **calibration.settings.model_dump(mode="json"),
        "gather": calibration.gather.model_dump(mode="json"),
    }
    names = {row.name: words(row.name) for row in calibration.rows}
    n_folds = calibration.settings.n_folds * len(calibration.settings.seeds)
    ways = {1: "higher", -1: "lower"}
    level = "" if calibration.tracker.k is None else f" at k = {calibration.tracker.k:g}"
    made = sections(
        "instability",
        figures={
            "methods": partial(methods_figure, calibration),
            "roc": partial(roc_figure, calibration),
            "violin": partial(violin_figure, view, calibration),
            "stepwise": partial(stepwise_figure, calibration),
            "maps": partial(map_figure, view, calibration),
            "scatter": partial(scatter_figure, view, calibration),
        },
        tables={
            "methods-table": [
                {"row": row, "name": names[row.name], "way": ways[row.direction]} for row in calibration.rows
            ],
            "points": [
                {"name": names[name], "point": point}
                for name in (MAIN, TRACKER)
                for point in calibration.row(name).points
            ],
            "choices-table": [
                {"name": names[row.name], "chosen": each, "folds": f"{each.n_folds} of {n_folds}"}
                for row in calibration.rows
                if row.n_candidates > 1 or row.name == TRACKER
                for each in row.choices
            ],
        },
        ready=frame(settings, calibration.provenance, {"prompt": dict(identity.prompt)}),
        window=calibration.window.window.text(),
        least=LEAST_PROMPTS,
        n_benign=n_benign,
        least_rate=1 / n_benign,
        heads=f"{len(calibration.tracker.heads)} heads on all prompts{level}",
        listed="; ".join(
            f"{names[row.name]} {row.auroc.value:.3f} and {row.in_sample.value:.3f}"
            for row in _by_auroc(calibration.rows)
        ),
        correlations="; ".join(
            f"{relation.name}: {correlation_text(relation)}".replace("\n", ", ")
            for relation in view.relations
        ),
    )
    facts = {
        "model": f"{identity.model} ({identity.quantization or 'none'})",
        "attacks": str(calibration.n_attack),
        "benign prompts": str(n_benign),
        "groups": str(calibration.n_groups),
        "left out": str(calibration.n_left_out),
        "longest answer": f"{calibration.gather.max_new_tokens} tokens",
    }
    return Page(
        f"Inter-head instability of {identity.model} under attack", headline(calibration), facts, made
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
    name = words(best.name)
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


def methods_figure(calibration: Calibration) -> Figure:
    """Nested AUROC of every method with its interval, and the in-sample one beside it."""
    rows = _by_auroc(calibration.rows)
    marks: list[dict[str, Any]] = []
    for place, row in enumerate(rows):
        own = {"row": place, "color": LIGHT["graph" if row.name == MAIN else "probe"]}
        marks.append({**own, "estimate": row.auroc, "series": "nested"})
        in_sample = {"estimate": Estimate(row.in_sample.value), "gid": f"in-sample-{row.name}"}
        marks.append({**own, **in_sample, "series": "in sample", "is_open": True})
    styles = {"nested": ("nested", "probe", "o"), "in sample": ("in sample", "probe", "D")}
    return intervals(
        [words(row.name) for row in rows], [{"xlabel": "AUROC", "zero": 0.5, "marks": marks}], styles, gap=0.3
    )


def roc_figure(calibration: Calibration) -> Figure:
    """Nested ROC, mean over seeds: instability, Attention Tracker, and the best of the others."""
    samples = _samples(calibration)
    curves = {row.name: mean_curve(samples, row.name, "roc") for row in calibration.rows}
    drawn: dict[str, dict[str, Any]] = {
        name: {"x": c.x, "y": c.y, "gid": name, **FAINT} for name, c in curves.items()
    }
    for rank, row in enumerate(named_rows(calibration)):
        label = f"{words(row.name)} {row.auroc.value:.3f}"
        drawn[row.name] |= {**look(rank), "marker": "", "linewidth": 2.2, "label": label}
    limits = (-0.01, 1.01)
    panel = {
        "lines": [*drawn.values(), {"x": [0, 1], "y": [0, 1], "label": "chance", **REFERENCE}],
        "title": "nested AUROC",
        "xlabel": "benign prompts flagged",
        "ylabel": "attacks found",
        "xlim": limits,
        "ylim": limits,
    }
    return lines([panel], size_in=(0.72 * WIDTH_IN, 5.2), key="above")


def violin_figure(view: StudyView, calibration: Calibration) -> Figure:
    """Instability of both classes over the chosen window, every prompt a mark."""
    is_there, choice = np.isfinite(view.score), calibration.window
    classes = {
        f"attack ({calibration.n_attack})": view.score[view.is_attack & is_there],
        f"benign ({calibration.n_benign})": view.score[~view.is_attack & is_there],
    }
    aims = sorted(point.aim for point in calibration.rows[0].points)
    aim = aims[len(aims) // 2]
    level = choice.direction * calibration.threshold(MAIN, aim), f"threshold at {aim:.0%} FPR"
    return distributions({"": classes}, xlabel=SPREAD_NAMES[choice.spread], level=level, has_points=True)


def stepwise_figure(calibration: Calibration) -> Figure:
    """AUROC of each decode step, and below it how many prompts reach that step."""
    points = [point for point in calibration.steps if point.instability is not None]
    found = [point.instability for point in points if point.instability is not None]
    steps, window = [point.step for point in points], calibration.window.window
    values = {
        "instability": [each.value for each in found],
        "token entropy": [point.entropy for point in points],
        "focus, all heads": [point.focus for point in points],
    }
    drawn: list[dict[str, Any]] = [
        {"x": steps, "y": y, "label": name, **look(rank), "marker": ""}
        for rank, (name, y) in enumerate(values.items())
    ]
    drawn[0] |= {"low": [each.low for each in found], "high": [each.high for each in found]}
    counts = [
        {
            "x": range(len(calibration.steps)),
            "y": [getattr(point, f"n_{name}") for point in calibration.steps],
            "label": name,
            "color": _CLASSES[name]["color"],
            "linestyle": dashes,
        }
        for name, dashes in (("attack", "-"), ("benign", (0, (5, 1.8))))
    ]
    span = (window.start - 0.5, window.end + 0.5)
    above = {
        "lines": drawn,
        "level": 0.5,
        "span": span,
        "ylim": (-0.02, 1.02),
        "ylabel": "AUROC, attack above",
    }
    below = {"lines": counts, "ylim": (0, None), "ylabel": "prompts", "xlabel": "decode step"}
    return lines([above, below], n_columns=1, heights=(3, 1), size_in=(WIDTH_IN, 2.8), key="right")


def map_figure(view: StudyView, calibration: Calibration) -> Figure:
    """Mean spread over heads by step and layer: attacks, benign prompts, and the difference."""
    both, difference = np.stack([view.attack, view.benign]), view.attack - view.benign
    is_there = np.isfinite(both).any(axis=(0, 2))
    n_steps = int(np.flatnonzero(is_there).max()) + 1
    reach = max(float(np.nanmax(np.abs(difference), initial=0.0)), 1e-9)
    shared = {"norm": Normalize(float(np.nanmin(both)), float(np.nanmax(both))), "cmap": "cividis"}
    window = calibration.window.window
    size = window.length, window.stop_layer - window.first_layer
    maps = {
        "attack": (view.attack, {**shared, "bar": "mean spread over heads"}),
        "benign": (view.benign, {**shared, "bar": "mean spread over heads"}),
        "attack minus benign": (difference, {"norm": Normalize(-reach, reach), "bar": "difference"}),
    }
    frame_of = (window.start, window.first_layer, *size)
    panels = [
        {"values": values[:n_steps].T, "title": title, "frame": frame_of, **style}
        for title, (values, style) in maps.items()
    ]
    n_layers = view.attack.shape[1]
    return heat_maps(panels, cell_in=max(0.06, 1.6 / n_layers), labels=("decode step", "layer"))


def scatter_figure(view: StudyView, calibration: Calibration) -> Figure:
    """Instability against entropy and against head agreement, with correlations."""
    panels = []
    for relation in view.relations:
        marks = [
            {
                "x": relation.values[members],
                "y": view.score[members],
                "label": name,
                "markersize": 5.5,
                "alpha": 0.75,
                **DOTS,
                **_CLASSES[name],
            }
            for name, members in (("attack", view.is_attack), ("benign", ~view.is_attack))
        ]
        panels.append({"lines": marks, "title": correlation_text(relation), "xlabel": relation.name})
    panels[0]["ylabel"] = SPREAD_NAMES[calibration.window.spread]
    return lines(panels, size_in=(WIDTH_IN, 4.2), key="figure")


def named_rows(calibration: Calibration) -> list[MethodRow]:
    """Instability, Attention Tracker, and the best of the others by nested AUROC."""
    first = [calibration.row(MAIN), calibration.row(TRACKER)]
    others = [row for row in calibration.rows if row not in first]
    return [*first, *_by_auroc(others)[: _N_NAMED - len(first)]]


def correlation_text(relation: Relation) -> str:
    """Both correlations with their intervals."""
    parts = (("r", relation.pearson), ("rank", relation.spearman))
    return "\n".join(f"{name}: none" if found is None else f"{name} = {found:+.2f}" for name, found in parts)


def words(name: str) -> str:
    """Name of a method with blanks."""
    return name.replace("_", " ")


def _by_auroc(rows: Sequence[MethodRow]) -> list[MethodRow]:
    return sorted(rows, key=lambda row: -row.auroc.value)


def _samples(calibration: Calibration) -> pa.Table:
    """Nested scores in the layout that curves are drawn from."""
    columns: dict[str, list[Any]] = {"detector": [], "seed": [], "label": [], "score": []}
    for name, seeds in calibration.scores.items():
        for seed, scores in enumerate(seeds):
            columns["detector"] += [name] * len(scores)
            columns["seed"] += [seed] * len(scores)
            columns["label"] += calibration.labels
            columns["score"] += scores
    return pa.table({**columns, "is_valid": [True] * len(columns["seed"])})
