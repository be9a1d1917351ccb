"""Bootstrap intervals that resample questions, not traces.

Answers to one question are alike, so resampling them one by one would promise too narrow an
interval. Each resample is a row of multiplicities, and the metrics evaluate blocks of rows at
once; a loop runs over blocks only. Blocks are so small that their temporary arrays stay in the
cache of a core, and the draws are made once for all detectors.

An interval holds the fitted detectors fixed: it describes these scorers, not the methods.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Annotated, Final

import numpy as np
from jaxtyping import Float, Integer
from pydantic import AllowInfNan, BeforeValidator

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.core.numerics import group_multiplicities
from graphhalu.core.registry import unknown_name
from graphhalu.evaluation.metrics import (
    METRICS,
    Floats,
    Groups,
    Ints,
    Mask,
    Resampled,
    check_scores,
    ratio,
    sorted_counts,
    tie_order,
)

_BLOCK_ELEMENTS: Final = 32_768
"""Weights held at a time: 256 KiB for each temporary array."""
_CACHED_DRAWS: Final = 50_000_000
"""Draws that are kept for the next detector: 100 MB at most."""

OrNan = Annotated[float, AllowInfNan(True), BeforeValidator(lambda value: np.nan if value is None else value)]
"""A number of a result file; NaN, which the file holds as ``null``, where there is none."""
Rows = Float[np.ndarray, "row"]
"""A number of the sample, and behind it the same of each resample."""
Columns = Float[np.ndarray, "item column"]
Drawn = Integer[np.ndarray, "row group"]
"""How often each group is drawn in each resample."""
Interval = tuple[float, float, int]
"""Low and high end, and the resamples that they are made of: those that hold both classes."""


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; the same record in every study and every result file.

    ``f"{estimate:+.2f}"`` writes the number and, where there is one, its interval behind it.

    Attributes:
        value: On the sample itself.
        low: Lower end of the interval; NaN where there is none.
        high: Upper end.
        n: Resamples that the interval is made of; ``None`` where it is not a bootstrap's.
    """

    value: float
    low: OrNan = float("nan")
    high: OrNan = float("nan")
    n: int | None = None

    @classmethod
    def of(cls, rows: Rows, level: float = 0.95) -> "Estimate":
        """From the value of the sample, first, and those of its resamples.

        Raises:
            NotEnoughDataError: If more than half of the resamples have no value.
        """
        return cls(float(rows[0]), *percentile_interval(rows[1:], level))

    @property
    def has_interval(self) -> bool:
        """Whether both ends are known."""
        return bool(np.isfinite(self.low) and np.isfinite(self.high))

    def excludes(self, value: float) -> bool:
        """Whether the whole interval lies on one side of a value; false where there is none."""
        return self.low > value or self.high < value

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.excludes(0.0)

    def interval(self, form: str = ".3f") -> str:
        """The interval in brackets; empty where there is none."""
        return f"[{self.low:{form}}, {self.high:{form}}]" if self.has_interval else ""

    def __format__(self, form: str) -> str:
        """Value and interval, both in the format of a number."""
        return f"{self.value:{form}} {self.interval(form)}".strip()


