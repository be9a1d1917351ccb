"""Which differences are more than chance: every detector against the strongest baseline.

Four statements are made of each difference of AUROC. The interval and the first p-value come
from the question-level bootstrap, the second p-value from DeLong's test with questions as
groups. Holm's correction over all detectors is applied to the second, since the first cannot
be smaller than 2 / (resamples + 1). Equivalence is tested by two one-sided tests (TOST).

A trace without a valid score gets the median of the detector's other scores, so that both
detectors of a pair are judged on the same traces; this is also what a comparison ranks by.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.special import ndtr

from graphhalu.core.errors import NotEnoughDataError, UsageError
from graphhalu.evaluation.bootstrap import percentile_interval, resample_metrics, resample_sums, two_sided_p
from graphhalu.evaluation.delong import auroc_influence, grouped_delong_test
from graphhalu.evaluation.metrics import auroc
from graphhalu.evaluation.settings import MARGIN

RULE: Final = (
    "highest AUROC (traces without a score at the median) among controls and all detectors that "
    "are no graph network; chosen on the same test scores, which favours the baseline"
)
NAMED_RULE: Final = "named before the comparison"
POSITION_RULE: Final = (
    "the place of a token alone, which finds hallucinated ones and which every detector must beat"
)


@dataclass(frozen=True)
class Baseline:
    """The detector that all others are tested against.

    Attributes:
        detector: Its name.
        rule: How it was chosen.
    """

    detector: str
    rule: str


@dataclass(frozen=True)
class Comparison:
    """AUROC of a detector minus that of the baseline, on the same traces, mean over seeds.

    Attributes:
        difference: The difference.
        low: Lower end of its bootstrap interval over questions.
        high: Upper end.
        standard_error: DeLong's, with questions as groups.
        p_bootstrap: Two-sided, of no difference, by the bootstrap.
        p_delong: Two-sided, of no difference, by DeLong's test; ``None`` where two detectors
            differ by the same amount on every trace.
        p_holm: ``p_delong`` after Holm's correction over the compared detectors.
        p_equivalent: Of a difference of ``margin`` or more in either direction (TOST).
        p_not_worse: Of being worse by ``margin`` or more: the one side of it.
        margin: The difference that would matter.
    """

    detector: str
    baseline: str
    difference: float
    low: float
    high: float
    standard_error: float | None
    p_bootstrap: float
    p_delong: float | None
    p_holm: float | None
    p_equivalent: float | None
    p_not_worse: float | None
    margin: float


class SeedScores(NamedTuple):
    """Tested items of one seed with a score each; the median where there was none."""

    places: Int[np.ndarray, "tested"]
    scores: Float[np.ndarray, "tested"]

    def spread(self, n_items: int) -> tuple[Float[np.ndarray, "item"], Bool[np.ndarray, "item"]]:
        """One score for each of all items, NaN where it was not tested, and which were tested."""
        scores, is_tested = np.full(n_items, np.nan), np.zeros(n_items, dtype=bool)
        scores[self.places], is_tested[self.places] = self.scores, True
        return scores, is_tested


class Judged(NamedTuple):
    """A detector's AUROC, its influences, and its value on each resample; means over seeds."""

    auroc: float
    influence: Float[np.ndarray, "trace"]
    resampled: Float[np.ndarray, "resample"]


@dataclass(frozen=True)
class CommonGround:
    """What all detectors are tested on.

    Attributes:
        labels: Of all traces, or tokens, that were compared.
        groups: Question group of each.
        n_resamples: Resamples of the bootstrap.
        seed: Seed of the resamples.
        level: Coverage of the intervals.
        margin: Margin of the test of equivalence.
    """

    labels: Int[np.ndarray, "trace"]
    groups: Shaped[np.ndarray, "trace"]
    n_resamples: int = 2000
    seed: int = 0
    level: float = 0.95
    margin: float = MARGIN

    def resample(
        self, metrics: Sequence[str], scores: Float[np.ndarray, "trace"], is_valid: Bool[np.ndarray, "trace"]
    ) -> dict[str, Float[np.ndarray, "resample"]]:
        """Each metric on each resample, over the valid scores; NaN where one lacks a class."""
        draws = {"n_resamples": self.n_resamples, "seed": self.seed}
        return resample_metrics(metrics, scores, self.labels, self.groups, is_valid=is_valid, **draws)

    def sums(self, columns: Float[np.ndarray, "trace column"]) -> Float[np.ndarray, "row column"]:
        """Sums of columns over all traces in the first row, over each resample in the others."""
        return resample_sums(
            columns, self.groups, n_resamples=self.n_resamples, seed=self.seed, has_sample=True
        )


