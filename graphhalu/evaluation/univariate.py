"""Single measures against the labels: the AUROC of heads, and effect sizes of graph topology.

This describes a store; it decides nothing. All labelled traces are used, no detector is fitted,
and no detector sees which heads stand out here: each makes its choices inside its own folds.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from jaxtyping import Float, Int
from pydantic import ConfigDict
from scipy.stats import norm

from graphhalu.core.documents import FileFormat, read_document, write_document
from graphhalu.core.errors import NotEnoughDataError, TraceNotFoundError
from graphhalu.core.numerics import auroc, benjamini_hochberg, json_ready, length_adjusted
from graphhalu.engine.executors import Executor, Progress, SerialExecutor, in_order, no_progress
from graphhalu.evaluation.bootstrap import EvaluationSet, group_codes, percentile_interval
from graphhalu.evaluation.crossfit import best_beams, check_same_traces
from graphhalu.evaluation.significance import LEAST_OF_CLASS, column_tests
from graphhalu.features.matrix import feature_matrix
from graphhalu.features.table import opener
from graphhalu.graphs.build import iter_graphs
from graphhalu.graphs.recipe import DEFAULT_EDGES, GraphRecipe
from graphhalu.graphs.topology import MEASURES, topology
from graphhalu.labels.labels import Labels, question_groups
from graphhalu.traces.trace import Trace

KIND: Final = FileFormat("graphhalu-maps", 1, "Run:  graphhalu compare")
MAPS_FILE: Final = "maps.json"

FEATURES: Final = ("sink_mass_k4", "self_attention_log", "lookback_ratio", "attention_entropy_mean")
FALSE_DISCOVERIES: Final = 0.05
"""Share of false discoveries that is allowed among the marked heads and effects."""
_TOGETHER: Final = 16
"""Answers whose graphs one worker builds at a time."""


@dataclass(frozen=True)
class HeadMap:
    """One feature, head by head.

    Attributes:
        feature: Name of the feature.
        layers: Model layers, one a row.
        auroc: AUROC of the feature of each head; above 0.5 where hallucinated answers have
            more of it; ``None`` where too few answers have a value.
        q_value: Of no difference, after Benjamini and Hochberg over all maps together.
        layer_auroc: The same for the mean over the heads of a layer.
        layer_q_value: Its corrected p-value.
    """

    feature: str
    layers: tuple[int, ...]
    auroc: tuple[tuple[float | None, ...], ...]
    q_value: tuple[tuple[float | None, ...], ...]
    layer_auroc: tuple[float | None, ...]
    layer_q_value: tuple[float | None, ...]


@dataclass(frozen=True)
class HeadMaps:
    """Maps of several features over the same traces.

    Attributes:
        maps: One a feature.
        missing: Features that the traces do not keep, with the reason.
        n_traces: Traces with a valid label, the best beam of each question.
        n_groups: Their questions.
        prevalence: Share of hallucinated ones.
        labeller: Name of the labels.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    maps: tuple[HeadMap, ...]
    missing: dict[str, str]
    n_traces: int
    n_groups: int
    prevalence: float
    labeller: str

    def write(self, folder: Path) -> Path:
        """Write ``maps.json``, whole or not at all."""
        return write_document(folder / MAPS_FILE, self, KIND)


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


def head_maps(
    traces: Sequence[Trace],
    labels: Labels,
    features: Sequence[str] = FEATURES,
    *,
    is_best_beam_only: bool = True,
) -> HeadMaps:
    """AUROC of single heads over all labelled traces, with false discoveries controlled.

    Args:
        traces: Traces in the order of the labels.
        labels: Those without a valid label are left out.
        features: Features of trace level with the axes layer and head.
        is_best_beam_only: Whether other beams of a question are left out, as in a comparison.

    Raises:
        NotEnoughDataError: If a class has fewer than 5 answers.
    """
    kept = np.flatnonzero(labels.is_valid & (best_beams(traces) if is_best_beam_only else True))
    values = labels.values[kept].astype(np.int64)
    _check_classes(values, "maps of heads need")
    groups = group_codes(question_groups(traces)[kept])[0]
    shape, found, missing = traces[0].shape, {}, {}
    sizes = (len(kept), len(shape.attention_layers), shape.n_heads)
    for name in features:
        try:
            # of the whole store, whose parts are read at once and remembered for detectors
            heads = feature_matrix(traces, [name]).values[kept].astype(np.float64)
        except TraceNotFoundError as error:
            missing[name] = str(error).splitlines()[0]
            continue
        columns = np.concatenate([heads, heads.reshape(sizes).mean(axis=2)], axis=1)
        found[name] = column_tests(columns, values, groups)
    q_values = benjamini_hochberg(np.array([tests.p_value for tests in found.values()]))
    layers = tuple(shape.attention_layers)
    maps = tuple(
        HeadMap(name, layers, *_grids(sizes, tests.auroc, q_value), *_means(sizes, tests.auroc, q_value))
        for (name, tests), q_value in zip(found.items(), q_values, strict=True)
    )
    return HeadMaps(maps, missing, len(kept), int(groups.max()) + 1, float(values.mean()), labels.labeller)


