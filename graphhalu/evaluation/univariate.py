"""Single measures against the labels: the AUROC of heads, and effect sizes of graph topology.

This describes a store; it decides nothing. All labelled traces are used, no detector is fitted,
and no detector sees which heads stand out here: each makes its choices inside its own folds.
"""

from collections.abc import Sequence
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Float
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from scipy.stats import norm

from graphhalu.core.documents import FileFormat, read_document, write_document
from graphhalu.core.errors import TraceNotFoundError
from graphhalu.core.numerics import auroc, benjamini_hochberg, json_ready, length_adjusted
from graphhalu.engine.executors import Executor, Progress, SerialExecutor, in_order, no_progress
from graphhalu.evaluation.bootstrap import EvaluationSet, group_codes, percentile_interval
from graphhalu.evaluation.crossfit import Traces, best_beams, check_same_traces
from graphhalu.evaluation.metrics import check_classes
from graphhalu.evaluation.significance import LEAST_OF_CLASS, column_tests
from graphhalu.features.matrix import feature_matrix
from graphhalu.features.table import opener
from graphhalu.graphs.build import iter_graphs
from graphhalu.graphs.edges import DEFAULT_EDGES, GraphRecipe
from graphhalu.graphs.topology import MEASURES, topology
from graphhalu.labels.labels import Labels, question_groups
from graphhalu.traces.trace import Trace

KIND: Final = FileFormat("graphhalu-maps", 1, "Run:  graphhalu compare")
MAPS_FILE: Final = "maps.json"

FEATURES: Final = ("sink_mass_k4", "self_attention_log", "lookback_ratio", "attention_entropy_mean")
FALSE_DISCOVERIES: Final = 0.05
"""Share of false discoveries that is allowed among the marked heads and effects."""
_CLASSES: Final = f"at least {LEAST_OF_CLASS} answers of each class"
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


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
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

    maps: tuple[HeadMap, ...]
    missing: dict[str, str]
    n_traces: int
    n_groups: int
    prevalence: float
    labeller: str

    def write(self, folder: Path) -> Path:
        """Write ``maps.json``, whole or not at all."""
        return write_document(folder / MAPS_FILE, self, KIND)


