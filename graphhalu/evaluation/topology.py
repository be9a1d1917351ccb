"""Topology of graphs of hallucinated answers against that of correct ones, layer by layer."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
from jaxtyping import Float
from scipy.stats import norm

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.core.numerics import auroc, benjamini_hochberg, length_adjusted
from graphhalu.engine.executors import Executor, Progress, SerialExecutor, in_order, no_progress
from graphhalu.evaluation.bootstrap import EvaluationSet, percentile_interval
from graphhalu.evaluation.protocol import check_same_traces
from graphhalu.features.table import opener
from graphhalu.graphs.build import iter_graphs
from graphhalu.graphs.recipe import DEFAULT_EDGES, GraphRecipe
from graphhalu.graphs.topology import MEASURES, topology
from graphhalu.labels.labels import Labels, question_groups
from graphhalu.traces.trace import Trace

FALSE_DISCOVERIES: Final = 0.05
"""Share of false discoveries that is allowed among the effects that count."""
_LEVEL: Final = 0.95
_LEAST_ANSWERS: Final = 5
_NO_FEATURES: Final = ("span",)
_TOGETHER: Final = 16
"""Answers whose graphs one worker builds at a time."""


@dataclass(frozen=True)
class Effect:
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
        return {**asdict(self), "measures": MEASURES}


def compare_topology(  # noqa: PLR0913 - one keyword a setting
    traces: Sequence[Trace],
    labels: Labels,
    *,
    layers: Sequence[int] | None = None,
    recipe: GraphRecipe | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
    on_progress: Progress = no_progress,
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
        on_progress: Called when some traces are done.
        engine: Where graphs are built and measured; by default here.

    Raises:
        UsageError: If labels belong to other traces, or the graphs would be multiplex.
        NotEnoughDataError: If a class has fewer than 5 answers.
    """
    check_same_traces(traces, labels)
    kept = np.flatnonzero(labels.is_valid)
    values = labels.values[kept]
    counts = int(values.sum()), int((1 - values).sum())
    if min(counts) < _LEAST_ANSWERS:
        message = (
            f"a comparison needs at least {_LEAST_ANSWERS} answers of each class, got "
            f"{counts[0]} hallucinated and {counts[1]} correct ones"
        )
        raise NotEnoughDataError(message)
    # the measures read no node features, and one block must be named
    recipe = recipe or GraphRecipe(DEFAULT_EDGES, _NO_FEATURES, channels="mean")
    wanted = tuple(traces[0].shape.attention_layers if layers is None else layers)
    items = [(kept[at : at + _TOGETHER].tolist(), wanted, recipe) for at in range(0, len(kept), _TOGETHER)]
    engine, pieces = engine or SerialExecutor(), []
    with (
        engine.workers(opener(traces, engine), len(items)) as workers,
        closing(workers(_measures, items)) as found,
    ):
        for done in in_order(found):
            pieces.append(done.result())
            on_progress(sum(map(len, pieces)), len(kept))
    measured = np.concatenate(pieces).reshape(len(kept), -1).T
    chosen = [traces[int(index)] for index in kept]
    groups = question_groups(chosen)
    lengths = np.array([[t.prompt_length, t.answer_length] for t in chosen], dtype=np.float64)
    sample = EvaluationSet(values, groups, n_resamples, seed, _LEVEL)
    raw = _effects(measured, sample, None)
    adjusted = _effects(measured, sample, lengths)
    is_there = np.isfinite(measured)
    n_hallucinated = (is_there & (values == 1)).sum(axis=1).tolist()
    n_correct = (is_there & (values == 0)).sum(axis=1).tolist()
    names = [(layer, name) for layer in wanted for name in MEASURES]
    columns = zip(names, n_hallucinated, n_correct, raw, adjusted, strict=True)
    return TopologyReport(
        rows=tuple(TopologyRow(*cell, *others) for cell, *others in columns),
        layers=wanted,
        n_traces=len(kept),
        n_groups=len(np.unique(groups)),
        prevalence=labels.prevalence,
        labeller=labels.labeller,
        recipe=f"{recipe.edges}, importance {recipe.importance}",
        n_resamples=n_resamples,
    )


def _measures(
    traces: Sequence[Trace], item: tuple[list[int], tuple[int, ...], GraphRecipe]
) -> Float[np.ndarray, "answer layer measure"]:
    chosen, layers, recipe = item
    values = [
        [list(topology(graph).values()) for graph in graphs]
        for _, graphs in iter_graphs(traces, layers, recipe, chosen)
    ]
    return np.array(values, dtype=np.float64)


def _effects(
    measured: Float[np.ndarray, "measure answer"],
    sample: EvaluationSet,
    lengths: Float[np.ndarray, "answer length"] | None,
) -> list[Effect | None]:
    """The effect of each measure; ``None`` where a class has too few answers with it."""
    found = [_effect(values, sample, lengths) for values in measured]
    p_values = np.array([np.nan if effect is None else effect.p_value for effect in found])
    return [
        None if effect is None else replace(effect, q_value=q_value)
        for effect, q_value in zip(found, benjamini_hochberg(p_values).tolist(), strict=True)
    ]


def _effect(
    values: Float[np.ndarray, "answer"],
    sample: EvaluationSet,
    lengths: Float[np.ndarray, "answer length"] | None,
) -> Effect | None:
    """Cliff's delta, which is ``2 AUROC - 1`` (Cliff 1993, doi:10.1037/0033-2909.114.3.494)."""
    is_there = np.isfinite(values)
    labels = sample.labels[is_there]
    if min(labels.sum(), (1 - labels).sum()) < _LEAST_ANSWERS:
        return None
    if lengths is not None:
        values = values.copy()
        values[is_there] = length_adjusted(values[is_there], lengths[is_there])
    value = 2 * auroc(values[is_there], labels) - 1
    deltas = 2 * sample.resample(["auroc"], values, is_there)["auroc"] - 1
    low, high, _ = percentile_interval(deltas, sample.level)
    error = float(np.nanstd(deltas))
    # without spread (one value for all answers) there is nothing to test
    p_value = float(2 * norm.sf(abs(value) / error)) if error > 0 else 1.0
    return Effect(value, low, high, p_value, float("nan"))
