"""The page of the study of sink mass: results, figures, and the numbers behind them."""

import string
from collections.abc import Mapping, Sequence
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
from graphhalu.labels.labels import MEANINGS, Meaning
from graphhalu.report.frame import frame
from graphhalu.report.page import Page, sections
from graphhalu.report.plots import WIDTH_IN, distributions, heat_maps, intervals, lines, look
from graphhalu.report.tables import ABSENT, Cell, Row, cell, cut, p_text
from graphhalu.report.theme import LIGHT
from graphhalu.report.write import ReportFiles, write_page
from graphhalu.studies.sinks.heads import FALSE_DISCOVERIES
from graphhalu.studies.sinks.result import Findings, RunResult, Scaling, ScalingPoint, SinksResult

PAGE_FILE: Final = "sinks.html"
MEANING_NAMES: Final[dict[Meaning, str]] = {"hallucinated": "own output", "input": "input label"}
CLASS_NAMES: Final[dict[Meaning, tuple[str, str]]] = {
    "hallucinated": ("hallucinated", "correct"),
    "input": ("input bad", "input good"),
}
"""Names of the records with label 1 and of those with label 0."""
_CLIP: Final = 0.99
_LEAST_REACH: Final = 0.01
_LONGEST: Final = 80
_LINE: Final = 30
_MODELS: Final = {
    "sink": ("sink mass", "scalar", "s"),
    "entropy": ("entropy", "control", "v"),
    "entropy+sink": ("entropy + sink mass", "graph", "D"),
    "heads": ("every head", "probe", "o"),
}
_EFFECTS: Final = {
    "as measured": ("as measured", "graph", "D"),
    "adjusted": ("length taken away", "control", "o"),
}
_SIZES: Final = {
    "cohens_d": ("Cohen's d", "graph", "D"),
    "auroc": ("sink mass", "scalar", "s"),
    "probe_auroc": ("every head", "probe", "o"),
}
"""Label, colour and marker of each quantity."""


class Shown(NamedTuple):
    """One run under one label, with a name that tells it from the others that are shown."""

    run: RunResult
    found: Findings
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
        message = f"no run could be analysed: {'; '.join(sorted(reasons)) or 'there is none'}"
        raise NotEnoughDataError(message)
    modes = {run.query_mode for run in runs}
    mode = query_mode or ("last" if "last" in modes else min(modes))
    sizes = {run.sink_tokens for run in runs if run.query_mode == mode}
    size = sink_tokens if sink_tokens is not None else max(sizes, default=0)
    chosen = [run for run in runs if (run.query_mode, run.sink_tokens) == (mode, size)]
    if not chosen:
        there = ", ".join(sorted({f"K {r.sink_tokens} {r.query_mode}" for r in runs}))
        message = f"no run with K {size} and queries {mode!r}; there are {there}"
        raise UsageError(message)
    pairs = [(run, found) for run in chosen for found in run.findings]
    pairs.sort(key=lambda p: (p[0].task, p[1].meaning, p[0].n_parameters or 0, p[0].model, p[0].chat))
    columns = list(zip(*(_parts(*pair) for pair in pairs), strict=True))
    varying = [column for column in columns if len(set(column)) > 1] or [columns[1]]
    names = [", ".join(filter(None, parts)) for parts in zip(*varying, strict=True)]
    short = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name in names]
    return [Shown(*pair, name) for pair, name in zip(pairs, short, strict=True)]


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
    rows = _rows(result)
    drawn = {
        "shift": shift_figure,
        "effects": effects_figure,
        "accuracy": accuracy_figure,
        "models": models_figure,
        "heads": heads_figure,
        "depth": depth_figure,
    }
    made = sections(
        "sinks",
        figures={
            **{f"sinks-{name}": partial(draw, shown) for name, draw in drawn.items()},
            "sinks-scaling": partial(scaling_figure, result.scaling),
        },
        tables={
            **dict.fromkeys(("table-shift", "table-prediction", "table-calibration"), rows),
            "table-gains": [
                {**row, "gain": gain, "larger": row["found"].model(gain.model)}
                for row in rows
                for gain in row["found"].gains
            ],
            "table-heads": _head_rows(shown),
            "table-overlap": [
                {"shown": each, "overlap": overlap}
                for each in shown
                for overlap in each.found.localisation.overlaps
            ],
            "table-scaling": _scaling_rows(result),
            "table-tasks": _task_rows(result),
            "table-sensitivity": [{"pair": pair} for pair in result.sensitivity],
            "table-runs": _run_rows(result),
        },
        paragraphs={"runs": result.notes},
        ready={"provenance": frame({}, result.provenance, {"settings": result.settings})["provenance"]},
        scaling=_scaling_notes(result),
    )
    return Page("Sink mass against hallucination", headline(shown), _facts(result, shown), made)


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


