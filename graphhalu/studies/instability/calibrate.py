"""Choose window, layers, direction and threshold inside nested folds, beside simpler scores.

An outer fold is scored by what its other folds chose, in inner folds of their own. The same
choice made and judged on all prompts stands beside it: with thousands of windows and a hundred
prompts the two are far apart. All folds keep prompts that say the same on one side.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.core.provenance import provenance
from graphhalu.detectors.identity import Identity
from graphhalu.evaluation.bootstrap import (
    Estimate,
    bootstrap_interval,
    group_codes,
    percentile_interval,
    resample_sums,
)
from graphhalu.evaluation.maps import column_tests
from graphhalu.evaluation.metrics import auroc
from graphhalu.evaluation.significance import CommonGround, SeedScores, compare_to_baseline, judge
from graphhalu.labels.summary import share_interval
from graphhalu.studies.instability.baselines import Study, all_methods
from graphhalu.studies.instability.calibration import (
    MAIN,
    TRACKER,
    Calibration,
    Chosen,
    MethodRow,
    OperatingPoint,
    StepPoint,
    TrackerChoice,
    WindowChoice,
)
from graphhalu.studies.instability.methods import (
    Cases,
    ColumnMethod,
    Fitted,
    Method,
    NestedScores,
    f1_threshold,
    nested_scores,
    thresholds,
)
from graphhalu.studies.instability.series import PromptSeries, SeriesFolder
from graphhalu.studies.instability.settings import CalibrateSettings, GatherSettings
from graphhalu.studies.instability.tracker import Heads
from graphhalu.studies.instability.windows import present_mean

_LEAST_PROMPTS: Final = 10
_STEP_RESAMPLES: Final = 400
"""Intervals of single steps are drawn as a band, where more would not be seen."""


def calibrate(
    folder: SeriesFolder,
    settings: CalibrateSettings | None = None,
    *,
    given_heads: Heads | None = None,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> Calibration:
    """Calibrate a detector on measured prompts.

    Args:
        folder: Measured prompts; all of its parts.
        settings: Grid, folds, aims.
        given_heads: A published list of heads for Attention Tracker, in place of a choice.
        on_progress: Called with the number of methods done, and of all.

    Raises:
        UsageError: If a window goes beyond the longest answer, or a given head beyond the model.
        NotEnoughDataError: If parts are missing, or a class has too few prompts.
    """
    settings = settings or CalibrateSettings()
    series, n_left_out = labelled_series(folder)
    cases = cases_of(series)
    study = Study.of(series, settings)
    methods = {method.name: method for method in all_methods(study, settings, given_heads)}
    rows: list[MethodRow] = []
    scores: dict[str, list[NestedScores]] = {}
    for method in methods.values():
        seeds = [nested_scores(method, cases, settings, seed) for seed in settings.seeds]
        scores[method.name] = seeds
        rows.append(_method_row(method, seeds, cases, settings))
        on_progress(len(rows), len(methods))
    window = _window_choice(methods[MAIN], study, cases, settings)
    return Calibration(
        identity=Identity.of(folder.configuration),
        provenance=provenance(),
        gather=GatherSettings(**folder.configuration["gather"]),
        settings=settings,
        n_attack=int(cases.labels.sum()),
        n_benign=int((1 - cases.labels).sum()),
        n_groups=len(np.unique(cases.groups)),
        n_left_out=n_left_out,
        window=window,
        tracker=_tracker_choice(methods[TRACKER], cases, is_given=given_heads is not None),
        rows=_with_tests(rows, scores, cases, settings),
        steps=_step_points(study, cases, window, settings),
        prompt_ids=tuple(_name(each, folder) for each in series),
        labels=tuple(cases.labels.tolist()),
        scores={name: tuple(tuple(seed.scores.tolist()) for seed in seeds) for name, seeds in scores.items()},
    )


def labelled_series(folder: SeriesFolder) -> tuple[list[PromptSeries], int]:
    """The measured prompts with a class, and how many others there are.

    Raises:
        NotEnoughDataError: If parts are missing, or a class has fewer than 10 prompts.
    """
    missing = folder.missing_parts()
    if missing:
        message = (
            f"{len(missing)} of {folder.n_parts} parts of {folder.path} are still to be measured\n"
            f"  Run the same  graphhalu instability gather  again: it goes on where it stopped"
        )
        raise NotEnoughDataError(message)
    every = folder.read()
    kept = [each for each in every if each.arrays and each.record.label is not None]
    n_attack = sum(each.record.label == 1 for each in kept)
    if min(n_attack, len(kept) - n_attack) < _LEAST_PROMPTS:
        message = (
            f"a calibration needs {_LEAST_PROMPTS} prompts of each class, got {n_attack} attacks "
            f"and {len(kept) - n_attack} benign prompts"
        )
        raise NotEnoughDataError(message)
    return kept, len(every) - len(kept)


def cases_of(series: Sequence[PromptSeries]) -> Cases:
    """Classes and groups of prompts."""
    labels = np.array([each.record.label for each in series], dtype=np.int64)
    return Cases(labels, group_codes(np.array([each.record.group for each in series]))[0])


def _window_choice(method: Method, study: Study, cases: Cases, settings: CalibrateSettings) -> WindowChoice:
    fitted = method.fit(cases, np.arange(len(cases.labels)), settings.seeds[0])
    return WindowChoice(
        spread=settings.spread,
        **study.grid.windows[fitted.place]._asdict(),
        direction=1 if fitted.direction > 0 else -1,
        f1_threshold=_best_f1(fitted, cases),
    )


def _tracker_choice(method: Method, cases: Cases, *, is_given: bool) -> TrackerChoice:
    fitted = method.fit_in_sample(cases)
    assert fitted.heads is not None
    threshold = _best_f1(fitted, cases)
    return TrackerChoice(**fitted.heads._asdict(), is_given=is_given, f1_threshold=threshold)


def _best_f1(fitted: Fitted, cases: Cases) -> float:
    found = f1_threshold(fitted.scores, cases.labels)
    if not np.isfinite(found):
        n_known = int(np.isfinite(fitted.scores).sum())
        message = (
            f"only {n_known} prompts of one class reach {fitted.choice}: answers are too short\n"
            f"  Use windows that begin earlier (--starts 1), or gather other prompts"
        )
        raise NotEnoughDataError(message)
    return found


def _name(series: PromptSeries, folder: SeriesFolder) -> str:
    has_several = folder.configuration["gather"]["iterations"] > 1
    record = series.record
    return f"{record.prompt_id}#{record.iteration}" if has_several else record.prompt_id


def _method_row(
    method: Method, seeds: Sequence[NestedScores], cases: Cases, settings: CalibrateSettings
) -> MethodRow:
    """What nested folds say of a method, beside what it says of itself."""
    own = method.fit(cases, np.arange(len(cases.labels)), settings.seeds[0])
    best = method.fit_in_sample(cases)
    judged = judge(_seed_scores(seeds), _ground(cases, settings))
    aurocs = [auroc(each.scores, cases.labels) for each in seeds]
    choices = Counter(choice for each in seeds for choice in each.choices)
    in_sample = best.scores >= thresholds(best.scores, cases.labels, settings)[:, None]
    nested = np.stack([each.is_flagged for each in seeds], axis=1)
    filled = np.where(np.isfinite(best.scores), best.scores, np.nanmedian(best.scores))
    return MethodRow(
        name=method.name,
        summary=method.summary,
        n_candidates=method.columns.shape[1] if isinstance(method, ColumnMethod) else 1,
        auroc=Estimate(judged.auroc, *percentile_interval(judged.resampled, settings.level)),
        seed_sd=float(np.std(aurocs, ddof=1)) if len(aurocs) > 1 else None,
        in_sample=_auroc(filled, cases, settings.n_resamples, settings.level),
        f1=_f1(nested[-1], cases, settings),
        in_sample_f1=float(_f1_of(_hits(in_sample[-1:], cases).sum(axis=0))),
        coverage=float(np.mean([each.coverage for each in seeds])),
        direction=1 if own.direction > 0 else -1,
        points=_points(own, in_sample, nested, cases, settings),
        choices=tuple(Chosen(text=text, n_folds=n) for text, n in choices.most_common(5)),
    )


def _points(
    own: Fitted,
    in_sample: Bool[np.ndarray, "aim prompt"],
    nested: Bool[np.ndarray, "aim seed prompt"],
    cases: Cases,
    settings: CalibrateSettings,
) -> tuple[OperatingPoint, ...]:
    """Each aim: nested rates over all seeds, and those where the threshold was chosen."""
    is_attack = cases.labels == 1
    limits = thresholds(own.scores, cases.labels, settings)
    return tuple(
        OperatingPoint(
            aim=aim,
            threshold=float(limits[place]),
            tpr=_rate(nested[place][:, is_attack], cases.groups[is_attack], settings.level),
            fpr=_rate(nested[place][:, ~is_attack], cases.groups[~is_attack], settings.level),
            in_sample_tpr=float(in_sample[place, is_attack].mean()),
            in_sample_fpr=float(in_sample[place, ~is_attack].mean()),
        )
        for place, aim in enumerate(settings.false_positive_rates)
    )


def _rate(
    flagged: Bool[np.ndarray, "seed prompt"], groups: Int[np.ndarray, "prompt"], level: float
) -> Estimate:
    """A share over prompts and seeds; the interval counts each group of prompts once."""
    values = flagged.astype(np.int64).ravel()
    interval = share_interval(values, np.tile(groups, len(flagged)), level)
    return Estimate(float(values.mean()), *interval)


def _hits(flagged: Bool[np.ndarray, "seed prompt"], cases: Cases) -> Float[np.ndarray, "prompt 3"]:
    """Hits, false alarms and misses of each prompt, summed over seeds."""
    n_flagged, n_seeds = flagged.sum(axis=0), len(flagged)
    is_attack = cases.labels == 1
    columns = (n_flagged * is_attack, n_flagged * ~is_attack, (n_seeds - n_flagged) * is_attack)
    return np.stack(columns, axis=1).astype(np.float64)


def _f1(flagged: Bool[np.ndarray, "seed prompt"], cases: Cases, settings: CalibrateSettings) -> Estimate:
    hits = _hits(flagged, cases)
    n_resamples = settings.n_resamples
    sums = resample_sums(hits, cases.groups, n_resamples=n_resamples, has_sample=True)
    return Estimate.of(_f1_of(sums), settings.level)


def _f1_of(sums: Float[np.ndarray, "*row 3"]) -> Float[np.ndarray, "*row"]:
    """F1 of hits, alarms and misses; NaN where a resample has neither attack nor alarm."""
    hits, alarms, misses = np.moveaxis(sums, -1, 0)
    total = 2 * hits + alarms + misses
    return np.where(total > 0, 2 * hits / np.maximum(total, 1), np.nan)


def _auroc(scores: Float[np.ndarray, "prompt"], cases: Cases, n_resamples: int, level: float) -> Estimate:
    interval = bootstrap_interval("auroc", scores, *cases, n_resamples=n_resamples, level=level)
    return Estimate(auroc(scores, cases.labels), *interval)


def _with_tests(
    rows: Sequence[MethodRow],
    scores: Mapping[str, Sequence[NestedScores]],
    cases: Cases,
    settings: CalibrateSettings,
) -> tuple[MethodRow, ...]:
    """The rows with their differences from instability."""
    seeds = {name: _seed_scores(each) for name, each in scores.items()}
    tests = {
        test.detector: {"difference": Estimate(test.difference, test.low, test.high), "p_holm": test.p_holm}
        for test in compare_to_baseline(seeds, MAIN, _ground(cases, settings))
    }
    return tuple(row.model_copy(update=tests.get(row.name, {})) for row in rows)


def _seed_scores(seeds: Sequence[NestedScores]) -> list[SeedScores]:
    return [SeedScores(np.arange(len(each.scores)), each.scores) for each in seeds]


def _ground(cases: Cases, settings: CalibrateSettings) -> CommonGround:
    return CommonGround(*cases, n_resamples=settings.n_resamples, level=settings.level)


def _step_points(
    study: Study, cases: Cases, choice: WindowChoice, settings: CalibrateSettings
) -> tuple[StepPoint, ...]:
    """AUROC of each decode step over the prompts that reach it; no direction is learned.

    A step that fewer than 5 prompts of a class reach has none. The layers were chosen on the
    same prompts, which is a little optimistic.
    """
    layers = slice(choice.first_layer, choice.stop_layer)
    entropy = study.padded("entropy")
    spread, focus = (present_mean(study.padded(name)[..., layers]) for name in (choice.spread, "focus"))
    aurocs = [column_tests(values, *cases).auroc for values in (spread, entropy, focus)]
    points = []
    for step, values in enumerate(np.stack(aurocs, axis=1).tolist()):
        reach = np.isfinite(entropy[:, step])
        estimate = None if np.isnan(values[0]) else Estimate(values[0])
        kept = np.flatnonzero(np.isfinite(spread[:, step]))
        if estimate is not None:
            with suppress(NotEnoughDataError):
                few = cases.of(kept)
                estimate = _auroc(spread[kept, step], few, _STEP_RESAMPLES, settings.level)
        points.append(
            StepPoint(
                step=step,
                n_attack=int(reach[cases.labels == 1].sum()),
                n_benign=int(reach[cases.labels == 0].sum()),
                instability=estimate,
                entropy=values[1],
                focus=values[2],
            )
        )
    return tuple(points)
