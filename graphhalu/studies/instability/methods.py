"""Scores that are judged side by side; each makes its choices on the training side only."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from graphhalu.errors import NotEnoughDataError
from graphhalu.evaluation.maps import column_tests
from graphhalu.splits import inner_folds
from graphhalu.studies.instability.tracker import (
    ChosenHeads,
    Heads,
    focus_scores,
    important_heads,
)

LEARNED: Final = 0
"""Direction of a score that learns on the training side which way attacks lie."""


class Cases(NamedTuple):
    """Who is judged.

    Attributes:
        labels: 1 = attack.
        groups: Number of the group of prompts that say the same.
    """

    labels: Int[np.ndarray, "prompt"]
    groups: Int[np.ndarray, "prompt"]


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
        auroc = float(filled_auroc(self.columns[train][:, [place]], *_of(cases, train))[0])
        return self._fitted(place, auroc)

    def fit_in_sample(self, cases: Cases) -> Fitted:
        """The column and direction with the best AUROC on the very prompts that it is told of."""
        everyone = np.arange(len(cases.labels))
        auroc = filled_auroc(self.columns, *cases)
        distance = np.where(self.allowed(everyone), np.abs(auroc - 0.5), -1.0)
        place = int(np.argmax(np.where(np.isnan(distance), -1.0, distance)))
        return self._fitted(place, float(auroc[place]))

    def _held_out_auroc(
        self,
        cases: Cases,
        train: Int[np.ndarray, "train"],
        places: Int[np.ndarray, "column"],
        seed: int,
    ) -> Float[np.ndarray, "column"]:
        folds = inner_folds(
            cases.labels, cases.groups, train, n_folds=self.n_inner_folds, seed=seed
        )
        total = np.zeros(len(places))
        for fold in folds:
            fitted, held_out = (
                filled_auroc(self.columns[np.ix_(side, places)], *_of(cases, side))
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
            return self._fitted(ChosenHeads(self.given, None), "the given heads")
        chosen = important_heads(self.focus[train], cases.labels[train], k_values=self.k_values)
        rule = "all heads: none is apart" if chosen.k is None else f"k = {chosen.k:g}"
        return self._fitted(chosen, f"{len(chosen.heads)} heads, {rule}")

    def fit_in_sample(self, cases: Cases) -> Fitted:
        """Important heads of all prompts."""
        return self.fit(cases, np.arange(len(cases.labels)), 0)

    def _fitted(self, chosen: ChosenHeads, text: str) -> Fitted:
        return Fitted(-focus_scores(self.focus, chosen.heads), text, -1, heads=chosen)


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


def _of(
    cases: Cases, side: Int[np.ndarray, "member"]
) -> tuple[Int[np.ndarray, "member"], Int[np.ndarray, "member"]]:
    return cases.labels[side], cases.groups[side]
