"""Topology of graphs of hallucinated answers against that of correct ones, layer by layer."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.stats import norm

from graphhalu.core.errors import NotEnoughDataError, UsageError
from graphhalu.core.numerics import (
    benjamini_hochberg,
    cliffs_delta,
    group_multiplicities,
    length_adjusted,
    ranked,
)
from graphhalu.engine.executors import Executor, SerialExecutor, in_order
from graphhalu.evaluation.bootstrap import percentile_interval
from graphhalu.features.table import opener
from graphhalu.graphs.build import iter_graphs
from graphhalu.graphs.recipe import DEFAULT_EDGES, GraphRecipe
from graphhalu.graphs.topology import MEANINGS, MEASURES, topology
from graphhalu.labels.groups import question_groups
from graphhalu.labels.labels import Labels
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

    @property
    def is_discovery(self) -> bool:
        """Whether it counts after false-discovery control."""
        return self.q_value < FALSE_DISCOVERIES


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
            {**asdict(row), **{k: _plain(getattr(row, k)) for k in ("raw", "adjusted")}} for row in self.rows
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
    engine: Executor | None = None,
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
    engine = engine or SerialExecutor()
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
            layer,
            name,
            int((np.isfinite(values) & is_hallucinated).sum()),
            int((np.isfinite(values) & ~is_hallucinated).sum()),
            one,
            other,
        )
        for (layer, name, values), one, other in zip(cells, raw, adjusted, strict=True)
    )
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


def _measured(
    engine: Executor,
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


def _check(traces: Sequence[Trace], labels: Labels, is_hallucinated: Bool[np.ndarray, "answer"]) -> None:
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


def _plain(effect: Effect | None) -> dict[str, float] | None:
    return None if effect is None else effect._asdict()
