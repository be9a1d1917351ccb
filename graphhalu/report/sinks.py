"""The page of the study of sink mass: results, figures, and the numbers behind them."""

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from math import isfinite
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from graphhalu.core.errors import NotEnoughDataError, UsageError
from graphhalu.evaluation.bootstrap import Estimate
from graphhalu.evaluation.univariate import FALSE_DISCOVERIES
from graphhalu.labels.labels import MEANINGS, Meaning
from graphhalu.report.page import Page, figure_words, frame, make_page, say
from graphhalu.report.plots import (
    FAINT,
    WIDTH_IN,
    distributions,
    estimate_line,
    heat_maps,
    intervals,
    lines,
    look,
)
from graphhalu.report.tables import ABSENT, Cell, Row, count_text, cut, model_name, p_text
from graphhalu.report.theme import LIGHT
from graphhalu.report.write import ReportFiles, write_page
from graphhalu.studies.rows import Row as Found
from graphhalu.studies.rows import find_row
from graphhalu.studies.sinks.analyze import RunResult, SinksResult

PAGE_FILE: Final = "sinks.html"
MEANING_NAMES: Final[dict[Meaning, str]] = {"hallucinated": "own output", "input": "input label"}
_CLIP: Final = 0.99
_LEAST_REACH: Final = 0.01
_LONGEST: Final = 80
_LINE: Final = 30
_say = partial(say, "sinks")
_words = partial(figure_words, "sinks")


class Shown(NamedTuple):
    """One run under one label, with a name that tells it from the others that are shown."""

    run: RunResult
    found: Found
    name: str

    @property
    def lines(self) -> str:
        """The name, a long one with its first part on a line of its own."""
        return self.name if len(self.name) <= _LINE else self.name.replace(", ", "\n", 1)

    @property
    def line_name(self) -> str:
        """Model, chat template and quantisation."""
        return ", ".join(part for part in _parts(self.run, self.found)[1:4] if part)


def shown_findings(
    result: SinksResult, *, sink_tokens: int | None = None, query_mode: str | None = None
) -> list[Shown]:
    """The runs of one sink and one query mode that could be analysed, by task, label and model.

    Args:
        result: The analysis.
        sink_tokens: By default the largest.
        query_mode: By default ``last``, or what there is.

    Raises:
        UsageError: If there is no run of these.
        NotEnoughDataError: If no run could be analysed.
    """
    runs = [run for run in result.runs if run.findings]
    if not runs:
        reasons = {reason for run in result.runs for reason in run.left_out.values()}
        raise NotEnoughDataError(f"no run could be analysed: {'; '.join(sorted(reasons)) or 'there is none'}")
    modes = {run.query_mode for run in runs}
    mode = query_mode or ("last" if "last" in modes else min(modes))
    sizes = {run.sink_tokens for run in runs if run.query_mode == mode}
    size = sink_tokens if sink_tokens is not None else max(sizes, default=0)
    chosen = [run for run in runs if (run.query_mode, run.sink_tokens) == (mode, size)]
    if not chosen:
        there = ", ".join(sorted({f"K {r.sink_tokens} {r.query_mode}" for r in runs}))
        raise UsageError(f"no run with K {size} and queries {mode!r}; there are {there}")
    pairs = [(run, found) for run in chosen for found in run.findings]
    pairs.sort(key=lambda p: (p[0].task, p[1].meaning, p[0].n_parameters or 0, p[0].model, p[0].chat))
    columns = list(zip(*(_parts(*pair) for pair in pairs), strict=True))
    varying = [column for column in columns if len(set(column)) > 1] or [columns[1]]
    names = [", ".join(filter(None, parts)) for parts in zip(*varying, strict=True)]
    return [Shown(*pair, cut(name, _LONGEST)) for pair, name in zip(pairs, names, strict=True)]


