"""Validation of a weight profile against the traces of the same model, and detection by each layer alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Float
from pydantic import ConfigDict, Field

from graphhalu.core.config import Config
from graphhalu.core.documents import FileFormat, write_document
from graphhalu.core.errors import NotEnoughDataError, TraceNotFoundError, UsageError
from graphhalu.core.numerics import json_ready
from graphhalu.core.provenance import provenance
from graphhalu.core.splits import Split
from graphhalu.detectors.linear import Rotation, Scaling, l2_path
from graphhalu.engine.executors import Progress, no_progress
from graphhalu.evaluation.bootstrap import bootstrap_interval
from graphhalu.evaluation.crossfit import cross_fit_folds, standardise
from graphhalu.evaluation.metrics import Floats, Ints, auroc
from graphhalu.evaluation.univariate import FEATURES
from graphhalu.features.matrix import feature_matrix
from graphhalu.heads.table import HeadTable
from graphhalu.labels.labels import Labels, question_groups
from graphhalu.studies.rows import Row, StudyResult
from graphhalu.studies.weights.agreement import (
    HEAD_QUANTITIES,
    PAIRS,
    UNTESTED,
    Agreement,
    OfLayers,
    agreement,
    counts,
    with_verdicts,
)
from graphhalu.studies.weights.measure import Measured, measure_store
from graphhalu.traces.trace import Trace
from graphhalu.weights.circuits import ZONES, entropy_estimate
from graphhalu.weights.read import Weights
from graphhalu.weights.risk import Numbers, RiskCurve, RiskSettings, reads_mixed, risk_curve
from graphhalu.weights.tables import MEASURED_DESCRIPTIONS, WeightProfile

VALIDATION_FILE: Final = "validation.json"
N_COMPONENTS: Final = 32
STRENGTH: Final = 1.0
"""Of the L2 penalty; fixed, so that layers differ in what they hold and not in what was tuned."""
_INPUTS: Final = {
    "attention": (FEATURES, r"\.l(\d+)\b", 0),
    "hidden": (("state_last_answer",), r"\.n(\d+)\b", 1),
}
"""Features of each kind of inputs, where their names say the layer, and the number of the first one:
a hidden state belongs to the layer before it."""
_LEAST: Final = 20
Compared = tuple[Agreement, OfLayers, OfLayers]
"""A pair with its static and its measured values."""


class ValidateSettings(Config):
    """Settings of a validation."""

    n_traces: Annotated[int, Field(ge=1)] = 300
    """Traces whose attention is measured; detection by layer takes all that are labelled."""
    n_output_traces: Annotated[int, Field(ge=1)] = 64
    """Traces whose head and block outputs are computed again from the weights."""
    n_resamples: Annotated[int, Field(ge=100)] = 2000
    """Resamples of layers, and of questions for the detection by layer."""
    n_permutations: Annotated[int, Field(ge=100)] = 2000
    """Permutations of layers and heads."""
    seed: int = 0
    """Seed of all draws."""
    risk: RiskSettings = RiskSettings()
    """Components of the risk curve."""


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


class Validation(StudyResult):
    """A profile held against the traces of its model."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=True, protected_namespaces=())
    kind = FileFormat("graphhalu-weights-validation", 1, "Make one:  graphhalu weights validate TRACES")
    file = VALIDATION_FILE

    model: Mapping[str, Any]
    """Which model."""
    store: Mapping[str, Any]
    """Which traces."""
    settings: Mapping[str, Any]
    """How it was measured."""
    provenance: Mapping[str, Any]
    """Versions, machine, code state."""
    missing: Mapping[str, str]
    """Quantities that could not be measured, with the reason."""
    untested: Mapping[str, str]
    """Quantities of the profile without a counterpart in a store."""
    rows: tuple[Agreement, ...]
    """Every static quantity with its verdict."""
    entropy: Row
    """The entropy estimate against measurement, see :func:`_entropy_check`."""
    risk: RiskCurve
    """The risk curve."""
    detection: tuple[LayerDetection, ...]
    """Detection by layer, one entry a kind of input."""
    measured: Measured
    """Run-time quantities."""

    def values(self) -> dict[str, Any]:
        """Everything as plain values for JSON, with the number of each verdict."""
        return super().values() | {"verdicts": counts(self.rows), "meanings": MEASURED_DESCRIPTIONS}

    def write(self, path: Path) -> Path:
        """Write ``validation.json`` and ``validation.parquet`` into a folder; gives the JSON file."""
        return write_document(path / self.file, self.values(), self.kind, rows=self.rows)