def _facts(result: SinksResult, shown: Sequence[Shown]) -> dict[str, str]:
    first = shown[0].run
    n_nan = sum(run.n_records - run.n_usable for run in result.runs)
    meanings = dict.fromkeys(each.found.meaning for each in shown)
    settings = result.settings
    n_models, n_tasks = len({r.model for r in result.runs}), len({r.task for r in result.runs})
    n_seeds = len(settings.get("fold_seeds", []))
    n_records = sum(run.n_records for run in result.runs)
    return {
        "runs": f"{len(result.runs)}: {n_models} models on {n_tasks} tasks",
        "shown in the figures": f"{len(shown)}: K = {first.sink_tokens}, {first.query_mode}",
        "records": f"{n_records:,}, {n_nan:,} left out for NaN",
        "a label of 1 means": "; or ".join(MEANINGS[meaning] for meaning in meanings),
        "intervals": f"95 %, {settings.get('n_resamples', 0):,} resamples of questions",
        "cross-fitting": f"5 grouped folds, 3 inside of each; {n_seeds} seeds",
    }


def shift_figure(shown: Sequence[Shown]) -> Figure:
    """Density and violin of sink mass for both classes of every run, with Cohen's d."""
    meanings = dict.fromkeys(each.found.meaning for each in shown)
    ones, zeros = (" or ".join(CLASS_NAMES[meaning][side] for meaning in meanings) for side in (0, 1))
    panels = {
        f"{each.lines}\nd = {_signed(each.found.shift.cohens_d)}": {
            ones: each.found.masses_positive,
            zeros: each.found.masses_negative,
        }
        for each in shown
    }
    return distributions(panels, xlabel="sink mass")


def effects_figure(shown: Sequence[Shown]) -> Figure:
    """Cohen's d of every run, as measured and with the length taken away."""
    effects = [
        {"row": row, "estimate": estimate, "series": name, "is_open": not estimate.excludes_zero}
        for row, each in enumerate(shown)
        for name, estimate in (
            ("as measured", each.found.shift.cohens_d),
            ("adjusted", each.found.shift.adjusted_d),
        )
    ]
    xlabel = "Cohen's d of sink mass (right: hallucinated, or bad input, has more)"
    panel = {"xlabel": xlabel, "zero": 0.0, "marks": effects}
    texts = [_signed(each.found.shift.cohens_d) for each in shown]
    return intervals([each.lines for each in shown], [panel], _EFFECTS, texts=texts, gap=0.34)


def accuracy_figure(shown: Sequence[Shown]) -> Figure:
    """Share of label 0 by quantile of sink mass; the line is the share over all records."""
    panels = []
    meanings = {each.found.meaning for each in shown}
    words = {"hallucinated": "accuracy", "input": "share of good inputs"}
    for place, each in enumerate(shown):
        bins = each.found.prediction.bins
        shares = [b.share_negative for b in bins]
        masses = [b.mean_mass for b in bins]
        overall = each.found.n_negative / (each.found.n_negative + each.found.n_positive)
        line = {
            "x": masses,
            "y": [share.value for share in shares],
            "low": [share.low for share in shares],
            "high": [share.high for share in shares],
            "bars": True,
            "gid": f"accuracy-{place}",
            "color": LIGHT["probe"],
            "marker": "o",
            "linewidth": 1.4,
        }
        ends = {
            "x": [min(masses), max(masses)],
            "y": [overall] * 2,
            "color": LIGHT["faint"],
            "linewidth": 1.4,
        }
        # three panels a row leave room for half a name on a line
        panels.append({"lines": [ends, line], "title": each.name.replace(", ", "\n", 1)})
    label = words[min(meanings)] if len(meanings) == 1 else "share right, or good"
    for panel in panels:
        panel |= {"ylim": (-0.03, 1.03), "xlabel": "sink mass"}
    for panel in panels[::3]:
        panel["ylabel"] = label
    return lines(panels, n_columns=3, size_in=(WIDTH_IN, 2.5), key="none")


def models_figure(shown: Sequence[Shown]) -> Figure:
    """AUROC of cross-fitted models, and what sink mass adds to entropy."""
    models = [
        {"row": row, "estimate": model.auroc, "series": name}
        for row, each in enumerate(shown)
        for name in _MODELS
        if (model := each.found.model(name)) is not None
    ]
    gains = [
        {
            "row": row,
            "estimate": gain.auroc,
            "series": gain.model.replace("entropy+heads", "heads"),
            "is_open": not gain.auroc.excludes_zero,
        }
        for row, each in enumerate(shown)
        for gain in each.found.gains
        if gain.baseline == "entropy" and gain.model in {"entropy+sink", "entropy+heads"}
    ]
    panels = [
        {"xlabel": "AUROC, cross-fitted", "zero": 0.5, "marks": models, "width": 3},
        {"xlabel": "AUROC added to entropy", "zero": 0.0, "marks": gains, "width": 2},
    ]
    return intervals([each.lines for each in shown], panels, _MODELS, gap=0.18)