def write_sinks_report(
    result: SinksResult, folder: Path, *, sink_tokens: int | None = None, query_mode: str | None = None
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


def sinks_page(result: SinksResult, *, sink_tokens: int | None = None, query_mode: str | None = None) -> Page:
    """The page; arguments as those of :func:`write_sinks_report`."""
    shown = shown_findings(result, sink_tokens=sink_tokens, query_mode=query_mode)
    rows = [_row(run, found) for run in result.runs for found in run.findings]
    of_shown: list[dict[str, Any]] = [{"shown": each, "where": each.found.localisation} for each in shown]
    figures = {
        "shift": shift_figure,
        "effects": effects_figure,
        "accuracy": accuracy_figure,
        "models": models_figure,
        "heads": heads_figure,
        "depth": depth_figure,
    }
    tables = {
        **dict.fromkeys(("shift", "prediction", "calibration"), rows),
        "gains": [
            {**r, "gain": g, "larger": find_row(r["found"].models, name=g.model)}
            for r in rows
            for g in r["found"].gains
        ],
        "heads": [{**row, "head": head} for row in of_shown for head in row["where"].top[:5]],
        "overlap": [{**row, "overlap": each} for row in of_shown for each in row["where"].overlaps],
        "scaling": [{"each": each, "point": point} for each in result.scaling for point in each.points],
        "tasks": _task_rows(result),
        "sensitivity": [{"pair": pair} for pair in result.sensitivity],
        "runs": _run_rows(result),
    }
    runs, settings = result.runs, result.settings
    return make_page(
        "sinks",
        headline(shown),
        figures={
            **{f"sinks-{name}": partial(draw, shown) for name, draw in figures.items()},
            "sinks-scaling": partial(scaling_figure, result.scaling),
        },
        tables={f"table-{name}": found for name, found in tables.items()},
        paragraphs={"runs": result.notes},
        ready=frame({}, result.provenance, {"settings": settings}),
        scaling=_scaling_notes(result),
        first=shown[0].run,
        n_runs=len(runs),
        n_shown=len(shown),
        n_models=len({run.model for run in runs}),
        n_tasks=len({run.task for run in runs}),
        n_records=sum(run.n_records for run in runs),
        n_nan=sum(run.n_records - run.n_usable for run in runs),
        n_seeds=len(settings.get("fold_seeds", [])),
        n_resamples=settings.get("n_resamples", 0),
        ones="; or ".join(MEANINGS[meaning] for meaning in dict.fromkeys(_meanings(shown))),
    )


def headline(shown: Sequence[Shown]) -> tuple[str, str]:
    """Two sentences: what the scalar says, and what single heads say."""
    effects = [each.found.shift.cohens_d for each in shown]
    n, n_positive = len(effects), sum(effect.value > 0 for effect in effects)
    signs = "one_sign" if n_positive in {0, n} else "two_signs"
    signs = _say(signs, n_positive=n_positive, n_negative=n - n_positive)
    n_clear, largest = sum(e.excludes_zero for e in effects), max(abs(e.value) for e in effects)
    gains = [g for s in shown for g in s.found.gains if g.model == "entropy+sink"]
    aurocs = [m.auroc for s in shown if (m := find_row(s.found.models, name="heads")) is not None]
    found = [auroc.value for auroc in aurocs]
    n_gains, n_above = sum(g.auroc.low > 0 for g in gains), sum(a.low > 0.5 for a in aurocs)  # noqa: PLR2004
    ends = {"low": min(found, default=0), "high": max(found, default=0)}
    probes = _say("probes", n_above=n_above, n_probes=len(aurocs), **ends) if aurocs else ""
    return (
        _say("effects", n_clear=n_clear, n_effects=n, largest=largest, signs=signs),
        _say("gains", n_gains=n_gains, n_compared=len(gains), probes=probes),
    )


def shift_figure(shown: Sequence[Shown]) -> Figure:
    """Density and violin of sink mass for both classes of every run, with Cohen's d."""
    names = [_words("sinks-shift")["classes"][meaning] for meaning in dict.fromkeys(_meanings(shown))]
    ones, zeros = (" or ".join(each) for each in zip(*names, strict=True))
    panels = {}
    for each in shown:
        classes = {ones: _numbers(each.found.masses_positive), zeros: _numbers(each.found.masses_negative)}
        panels[f"{each.lines}\nd = {_signed(each.found.shift.cohens_d)}"] = classes
    return distributions(panels, xlabel="sink mass")


def effects_figure(shown: Sequence[Shown]) -> Figure:
    """Cohen's d of every run, as measured and with the length taken away."""
    texts = [_signed(each.found.shift.cohens_d) for each in shown]
    rows = [{"name": each.lines, "found": each.found} for each in shown]
    return intervals(rows, _words("sinks-effects"), texts=texts)


def accuracy_figure(shown: Sequence[Shown]) -> Figure:
    """Share of label 0 by quantile of sink mass; the line is the share over all records."""
    panels, words, meanings = [], _words("sinks-accuracy"), set(_meanings(shown))
    label = words[min(meanings) if len(meanings) == 1 else "both"]
    style = {"color": LIGHT["probe"], "marker": "o", "linewidth": 1.4, "bars": True}
    for place, each in enumerate(shown):
        bins, found = each.found.prediction.bins, each.found
        masses = [each.mean_mass for each in bins]
        line = estimate_line(masses, [each.share_negative for each in bins], gid=f"accuracy-{place}", **style)
        overall = found.n_negative / (found.n_negative + found.n_positive)
        ends = {"x": [min(masses), max(masses)], "y": [overall] * 2, **FAINT}
        # three panels a row leave room for half a name on a line
        panel = {"lines": [ends, line], "title": each.name.replace(", ", "\n", 1), "ylim": (-0.03, 1.03)}
        panels.append({**panel, "xlabel": "sink mass", "ylabel": "" if place % 3 else label})
    return lines(panels, n_columns=3, size_in=(WIDTH_IN, 2.5))


def models_figure(shown: Sequence[Shown]) -> Figure:
    """AUROC of cross-fitted models, and what sink mass adds to entropy."""
    rows = []
    for each in shown:
        gains = {gain.model: gain for gain in each.found.gains if gain.baseline == "entropy"}
        added = {"sink_gain": gains.get("entropy+sink"), "heads_gain": gains.get("entropy+heads")}
        rows.append({"name": each.lines, **_row(each.run, each.found), **added})
    return intervals(rows, _words("sinks-models"))


def heads_figure(shown: Sequence[Shown]) -> Figure:
    """Difference of every head between the classes; a dot marks what counts after correction.

    Each panel has a scale of its own, named in its title: differences of one task can be ten
    times those of another.
    """
    limit, panels = f"{FALSE_DISCOVERIES}".replace("0.", "."), []
    for each in shown:
        where = each.found.localisation
        difference, q_value = (_numbers(each) for each in (where.difference, where.q_value))
        sizes = np.abs(difference[np.isfinite(difference)])
        # the few largest values share the end of the scale
        reach = max(float(np.quantile(sizes, _CLIP)) if sizes.size else 0.0, _LEAST_REACH)
        dots = q_value.T < FALSE_DISCOVERIES
        count = f"{dots.sum()} of {where.n_heads} heads q < {limit}, scale {reach:.3f}"
        panel = {"values": difference.T / reach, "title": f"{each.lines}\n{count}", "dots": dots}
        panels.append({**panel, "norm": Normalize(-1, 1), **_words("sinks-heads")})
    n_heads = max(each.run.n_heads for each in shown)
    return heat_maps(panels, cell_in=0.13 if n_heads <= 16 else 0.085, n_columns=2)  # noqa: PLR2004


def depth_figure(shown: Sequence[Shown]) -> Figure:
    """Sink mass by relative depth (left) and its difference between the classes (right)."""
    names, panels = list(dict.fromkeys(each.line_name for each in shown)), []
    for (task, meaning), members in groupby(shown, lambda each: (each.run.task, each.found.meaning)):
        means, differences = [], []
        for each in members:
            where, found = each.found.localisation, each.found
            classes = _numbers([where.profile_positive, where.profile_negative])
            mean = np.average(classes, axis=0, weights=(found.n_positive, found.n_negative))
            depth = np.arange(len(mean)) / max(1, len(mean) - 1)
            style = look(names.index(each.line_name)) | {"markevery": max(1, len(mean) // 8), "markersize": 5}
            style["label"] = each.line_name
            means.append({"x": depth, "y": mean, "gid": f"depth {each.name}", **style})
            unseen = Estimate(float("nan"))
            known = [estimate or unseen for estimate in where.profile_difference]
            differences.append(estimate_line(depth, known, **style))
        which = "hallucinated minus correct" if meaning == "hallucinated" else "bad minus good"
        title, shared = f"{task}, {MEANING_NAMES[meaning]}", _words("sinks-depth")
        panels.append({"lines": means, "title": title, "ylabel": "sink mass", "ylim": (0, None), **shared})
        panels.append({"lines": differences, "title": which, "level": 0, **shared})
    return lines(panels)


def scaling_figure(scaling: Sequence[Found]) -> Figure:
    """Cohen's d (left), AUROC of sink mass and of the per-head probe (right), by rising model size.

    Raises:
        NotEnoughDataError: If there are no two models to compare.
    """
    if not scaling:
        raise NotEnoughDataError("a question of size needs two models or more on one task")
    rows = []
    for each in scaling:
        for point in each.points:
            model = f"{model_name(point.model)}, chat {point.chat}"
            task = f"{each.series.partition(',')[0]}, " if len(scaling) > 1 else ""
            size = f"{task}{count_text(point.n_parameters)}"
            rows.append({"name": f"{size}\n{cut(model, _LINE)}", "point": point})
    return intervals(rows, _words("sinks-scaling"))


def _meanings(shown: Sequence[Shown]) -> list[Meaning]:
    return [each.found.meaning for each in shown]


def _row(run: RunResult, found: Found) -> dict[str, Any]:
    """A run under a label, with its models by name."""
    chat = run.chat if run.quantization == "none" else f"{run.chat}, {run.quantization}"
    names = {name: name for name in ("sink", "entropy", "heads", "answer")} | {"both": "entropy+sink"}
    models = {key: find_row(found.models, name=name) for key, name in names.items()}
    return {"run": run, "found": found, "label": MEANING_NAMES[found.meaning], "chat": chat, **models}


def _scaling_notes(result: SinksResult) -> str:
    notes = []
    for each in result.scaling:
        more = ""
        if isfinite(_numbers(each.spearman)):
            more = f". Rank correlation with d: {each.spearman:+.2f}, p {p_text(each.p_spearman)}"
        notes.append(f"{each.series}: {each.note}{more}")
    return "\n".join(notes)


def _task_rows(result: SinksResult) -> list[Row]:
    rows: list[Row] = []
    for each in result.tasks:
        test = Cell(ABSENT)
        if isfinite(_numbers(each.cochran_q)):
            test = Cell(
                f"Q = {each.cochran_q:.1f}, I2 = {each.i_squared:.0%}",
                f"p {p_text(each.p_value)}; {each.n_positive_d} of {len(each.rows)} positive",
            )
        rows += [
            {"each": each, "row": row, "label": MEANING_NAMES[row.meaning], "heterogeneity": test}
            for row in each.rows
        ]
    return rows


def _run_rows(result: SinksResult) -> list[Row]:
    """Every file of records, also those that could not be analysed."""
    rows: list[Row] = []
    for run in result.runs:
        share, why = run.commonest_share, (f"{MEANING_NAMES[m]}: {why}" for m, why in run.left_out.items())
        commonest = None if share is None else f"{run.commonest_answer}, {share:.0%}"
        rows.append({"run": run, "commonest": commonest, "left_out": "; ".join(why)})
    return rows


def _numbers(values: Any) -> np.ndarray:
    """Numbers of a result; NaN where there is none, which is ``None`` after it was read."""
    return np.array(values, dtype=np.float64)


def _signed(estimate: Estimate) -> str:
    """With a minus sign that is as wide as a plus."""
    return f"{estimate:+.2f}".replace("-", "\N{MINUS SIGN}")


def _parts(run: RunResult, found: Found) -> tuple[str, ...]:
    quantization = "" if run.quantization == "none" else run.quantization
    return (run.task, model_name(run.model), f"chat {run.chat}", quantization, MEANING_NAMES[found.meaning])