def head_maps(
    traces: Traces, labels: Labels, features: Sequence[str] = FEATURES, *, is_best_beam_only: bool = True
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
    check_classes(values, f"maps of heads need {_CLASSES}", least=LEAST_OF_CLASS)
    groups, n_groups = group_codes(question_groups(traces)[kept])
    layers, found, missing = traces[0].shape.attention_layers, {}, {}
    for name in features:
        try:
            # of the whole store, whose parts are read at once and remembered for detectors
            heads = feature_matrix(traces, [name]).values[kept].astype(np.float64)
        except TraceNotFoundError as error:
            missing[name] = str(error).splitlines()[0]
            continue
        means = heads.reshape(len(kept), len(layers), -1).mean(axis=2)
        found[name] = column_tests(np.concatenate([heads, means], axis=1), values, groups)
    q_values = benjamini_hochberg(np.array([p_value for _, p_value in found.values()]))
    maps = []
    for (name, (aurocs, _)), q_value in zip(found.items(), q_values, strict=True):
        heads, means = zip(*(np.split(each, [-len(layers)]) for each in (aurocs, q_value)), strict=True)
        grids = [each.reshape(len(layers), -1) for each in heads]
        maps.append(HeadMap(name, layers, *json_ready([*grids, *means])))
    return HeadMaps(tuple(maps), missing, len(kept), n_groups, float(values.mean()), labels.labeller)


def read_maps(folder: Path) -> HeadMaps | None:
    """What :meth:`HeadMaps.write` wrote, or ``None`` if there is no such file.

    Raises:
        DataFileError: If the file is of a newer version or does not validate.
    """
    path = folder / MAPS_FILE
    return read_document(path, HeadMaps, KIND) if path.exists() else None


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
) -> dict[str, Any]:
    """Effect size of every measure in every layer, with intervals and false-discovery control.

    The effect is Cliff's delta: in [-1, 1], positive where hallucinated answers have more.

    Args:
        traces: Traces in the order of the labels.
        labels: Those without a valid label are left out.
        layers: Model layers; by default all that are kept.
        recipe: How graphs are built; by default the 8 strongest keys of a row.
        n_resamples: Resamples of questions for the intervals.
        seed: Seed of the resamples.
        on_progress: Called when some traces are done.
        engine: Where graphs are built and measured; by default here.

    Returns:
        ``rows``, layer by layer: of each ``layer`` and ``measure`` the answers that have it
        (``n_hallucinated`` and ``n_correct``), its effect ``raw``, and ``adjusted``, that of what a
        fit on the lengths of prompt and answer leaves. An effect is ``None`` where too few answers
        have the measure, else its ``value``, the ends ``low`` and ``high`` of the 95 % bootstrap
        interval over questions, the two-sided ``p_value`` (normal, with the bootstrap's standard
        error), and ``q_value``, the same after Benjamini and Hochberg over all layers and measures.
        Beside the rows: ``layers``, ``n_traces`` with a valid label, ``n_groups`` (their questions),
        ``prevalence`` of hallucinated ones, ``labeller``, ``recipe`` of the graphs in words,
        ``n_resamples``, and what ``measures`` say.

    Raises:
        UsageError: If labels belong to other traces, or the graphs would be multiplex.
        NotEnoughDataError: If a class has fewer than 5 answers.
    """
    check_same_traces(traces, labels)
    kept = np.flatnonzero(labels.is_valid)
    values = labels.values[kept]
    check_classes(values, f"a comparison needs {_CLASSES}", least=LEAST_OF_CLASS)
    # the measures read no node features, and one block must be named
    recipe = recipe or GraphRecipe(DEFAULT_EDGES, ("span",), channels="mean")
    wanted = tuple(traces[0].shape.attention_layers if layers is None else layers)
    items = [(kept[at : at + _TOGETHER].tolist(), wanted, recipe) for at in range(0, len(kept), _TOGETHER)]
    engine, pieces = engine or SerialExecutor(), []
    with engine.workers(opener(traces, engine), len(items)) as run, closing(run(_measures, items)) as found:
        for done in in_order(found):
            pieces.append(done.result())
            on_progress(sum(map(len, pieces)), len(kept))
    measured = np.concatenate(pieces).reshape(len(kept), -1).T
    chosen = [traces[int(index)] for index in kept]
    lengths = np.array([[t.prompt_length, t.answer_length] for t in chosen], dtype=np.float64)
    sample = EvaluationSet(values, question_groups(chosen), n_resamples, seed)
    rows = pd.DataFrame(list(product(wanted, MEASURES)), columns=["layer", "measure"])
    for name, label in (("n_hallucinated", 1), ("n_correct", 0)):
        rows[name] = (np.isfinite(measured) & (values == label)).sum(axis=1)
    for name, fitted in (("raw", None), ("adjusted", lengths)):
        rows[name] = _effects(measured, sample, fitted)
    return {
        "rows": rows.to_dict("records"),
        "layers": wanted,
        "n_traces": len(kept),
        "n_groups": len(np.unique(sample.groups)),
        "prevalence": labels.prevalence,
        "labeller": labels.labeller,
        "recipe": f"{recipe.edges}, importance {recipe.importance}",
        "n_resamples": n_resamples,
        "measures": MEASURES,
    }


Measured = Float[np.ndarray, "measure answer"]
Lengths = Float[np.ndarray, "answer length"]
Effect = dict[str, float]
_Item = tuple[list[int], tuple[int, ...], GraphRecipe]


def _measures(traces: Sequence[Trace], item: _Item) -> Float[np.ndarray, "answer layer measure"]:
    chosen, layers, recipe = item
    answers = iter_graphs(traces, layers, recipe, chosen)
    return np.array([[list(topology(g).values()) for g in graphs] for _, graphs in answers], dtype=np.float64)


def _effects(measured: Measured, sample: EvaluationSet, lengths: Lengths | None) -> list[Effect | None]:
    """The effect of each measure; ``None`` where a class has too few answers with it."""
    found: list[Effect | None] = [None] * len(measured)
    for place, values in enumerate(measured):
        is_there = np.isfinite(values)
        known, labels = values[is_there], sample.labels[is_there]
        if np.bincount(labels, minlength=2).min() < LEAST_OF_CLASS:
            continue
        if lengths is not None:
            known = length_adjusted(known, lengths[is_there])
        # Cliff's delta is 2 AUROC - 1 (Cliff 1993, doi:10.1037/0033-2909.114.3.494)
        value = 2 * auroc(known, labels) - 1
        scores = np.full(len(values), np.nan)
        scores[is_there] = known
        deltas = 2 * sample.resample(["auroc"], scores, is_there)["auroc"] - 1
        low, high, _ = percentile_interval(deltas, sample.level)
        error = float(np.nanstd(deltas))
        # without spread (one value for all answers) there is nothing to test
        p_value = float(2 * norm.sf(abs(value) / error)) if error > 0 else 1.0
        found[place] = {"value": value, "low": low, "high": high, "p_value": p_value}
    known_effects = [each for each in found if each is not None]
    q_values = benjamini_hochberg(np.array([each["p_value"] for each in known_effects]))
    for effect, q_value in zip(known_effects, q_values.tolist(), strict=True):
        effect["q_value"] = q_value
    return found
