"""Topology of the graphs of hallucinated answers against that of correct ones, layer by layer."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import matplotlib as mpl
import numpy as np
from jaxtyping import Bool, Float, Shaped
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import norm

from graphhalu.engine.base import Engine, in_order
from graphhalu.engine.here import Here
from graphhalu.errors import NotEnoughDataError, UsageError
from graphhalu.evaluation.bootstrap import percentile_interval
from graphhalu.features.table import opener
from graphhalu.graphs.build import iter_graphs
from graphhalu.graphs.effects import cliffs_delta, length_adjusted, ranked
from graphhalu.graphs.recipe import DEFAULT_EDGES, GraphRecipe
from graphhalu.graphs.topology import MEANINGS, MEASURES, topology
from graphhalu.labels.groups import question_groups
from graphhalu.labels.labels import Labels
from graphhalu.numerics import benjamini_hochberg, group_multiplicities
from graphhalu.report.label_report import TextTable
from graphhalu.traces.trace import Trace

FALSE_DISCOVERIES: Final = 0.05
"""Share of false discoveries that is allowed among the effects that count."""
_LEVEL: Final = 0.95
_LEAST_ANSWERS: Final = 5
_NO_FEATURES: Final = ("span",)
_TOGETHER: Final = 16
"""Answers whose graphs one worker builds at a time."""


class Effect(NamedTuple):
    """Cliff's delta, positive where hallucinated answers have more.

    Attributes:
        value: In [-1, 1].
        low: Low end of the 95 % bootstrap interval over questions.
        high: Its high end.
        p_value: Two-sided, normal, with the bootstrap's standard error.
        q_value: The same after Benjamini and Hochberg over all layers and measures.
    """

    value: float
    low: float
    high: float
    p_value: float
    q_value: float


@dataclass(frozen=True)
class TopologyRow:
    """One measure of one layer.

    Attributes:
        n_hallucinated: Hallucinated answers that have the measure.
        n_correct: Correct ones.
        raw: Effect of the measure as it is; ``None`` where too few answers have it.
        adjusted: Effect of what a fit on the lengths of prompt and answer leaves.
    """

    layer: int
    measure: str
    n_hallucinated: int
    n_correct: int
    raw: Effect | None
    adjusted: Effect | None


@dataclass(frozen=True)
class TopologyReport:
    """Effects of all layers and measures.

    Attributes:
        rows: Layer by layer, measures in the order of ``MEASURES``.
        layers: Model layers.
        n_traces: Answers with a valid label.
        n_groups: Their questions.
        prevalence: Share of hallucinated ones.
        labeller: Name of the labels.
        recipe: How the graphs were built, in words.
        n_resamples: Bootstrap resamples of questions.
    """

    rows: tuple[TopologyRow, ...]
    layers: tuple[int, ...]
    n_traces: int
    n_groups: int
    prevalence: float
    labeller: str
    recipe: str
    n_resamples: int

    def values(self) -> dict[str, Any]:
        """Everything as plain values for JSON."""
        plain = {name: value for name, value in vars(self).items() if name != "rows"}
        rows = [
            {**asdict(row), **{k: _plain(getattr(row, k)) for k in ("raw", "adjusted")}}
            for row in self.rows
        ]
        return {**plain, "layers": list(self.layers), "measures": MEANINGS, "rows": rows}


def compare_topology(  # noqa: PLR0913 - one keyword a setting
    traces: Sequence[Trace],
    labels: Labels,
    *,
    layers: Sequence[int] | None = None,
    recipe: GraphRecipe | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
    on_trace: Callable[[int, int], None] = lambda _done, _total: None,
    engine: Engine | None = None,
) -> TopologyReport:
    """Effect size of every measure in every layer, with intervals and false-discovery control.

    Args:
        traces: Traces in the order of the labels.
        labels: Those without a valid label are left out.
        layers: Model layers; by default all that are kept.
        recipe: How graphs are built; by default the 8 strongest keys of a row.
        n_resamples: Resamples of questions for the intervals.
        seed: Seed of the resamples.
        on_trace: Called with how many traces are done, and of how many.
        engine: Where graphs are built and measured; by default here.

    Raises:
        UsageError: If labels belong to other traces, or the graphs would be multiplex.
        NotEnoughDataError: If a class has fewer than 5 answers.
    """
    kept = np.flatnonzero(labels.is_valid)
    is_hallucinated = labels.values[kept] == 1
    _check(traces, labels, is_hallucinated)
    # the measures read no node features, and one block must be named
    recipe = recipe or GraphRecipe(DEFAULT_EDGES, _NO_FEATURES, channels="mean")
    wanted = tuple(traces[0].shape.attention_layers if layers is None else layers)
    engine = engine or Here()
    found = _measured(engine, traces, kept.tolist(), (wanted, recipe), on_trace)
    chosen = [traces[int(index)] for index in kept]
    groups = question_groups(chosen)
    lengths = np.array([[t.prompt_length, t.answer_length] for t in chosen], dtype=np.float64)
    weights = _resamples(groups, n_resamples, seed)
    cells = [
        (layer, name, found[:, place, column])
        for place, layer in enumerate(wanted)
        for column, name in enumerate(MEASURES)
    ]
    raw = _effects([values for *_, values in cells], is_hallucinated, weights, None)
    adjusted = _effects([values for *_, values in cells], is_hallucinated, weights, lengths)
    rows = tuple(
        TopologyRow(
            layer, name,
            int((np.isfinite(values) & is_hallucinated).sum()),
            int((np.isfinite(values) & ~is_hallucinated).sum()),
            one, other,
        )
        for (layer, name, values), one, other in zip(cells, raw, adjusted, strict=True)
    )  # fmt: skip
    return TopologyReport(
        rows=rows,
        layers=wanted,
        n_traces=len(kept),
        n_groups=len(np.unique(groups)),
        prevalence=labels.prevalence,
        labeller=labels.labeller,
        recipe=f"{recipe.edges}, importance {recipe.importance}",
        n_resamples=n_resamples,
    )


def topology_table(report: TopologyReport, n_rows: int = 20) -> TextTable:
    """The largest length-adjusted effects; a star says that it counts after false discoveries."""
    with_value = [row for row in report.rows if row.adjusted and row.raw]
    first = sorted(with_value, key=lambda row: -abs(row.adjusted.value if row.adjusted else 0))
    rows = [
        [str(row.layer), row.measure, _cell(row.raw), _cell(row.adjusted), MEANINGS[row.measure]]
        for row in first[:n_rows]
    ]
    n_counting = sum(_counts(row.adjusted) for row in report.rows)
    title = (
        f"{n_counting} of {len(report.rows)} effects count after length adjustment (q < "
        f"{FALSE_DISCOVERIES}); {report.n_traces} answers to {report.n_groups} questions, "
        f"{report.prevalence:.1%} hallucinated"
    )
    return TextTable(title, ["layer", "measure", "delta", "length-adjusted", "meaning"], rows)


def topology_figure(report: TopologyReport) -> Figure:
    """Cliff's delta of every measure (down) in every layer (across), raw and length-adjusted.

    A dot marks an effect that counts after false-discovery control.
    """
    width = 2.6 + 0.22 * len(report.layers)
    figure = Figure(figsize=(2 * width, 1.2 + 0.3 * len(MEASURES)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    kinds = ("raw", "adjusted")
    drawn = [_heat_map(axes, report, kind) for axes, kind in zip(panels, kinds, strict=True)]
    figure.colorbar(
        drawn[-1], ax=panels, shrink=0.8, label="Cliff's delta (red: hallucinated more)"
    )
    return figure


def save_figure(figure: Figure, folder: Path) -> list[Path]:
    """Write the figure as ``topology.png`` and ``topology.svg``; the same in every run."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "topology.png", folder / "topology.svg"]
    with mpl.rc_context({"svg.hashsalt": "graphhalu"}):
        for path in paths:
            metadata = {"Date": None} if path.suffix == ".svg" else None
            figure.savefig(path, dpi=160, metadata=metadata)
    return paths