def validate(
    profile: WeightProfile,
    weights: Weights,
    traces: Sequence[Trace],
    labels: Labels | None = None,
    *,
    store: Mapping[str, Any] | None = None,
    settings: ValidateSettings | None = None,
    on_progress: Progress = no_progress,
) -> Validation:
    """Correlate every static quantity with what the model did, and judge it.

    Args:
        profile: Of the same model.
        weights: The model's weights, to compute again what heads add to the stream.
        traces: Traces of the model.
        labels: Labels in the order of the traces; without them the risk is not validated.
        store: Description of the store for the result; its model must be that of the profile.
        settings: How to measure, and the components of the risk curve.
        on_progress: Called with the number of steps done, and of all.

    Raises:
        UsageError: If the traces, or the profile, are of another model.
        NotEnoughDataError: If no trace is long enough.
    """
    settings, store = settings or ValidateSettings(), dict(store or {})
    check_same_model(profile.model, store.get("model") or {})
    if json_ready(profile.architecture) != json_ready(weights.architecture.values()):
        raise UsageError("the profile and the weights are of different models: profile the model again")
    chosen, drawing = traces[: settings.n_traces], settings.model_dump(include={"n_resamples", "seed"})
    measured = measure_store(chosen, weights, n_outputs=settings.n_output_traces, on_progress=on_progress)
    curve = risk_curve(profile, settings.risk)
    missing, detection = dict(measured.missing), list[LayerDetection]()
    if labels is None:
        missing["detection by layer"] = "there are no labels"
    else:
        for inputs in _INPUTS:
            try:
                detection.append(layer_detection(traces, labels, inputs, **drawing))
            except (NotEnoughDataError, TraceNotFoundError) as error:
                missing[f"detection by {inputs}"] = str(error).splitlines()[0]
    pairs = [replace(pair, is_mixed=_is_mixed(pair, profile)) for pair in PAIRS]
    compared = [(pair, *paired_values(pair, profile, measured)) for pair in pairs]
    compared += _risk_pairs(curve, detection)
    drawing["n_permutations"] = settings.n_permutations
    return Validation(
        model=dict(profile.model),
        store=store,
        settings=settings.model_dump(mode="json"),
        provenance=provenance(),
        missing=missing,
        untested=UNTESTED,
        rows=with_verdicts([agreement(*each, **drawing) for each in compared]),
        entropy=_entropy_check(profile, measured),
        risk=curve,
        detection=tuple(detection),
        measured=measured,
    )


def _risk_pairs(curve: RiskCurve, detection: Sequence[LayerDetection]) -> Iterator[Compared]:
    """The whole risk curve and each of its components against detection by layer."""
    curves = {"risk": (curve.values, bool(curve.mixed_types))}
    curves |= {f"risk: {n}": (values, n in curve.mixed_types) for n, values in curve.components.items()}
    for found, (name, (values, is_mixed)) in product(detection, curves.items()):
        yield Agreement(name, f"AUROC by {found.inputs}", "layer", 1, is_mixed=is_mixed), values, found.auroc


def check_same_model(profile: Mapping[str, Any], store: Mapping[str, Any]) -> None:
    """Refuse traces of another model, as far as both sides say which one it is.

    Raises:
        UsageError: If the digests of their weights differ; or their names, where there is none.
    """
    field = "weights" if profile.get("weights") and store.get("weights") else "name"
    one, other = profile.get(field), store.get(field)
    if one and other and one != other:
        told = f"{str(other)[:16]} ({store.get('name')}) there, {str(one)[:16]} ({profile.get('name')}) here"
        fault = f"the traces are of another model than the profile: {field} {told}"
        raise UsageError(f"{fault}\n  Name the model of the traces with --model")


def paired_values(pair: Agreement, profile: WeightProfile, measured: Measured) -> tuple[OfLayers, OfLayers]:
    """Both sides of a pair: heads, key heads or layers, in the same order."""
    if pair.level == "layer":
        name, heads = pair.measured, {**measured.kv_heads, **measured.heads}
        found = measured.layers[name] if name in measured.layers else heads[name].mean(axis=1)
        return profile.of_layers(pair.static), found
    is_own = pair.static in profile.heads.column_names
    static = profile.of_heads(pair.static) if is_own else measured.heads[pair.static]
    if pair.level == "head":
        return static, measured.heads[pair.measured]
    n_repeats = profile.n_heads // int(profile.architecture["n_kv_heads"])
    return static[:, ::n_repeats], measured.kv_heads[pair.measured]


def _is_mixed(pair: Agreement, profile: WeightProfile) -> bool:
    """Whether the static side reads parts that are stored in more than one way."""
    if pair.level == "layer":
        return reads_mixed(profile, pair.static)
    parts = {"v", "o", "qkv"} if pair.static.startswith(("v_", "ov_")) else {"q", "k", "qkv"}
    return not parts.isdisjoint(profile.mixed())