def read_maps(folder: Path) -> HeadMaps | None:
    """What :meth:`HeadMaps.write` wrote, or ``None`` if there is no such file.

    Raises:
        DataFileError: If the file is of a newer version or does not validate.
    """
    path = folder / MAPS_FILE
    return read_document(path, HeadMaps, KIND) if path.exists() else None


def _grids(sizes: tuple[int, int, int], *columns: Float[np.ndarray, "column"]) -> list[Any]:
    """The columns of the heads, as rows of layers; NaN as ``None``."""
    return [tuple(map(tuple, json_ready(each[: -sizes[1]].reshape(sizes[1:])))) for each in columns]


def _means(sizes: tuple[int, int, int], *columns: Float[np.ndarray, "column"]) -> list[Any]:
    """The columns of the means over heads, which stand behind those of the heads."""
    return [tuple(json_ready(each[-sizes[1] :])) for each in columns]


def _check_classes(values: Int[np.ndarray, "answer"], what: str) -> None:
    n_hallucinated, n_correct = int(values.sum()), int((1 - values).sum())
    if min(n_hallucinated, n_correct) < LEAST_OF_CLASS:
        raise NotEnoughDataError(
            f"{what} at least {LEAST_OF_CLASS} answers of each class, got "
            f"{n_hallucinated} hallucinated and {n_correct} correct ones"
        )


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
    _check_classes(values, "a comparison needs")
    # the measures read no node features, and one block must be named
    recipe = recipe or GraphRecipe(DEFAULT_EDGES, ("span",), channels="mean")
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
    lengths = np.array([[t.prompt_length, t.answer_length] for t in chosen], dtype=np.float64)
    sample = EvaluationSet(values, question_groups(chosen), n_resamples, seed)
    is_there = np.isfinite(measured)
    columns = zip(
        [(layer, name) for layer in wanted for name in MEASURES],
        *((is_there & (values == label)).sum(axis=1).tolist() for label in (1, 0)),
        *(_effects(measured, sample, fitted) for fitted in (None, lengths)),
        strict=True,
    )
    return TopologyReport(
        rows=tuple(TopologyRow(*cell, *others) for cell, *others in columns),
        layers=wanted,
        n_traces=len(kept),
        n_groups=len(np.unique(sample.groups)),
        prevalence=labels.prevalence,
        labeller=labels.labeller,
        recipe=f"{recipe.edges}, importance {recipe.importance}",
        n_resamples=n_resamples,
    )


def _measures(
    traces: Sequence[Trace], item: tuple[list[int], tuple[int, ...], GraphRecipe]
) -> Float[np.ndarray, "answer layer measure"]:
    chosen, layers, recipe = item
    answers = iter_graphs(traces, layers, recipe, chosen)
    return np.array([[list(topology(g).values()) for g in graphs] for _, graphs in answers], dtype=np.float64)


def _effects(
    measured: Float[np.ndarray, "measure answer"],
    sample: EvaluationSet,
    lengths: Float[np.ndarray, "answer length"] | None,
) -> list[Effect | None]:
    """The effect of each measure; ``None`` where a class has too few answers with it."""
    found = [_effect(values, sample, lengths) for values in measured]
    q_values = benjamini_hochberg(np.array([np.nan if each is None else each.p_value for each in found]))
    pairs = zip(found, q_values.tolist(), strict=True)
    return [None if effect is None else replace(effect, q_value=q_value) for effect, q_value in pairs]


def _effect(
    values: Float[np.ndarray, "answer"],
    sample: EvaluationSet,
    lengths: Float[np.ndarray, "answer length"] | None,
) -> Effect | None:
    """Cliff's delta, which is ``2 AUROC - 1`` (Cliff 1993, doi:10.1037/0033-2909.114.3.494)."""
    is_there = np.isfinite(values)
    labels = sample.labels[is_there]
    if min(labels.sum(), (1 - labels).sum()) < LEAST_OF_CLASS:
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
