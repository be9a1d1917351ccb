"""Scores of prompts by choices that were made without them."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from graphhalu.evaluation.calibration import best_f1_threshold
from graphhalu.evaluation.crossfit import standardise
from graphhalu.splits import inner_folds
from graphhalu.studies.instability.methods import Cases, Method
from graphhalu.studies.instability.settings import CalibrateSettings


class NestedScores(NamedTuple):
    """Scores of one seed, each by choices made without the prompt.

    Attributes:
        scores: Pooled over folds; the median where there is none.
        is_called: For each aim, whether the prompt is flagged.
        is_called_f1: The same at the threshold of the best F1.
        choices: What each fold chose.
        coverage: Share of prompts with a score.
    """

    scores: Float[np.ndarray, "prompt"]
    is_called: Bool[np.ndarray, "aim prompt"]
    is_called_f1: Bool[np.ndarray, "prompt"]
    choices: tuple[str, ...]
    coverage: float


def nested_scores(
    method: Method, cases: Cases, settings: CalibrateSettings, seed: int
) -> NestedScores:
    """Score every prompt by choices that were made without it and without its likes."""
    n = len(cases.labels)
    folds = inner_folds(
        cases.labels, cases.groups, np.arange(n), n_folds=settings.n_folds, seed=seed
    )
    pooled, choices = np.full(n, np.nan), []
    called = np.zeros((len(settings.false_positive_rates) + 1, n), dtype=bool)
    for fold in folds:
        fitted = method.fit(cases, fold.train, seed)
        own, held_out = fitted.scores[fold.train], fitted.scores[fold.held_out]
        pooled[fold.held_out] = standardise(held_out, own)
        limits = thresholds(own, cases.labels[fold.train], settings)
        called[:, fold.held_out] = held_out >= limits[:, None]
        choices.append(fitted.choice)
    is_there = np.isfinite(pooled)
    return NestedScores(
        np.where(is_there, pooled, np.nanmedian(pooled)),
        called[:-1], called[-1], tuple(choices), float(is_there.mean()),
    )  # fmt: skip


def threshold_at(
    scores: Float[np.ndarray, "prompt"], labels: Int[np.ndarray, "prompt"], rate: float
) -> float:
    """The lowest threshold that flags at most a share ``rate`` of the benign prompts.

    Scores at or above it are flagged; a prompt without a score is not. With fewer than
    ``1 / rate`` benign prompts it lies just above the highest of them.

    Args:
        scores: Higher where an attack is more likely; NaN where there is none.
        labels: 1 = attack.
        rate: In (0, 1).
    """
    benign = scores[labels == 0]
    ordered = np.sort(benign[np.isfinite(benign)])[::-1]
    # 0.1 of 30 prompts are 3, whatever rounding makes of the product
    n_allowed = int(np.floor(rate * len(benign) + 1e-9))
    if n_allowed >= len(ordered):
        return float(np.nanmin(scores))
    return float(np.nextafter(ordered[n_allowed], np.inf))


def thresholds(
    scores: Float[np.ndarray, "prompt"],
    labels: Int[np.ndarray, "prompt"],
    settings: CalibrateSettings,
) -> Float[np.ndarray, "aim"]:
    """Those of all aims, and last that of the best F1."""
    limits = [threshold_at(scores, labels, rate) for rate in settings.false_positive_rates]
    return np.array([*limits, f1_threshold(scores, labels)])


def f1_threshold(scores: Float[np.ndarray, "prompt"], labels: Int[np.ndarray, "prompt"]) -> float:
    """The threshold with the best F1; infinite where only one class has scores at all."""
    known = np.isfinite(scores)
    if len(np.unique(labels[known])) < 2:  # noqa: PLR2004
        return float("inf")
    return best_f1_threshold(scores[known], labels[known])