def _measured(
    engine: Engine,
    traces: Sequence[Trace],
    kept: list[int],
    how: tuple[tuple[int, ...], GraphRecipe],
    on_trace: Callable[[int, int], None],
) -> Float[np.ndarray, "answer layer measure"]:
    chunks = [kept[first : first + _TOGETHER] for first in range(0, len(kept), _TOGETHER)]
    pieces: list[Float[np.ndarray, "answer layer measure"]] = []
    with (
        engine.workers(opener(traces, engine), len(chunks)) as workers,
        closing(workers.map(_measures, [(chunk, *how) for chunk in chunks])) as found,
    ):
        for done in in_order(found):
            pieces.append(done.result())
            on_trace(sum(map(len, pieces)), len(kept))
    return np.concatenate(pieces)


def _measures(
    traces: Sequence[Trace], item: tuple[list[int], tuple[int, ...], GraphRecipe]
) -> Float[np.ndarray, "answer layer measure"]:
    chosen, layers, recipe = item
    values = [
        [list(topology(graph).values()) for graph in graphs]
        for _, graphs in iter_graphs(traces, layers, recipe, chosen)
    ]
    return np.array(values, dtype=np.float64)


def _resamples(
    groups: Shaped[np.ndarray, "answer"], n_resamples: int, seed: int
) -> Float[np.ndarray, "resample answer"]:
    """How often each answer counts; the first row is the sample itself."""
    names, group = np.unique(groups, return_inverse=True)
    drawn = group_multiplicities(len(names), n_resamples, np.random.default_rng(seed))
    return np.concatenate([np.ones((1, len(group))), drawn[:, group]]).astype(np.float64)