def compare_to_baseline(
    scores: Mapping[str, Sequence[SeedScores]], baseline: str, tested: CommonGround
) -> list[Comparison]:
    """Test every detector against the baseline, with Holm's correction over all of them.

    Args:
        scores: Scores of each seed, by detector; the seeds in the same order everywhere.
        baseline: One of the detectors.
        tested: Labels, groups and settings.

    Raises:
        UsageError: If the baseline is none of the detectors.
        NotEnoughDataError: If a class has fewer than two traces.
    """
    if baseline not in scores:
        message = f"the baseline {baseline!r} is none of {', '.join(scores)}, or it failed"
        raise UsageError(message)
    judged = {name: judge(seeds, tested) for name, seeds in scores.items()}
    others = [name for name in scores if name != baseline]
    found = [_difference(name, judged[name], baseline, judged[baseline], tested) for name in others]
    adjusted = iter(holm([c.p_delong for c in found if c.p_delong is not None]))
    return [c if c.p_delong is None else replace(c, p_holm=next(adjusted)) for c in found]


def judge(seeds: Sequence[SeedScores], tested: CommonGround) -> Judged:
    """AUROC of a detector over all tested traces, mean over seeds, with what tests need.

    Raises:
        NotEnoughDataError: If a class has fewer than two traces.
    """
    n_traces = len(tested.labels)
    influence, aurocs, resampled = np.zeros(n_traces), [], []
    for seed in seeds:
        labels = tested.labels[seed.places]
        aurocs.append(auroc(seed.scores, labels))
        influence[seed.places] += auroc_influence(seed.scores, labels) / len(seeds)
        resampled.append(tested.resample(["auroc"], *seed.spread(n_traces))["auroc"])
    return Judged(float(np.mean(aurocs)), influence, np.mean(resampled, axis=0))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values after Holm's step-down correction, in the order given.

    Source:
        Holm 1979: the smallest times their number, the next times one less, never falling.
    """
    values, n_tests = np.asarray(p_values, dtype=np.float64), len(p_values)
    order = np.argsort(values, kind="stable")
    adjusted = np.empty(n_tests)
    stepped = np.maximum.accumulate(values[order] * (n_tests - np.arange(n_tests)))
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.tolist()


class Equivalence(NamedTuple):
    """One-sided p-values of two one-sided tests.

    Attributes:
        p_not_worse: Of a difference of ``-margin`` or less.
        p_not_better: Of a difference of ``margin`` or more.
    """

    p_not_worse: float
    p_not_better: float

    @property
    def p_equivalent(self) -> float:
        """The larger of both: small only if both are refused."""
        return max(self.p_not_worse, self.p_not_better)


def tost(difference: float, standard_error: float, margin: float = MARGIN) -> Equivalence:
    """Two one-sided normal tests that a difference lies within ``±margin``.

    Raises:
        ValueError: If the margin or the standard error is not positive.

    Source:
        Schuirmann 1987.
    """
    if margin <= 0 or standard_error <= 0:
        message = f"margin and error must be positive, got {margin:g} and {standard_error:g}"
        raise ValueError(message)
    return Equivalence(
        float(ndtr(-(difference + margin) / standard_error)),
        float(ndtr((difference - margin) / standard_error)),
    )


def _difference(name: str, first: Judged, baseline: str, second: Judged, tested: CommonGround) -> Comparison:
    resampled = first.resampled - second.resampled
    low, high, _ = percentile_interval(resampled, tested.level)
    difference, influence = first.auroc - second.auroc, first.influence - second.influence
    error = p_delong = equivalence = None
    with suppress(NotEnoughDataError):  # there may be no spread to test against
        _, error, p_delong = grouped_delong_test(difference, influence, tested.groups)
    if error:
        equivalence = tost(difference, error, tested.margin)
    return Comparison(
        name,
        baseline,
        difference,
        low,
        high,
        standard_error=error,
        p_bootstrap=two_sided_p(resampled),
        p_delong=p_delong,
        p_holm=None,
        p_equivalent=equivalence and equivalence.p_equivalent,
        p_not_worse=equivalence and equivalence.p_not_worse,
        margin=tested.margin,
    )