def _entropy_check(profile: WeightProfile, measured: Measured) -> Row:
    """The entropy estimate against measurement, both as a share of the log of the keys.

    Returns:
        ``n_keys`` that the estimate is for: as many as a counted row sees on average; ``shares`` of
        heads in each zone of the estimate; ``errors``, the mean distance of estimate and measurement
        in each zone that has an estimate; ``mean_estimate`` over heads with one, ``mean_measured``
        over all heads.
    """
    n_keys = max(2, round(measured.n_keys))
    found = measured.heads["entropy"]
    estimate, zones = entropy_estimate(profile.of_heads("logit_variance"), n_keys)
    estimate = estimate / np.log(n_keys)
    known = {zone: (zones == zone) & np.isfinite(found) & np.isfinite(estimate) for zone in ZONES}
    distance = np.abs(estimate - found)
    return Row(
        n_keys=n_keys,
        shares={zone: float((zones == zone).mean()) for zone in ZONES},
        errors={zone: float(distance[is_in].mean()) for zone, is_in in known.items() if is_in.any()},
        mean_estimate=float(np.nanmean(estimate)) if np.isfinite(estimate).any() else None,
        mean_measured=float(np.nanmean(found)),
    )


def head_tables(profile: WeightProfile, quantities: Sequence[str] = HEAD_QUANTITIES) -> list[HeadTable]:
    """One table a quantity, with the weights as its one trial: there is nothing to resample.

    Raises:
        UnknownNameError: If there is no such quantity.
    """
    # the identity of a loaded model says more, and tables of one model must agree
    about, trials = {"model": dict(profile.model), **profile.settings}, (("weights", "weights"),)
    shape = tuple(range(profile.n_layers)), trials
    found = {name: profile.of_heads(name)[None] for name in quantities}
    return [
        HeadTable(f"weights_{n}", *shape, v, np.full_like(v[0], np.nan), settings={"quantity": n, **about})
        for n, v in found.items()
    ]


def layer_detection(traces: Sequence[Trace], labels: Labels, inputs: str, **draws: int) -> LayerDetection:
    """Cross-fit a logistic probe on each layer, folds by question.

    Args:
        traces: Traces in the order of the labels.
        labels: Those without a valid label are left out.
        inputs: ``attention`` or ``hidden``.
        **draws: ``n_resamples`` of questions, and the ``seed`` of folds and resamples.

    Raises:
        NotEnoughDataError: If a class has fewer than 20 answers.
        TraceNotFoundError: If the traces do not keep the inputs.
    """
    kept = np.flatnonzero(labels.is_valid)
    truth, groups = labels.values[kept], question_groups(traces)
    n_correct, n_hallucinated = np.bincount(truth, minlength=2).tolist()
    if min(n_correct, n_hallucinated) < _LEAST:
        counted = f"{n_hallucinated} hallucinated and {n_correct} correct ones"
        raise NotEnoughDataError(f"detection by layer needs {_LEAST} answers of each class, got {counted}")
    folds = cross_fit_folds(labels.values, groups, labels.is_valid, seed=draws.get("seed", 0))
    features, pattern, first = _INPUTS[inputs]
    found = feature_matrix(traces, list(features))
    layers = pd.Series(found.columns).str.extract(pattern)[0].astype(float).to_numpy() - first
    values = np.full((3, traces[0].shape.n_layers), np.nan)
    for layer in np.unique(layers[layers >= 0]).astype(int):
        scores = _cross_fitted(found.values[:, layers == layer], labels.values, folds)[kept]
        interval = bootstrap_interval("auroc", scores, truth, groups[kept], **draws)
        values[:, layer] = auroc(scores, truth), *interval[:2]
    area, low, high = values
    return LayerDetection(inputs, area, low, high, len(kept), labels.prevalence)


def _cross_fitted(values: Float[np.ndarray, "item column"], labels: Ints, folds: list[Split]) -> Floats:
    """Out-of-fold logits, standardised by the validation side so that folds can be pooled."""
    scores = np.full(len(values), np.nan)
    for fold in folds:
        scaling = Scaling.of(values[fold.train])
        rotated = Rotation.of(scaling.apply(values[fold.train]), N_COMPONENTS)
        (solution,) = l2_path(rotated.scores, labels[fold.train], (STRENGTH,))
        weight, sides = rotated.columns(solution.weight), (fold.test, fold.validation)
        scores[fold.test] = standardise(*(scaling.apply(values[s]) @ weight + solution.bias for s in sides))
    return scores
