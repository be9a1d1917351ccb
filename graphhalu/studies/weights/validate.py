"""Hold a weight profile against the traces of the same model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Final

import numpy as np
from jaxtyping import Float
from pydantic import Field

from graphhalu.config import Config
from graphhalu.errors import UsageError
from graphhalu.labels.labels import Labels
from graphhalu.numerics import json_ready
from graphhalu.provenance import provenance
from graphhalu.studies.weights.agreement import (
    PAIRS,
    UNTESTED,
    Agreement,
    Drawing,
    Pair,
    agreement,
    with_verdicts,
)
from graphhalu.studies.weights.detection import LayerDetection, available_detection
from graphhalu.studies.weights.measure import Measured, measure_store
from graphhalu.studies.weights.result import EntropyCheck, Validation
from graphhalu.traces.trace import Trace
from graphhalu.weights.circuits import ZONES, entropy_estimate
from graphhalu.weights.read import Weights
from graphhalu.weights.risk import RiskCurve, RiskSettings, reads_mixed, risk_curve
from graphhalu.weights.tables import WeightProfile


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


_LAYER_MEANS: Final = ("entropy", "sink_share", "first_share", "self_share")


def validate(
    profile: WeightProfile,
    weights: Weights,
    traces: Sequence[Trace],
    labels: Labels | None = None,
    *,
    store: Mapping[str, Any] | None = None,
    settings: ValidateSettings | None = None,
    on_step: Callable[[int, int], None] = lambda _done, _total: None,
) -> Validation:
    """Correlate every static quantity with what the model did, and judge it.

    Args:
        profile: Of the same model.
        weights: The model's weights, to compute again what heads add to the stream.
        traces: Traces of the model.
        labels: Labels in the order of the traces; without them the risk is not validated.
        store: What is said of the store in the result; its model must be that of the profile.
        settings: How to measure, and the components of the risk curve.
        on_step: Called with how many steps are done, and of how many.

    Raises:
        UsageError: If the traces, or the profile, are of another model.
        NotEnoughDataError: If no trace is long enough.
    """
    settings, store = settings or ValidateSettings(), dict(store or {})
    check_same_model(profile.model, store.get("model") or {})
    if json_ready(profile.architecture) != json_ready(weights.architecture.values()):
        message = "the profile and the weights are of different models: profile the model again"
        raise UsageError(message)
    measured = measure_store(
        traces[: settings.n_traces],
        weights,
        n_output_traces=settings.n_output_traces,
        on_step=on_step,
    )
    drawing = Drawing(settings.n_resamples, settings.n_permutations, settings.seed)
    rows = [_paired(pair, profile, measured, drawing) for pair in PAIRS]
    curve = risk_curve(profile, settings.risk)
    missing = dict(measured.missing)
    detection: tuple[LayerDetection, ...] = ()
    if labels is None:
        missing["detection by layer"] = "there are no labels"
    else:
        detection, absent = available_detection(
            traces, labels, n_resamples=settings.n_resamples, seed=settings.seed
        )
        missing |= absent
    rows += [row for found in detection for row in _risk_rows(curve, found, drawing)]
    return Validation(
        model=dict(profile.model),
        store=store,
        settings=settings.model_dump(mode="json"),
        provenance=provenance(),
        rows=with_verdicts(rows),
        entropy=_entropy_check(profile, measured),
        risk=curve,
        detection=detection,
        measured=measured,
        missing=missing,
        untested=dict(UNTESTED),
    )


def check_same_model(profile: Mapping[str, Any], store: Mapping[str, Any]) -> None:
    """Refuse traces of another model, as far as both sides say which one it is.

    Raises:
        UsageError: If the digests of their weights differ; or their names, where there is none.
    """
    field = "weights" if profile.get("weights") and store.get("weights") else "name"
    one, other = profile.get(field), store.get(field)
    if one and other and one != other:
        message = (
            f"the traces are of another model than the profile: {field} {str(other)[:16]} "
            f"({store.get('name')}) there, {str(one)[:16]} ({profile.get('name')}) here\n"
            f"  Name the model of the traces with --model"
        )
        raise UsageError(message)


def _paired(pair: Pair, profile: WeightProfile, measured: Measured, drawing: Drawing) -> Agreement:
    if pair.level == "layer":
        static: Float[np.ndarray, "..."] = profile.of_layers(pair.static)
        found = _of_layers(pair.measured, measured)
        is_mixed = reads_mixed(profile, pair.static)
    else:
        is_own = pair.static in profile.heads.column_names
        static = profile.of_heads(pair.static) if is_own else measured.heads[pair.static]
        if pair.level == "head":
            found = measured.heads[pair.measured]
        else:
            n_repeats = profile.n_heads // int(profile.architecture["n_kv_heads"])
            static, found = static[:, ::n_repeats], measured.kv_heads[pair.measured]
        is_mixed = bool({m.part for m in profile.mixed()} & _parts(pair.static))
    return replace(agreement(pair, static, found, drawing), is_mixed=is_mixed)


def _parts(static: str) -> set[str]:
    """Parts that a quantity of the heads reads."""
    if static.startswith(("v_", "ov_")):
        return {"v", "o", "qkv"}
    return {"q", "k", "qkv"}


def _of_layers(name: str, measured: Measured) -> Float[np.ndarray, "layer"]:
    if name in measured.layers:
        return measured.layers[name]
    values = measured.heads[name] if name in _LAYER_MEANS else measured.kv_heads[name]
    mean: Float[np.ndarray, "layer"] = values.mean(axis=1)
    return mean


def _risk_rows(curve: RiskCurve, detection: LayerDetection, drawing: Drawing) -> list[Agreement]:
    against = f"AUROC by {detection.inputs}"
    named = {"risk": curve.values, **{f"risk: {n}": v for n, v in curve.components.items()}}
    rows = []
    for name, values in named.items():
        row = agreement(Pair(name, against, "layer", 1), values, detection.auroc, drawing)
        own = name.removeprefix("risk: ")
        is_mixed = bool(curve.mixed_types) if name == "risk" else own in curve.mixed_types
        rows.append(replace(row, is_mixed=is_mixed))
    return rows


def _entropy_check(profile: WeightProfile, measured: Measured) -> EntropyCheck:
    """The estimate as a share of ``log n``, against what was measured."""
    n_keys = max(2, round(measured.n_keys))
    found = measured.heads["entropy"]
    estimate, zones = entropy_estimate(profile.of_heads("logit_variance"), n_keys)
    estimate = estimate / np.log(n_keys)
    errors: dict[str, float] = {}
    shares: dict[str, float] = {}
    for zone in ZONES:
        here = (zones == zone) & np.isfinite(found)
        shares[zone] = float((zones == zone).mean())
        is_known = here & np.isfinite(estimate)
        if is_known.any():
            errors[zone] = float(np.abs(estimate[is_known] - found[is_known]).mean())
    return EntropyCheck(
        n_keys=n_keys,
        shares=shares,
        errors=errors,
        mean_estimate=float(np.nanmean(estimate)) if np.isfinite(estimate).any() else float("nan"),
        mean_measured=float(np.nanmean(found)),
    )
