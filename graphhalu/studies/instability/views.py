"""What the figures of the study show, as numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

from graphhalu.evaluation.bootstrap import group_codes
from graphhalu.studies.instability.calibration import Calibration, Estimate
from graphhalu.studies.instability.detect import running_score
from graphhalu.studies.instability.series import PromptSeries
from graphhalu.studies.sinks.effects import Resampling, correlation

LEAST_PROMPTS: Final = 5
"""Prompts of a class below which a step has no mean."""

RELATED: Final = {
    "entropy": "token entropy (nat)",
    "agreement": "head agreement",
}


class Relation(NamedTuple):
    """Instability against another measure, over the same window.

    Attributes:
        name: What it is set against, in words.
        values: Its mean over the steps of the window; NaN where there is none.
        pearson: Linear correlation; ``None`` where one of them has no spread.
        spearman: That of the ranks.
    """

    name: str
    values: Float[np.ndarray, "prompt"]
    pearson: Estimate | None
    spearman: Estimate | None


class MeanMap(NamedTuple):
    """Mean of the spread over the prompts of a class.

    Attributes:
        values: NaN where fewer than 5 prompts reach a step.
        n_prompts: Prompts that reach each step.
    """

    values: Float[np.ndarray, "step layer"]
    n_prompts: Int[np.ndarray, "step"]


@dataclass(frozen=True)
class StudyView:
    """Prompts as the figures show them.

    Attributes:
        is_attack: Their class.
        score: Instability over the chosen window, as measured: no direction is applied.
        relations: Against entropy and head agreement.
        attack: Mean map of the attacks.
        benign: That of the benign prompts.
    """

    is_attack: Bool[np.ndarray, "prompt"]
    score: Float[np.ndarray, "prompt"]
    relations: tuple[Relation, ...]
    attack: MeanMap
    benign: MeanMap


def study_view(series: Sequence[PromptSeries], calibration: Calibration) -> StudyView:
    """The view of measured prompts through a calibration.

    Args:
        series: Prompts with a class and a measurement.
        calibration: Whose window and spread are shown.
    """
    choice = calibration.window
    is_attack = np.array([each.record.label == 1 for each in series])
    score = np.array([_last(each, calibration) for each in series])
    groups = group_codes(np.array([each.record.group for each in series]))[0]
    relations = tuple(
        _relation(text, score, _window_means(series, name, calibration), groups)
        for name, text in RELATED.items()
    )
    attack, benign = (
        _mean_map(
            [e.arrays[choice.spread] for e, here in zip(series, members, strict=True) if here]
        )
        for members in (is_attack, ~is_attack)
    )
    return StudyView(is_attack, score, relations, attack, benign)


def _last(series: PromptSeries, calibration: Calibration) -> float:
    choice = calibration.window
    means = running_score(series.arrays[choice.spread].astype(np.float64), choice)
    return float(choice.direction * means[-1]) if len(means) else float("nan")


def _window_means(
    series: Sequence[PromptSeries], name: str, calibration: Calibration
) -> Float[np.ndarray, "prompt"]:
    window = calibration.window.window
    found = np.full(len(series), np.nan)
    for place, each in enumerate(series):
        values = each.arrays[name][window.start : window.end + 1].astype(np.float64)
        if np.isfinite(values).any():
            found[place] = np.nanmean(values)
    return found


def _relation(
    name: str,
    score: Float[np.ndarray, "prompt"],
    values: Float[np.ndarray, "prompt"],
    groups: Int[np.ndarray, "prompt"],
) -> Relation:
    kept = np.isfinite(score) & np.isfinite(values)
    pairs = [(score[kept], values[kept])]
    pairs.append((rankdata(score[kept]), rankdata(values[kept])))
    found = [_correlation(*pair, groups[kept]) for pair in pairs]
    return Relation(name, values, *found)


def _correlation(
    first: Float[np.ndarray, "prompt"],
    second: Float[np.ndarray, "prompt"],
    groups: Int[np.ndarray, "prompt"],
) -> Estimate | None:
    if len(first) < LEAST_PROMPTS:
        return None
    found = correlation(first, second, groups, Resampling())
    return None if found is None else Estimate(value=found.value, low=found.low, high=found.high)


def _mean_map(maps: Sequence[Float[np.ndarray, "_ layer"]]) -> MeanMap:
    n_steps = max(len(each) for each in maps)
    total = np.zeros((n_steps, maps[0].shape[1]))
    count, n_prompts = np.zeros_like(total), np.zeros(n_steps, dtype=np.int64)
    for each in maps:
        is_there = np.isfinite(each)
        total[: len(each)] += np.where(is_there, each, 0.0)
        count[: len(each)] += is_there
        n_prompts[: len(each)] += 1
    values = np.where(count >= LEAST_PROMPTS, total / np.maximum(count, 1), np.nan)
    return MeanMap(values, n_prompts)
