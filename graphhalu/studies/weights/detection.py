"""Detection by each layer alone: one cheap cross-fitted probe a layer."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Int

from graphhalu.core.errors import NotEnoughDataError, TraceNotFoundError
from graphhalu.core.splits import Split
from graphhalu.detectors.linear import Rotation, Scaling, l2_path
from graphhalu.evaluation.bootstrap import bootstrap_interval
from graphhalu.evaluation.crossfit import cross_fit_folds, standardise
from graphhalu.evaluation.metrics import auroc
from graphhalu.evaluation.univariate import FEATURES
from graphhalu.features.matrix import feature_matrix
from graphhalu.labels.labels import Labels, question_groups
from graphhalu.traces.trace import Trace
from graphhalu.weights.risk import Numbers

N_COMPONENTS: Final = 32
STRENGTH: Final = 1.0
"""Of the L2 penalty; fixed, so that layers differ in what they hold and not in what was tuned."""
_KINDS: Final = {"attention": FEATURES, "hidden": ("state_last_answer",)}
_LEAST: Final = 20


@dataclass(frozen=True)
class LayerDetection:
    """AUROC of a probe on each layer alone.

    Attributes:
        inputs: ``attention`` (sink, self-attention, lookback and entropy of the layer's heads)
            or ``hidden`` (the state of the last answer token at the layer's output).
        auroc: One a layer; NaN where the store keeps nothing of it.
        low: Low end of the 95 % interval over questions.
        high: High end.
        n_traces: Labelled answers.
        prevalence: Share of hallucinated ones.
    """

    inputs: str
    auroc: Numbers
    low: Numbers
    high: Numbers
    n_traces: int
    prevalence: float


def layer_detection(
    traces: Sequence[Trace], labels: Labels, inputs: str, *, n_resamples: int = 1000, seed: int = 0
) -> LayerDetection:
    """Cross-fit a logistic probe on each layer, folds by question.

    Args:
        traces: Traces in the order of the labels.
        labels: Those without a valid label are left out.
        inputs: ``attention`` or ``hidden``.
        n_resamples: Resamples of questions.
        seed: Seed of folds and resamples.

    Raises:
        NotEnoughDataError: If a class has fewer than 20 answers.
        TraceNotFoundError: If the traces do not keep the inputs.
    """
    n_of_class = [int((labels.values[labels.is_valid] == c).sum()) for c in (0, 1)]
    if min(n_of_class) < _LEAST:
        raise NotEnoughDataError(
            f"detection by layer needs {_LEAST} answers of each class, got {n_of_class[1]} "
            f"hallucinated and {n_of_class[0]} correct ones"
        )
    groups = question_groups(traces)
    folds = cross_fit_folds(labels.values, groups, labels.is_valid, seed=seed)
    found = feature_matrix(traces, list(_KINDS[inputs]))
    places = _by_layer(found.columns, inputs)
    n_layers = traces[0].shape.n_layers
    values = np.full((3, n_layers), np.nan)
    kept = np.flatnonzero(labels.is_valid)
    truth = labels.values[kept]
    for layer, columns in places.items():
        scores = _cross_fitted(found.values[:, columns], labels.values, folds)[kept]
        interval = bootstrap_interval(
            "auroc", scores, truth, groups[kept], n_resamples=n_resamples, seed=seed
        )
        values[:, layer] = auroc(scores, truth), *interval[:2]
    area, low, high = values
    return LayerDetection(inputs, area, low, high, len(kept), labels.prevalence)


def available_detection(
    traces: Sequence[Trace], labels: Labels, *, n_resamples: int = 1000, seed: int = 0
) -> tuple[tuple[LayerDetection, ...], dict[str, str]]:
    """Detection by every kind of input that the store keeps, and why others are missing."""
    found, missing = [], {}
    for inputs in _KINDS:
        try:
            found.append(layer_detection(traces, labels, inputs, n_resamples=n_resamples, seed=seed))
        except (NotEnoughDataError, TraceNotFoundError) as error:
            missing[f"detection by {inputs}"] = str(error).splitlines()[0]
    return tuple(found), missing


def _cross_fitted(
    values: Float[np.ndarray, "trace column"], labels: Int[np.ndarray, "trace"], folds: list[Split]
) -> Float[np.ndarray, "trace"]:
    """Out-of-fold logits, standardised by the validation side so that folds can be pooled."""
    scores = np.full(len(values), np.nan)
    for fold in folds:
        scaling = Scaling.of(values[fold.train])
        rotated = Rotation.of(scaling.apply(values[fold.train]), N_COMPONENTS)
        (solution,) = l2_path(rotated.scores, labels[fold.train], (STRENGTH,))
        weight = rotated.columns(solution.weight)
        logits = [
            scaling.apply(values[side]) @ weight + solution.bias for side in (fold.validation, fold.test)
        ]
        scores[fold.test] = standardise(logits[1], logits[0])
    return scores


def _by_layer(columns: Sequence[str], inputs: str) -> Mapping[int, Int[np.ndarray, "column"]]:
    """Places of the columns of each model layer; a hidden state belongs to the layer before it."""
    pattern = re.compile(r"\.l(\d+)\b" if inputs == "attention" else r"\.n(\d+)\b")
    found: dict[int, list[int]] = {}
    for place, name in enumerate(columns):
        match = pattern.search(name)
        layer = int(match[1]) - (inputs == "hidden") if match else -1
        if layer >= 0:
            found.setdefault(layer, []).append(place)
    return {layer: np.array(places) for layer, places in sorted(found.items())}