def _effects(
    measures: Sequence[Float[np.ndarray, "answer"]],
    is_hallucinated: Bool[np.ndarray, "answer"],
    weights: Float[np.ndarray, "resample answer"],
    lengths: Float[np.ndarray, "answer length"] | None,
) -> list[Effect | None]:
    found = [_effect(values, is_hallucinated, weights, lengths) for values in measures]
    p_values = np.array([np.nan if effect is None else effect.p_value for effect in found])
    adjusted = benjamini_hochberg(p_values).tolist()
    return [
        None if effect is None else effect._replace(q_value=q_value)
        for effect, q_value in zip(found, adjusted, strict=True)
    ]


def _effect(
    values: Float[np.ndarray, "answer"],
    is_hallucinated: Bool[np.ndarray, "answer"],
    weights: Float[np.ndarray, "resample answer"],
    lengths: Float[np.ndarray, "answer length"] | None,
) -> Effect | None:
    """``None`` where a class has too few answers with this measure."""
    is_there = np.isfinite(values)
    values, positive = values[is_there], is_hallucinated[is_there]
    if min(positive.sum(), (~positive).sum()) < _LEAST_ANSWERS:
        return None
    if lengths is not None:
        values = length_adjusted(values, lengths[is_there])
    deltas = cliffs_delta(ranked(values, positive), weights[:, is_there])
    low, high, _ = percentile_interval(deltas[1:], _LEVEL)
    error = float(np.nanstd(deltas[1:]))
    value = float(deltas[0])
    # without spread (one value for all answers) there is nothing to test
    p_value = float(2 * norm.sf(abs(value) / error)) if error > 0 else 1.0
    return Effect(value, low, high, p_value, float("nan"))


def _check(
    traces: Sequence[Trace], labels: Labels, is_hallucinated: Bool[np.ndarray, "answer"]
) -> None:
    if [trace.trace_id for trace in traces] != list(labels.trace_ids):
        message = f"{len(traces)} traces and {len(labels.trace_ids)} labels do not belong together"
        raise UsageError(message)
    counts = int(is_hallucinated.sum()), int((~is_hallucinated).sum())
    if min(counts) < _LEAST_ANSWERS:
        message = (
            f"a comparison needs at least {_LEAST_ANSWERS} answers of each class, got "
            f"{counts[0]} hallucinated and {counts[1]} correct ones"
        )
        raise NotEnoughDataError(message)


def _heat_map(axes: Axes, report: TopologyReport, kind: str) -> Any:
    effects = [getattr(row, kind) for row in report.rows]
    shape = (len(report.layers), len(MEASURES))
    values = np.array([np.nan if e is None else e.value for e in effects]).reshape(shape).T
    is_counting = np.array([_counts(effect) for effect in effects]).reshape(shape).T
    largest = max(0.1, *(abs(e.value) for r in report.rows for e in (r.raw, r.adjusted) if e))
    drawn = axes.imshow(values, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
    measure, place = np.nonzero(is_counting)
    axes.plot(place, measure, "k.", markersize=3.5)
    step = max(1, len(report.layers) // 10)
    axes.set_xticks(range(0, len(report.layers), step), list(map(str, report.layers[::step])))
    axes.set_yticks(range(len(MEASURES)), list(MEASURES))
    axes.set_xlabel("layer")
    axes.set_title("as measured" if kind == "raw" else "length-adjusted", loc="left")
    return drawn


def _counts(effect: Effect | None) -> bool:
    return effect is not None and effect.q_value < FALSE_DISCOVERIES


def _cell(effect: Effect | None) -> str:
    if effect is None:
        return "-"
    star = "*" if _counts(effect) else ""
    return f"{effect.value:+.3f} [{effect.low:+.3f}, {effect.high:+.3f}]{star}"


def _plain(effect: Effect | None) -> dict[str, float] | None:
    return None if effect is None else effect._asdict()
