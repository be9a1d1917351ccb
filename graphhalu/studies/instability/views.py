"""Numbers behind the figures of the study."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from graphhalu.evaluation.bootstrap import Estimate, group_codes
from graphhalu.heads.table import mean_of_present
from graphhalu.studies.instability.calibration import Calibration
from graphhalu.studies.instability.methods import present_mean, window_scores
from graphhalu.studies.instability.series import PromptSeries, padded_steps
from graphhalu.studies.sinks.effects import Sample

LEAST_PROMPTS: Final = 5
"""Prompts of a class below which a step has no mean."""

RELATED: Final = {"entropy": "token entropy (nat)", "agreement": "head agreement"}


class Relation(NamedTuple):
    """Instability against another measure, over the same window.

    Attributes:
        name: The other measure.
        values: Its mean over the steps of the window; NaN if it has none.
        pearson: Linear correlation; ``None`` if one of them has no spread.
        spearman: Correlation of the ranks.
    """

    name: str
    values: Float[np.ndarray, "prompt"]
    pearson: Estimate | None
    spearman: Estimate | None


@dataclass(frozen=True)
class StudyView:
    """Prompts as the figures show them.

    Attributes:
        is_attack: Their class.
        score: Instability over the chosen window, as measured: no direction is applied.
        relations: Against entropy and head agreement.
        attack: Mean spread of the attacks; NaN where fewer than 5 prompts have a value.
        benign: Mean spread of the benign prompts.
    """

    is_attack: Bool[np.ndarray, "prompt"]
    score: Float[np.ndarray, "prompt"]
    relations: tuple[Relation, ...]
    attack: Float[np.ndarray, "step layer"]
    benign: Float[np.ndarray, "step layer"]


def study_view(series: Sequence[PromptSeries], calibration: Calibration) -> StudyView:
    """The view of measured prompts through a calibration.

    Args:
        series: Prompts with a class and a measurement.
        calibration: Whose window and spread are shown.
    """
    spread, window = calibration.window.spread, calibration.window.window
    is_attack = np.array([each.record.label == 1 for each in series])
    layers = padded_steps(series, spread)
    score = window_scores(layers, [window])[:, 0]
    groups = group_codes(np.array([each.record.group for each in series]))[0]
    sample = Sample(is_attack.astype(np.int64), groups)
    steps = slice(window.start, window.end + 1)
    relations = tuple(
        _relation(text, score, present_mean(padded_steps(series, name)[:, steps]), sample)
        for name, text in RELATED.items()
    )
    maps = (_mean_map(layers[members]) for members in (is_attack, ~is_attack))
    return StudyView(is_attack, score, relations, *maps)


def _relation(
    name: str, score: Float[np.ndarray, "prompt"], values: Float[np.ndarray, "prompt"], sample: Sample
) -> Relation:
    kept = np.isfinite(score) & np.isfinite(values)
    if kept.sum() < LEAST_PROMPTS:
        return Relation(name, values, None, None)
    known = Sample(sample.labels[kept], sample.groups[kept])
    pairs = (score[kept], values[kept]), (rankdata(score[kept]), rankdata(values[kept]))
    return Relation(name, values, *(known.correlation(*pair) for pair in pairs))


def _mean_map(values: Float[np.ndarray, "prompt step layer"]) -> Float[np.ndarray, "step layer"]:
    is_enough = np.isfinite(values).sum(axis=0) >= LEAST_PROMPTS
    return np.where(is_enough, mean_of_present(values), np.nan)
