"""AUROC step by step: when, if ever, attacks show."""

import numpy as np
from jaxtyping import Float

from graphhalu.errors import NotEnoughDataError
from graphhalu.evaluation.bootstrap import bootstrap_interval
from graphhalu.evaluation.maps import column_tests
from graphhalu.studies.instability.calibration import Estimate, StepPoint, WindowChoice
from graphhalu.studies.instability.methods import Cases
from graphhalu.studies.instability.rivals import Study
from graphhalu.studies.instability.settings import CalibrateSettings
from graphhalu.studies.instability.windows import layer_mean

_RESAMPLES = 400
"""Intervals of single steps are drawn as a band, where more would not be seen."""


def step_points(
    study: Study, cases: Cases, choice: WindowChoice, settings: CalibrateSettings
) -> list[StepPoint]:
    """AUROC of each decode step over the prompts that reach it; no direction is learned.

    A step that fewer than 5 prompts of a class reach has none. The layers were chosen on the
    same prompts, which is a little optimistic.
    """
    layers = slice(choice.first_layer, choice.stop_layer)
    spread = layer_mean(study.layered(choice.spread)[..., layers])
    others = [study.by_step("entropy"), layer_mean(study.layered("focus")[..., layers])]
    entropy, focus = (column_tests(values, *cases).auroc for values in others)
    reaches = np.isfinite(others[0])
    return [
        StepPoint(
            step=step,
            n_attack=int(reaches[cases.labels == 1, step].sum()),
            n_benign=int(reaches[cases.labels == 0, step].sum()),
            instability=_estimate(value, spread[:, step], cases, settings.level),
            entropy=_or_none(entropy[step]),
            focus=_or_none(focus[step]),
        )
        for step, value in enumerate(column_tests(spread, *cases).auroc.tolist())
    ]


def _estimate(
    value: float, scores: Float[np.ndarray, "prompt"], cases: Cases, level: float
) -> Estimate | None:
    if np.isnan(value):
        return None
    kept = np.isfinite(scores)
    try:
        low, high, _ = bootstrap_interval(
            "auroc", scores[kept], cases.labels[kept], cases.groups[kept],
            n_resamples=_RESAMPLES, level=level,
        )  # fmt: skip
    except NotEnoughDataError:
        return Estimate(value=value)
    return Estimate(value=value, low=low, high=high)


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
