"""AUROC of one feature of one head alone, for every layer and head.

This describes a store; it decides nothing. All labelled traces are used, no detector is fitted,
and no detector sees which heads stand out here: each makes its choices inside its own folds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from pydantic import ConfigDict
from scipy.special import ndtr

from graphhalu.core.errors import NotEnoughDataError, TraceNotFoundError
from graphhalu.core.numerics import benjamini_hochberg
from graphhalu.evaluation.bootstrap import group_codes
from graphhalu.evaluation.files import FileFormat, read_document, write_document
from graphhalu.evaluation.protocol import best_beams
from graphhalu.evaluation.significance import column_influence
from graphhalu.features.matrix import feature_matrix
from graphhalu.labels.labels import Labels, question_groups
from graphhalu.traces.trace import Trace

KIND: Final = FileFormat("graphhalu-maps", 1, "Run:  graphhalu compare")
MAPS_FILE: Final = "maps.json"

FEATURES: Final = ("sink_mass_k4", "self_attention_log", "lookback_ratio", "attention_entropy_mean")
FALSE_DISCOVERIES: Final = 0.05
"""Share of false discoveries that is allowed among the marked heads."""
_LEAST_ANSWERS: Final = 5


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


class ColumnTests(NamedTuple):
    """AUROC of each column, and its p-value of being 0.5."""

    auroc: Float[np.ndarray, "column"]
    p_value: Float[np.ndarray, "column"]


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
    is_kept = labels.is_valid & (best_beams(traces) if is_best_beam_only else True)
    kept = np.flatnonzero(is_kept)
    values = labels.values[kept].astype(np.int64)
    if min(int(values.sum()), int((1 - values).sum())) < _LEAST_ANSWERS:
        message = (
            f"maps of heads need at least {_LEAST_ANSWERS} answers of each class, got "
            f"{int(values.sum())} hallucinated and {int((1 - values).sum())} correct ones"
        )
        raise NotEnoughDataError(message)
    groups = group_codes(question_groups(traces)[kept])[0]
    columns, missing = _columns(traces, kept, features)
    found = {name: column_tests(block, values, groups) for name, block in columns.items()}
    layers = tuple(traces[0].shape.attention_layers)
    p_values = np.array([tests.p_value for tests in found.values()])
    maps = tuple(
        _head_map(name, layers, tests.auroc, q_value)
        for (name, tests), q_value in zip(found.items(), benjamini_hochberg(p_values), strict=True)
    )
    return HeadMaps(maps, missing, len(kept), int(groups.max()) + 1, float(values.mean()), labels.labeller)


def read_maps(folder: Path) -> HeadMaps | None:
    """What :meth:`HeadMaps.write` wrote, or ``None`` if there is no such file.

    Raises:
        DataFileError: If the file is of a newer version or does not validate.
    """
    path = folder / MAPS_FILE
    if not path.exists():
        return None
    return read_document(path, HeadMaps, KIND)


def column_tests(
    columns: Float[np.ndarray, "trace column"],
    labels: Int[np.ndarray, "trace"],
    groups: Int[np.ndarray, "trace"],
) -> ColumnTests:
    """AUROC of each column and its p-value of being 0.5, with questions as groups.

    Missing values do not count; a column with fewer than 5 answers of a class has neither.

    Args:
        columns: One value a trace; NaN where it is missing.
        labels: 1 = hallucinated.
        groups: Number of the question of each trace.

    Source:
        DeLong et al. 1988 against the constant 0.5, influences summed by group (Obuchowski
        1997), all columns that miss the same traces at once.
    """
    n_columns = columns.shape[1]
    auroc, p_value = np.full(n_columns, np.nan), np.full(n_columns, np.nan)
    patterns, members = np.unique(np.isfinite(columns), axis=1, return_inverse=True)
    for number, is_there in enumerate(patterns.T):
        here = np.flatnonzero(members.ravel() == number)
        n_positive = int(labels[is_there].sum())
        if min(n_positive, int(is_there.sum()) - n_positive) < _LEAST_ANSWERS:
            continue
        auroc[here], influence = column_influence(columns[np.ix_(is_there, here)], labels[is_there])
        of_group = np.zeros((int(groups.max()) + 1, len(here)))
        np.add.at(of_group, groups[is_there], influence)
        error = np.sqrt(np.square(of_group).sum(axis=0))
        # without spread there is nothing to test: all values are equal, or the classes are apart
        distance = np.abs(auroc[here] - 0.5)
        z = np.divide(distance, error, out=np.where(distance > 0, np.inf, 0.0), where=error > 0)
        p_value[here] = 2 * ndtr(-z)
    return ColumnTests(auroc, p_value)


def _columns(
    traces: Sequence[Trace], kept: Int[np.ndarray, "kept"], features: Sequence[str]
) -> tuple[dict[str, Float[np.ndarray, "kept column"]], dict[str, str]]:
    """Heads of all layers and behind them the mean of each layer, by feature; what is missing."""
    shape = traces[0].shape
    sizes = (len(kept), len(shape.attention_layers), shape.n_heads)
    found, missing = {}, {}
    for name in features:
        try:
            # of the whole store, whose parts are read at once and remembered for detectors
            values = feature_matrix(traces, [name]).values[kept].astype(np.float64)
        except TraceNotFoundError as error:
            missing[name] = str(error).splitlines()[0]
            continue
        found[name] = np.concatenate([values, values.reshape(sizes).mean(axis=2)], axis=1)
    return found, missing


def _head_map(
    name: str,
    layers: tuple[int, ...],
    auroc: Float[np.ndarray, "column"],
    q_value: Float[np.ndarray, "column"],
) -> HeadMap:
    n_layers = len(layers)
    cells, q_cells = (
        tuple(_plain(row) for row in values[:-n_layers].reshape(n_layers, -1)) for values in (auroc, q_value)
    )
    return HeadMap(name, layers, cells, q_cells, _plain(auroc[-n_layers:]), _plain(q_value[-n_layers:]))


def _plain(values: Shaped[np.ndarray, "entry"]) -> tuple[float | None, ...]:
    return tuple(float(v) if np.isfinite(v) else None for v in values.tolist())
