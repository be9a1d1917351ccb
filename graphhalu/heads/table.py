"""Tables of heads: one score a trial and head, and heads chosen by them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from graphhalu.core.errors import NotEnoughDataError, UsageError
from graphhalu.heads.settings import RETRIEVAL_THRESHOLD
from graphhalu.heads.statistics import (
    N_RESAMPLES,
    Interval,
    mean_of_present,
    percentile_interval,
    resampled_means,
)


class Trial(NamedTuple):
    """A trial that counts.

    Attributes:
        trial_id: What was tried.
        group: Trials of one group are drawn together; a question, or the trial itself.
    """

    trial_id: str
    group: str


class Rejected(NamedTuple):
    """A trial that does not count, and why."""

    trial_id: str
    reason: str


@dataclass(frozen=True)
class HeadRow:
    """One head of a table; a number that there is not is NaN."""

    layer: int
    head: int
    mean: float
    low: float
    high: float
    chance: float
    std: float
    max: float
    count: int


@dataclass(frozen=True)
class HeadTable:
    """Scores of every head in one role.

    Attributes:
        role: What is measured: ``retrieval``, ``reasoning``, ``induction`` …
        layers: Model layer of each entry of the layer axis.
        trials: Accepted trials, in the order of ``scores``.
        scores: One score a trial and head; NaN where a layer could not see what is looked for.
        chance: Score of a head that attends blindly; NaN where it is not known.
        rejected: Trials that do not count, with reasons.
        model: Identity of the model; empty if it is not known.
        settings: Everything that the scores depend on; plain JSON values.
        columns: More numbers a head, by name, such as a contrast.
        n_resamples: Resamples of the interval.
        seed: Seed of the resamples.
    """

    role: str
    layers: tuple[int, ...]
    trials: tuple[Trial, ...]
    scores: Float[np.ndarray, "trial layer head"]
    chance: Float[np.ndarray, "layer head"]
    rejected: tuple[Rejected, ...] = ()
    model: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Float[np.ndarray, "layer head"]] = field(default_factory=dict)
    n_resamples: int = N_RESAMPLES
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse parts that do not fit together.

        Raises:
            UsageError: If they do not.
        """
        expected = (len(self.trials), len(self.layers), self.chance.shape[1])
        wrong = [name for name, v in self.columns.items() if v.shape != self.chance.shape]
        if self.scores.shape != expected or self.chance.shape != expected[1:] or wrong:
            raise UsageError(
                f"the {self.role} table does not fit together: {len(self.trials)} trials and "
                f"{len(self.layers)} layers, scores {self.scores.shape}, chance "
                f"{self.chance.shape}" + (f", column {wrong[0]}" if wrong else "")
            )

    @property
    def n_heads(self) -> int:
        """Heads of a layer."""
        return int(self.chance.shape[1])

    @cached_property
    def mean(self) -> Float[np.ndarray, "layer head"]:
        """Mean over all accepted trials in which the layer could see; NaN if there is none."""
        return mean_of_present(self.scores)

    @cached_property
    def count(self) -> Int[np.ndarray, "layer head"]:
        """Trials with a score."""
        return (~np.isnan(self.scores)).sum(0)

    @cached_property
    def std(self) -> Float[np.ndarray, "layer head"]:
        """Standard deviation over trials (n - 1); NaN below two."""
        squares = np.where(np.isnan(self.scores), 0.0, self.scores - self.mean) ** 2
        variance = squares.sum(0) / np.maximum(self.count - 1, 1)
        return np.where(self.count > 1, np.sqrt(variance), np.nan)

    @cached_property
    def max(self) -> Float[np.ndarray, "layer head"]:
        """Largest score; NaN if there is none."""
        return np.fmax.reduce(self.scores, axis=0, initial=np.nan)

    @cached_property
    def interval(self) -> Interval:
        """95 % interval of the mean over resampled groups of trials."""
        return percentile_interval(self.resampled())

    def resampled(
        self, *, n_resamples: int | None = None, seed: int | None = None
    ) -> Float[np.ndarray, "resample layer head"]:
        """Mean of each head on each resample of groups.

        Raises:
            NotEnoughDataError: If there is no trial.
        """
        groups = [trial.group for trial in self.trials]
        number = self.n_resamples if n_resamples is None else n_resamples
        own = self.seed if seed is None else seed
        return resampled_means(self.scores, groups, n_resamples=number, seed=own)

    def ranked(self) -> list[HeadRow]:
        """All heads with a score, best first; equal ones by layer and head."""
        low, high = self.interval if self.trials else (self.mean, self.mean)
        grids = {"mean": self.mean, "low": low, "high": high, "chance": self.chance}
        grids |= {"std": self.std, "max": self.max}
        return [
            HeadRow(
                layer=self.layers[place],
                head=head,
                count=int(self.count[place, head]),
                **{name: float(grid[place, head]) for name, grid in grids.items()},
            )
            for place, head in ranked_places(self.mean)
        ]

    def require_trials(self) -> "HeadTable":
        """The table itself, unless no trial was accepted.

        Raises:
            NotEnoughDataError: If so; counts the reasons.
        """
        if self.trials:
            return self
        reasons = [item.reason for item in self.rejected]
        listed = "; ".join(f"{reasons.count(reason)} x {reason}" for reason in dict.fromkeys(reasons[:50]))
        raise NotEnoughDataError(
            f"no trial of {len(reasons)} counts for the {self.role} heads: {listed or 'none made'}"
            f"\n  Lower the gate, or make the trials easier"
        )


