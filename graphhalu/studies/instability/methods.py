"""Scores that are judged side by side; each makes its choices on the training side only."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.core.splits import inner_folds
from graphhalu.evaluation.calibration import best_f1_threshold
from graphhalu.evaluation.crossfit import standardise
from graphhalu.evaluation.maps import column_tests
from graphhalu.studies.instability.settings import CalibrateSettings
from graphhalu.studies.instability.tracker import ChosenHeads, Heads, focus_scores, important_heads


class Cases(NamedTuple):
    """Who is judged.

    Attributes:
        labels: 1 = attack.
        groups: Number of the group of prompts that say the same.
    """

    labels: Int[np.ndarray, "prompt"]
    groups: Int[np.ndarray, "prompt"]

    def of(self, members: Int[np.ndarray, "member"]) -> "Cases":
        """Some of them."""
        return Cases(self.labels[members], self.groups[members])


class Fitted(NamedTuple):
    """A method that has made its choices.

    Attributes:
        scores: Of all prompts, higher where an attack is more likely; NaN where there is none.
        choice: What was chosen, in words.
        direction: 1 if attacks are higher in what is measured, -1 if they are lower.
        place: Number of the chosen column.
        heads: Important heads, of Attention Tracker.
    """

    scores: Float[np.ndarray, "prompt"]
    choice: str
    direction: int
    place: int = 0
    heads: ChosenHeads | None = None


@dataclass(frozen=True)
class Method(ABC):
    """A score of prompts.

    Attributes:
        name: Its name.
        summary: What it is.
    """

    name: str
    summary: str

    @abstractmethod
    def fit(self, cases: Cases, train: Int[np.ndarray, "train"], seed: int) -> Fitted:
        """Choose on the training side."""

    @abstractmethod
    def fit_in_sample(self, cases: Cases) -> Fitted:
        """Choose what is best on all prompts, as if that were allowed."""


@dataclass(frozen=True)
class ColumnMethod(Method):
    """One column of many, such as one window; and the direction in which attacks lie.

    Attributes:
        columns: One value a prompt; NaN where there is none.
        texts: What each column is.
        n_inner_folds: Folds in which a column is chosen.
        allowed: Columns that the training side allows.
    """

    columns: Float[np.ndarray, "prompt column"]
    texts: tuple[str, ...]
    n_inner_folds: int
    allowed: Callable[[Int[np.ndarray, "train"]], Bool[np.ndarray, "column"]]

    def fit(self, cases: Cases, train: Int[np.ndarray, "train"], seed: int) -> Fitted:
        """The column with the best mean AUROC on held-out inner folds.

        Raises:
            NotEnoughDataError: If no inner fold holds 5 prompts of each class.
        """
        places = np.flatnonzero(self.allowed(train))
        if len(places) > 1:
            worth = self._held_out_auroc(cases, train, places, seed)
            places = places[[int(np.argmax(np.where(np.isnan(worth), -1.0, worth)))]]
        place = int(places[0])
        auroc = float(filled_auroc(self.columns[train][:, [place]], *cases.of(train))[0])
        return self._fitted(place, auroc)

    def fit_in_sample(self, cases: Cases) -> Fitted:
        """The column and direction with the best AUROC on the very prompts that it is told of."""
        everyone = np.arange(len(cases.labels))
        auroc = filled_auroc(self.columns, *cases)
        distance = np.where(self.allowed(everyone), np.abs(auroc - 0.5), -1.0)
        place = int(np.argmax(np.where(np.isnan(distance), -1.0, distance)))
        return self._fitted(place, float(auroc[place]))

    def _held_out_auroc(
        self, cases: Cases, train: Int[np.ndarray, "train"], places: Int[np.ndarray, "column"], seed: int
    ) -> Float[np.ndarray, "column"]:
        folds = inner_folds(*cases, train, n_folds=self.n_inner_folds, seed=seed)
        total = np.zeros(len(places))
        for fold in folds:
            fitted, held_out = (
                filled_auroc(self.columns[np.ix_(side, places)], *cases.of(side))
                for side in (fold.train, fold.held_out)
            )
            total += np.where(fitted >= 0.5, held_out, 1 - held_out)  # noqa: PLR2004
        if np.isnan(total).all():
            raise few_prompts(self.name)
        return total / len(folds)

    def _fitted(self, place: int, auroc: float) -> Fitted:
        if np.isnan(auroc):
            raise few_prompts(self.name)
        direction = 1 if auroc >= 0.5 else -1  # noqa: PLR2004
        return Fitted(direction * self.columns[:, place], self.texts[place], direction, place)


@dataclass(frozen=True)
class TrackerMethod(Method):
    """Attention Tracker: minus the mean focus of important heads.

    Attributes:
        focus: Focus of every head in step 0.
        k_values: As :func:`important_heads` has them.
        given: A published list of heads; nothing is chosen then.
    """

    focus: Float[np.ndarray, "prompt layer head"]
    k_values: tuple[float, ...]
    given: Heads | None = None

    def fit(self, cases: Cases, train: Int[np.ndarray, "train"], seed: int) -> Fitted:
        """Important heads of the training side; a low focus means attack, always."""
        if self.given is not None:
            chosen, text = ChosenHeads(self.given, None), "the given heads"
        else:
            chosen = important_heads(self.focus[train], cases.labels[train], k_values=self.k_values)
            rule = "all heads: none is apart" if chosen.k is None else f"k = {chosen.k:g}"
            text = f"{len(chosen.heads)} heads, {rule}"
        return Fitted(-focus_scores(self.focus, chosen.heads), text, -1, heads=chosen)

    def fit_in_sample(self, cases: Cases) -> Fitted:
        """Important heads of all prompts."""
        return self.fit(cases, np.arange(len(cases.labels)), 0)


def filled_auroc(
    columns: Float[np.ndarray, "prompt column"],
    labels: Int[np.ndarray, "prompt"],
    groups: Int[np.ndarray, "prompt"],
) -> Float[np.ndarray, "column"]:
    """AUROC of each column with missing values at its median; NaN where nearly all are missing.

    A window that many answers never reach does not look good by the few that do.
    """
    is_there = np.isfinite(columns)
    has_any = is_there.any(axis=0)
    medians = np.full(columns.shape[1], np.nan)
    medians[has_any] = np.nanmedian(columns[:, has_any], axis=0)
    return column_tests(np.where(is_there, columns, medians), labels, groups).auroc


def few_prompts(name: str) -> NotEnoughDataError:
    """The error for a choice without enough prompts of a class."""
    return NotEnoughDataError(
        f"{name}: every fold needs 5 attacks and 5 benign prompts to choose from\n"
        f"  Measure more prompts, or use fewer folds:  --folds 2 --set n_inner_folds=2"
    )


class NestedScores(NamedTuple):
    """Scores of one seed, each by choices made without the prompt.

    Attributes:
        scores: Pooled over folds; the median where there is none.
        is_flagged: For each aim, and last for the best F1, whether the prompt is flagged.
        choices: What each fold chose.
        coverage: Share of prompts with a score.
    """

    scores: Float[np.ndarray, "prompt"]
    is_flagged: Bool[np.ndarray, "aim prompt"]
    choices: tuple[str, ...]
    coverage: float


def nested_scores(method: Method, cases: Cases, settings: CalibrateSettings, seed: int) -> NestedScores:
    """Score every prompt by choices that were made without it and without its likes."""
    everyone = np.arange(len(cases.labels))
    folds = inner_folds(*cases, everyone, n_folds=settings.n_folds, seed=seed)
    pooled, choices = np.full(len(everyone), np.nan), []
    flagged = np.zeros((len(settings.false_positive_rates) + 1, len(everyone)), dtype=bool)
    for fold in folds:
        fitted = method.fit(cases, fold.train, seed)
        own, held_out = fitted.scores[fold.train], fitted.scores[fold.held_out]
        pooled[fold.held_out] = standardise(held_out, own)
        limits = thresholds(own, cases.labels[fold.train], settings)
        flagged[:, fold.held_out] = held_out >= limits[:, None]
        choices.append(fitted.choice)
    is_there = np.isfinite(pooled)
    scores = np.where(is_there, pooled, np.nanmedian(pooled))
    return NestedScores(scores, flagged, tuple(choices), float(is_there.mean()))


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
    scores: Float[np.ndarray, "prompt"], labels: Int[np.ndarray, "prompt"], settings: CalibrateSettings
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