@dataclass(frozen=True)
class EvaluationSet:
    """Labelled items that all detectors are evaluated on, and how their groups are resampled.

    Attributes:
        labels: Of all traces, or tokens, that were compared.
        groups: Question group of each.
        n_resamples: Resamples of the bootstrap.
        seed: Seed of the resamples.
        level: Coverage of the intervals.
    """

    labels: Ints
    groups: Groups
    n_resamples: int = 2000
    seed: int = 0
    level: float = 0.95

    def resample(
        self, metrics: Sequence[str], scores: Floats, is_valid: Mask | None = None
    ) -> dict[str, Resampled]:
        """Each metric on each resample; NaN where a resample lacks a class.

        Groups are drawn among all items, also those without a valid score: two detectors see the
        same resamples and can be subtracted or averaged.

        Args:
            metrics: Names in :data:`graphhalu.evaluation.metrics.METRICS`.
            scores: Higher means more likely hallucinated; finite where ``is_valid`` is true.
            is_valid: Which items count in the metrics; all by default.
        """
        if unknown := [name for name in metrics if name not in METRICS]:
            raise unknown_name("metric", unknown[0], METRICS)
        kept = np.flatnonzero(np.ones(len(scores), dtype=bool) if is_valid is None else is_valid)
        order, last_of_tie = tie_order(scores[kept])
        chosen = kept[order]
        group_index, n_groups = group_codes(self.groups)
        columns, sorted_labels = group_index[chosen], self.labels[chosen]
        step = max(1, _BLOCK_ELEMENTS // max(1, len(chosen)))
        values: dict[str, list[Float[np.ndarray, "block"]]] = {name: [] for name in metrics}
        for drawn in drawn_blocks(n_groups, self.n_resamples, self.seed):
            for start in range(0, len(drawn), step):
                weights = np.take(drawn[start : start + step], columns, axis=1)
                counts = sorted_counts(weights, sorted_labels, last_of_tie)
                for name, found in values.items():
                    found.append(METRICS[name](counts))
        return {name: np.concatenate(blocks) for name, blocks in values.items()}

    def stratified_auroc(self, scores: Floats, strata: Groups, is_valid: Mask) -> Rows:
        """Share of pairs within one stratum in the right order, of all items first, then of each resample.

        A pair is a hallucinated and a correct item; equal scores count half. NaN where there is no pair.

        Args:
            scores: Higher means more likely hallucinated; finite where ``is_valid`` is true.
            strata: Only items of one stratum are compared.
            is_valid: Which items count.
        """
        group_index, n_groups = group_codes(self.groups)
        cells = []
        for name in np.unique(strata[is_valid]).tolist():
            here = is_valid & (strata == name)
            high, low = (np.flatnonzero(here & (self.labels == label)) for label in (1, 0))
            if len(high) and len(low):
                difference = np.sign(scores[high][:, None] - scores[low])
                cells.append((group_index[high], group_index[low], (difference + 1) / 2))
        once = np.ones((1, n_groups), dtype=np.uint8)
        blocks = chain([once], drawn_blocks(n_groups, self.n_resamples, self.seed))
        return np.concatenate([_ordered_share(drawn, cells) for drawn in blocks])

    def sums(self, columns: Columns) -> Float[np.ndarray, "row column"]:
        """Sums of columns over all items in the first row, over each resample in the others."""
        group_index, n_groups = group_codes(self.groups)
        of_group = np.zeros((n_groups, columns.shape[1]))
        np.add.at(of_group, group_index, columns)
        blocks = drawn_blocks(n_groups, self.n_resamples, self.seed)
        resampled = [drawn.astype(np.float64) @ of_group for drawn in blocks]
        return np.concatenate([columns.sum(axis=0, keepdims=True), *resampled])


def _ordered_share(drawn: Drawn, cells: Sequence[tuple[np.ndarray, ...]]) -> Rows:
    """Share of ordered pairs for each row of weights of groups.

    A cell holds the groups of its hallucinated items, those of its correct ones, and for each pair 1
    if it is ordered, or 1/2 if its scores are equal.
    """
    right, pairs = np.zeros((2, len(drawn)))
    for high, low, is_ordered in cells:
        of_high, of_low = drawn[:, high].astype(np.float64), drawn[:, low].astype(np.float64)
        right += ((of_high @ is_ordered) * of_low).sum(axis=1)
        pairs += of_high.sum(axis=1) * of_low.sum(axis=1)
    return ratio(right, pairs)


def bootstrap_interval(
    metric: str, scores: Floats, labels: Ints, groups: Groups, *, level: float = 0.95, **draws: int
) -> Interval:
    """Percentile interval of a metric over resampled groups.

    Args:
        metric: Name in :data:`graphhalu.evaluation.metrics.METRICS`.
        scores: Higher means more likely hallucinated.
        labels: 1 = hallucinated, 0 = correct.
        groups: Question group of each trace; groups are drawn with replacement, whole.
        level: Coverage of the interval, in (0, 1).
        draws: ``n_resamples`` and ``seed``, as of :class:`EvaluationSet`.

    Raises:
        UnknownNameError: If no metric has this name.
        ValueError: If a score is not finite.
        NotEnoughDataError: If a class is missing, or more than half of the resamples lack one.
    """
    check_scores(scores, labels)
    sample = EvaluationSet(labels, groups, **draws)
    return percentile_interval(sample.resample([metric], scores)[metric], level)


def mean_rows(values: Floats, groups: Groups, **draws: int) -> Rows:
    """Mean over the traces, then over each resample of groups: rows of :meth:`Estimate.of`."""
    sums = resample_sums(np.stack([values, np.ones(len(values))], axis=1), groups, **draws)
    return sums[:, 0] / sums[:, 1]


def resample_sums(columns: Columns, groups: Groups, **draws: int) -> Float[np.ndarray, "row column"]:
    """:meth:`EvaluationSet.sums` by group; ``draws``: ``n_resamples`` and ``seed``."""
    return EvaluationSet(np.zeros(len(groups), dtype=np.int64), groups, **draws).sums(columns)


def two_sided_p(differences: Resampled) -> float:
    """Twice the smaller share of resamples on either side of zero, one added to both counts."""
    used = differences[np.isfinite(differences)]
    smaller = min(int((used <= 0).sum()), int((used >= 0).sum()))
    return min(1.0, 2 * (smaller + 1) / (len(used) + 1))


def percentile_interval(values: Resampled, level: float) -> Interval:
    """The middle ``level`` share of the resamples that have a value.

    Raises:
        ValueError: If the level is not in (0, 1).
        NotEnoughDataError: If more than half of the resamples lack a class.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    used = values[np.isfinite(values)]
    if 2 * len(used) < len(values) or not len(used):
        share = f"{len(used)} of {len(values)} resamples hold both classes"
        raise NotEnoughDataError(f"only {share}: an interval needs more questions of the rarer class")
    low, high = np.quantile(used, [(1 - level) / 2, 1 - (1 - level) / 2])
    return float(low), float(high), len(used)


def group_codes(groups: Groups) -> tuple[Ints, int]:
    """Number of each trace's group, and how many groups there are."""
    group_index = np.unique(groups, return_inverse=True)[1]
    return group_index, int(group_index.max()) + 1


def drawn_blocks(n_groups: int, n_resamples: int, seed: int) -> Iterator[Drawn]:
    """The multiplicities of all resamples, some rows at a time; small ones are drawn only once."""
    if n_groups * n_resamples <= _CACHED_DRAWS:
        yield _cached_draws(n_groups, n_resamples, seed)
    else:
        yield from _draws(n_groups, n_resamples, seed, _CACHED_DRAWS // (8 * n_groups))


@lru_cache(maxsize=1)
def _cached_draws(n_groups: int, n_resamples: int, seed: int) -> Drawn:
    blocks = _draws(n_groups, n_resamples, seed, _BLOCK_ELEMENTS // n_groups)
    # a group is drawn n_groups times at most
    return np.concatenate([drawn.astype(np.min_scalar_type(n_groups)) for drawn in blocks])


def _draws(n_groups: int, n_resamples: int, seed: int, n_rows: int) -> Iterator[Drawn]:
    generator, step = np.random.default_rng(seed), max(1, n_rows)
    for start in range(0, n_resamples, step):
        yield group_multiplicities(n_groups, min(step, n_resamples - start), generator)