def ranked_places(values: Float[np.ndarray, "layer head"]) -> list[tuple[int, int]]:
    """Places of the values that are there, largest first; equal ones by layer and head."""
    flat = values.ravel()
    there = np.flatnonzero(~np.isnan(flat))
    order = there[np.argsort(-flat[there], kind="stable")]
    return [(int(cell // values.shape[1]), int(cell % values.shape[1])) for cell in order]


@dataclass(frozen=True)
class HeadMask:
    """Some heads of a model.

    Attributes:
        role: The role that they were chosen for.
        layers: Model layer of each entry of the layer axis.
        is_chosen: Which heads.
        rule: How they were chosen, in words.
    """

    role: str
    layers: tuple[int, ...]
    is_chosen: Bool[np.ndarray, "layer head"]
    rule: str

    @property
    def heads(self) -> tuple[tuple[int, int], ...]:
        """Model layer and head of each chosen one."""
        return tuple((self.layers[place], int(head)) for place, head in np.argwhere(self.is_chosen))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the chosen heads, such as ``L16H19``."""
        return tuple(f"L{layer}H{head}" for layer, head in self.heads)


def top_k_heads(table: HeadTable, k: int) -> HeadMask:
    """The ``k`` heads with the highest mean; equal ones by layer and head.

    Raises:
        UsageError: If ``k`` is not positive, or more than there are heads with a score.
    """
    is_chosen = _top(table.mean, k, table.role)
    return HeadMask(table.role, table.layers, is_chosen, f"the {k} highest means")


def heads_above(table: HeadTable, threshold: float = RETRIEVAL_THRESHOLD) -> HeadMask:
    """The heads whose mean is at least ``threshold``; a head without a score is none of them.

    Raises:
        UsageError: If the threshold is not a number.
        NotEnoughDataError: If there is none.
    """
    if not np.isfinite(threshold):
        raise UsageError(f"the threshold of a mean is a number, got {threshold}")
    is_chosen = np.nan_to_num(table.mean, nan=-np.inf) >= threshold
    return _checked(HeadMask(table.role, table.layers, is_chosen, f"mean >= {threshold:g}"), table)


def stable_heads(
    table: HeadTable, k: int, *, min_share: float = 0.9, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> HeadMask:
    """The heads that are among the ``k`` highest in at least ``min_share`` of the resamples.

    Raises:
        UsageError: If ``k`` or the share cannot be used.
        NotEnoughDataError: If there is none, or no trial.
    """
    if not 0 < min_share <= 1:
        raise UsageError(f"the share of resamples is above 0 and at most 1, got {min_share}")
    share = top_k_share(table, k, n_resamples=n_resamples, seed=seed)
    rule = f"among the {k} highest in {min_share:.0%} of {n_resamples} resamples"
    return _checked(HeadMask(table.role, table.layers, share >= min_share, rule), table)


def top_k_share(
    table: HeadTable, k: int, *, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> Float[np.ndarray, "layer head"]:
    """Share of resamples in which a head is among the ``k`` highest, in [0, 1].

    Groups of trials are drawn with replacement. A head without a score in a resample is not
    among them there.

    Raises:
        UsageError: If ``k`` cannot be used.
        NotEnoughDataError: If there is no trial.
    """
    _top(table.mean, k, table.role)
    means = table.resampled(n_resamples=n_resamples, seed=seed).reshape(n_resamples, -1)
    filled = np.where(np.isnan(means), -np.inf, means)
    order = np.argsort(-filled, axis=1, kind="stable")[:, :k]
    is_among = np.zeros(filled.shape, dtype=np.bool_)
    np.put_along_axis(is_among, order, values=True, axis=1)
    is_among &= np.isfinite(filled)
    return is_among.mean(0).reshape(table.mean.shape)


def role_matrix(tables: Sequence[HeadTable]) -> tuple[Float[np.ndarray, "layer head role"], tuple[str, ...]]:
    """The means of several tables of one model, side by side, and their roles.

    Raises:
        UsageError: If there is no table, two have the same role, or they belong to different
            models.
    """
    if not tables:
        raise UsageError("there is no table of heads to put side by side")
    names = tuple(table.role for table in tables)
    if len(set(names)) != len(names):
        raise UsageError(f"every role may stand there once, got {', '.join(names)}")
    first = tables[0]
    for table in tables[1:]:
        is_same_model = not (table.model and first.model) or table.model == first.model
        if (table.layers, table.n_heads) != (first.layers, first.n_heads) or not is_same_model:
            raise UsageError(
                f"the tables {first.role!r} and {table.role!r} belong to different models: "
                f"{_measures(first)} and {_measures(table)}"
            )
    return np.stack([table.mean for table in tables], axis=-1), names


def _top(values: Float[np.ndarray, "layer head"], k: int, role: str) -> Bool[np.ndarray, "layer head"]:
    places = ranked_places(values)
    if not 1 <= k <= len(places):
        raise UsageError(f"{k} heads were asked for; the {role} table has {len(places)} heads with a score")
    is_chosen = np.zeros(values.shape, dtype=np.bool_)
    is_chosen[tuple(np.transpose(places[:k]))] = True
    return is_chosen


def _checked(mask: HeadMask, table: HeadTable) -> HeadMask:
    if mask.is_chosen.any():
        return mask
    best = ranked_places(table.mean)
    highest = f"the highest mean is {table.mean[best[0]]:.3g}" if best else "no head has a score"
    raise NotEnoughDataError(f"no {table.role} head by the rule {mask.rule!r}: {highest}")


def _measures(table: HeadTable) -> str:
    name = table.model.get("name", "unknown model")
    return f"{name} ({len(table.layers)} layers of {table.n_heads} heads)"