def heads_figure(shown: Sequence[Shown]) -> Figure:
    """Difference of every head between the classes; a dot marks what counts after correction.

    Each panel has a scale of its own, named in its title: differences of one task can be ten
    times those of another.
    """
    limit = f"{FALSE_DISCOVERIES}".replace("0.", ".")
    panels = []
    for each in shown:
        where = each.found.localisation
        sizes = np.abs(where.difference[np.isfinite(where.difference)])
        # the few largest values share the end of the scale
        reach = max(float(np.quantile(sizes, _CLIP)) if sizes.size else 0.0, _LEAST_REACH)
        dots = where.q_value.T < FALSE_DISCOVERIES
        panels.append(
            {
                "values": np.clip(where.difference.T / reach, -1, 1),
                "title": f"{each.lines}\n{dots.sum()} of {where.n_heads} heads q < {limit}, scale {reach:.3f}",
                "norm": Normalize(-1, 1),
                "bar": "sink mass: hallucinated (or bad input) minus correct",
                "ticks": {-1: "\N{MINUS SIGN}scale", 0: "0", 1: "+scale"},
                "dots": dots,
            }
        )
    n_heads = max(each.run.n_heads for each in shown)
    return heat_maps(panels, cell_in=0.13 if n_heads <= 16 else 0.085, n_columns=2)  # noqa: PLR2004


