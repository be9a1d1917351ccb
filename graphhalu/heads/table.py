"""Tables of heads: one score a trial and head, their statistics, and heads chosen by them.

Whole groups of trials are resampled, since answers to one question are alike. A missing score (NaN)
is left out of every mean; a head without any score has no interval.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.special import ndtr

from graphhalu.core.errors import NotEnoughDataError, UsageError
from graphhalu.core.numerics import benjamini_hochberg, group_multiplicities
from graphhalu.heads.settings import RETRIEVAL_THRESHOLD

PerCell = Float[np.ndarray, "*cell"]
Resampled = Float[np.ndarray, "resample *cell"]
PerHead = Float[np.ndarray, "layer head"]

N_RESAMPLES: Final = 2000
LEVEL: Final = 0.95


class HeadScores(NamedTuple):
    """Scores of heads, and those that heads which attend blindly would have.

    NaN where no head can show anything: no row sees all of what is looked for. A zero would say
    that a head had looked elsewhere.
    """

    score: Float[np.ndarray, "*any"]
    chance: Float[np.ndarray, "*own"]


Trial = tuple[str, str]
"""What was tried, and its group: trials of one group are drawn together. A question, or the trial itself."""


@dataclass(frozen=True)
class HeadTable:
    """Scores of every head in one role.

    Attributes:
        role: What is measured: ``retrieval``, ``reasoning``, ``induction`` …
        layers: Model layer of each entry of the layer axis.
        trials: Accepted trials, in the order of ``scores``.
        scores: One score a trial and head; NaN where a layer could not see what is looked for.
        chance: Score of a head that attends blindly; NaN where it is not known.
        rejected: Trials that do not count, each with its reason.
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
    chance: PerHead
    rejected: tuple[tuple[str, str], ...] = ()
    model: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, PerHead] = field(default_factory=dict)
    n_resamples: int = N_RESAMPLES
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse parts that do not fit together.

        Raises:
            UsageError: If they do not.
        """
        shapes = {"scores": self.scores.shape[1:], "chance": self.chance.shape}
        shapes |= {name: values.shape for name, values in self.columns.items()}
        wrong = [name for name, shape in shapes.items() if shape != (len(self.layers), self.n_heads)]
        if wrong or len(self.scores) != len(self.trials):
            raise UsageError(
                f"the {self.role} table does not fit together: {len(self.trials)} trials and "
                f"{len(self.layers)} layers of {self.n_heads} heads, got {len(self.scores)} trials, {shapes}"
            )

    @property
    def n_heads(self) -> int:
        """Heads of a layer."""
        return int(self.chance.shape[1])

    @cached_property
    def mean(self) -> PerHead:
        """Mean over all accepted trials in which the layer could see; NaN if there is none."""
        return mean_of_present(self.scores)

    @cached_property
    def count(self) -> Int[np.ndarray, "layer head"]:
        """Trials with a score."""
        return (~np.isnan(self.scores)).sum(0)

    @cached_property
    def std(self) -> PerHead:
        """Standard deviation over trials (n - 1); NaN below two."""
        squares = np.where(np.isnan(self.scores), 0.0, self.scores - self.mean) ** 2
        variance = squares.sum(0) / np.maximum(self.count - 1, 1)
        return np.where(self.count > 1, np.sqrt(variance), np.nan)

    @cached_property
    def max(self) -> PerHead:
        """Largest score; NaN if there is none."""
        return np.fmax.reduce(self.scores, axis=0, initial=np.nan)

    @cached_property
    def interval(self) -> Float[np.ndarray, "end layer head"]:
        """Both ends of the 95 % interval of the mean over resampled groups of trials."""
        return percentile_interval(self.resampled())

    def resampled(self) -> Float[np.ndarray, "resample layer head"]:
        """Mean of each head on each resample of groups.

        Raises:
            NotEnoughDataError: If there is no trial.
        """
        groups = [group for _, group in self.trials]
        return resampled_means(self.scores, groups, n_resamples=self.n_resamples, seed=self.seed)

    def ranked(self) -> list[dict[str, Any]]:
        """All heads with a score, best first; equal ones by layer and head.

        Returns:
            Of each its ``layer``, ``head``, ``mean``, ``low``, ``high``, ``chance``, ``std``, ``max`` and
            ``count``; a number that there is not is NaN.
        """
        low, high = self.interval if self.trials else (self.mean, self.mean)
        grids = {"mean": self.mean, "low": low, "high": high, "chance": self.chance}
        grids |= {"std": self.std, "max": self.max, "count": self.count}
        return [
            {
                "layer": self.layers[place],
                "head": head,
                **{name: grid[place, head].item() for name, grid in grids.items()},
            }
            for place, head in ranked_places(self.mean)
        ]

    def require_trials(self) -> "HeadTable":
        """The table itself, unless no trial was accepted.

        Raises:
            NotEnoughDataError: If so; counts the reasons.
        """
        if self.trials:
            return self
        reasons = [reason for _, reason in self.rejected]
        listed = "; ".join(f"{reasons.count(reason)} x {reason}" for reason in dict.fromkeys(reasons[:50]))
        raise NotEnoughDataError(
            f"no trial of {len(reasons)} counts for the {self.role} heads: {listed or 'none made'}"
            f"\n  Lower the gate, or make the trials easier"
        )


def ranked_places(values: PerHead) -> list[tuple[int, int]]:
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


def top_k_share(table: HeadTable, k: int, *, n_resamples: int = N_RESAMPLES, seed: int = 0) -> PerHead:
    """Share of resamples in which a head is among the ``k`` highest, in [0, 1].

    Groups of trials are drawn with replacement. A head without a score in a resample is not
    among them there.

    Raises:
        UsageError: If ``k`` cannot be used.
        NotEnoughDataError: If there is no trial.
    """
    _top(table.mean, k, table.role)
    means = replace(table, n_resamples=n_resamples, seed=seed).resampled().reshape(n_resamples, -1)
    filled = np.where(np.isnan(means), -np.inf, means)
    order = np.argsort(-filled, axis=1, kind="stable")[:, :k]
    is_among = np.zeros(filled.shape, dtype=np.bool_)
    np.put_along_axis(is_among, order, values=True, axis=1)
    is_among &= np.isfinite(filled)
    return is_among.mean(0).reshape(table.mean.shape)


def _top(values: PerHead, k: int, role: str) -> Bool[np.ndarray, "layer head"]:
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


def mean_of_present(values: Float[np.ndarray, "*any"], axis: int = 0) -> PerCell:
    """Mean over an axis, such as that of trials, of the values that are there; NaN where there is none."""
    is_there = ~np.isnan(values)
    count = is_there.sum(axis)
    total = np.where(is_there, values, 0.0).sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def resampled_means(
    values: Float[np.ndarray, "trial *cell"],
    groups: Sequence[str] | Shaped[np.ndarray, "trial"],
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Resampled:
    """Mean over trials on each resample of whole groups.

    Args:
        values: One value for each trial; NaN = missing.
        groups: Group of each trial.
        n_resamples: How many resamples.
        seed: Seed of the resamples; two calls with the same groups see the same ones.

    Returns:
        NaN where a resample holds no value.

    Raises:
        NotEnoughDataError: If there is no trial.
        UsageError: If there is no resample.
    """
    if n_resamples < 1:
        raise UsageError(f"a bootstrap needs at least one resample, got {n_resamples}")
    if not len(values):
        raise NotEnoughDataError("there is no trial to resample: none was accepted")
    names, group_index = np.unique(np.asarray(groups), return_inverse=True)
    generator = np.random.default_rng(seed)
    draws = group_multiplicities(len(names), n_resamples, generator).astype(np.float64)
    flat = values.reshape(len(values), -1)
    is_there = ~np.isnan(flat)
    # by group: sums of values, and numbers of values
    totals, present = np.zeros((2, len(names), flat.shape[1]))
    np.add.at(totals, group_index, np.where(is_there, flat, 0.0))
    np.add.at(present, group_index, is_there.astype(np.float64))
    counts = draws @ present
    means = np.where(counts > 0, draws @ totals / np.maximum(counts, 1), np.nan)
    return means.reshape(n_resamples, *values.shape[1:])


def percentile_interval(means: Resampled, level: float = LEVEL) -> Float[np.ndarray, "end *cell"]:
    """Both ends of the middle ``level`` share of the resamples of each cell.

    NaN where fewer than half of the resamples have a value.

    Raises:
        UsageError: If the level is not in (0, 1).
    """
    if not 0 < level < 1:
        raise UsageError(f"the level of an interval lies between 0 and 1, got {level}")
    tails = [(1 - level) / 2, (1 + level) / 2]
    flat = means.reshape(len(means), -1)
    ends = np.full((2, flat.shape[1]), np.nan)
    is_there = np.isfinite(flat)
    is_whole = is_there.all(0)
    if is_whole.any():
        ends[:, is_whole] = np.quantile(flat[:, is_whole], tails, axis=0)
    for cell in np.flatnonzero(~is_whole & (2 * is_there.sum(0) >= len(flat))):
        ends[:, cell] = np.quantile(flat[is_there[:, cell], cell], tails)
    return ends.reshape(2, *means.shape[1:])


def contrast(
    first: Float[np.ndarray, "first *cell"],
    second: Float[np.ndarray, "second *cell"],
    groups: tuple[Sequence[str], Sequence[str]],
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> dict[str, PerCell]:
    """Mean of the first trials minus that of the second, with interval and p-value a head.

    Questions are drawn among all trials together, so a question with trials on both sides stays
    whole.

    Args:
        first: Values of the first set, such as correct answers; NaN = missing.
        second: Values of the second set.
        groups: Group of each trial of the first and of the second set.
        n_resamples: How many resamples.
        seed: Seed of the resamples.

    Returns:
        The difference of means (named ``""``), the ends of its interval (``_low``, ``_high``),
        its two-sided p-value (``_p``), and that after Benjamini and Hochberg over all heads
        (``_q``).

    Raises:
        NotEnoughDataError: If a set is empty.

    Source:
        The p-value is that of a normal with the bootstrap's standard error: one from shares of
        resamples cannot be below 1 / n_resamples, which over hundreds of heads is too coarse.
    """
    if not len(first) or not len(second):
        raise NotEnoughDataError(f"a contrast needs trials on both sides, got {len(first)} and {len(second)}")
    nothing = (np.full_like(first, np.nan), np.full_like(second, np.nan))
    names = np.array([*groups[0], *groups[1]], dtype=np.str_)
    means = [
        resampled_means(np.concatenate(both), names, n_resamples=n_resamples, seed=seed)
        for both in ((first, nothing[1]), (nothing[0], second))
    ]
    resampled = means[0] - means[1]
    difference = mean_of_present(first) - mean_of_present(second)
    low, high = percentile_interval(resampled)
    p_value = normal_p_value(difference, resampled)
    q_value = benjamini_hochberg(p_value)
    return {"": difference, "_low": low, "_high": high, "_p": p_value, "_q": q_value}


def normal_p_value(difference: PerCell, resampled: Resampled) -> PerCell:
    """Two-sided p-value of a difference over its bootstrap standard error; NaN where that is 0."""
    centred = resampled - mean_of_present(resampled)
    error = np.sqrt(mean_of_present(centred**2))
    is_certain = error == 0
    z = np.abs(difference) / np.where(is_certain, 1.0, error)
    return np.where(is_certain, np.nan, 2 * ndtr(-z))
