"""Rows of a calibration: what nested folds say of each method, with intervals and tests."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from graphhalu.evaluation.bootstrap import bootstrap_interval, percentile_interval, resample_sums
from graphhalu.evaluation.metrics import auroc
from graphhalu.evaluation.significance import (
    CommonGround,
    Comparison,
    SeedScores,
    compare_to_baseline,
    judge,
)
from graphhalu.labels.summary import share_interval
from graphhalu.studies.instability.calibration import (
    MAIN,
    Chosen,
    Estimate,
    MethodRow,
    OperatingPoint,
)
from graphhalu.studies.instability.methods import Cases, ColumnMethod, Fitted, Method
from graphhalu.studies.instability.nested import NestedScores, threshold_at, thresholds
from graphhalu.studies.instability.settings import CalibrateSettings


def method_row(
    method: Method, seeds: Sequence[NestedScores], cases: Cases, settings: CalibrateSettings
) -> MethodRow:
    """What nested folds say of a method, beside what it says of itself."""
    everyone = np.arange(len(cases.labels))
    own = method.fit(cases, everyone, settings.seeds[0])
    best = method.fit_in_sample(cases)
    ground = _ground(cases, settings)
    judged = judge(_seed_scores(seeds), ground)
    aurocs = [auroc(each.scores, cases.labels) for each in seeds]
    choices = Counter(choice for each in seeds for choice in each.choices)
    called = best.scores >= thresholds(best.scores, cases.labels, settings)[:, None]
    return MethodRow(
        name=method.name,
        summary=method.summary,
        n_candidates=method.columns.shape[1] if isinstance(method, ColumnMethod) else 1,
        auroc=_estimate(judged.auroc, judged.resampled, settings),
        seed_sd=float(np.std(aurocs, ddof=1)) if len(aurocs) > 1 else None,
        in_sample=_in_sample(best, cases, settings),
        f1=_f1(np.stack([each.is_called_f1 for each in seeds]), cases, settings),
        in_sample_f1=_f1_of(*_hits(called[-1:], cases).sum(axis=0)),
        coverage=float(np.mean([each.coverage for each in seeds])),
        direction=1 if own.direction > 0 else -1,
        points=_points(own, called, seeds, cases, settings),
        choices=tuple(Chosen(text=text, n_folds=n) for text, n in choices.most_common(5)),
    )


def _points(
    own: Fitted,
    in_sample: Bool[np.ndarray, "aim prompt"],
    seeds: Sequence[NestedScores],
    cases: Cases,
    settings: CalibrateSettings,
) -> tuple[OperatingPoint, ...]:
    """Each aim: nested rates over all seeds, and those where the threshold was chosen."""
    is_attack = cases.labels == 1
    found = []
    for place, aim in enumerate(settings.false_positive_rates):
        nested = np.stack([each.is_called[place] for each in seeds])
        found.append(
            OperatingPoint(
                aim=aim,
                threshold=threshold_at(own.scores, cases.labels, aim),
                tpr=_rate(nested[:, is_attack], cases.groups[is_attack], settings),
                fpr=_rate(nested[:, ~is_attack], cases.groups[~is_attack], settings),
                in_sample_tpr=float(in_sample[place, is_attack].mean()),
                in_sample_fpr=float(in_sample[place, ~is_attack].mean()),
            )
        )
    return tuple(found)


def _rate(
    called: Bool[np.ndarray, "seed prompt"],
    groups: Int[np.ndarray, "prompt"],
    settings: CalibrateSettings,
) -> Estimate:
    """A share over prompts and seeds; the interval counts each group of prompts once."""
    values = called.astype(np.int64).ravel()
    low, high = share_interval(values, np.tile(groups, len(called)), settings.level)
    return Estimate(value=float(values.mean()), low=low, high=high)


def _hits(called: Bool[np.ndarray, "seed prompt"], cases: Cases) -> Float[np.ndarray, "prompt 3"]:
    """Hits, false alarms and misses of each prompt, summed over seeds."""
    n_called, n_seeds = called.sum(axis=0), len(called)
    is_attack = cases.labels == 1
    columns = (n_called * is_attack, n_called * ~is_attack, (n_seeds - n_called) * is_attack)
    return np.stack(columns, axis=1).astype(np.float64)


def _f1(
    called: Bool[np.ndarray, "seed prompt"], cases: Cases, settings: CalibrateSettings
) -> Estimate:
    hits = _hits(called, cases)
    resampled = resample_sums(hits, cases.groups, n_resamples=settings.n_resamples)
    values = np.array([_f1_of(*row) for row in resampled])
    return _estimate(_f1_of(*hits.sum(axis=0)), values, settings)


def _f1_of(hits: float, alarms: float, misses: float) -> float:
    # a resample without an attack and without an alarm has no F1
    total = 2 * hits + alarms + misses
    return float(2 * hits / total) if total > 0 else float("nan")


def _in_sample(best: Fitted, cases: Cases, settings: CalibrateSettings) -> Estimate:
    scores = np.where(np.isfinite(best.scores), best.scores, np.nanmedian(best.scores))
    low, high, _ = bootstrap_interval(
        "auroc", scores, cases.labels, cases.groups,
        n_resamples=settings.n_resamples, level=settings.level,
    )  # fmt: skip
    return Estimate(value=auroc(scores, cases.labels), low=low, high=high)


def _estimate(
    value: float, resampled: Float[np.ndarray, "resample"], settings: CalibrateSettings
) -> Estimate:
    low, high, _ = percentile_interval(resampled, settings.level)
    return Estimate(value=value, low=low, high=high)


def with_tests(
    rows: Sequence[MethodRow],
    scores: dict[str, list[NestedScores]],
    cases: Cases,
    settings: CalibrateSettings,
) -> list[MethodRow]:
    """The rows with their differences from instability."""
    seeds = {name: _seed_scores(each) for name, each in scores.items()}
    tests = {c.detector: c for c in compare_to_baseline(seeds, MAIN, _ground(cases, settings))}
    return [row if row.name == MAIN else _tested(row, tests[row.name]) for row in rows]


def _tested(row: MethodRow, test: Comparison) -> MethodRow:
    found = Estimate(value=test.difference, low=test.low, high=test.high)
    return row.model_copy(update={"difference": found, "p_holm": test.p_holm})


def _seed_scores(seeds: Sequence[NestedScores]) -> list[SeedScores]:
    return [SeedScores(np.arange(len(each.scores)), each.scores) for each in seeds]


def _ground(cases: Cases, settings: CalibrateSettings) -> CommonGround:
    return CommonGround(
        cases.labels, cases.groups, n_resamples=settings.n_resamples, level=settings.level
    )