def depth_figure(shown: Sequence[Shown]) -> Figure:
    """Sink mass by relative depth (left) and its difference between the classes (right)."""
    names = list(dict.fromkeys(each.line_name for each in shown))
    panels = []
    for (task, meaning), members in groupby(shown, lambda each: (each.run.task, each.found.meaning)):
        means, differences = [], []
        for each in members:
            where, found = each.found.localisation, each.found
            classes = np.stack([where.profile_positive, where.profile_negative])
            mean = np.average(classes, axis=0, weights=(found.n_positive, found.n_negative))
            rows = [estimate or Estimate(float("nan")) for estimate in where.profile_difference]
            style = {
                **look(names.index(each.line_name)),
                "markevery": max(1, len(mean) // 8),
                "markersize": 5,
            }
            line = {"x": np.linspace(0, 1, max(2, len(mean)))[: len(mean)], "label": each.line_name, **style}
            means.append({**line, "y": mean, "gid": f"depth {each.name}"})
            ends = {"low": [row.low for row in rows], "high": [row.high for row in rows]}
            differences.append({**line, "y": [row.value for row in rows], **ends})
        shared = {"xlim": (-0.02, 1.02), "xlabel": "relative depth (0 first layer, 1 last)"}
        which = "hallucinated minus correct" if meaning == "hallucinated" else "bad minus good"
        title = f"{task}, {MEANING_NAMES[meaning]}"
        panels.append({"lines": means, "title": title, "ylabel": "sink mass", "ylim": (0, None), **shared})
        panels.append({"lines": differences, "title": which, "level": 0, **shared})
    return lines(panels, key="figure")


def scaling_figure(scaling: Sequence[Scaling]) -> Figure:
    """Cohen's d (left), AUROC of sink mass and of the per-head probe (right), by model size.

    Letters name the models.

    Raises:
        NotEnoughDataError: If there are no two models to compare.
    """
    if not scaling:
        message = "a question of size needs two models or more on one task"
        raise NotEnoughDataError(message)
    models = dict.fromkeys(_point_name(point) for each in scaling for point in each.points)
    letters = dict(zip(models, string.ascii_lowercase, strict=False))
    panels = []
    for each in scaling:
        sizes = [point.n_parameters for point in each.points]
        for fields, level, ylabel in (
            (("cohens_d",), 0, "Cohen's d"),
            (("auroc", "probe_auroc"), 0.5, "AUROC"),
        ):
            panels.append(
                {
                    "lines": _size_lines(each, fields, letters),
                    "title": each.series.partition(", quantisation")[0] if level == 0 else "",
                    "level": level,
                    "xscale": "log",
                    "xlabel": "parameters",
                    "ylabel": ylabel,
                    "xlim": (min(sizes) / 1.9, max(sizes) * 1.9),
                    "xticks": sorted(set(sizes)),
                    "xticklabels": [parameters_text(size) for size in sorted(set(sizes))],
                }
            )
    return lines(panels, size_in=(WIDTH_IN, 3.1), key="figure")


def _size_lines(scaling: Scaling, fields: Sequence[str], letters: Mapping[str, str]) -> list[dict[str, Any]]:
    """Estimates of models by their size, and above each the letter of its model."""
    sizes = [point.n_parameters for point in scaling.points]
    # models of one size are moved a little apart
    places = [size * 1.16 ** sizes[:rank].count(size) for rank, size in enumerate(sizes)]
    drawn: list[dict[str, Any]] = []
    for field in fields:
        label, colour, marker = _SIZES[field]
        estimates = [getattr(point, field) for point in scaling.points]
        style = {"color": LIGHT[colour], "marker": marker, "markersize": 7, "linestyle": "none"}
        ends = {"low": [e.low for e in estimates], "high": [e.high for e in estimates], "bars": True}
        drawn.append(
            {"x": places, "y": [e.value for e in estimates], "label": label, "gid": field, **ends, **style}
        )
    tops = [max(getattr(point, field).high for field in fields) for point in scaling.points]
    room = 0.08 * (max(tops) - min(min(line["low"]) for line in drawn))
    for place, top, point in zip(places, tops, scaling.points, strict=True):
        name = _point_name(point)
        letter = letters.get(name, "")
        drawn.append(
            {
                "x": [place],
                "y": [top + room / 4],
                "label": f"{letter}: {name}",
                "text": letter,
                "linestyle": "",
            }
        )
    return drawn


def model_name(name: str) -> str:
    """A model without its organisation."""
    return name.rsplit("/", maxsplit=1)[-1]


def parameters_text(n_parameters: float) -> str:
    """Parameters as 135M or 7B."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if n_parameters >= unit:
            return f"{n_parameters / unit:.3g}{name}"
    return f"{n_parameters:.0f}"


def _rows(result: SinksResult) -> list[dict[str, Any]]:
    """Every run under every label."""
    return [
        {
            "run": run,
            "found": found,
            "label": MEANING_NAMES[found.meaning],
            "model": model_name(run.model),
            "chat": run.chat if run.quantization == "none" else f"{run.chat}, {run.quantization}",
            **{name: found.model(name) for name in ("sink", "heads", "answer")},
        }
        for run in result.runs
        for found in run.findings
    ]


def _head_rows(shown: Sequence[Shown]) -> list[dict[str, Any]]:
    """The heads that differ most, of the runs in the figures."""
    rows = []
    for each in shown:
        where = each.found.localisation
        count = Cell(
            f"{where.n_significant} of {where.n_heads}", f"{where.n_significant_adjusted} without length"
        )
        rows += [{"shown": each, "head": head, "count": count} for head in where.top[:5]]
    return rows


def _scaling_rows(result: SinksResult) -> list[dict[str, Any]]:
    return [
        {
            "each": each,
            "point": point,
            "model": model_name(point.model),
            "parameters": Cell(parameters_text(point.n_parameters), value=point.n_parameters),
        }
        for each in result.scaling
        for point in each.points
    ]


def _scaling_notes(result: SinksResult) -> str:
    notes = []
    for each in result.scaling:
        test = f"{each.spearman:+.2f}, p {p_text(each.p_spearman)}"
        more = f". Rank correlation with d: {test}" if isfinite(each.spearman) else ""
        notes.append(f"{each.series}: {each.note}{more}")
    return "\n".join(notes)


def _task_rows(result: SinksResult) -> list[dict[str, Any]]:
    rows = []
    for each in result.tasks:
        test = Cell(
            f"Q = {each.cochran_q:.1f}, I2 = {each.i_squared:.0%}",
            f"p {p_text(each.p_value)}; {each.n_positive_d} of {len(each.rows)} positive",
        )
        test = test if isfinite(each.cochran_q) else Cell(ABSENT)
        rows += [
            {"each": each, "row": row, "label": MEANING_NAMES[row.meaning], "heterogeneity": test}
            for row in each.rows
        ]
    return rows


def _run_rows(result: SinksResult) -> list[dict[str, Any]]:
    """Every file of records, also those that could not be analysed."""
    return [
        {
            "run": run,
            "model": model_name(run.model),
            "shape": f"{run.n_layers} x {run.n_heads}",
            "commonest": None
            if run.commonest_share is None
            else f"{run.commonest_answer}, {run.commonest_share:.0%}",
            "left_out": "; ".join(f"{MEANING_NAMES[m]}: {why}" for m, why in run.left_out.items()),
        }
        for run in result.runs
    ]


def _signed(estimate: Estimate) -> str:
    """With a minus sign that is as wide as a plus."""
    return f"{estimate:+.2f}".replace("-", "\N{MINUS SIGN}")


def _point_name(point: ScalingPoint) -> str:
    return f"{model_name(point.model)}, chat {point.chat}"


def _parts(run: RunResult, found: Findings) -> tuple[str, ...]:
    quantization = "" if run.quantization == "none" else run.quantization
    return (run.task, model_name(run.model), f"chat {run.chat}", quantization, MEANING_NAMES[found.meaning])
