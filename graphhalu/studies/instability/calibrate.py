"""Calibration of a detector: window, layers, direction and threshold chosen in nested folds.

An outer fold is scored by what its other folds chose, in inner folds of their own. The same
choice made and judged on all prompts is reported beside it: with thousands of windows and a
hundred prompts the two are far apart. Prompts that say the same are in one fold.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.core.provenance import provenance
from graphhalu.core.splits import inner_folds
from graphhalu.detectors.identity import Identity
from graphhalu.engine.executors import Progress, no_progress
from graphhalu.evaluation.bootstrap import (
    Estimate,
    EvaluationSet,
    bootstrap_interval,
    group_codes,
    percentile_interval,
    resample_sums,
)
from graphhalu.evaluation.calibration import best_f1_threshold, threshold_at
from graphhalu.evaluation.crossfit import standardise
from graphhalu.evaluation.metrics import Mask, auroc
from graphhalu.evaluation.significance import column_tests, compare_to_baseline, pooled_auroc
from graphhalu.heads.table import mean_of_present
from graphhalu.labels.summary import share_interval
from graphhalu.studies.instability.methods import (
    Cases,
    Codes,
    ColumnMethod,
    Fitted,
    Heads,
    Method,
    Scores,
    all_methods,
    window_grid,
)
from graphhalu.studies.instability.series import PromptSeries, SeriesFolder, padded_steps
from graphhalu.studies.instability.settings import (
    MAIN,
    TRACKER,
    CalibrateSettings,
    Calibration,
    GatherSettings,
    TrackerChoice,
    WindowChoice,
)
from graphhalu.studies.rows import Row

_LEAST_PROMPTS: Final = 10
_STEP_RESAMPLES: Final = 400
"""Intervals of single steps are drawn as a band, where more resamples would not show."""


def calibrate(
    folder: SeriesFolder, settings: CalibrateSettings, given: Heads = (), on_progress: Progress = no_progress
) -> Calibration:
    """Calibrate a detector on measured prompts.

    Args:
        folder: Measured prompts; all of its parts.
        settings: Grid, folds, aims.
        given: A published list of heads for Attention Tracker, used instead of a choice.
        on_progress: Called with the number of methods done, and of all.

    Raises:
        UsageError: If a window goes beyond the longest answer, or a given head beyond the model.
        NotEnoughDataError: If parts are missing, or a class has too few prompts.
    """
    series, n_left_out = labelled_series(folder)
    cases, records = cases_of(series), [each.record for each in series]
    n_layers = series[0].arrays["std"].shape[1]
    grid = window_grid(settings, n_layers, np.array([each.n_steps for each in series]))
    methods = {method.name: method for method in all_methods(series, grid, settings, given)}
    rows, seeds = list[Row](), dict[str, list[Scores]]()
    for method in methods.values():
        nested = [nested_scores(method, cases, settings, seed) for seed in settings.seeds]
        rows.append(_method_row(method, nested, cases, settings))
        seeds[method.name] = [scores for scores, *_ in nested]
        on_progress(len(rows), len(methods))
    fitted = methods[MAIN].fit(cases, np.arange(len(series)), settings.seeds[0])
    window = WindowChoice(
        spread=settings.spread,
        **dict(grid[fitted.column]),
        direction=1 if fitted.direction > 0 else -1,
        f1_threshold=_best_f1(fitted, cases, settings),
    )
    tracked = methods[TRACKER].fit_in_sample(cases)
    limit, (heads, k) = _best_f1(tracked, cases, settings), tracked.heads or ((), None)
    sample = EvaluationSet(*cases, n_resamples=settings.n_resamples, level=settings.level)
    tests = {
        test.detector: {"difference": Estimate(test.difference, test.low, test.high), "p_holm": test.p_holm}
        for test in compare_to_baseline(seeds, MAIN, sample)
    }
    has_several = folder.configuration["gather"]["iterations"] > 1
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
        tracker=TrackerChoice(heads=heads, k=k, is_given=bool(given), f1_threshold=limit),
        rows=tuple(row.model_copy(update=tests.get(row.name, {})) for row in rows),
        steps=_step_points(series, cases, window, settings),
        prompt_ids=tuple(f"{r.prompt_id}#{r.iteration}" if has_several else r.prompt_id for r in records),
        labels=tuple(cases.labels.tolist()),
        scores={name: tuple(tuple(each.tolist()) for each in scores) for name, scores in seeds.items()},
    )


Nested = tuple[Scores, Bool[np.ndarray, "aim prompt"], list[str], float]
"""Of one seed: scores pooled over folds, the median where there is none; for each aim, and last for the
best F1, whether a prompt is flagged; the choice of each fold; and the share of prompts with a score."""


def nested_scores(method: Method, cases: Cases, settings: CalibrateSettings, seed: int) -> Nested:
    """Score every prompt by choices that were made without it and its group."""
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
    return scores, flagged, choices, float(is_there.mean())


def thresholds(scores: Scores, labels: Codes, settings: CalibrateSettings) -> Float[np.ndarray, "aim"]:
    """Those of all aims, and last that of the best F1; infinite if only one class has scores."""
    limits = [threshold_at(scores, labels, rate) for rate in settings.false_positive_rates]
    known = np.isfinite(scores)
    has_both = len(np.unique(labels[known])) > 1
    return np.array([*limits, best_f1_threshold(scores[known], labels[known]) if has_both else np.inf])


def labelled_series(folder: SeriesFolder) -> tuple[list[PromptSeries], int]:
    """The measured prompts with a class, and the number of the others.

    Raises:
        NotEnoughDataError: If parts are missing, or a class has fewer than 10 prompts.
    """
    if missing := folder.missing_parts():
        n_missing = f"{len(missing)} of {folder.configuration['n_parts']} parts of {folder.path}"
        way_out = "Run the same  graphhalu instability gather  again: it resumes"
        raise NotEnoughDataError(f"{n_missing} are not measured yet\n  {way_out}")
    every = folder.read()
    kept = [each for each in every if each.arrays and each.record.label is not None]
    n_attack = sum(each.record.label == 1 for each in kept)
    if min(n_attack, len(kept) - n_attack) < _LEAST_PROMPTS:
        counted = f"{n_attack} attacks and {len(kept) - n_attack} benign prompts"
        raise NotEnoughDataError(f"a calibration needs {_LEAST_PROMPTS} prompts of each class, got {counted}")
    return kept, len(every) - len(kept)


def cases_of(series: Sequence[PromptSeries]) -> Cases:
    """Classes and groups of prompts."""
    labels = np.array([each.record.label for each in series], dtype=np.int64)
    return Cases(labels, group_codes(np.array([each.record.group for each in series]))[0])


def _best_f1(fitted: Fitted, cases: Cases, settings: CalibrateSettings) -> float:
    found = float(thresholds(fitted.scores, cases.labels, settings)[-1])
    if not np.isfinite(found):
        n_known = int(np.isfinite(fitted.scores).sum())
        fault = f"only {n_known} prompts of one class reach {fitted.choice}: answers are too short"
        way_out = "Use windows that begin earlier (--starts 1), or gather other prompts"
        raise NotEnoughDataError(f"{fault}\n  {way_out}")
    return found


def _method_row(method: Method, seeds: list[Nested], cases: Cases, settings: CalibrateSettings) -> Row:
    """Results of a method in nested folds, and in sample."""
    scores, flagged, chosen, coverage = zip(*seeds, strict=True)
    own = method.fit(cases, np.arange(len(cases.labels)), settings.seeds[0])
    best, is_attack = method.fit_in_sample(cases), cases.labels == 1
    sample = EvaluationSet(*cases, n_resamples=settings.n_resamples, level=settings.level)
    pooled, _, resampled = pooled_auroc(scores, sample)
    aurocs = [auroc(each, cases.labels) for each in scores]
    choices = Counter(chain.from_iterable(chosen)).most_common(5)
    in_sample = best.scores >= thresholds(best.scores, cases.labels, settings)[:, None]
    nested = np.stack(flagged, axis=1)
    filled = np.where(np.isfinite(best.scores), best.scores, np.nanmedian(best.scores))
    hits = resample_sums(_hits(nested[-1], is_attack), cases.groups, n_resamples=settings.n_resamples)
    points: dict[str, list[Any]] = {"aim": list(settings.false_positive_rates)}
    points["threshold"] = thresholds(own.scores, cases.labels, settings)[:-1].tolist()
    for rate, is_in in (("tpr", is_attack), ("fpr", ~is_attack)):
        # over prompts and seeds; the interval counts each group of prompts once
        groups = np.tile(cases.groups[is_in], len(seeds))
        flags = nested[:-1, :, is_in].astype(np.int64).reshape(len(nested) - 1, -1)
        ends = [share_interval(each, groups, settings.level) for each in flags]
        points[rate] = [Estimate(float(each.mean()), *end) for each, end in zip(flags, ends, strict=True)]
        points[f"in_sample_{rate}"] = in_sample[:-1, is_in].mean(axis=1).tolist()
    return Row(
        name=method.name,
        summary=method.summary,
        n_candidates=method.columns.shape[1] if isinstance(method, ColumnMethod) else 1,
        auroc=Estimate(pooled, *percentile_interval(resampled, settings.level)),
        seed_sd=float(np.std(aurocs, ddof=1)) if len(aurocs) > 1 else None,
        in_sample=_auroc(filled, cases, settings.n_resamples, settings.level),
        f1=Estimate.of(_f1(hits), settings.level),
        in_sample_f1=float(_f1(_hits(in_sample[-1:], is_attack).sum(axis=0))),
        coverage=float(np.mean(coverage)),
        direction=1 if own.direction > 0 else -1,
        points=Row.table(**points),
        choices=[Row(text=text, n_folds=n) for text, n in choices],
        **dict.fromkeys(("difference", "p_holm")),
    )


def _hits(flagged: Bool[np.ndarray, "seed prompt"], is_attack: Mask) -> Float[np.ndarray, "prompt 3"]:
    """Hits, false alarms and misses of each prompt, summed over seeds."""
    n_flagged, n_seeds = flagged.sum(axis=0), len(flagged)
    columns = (n_flagged * is_attack, n_flagged * ~is_attack, (n_seeds - n_flagged) * is_attack)
    return np.stack(columns, axis=1).astype(np.float64)


def _f1(sums: Float[np.ndarray, "*row 3"]) -> Float[np.ndarray, "*row"]:
    """F1 of hits, alarms and misses; NaN where a resample has neither attack nor alarm."""
    hits, alarms, misses = np.moveaxis(sums, -1, 0)
    total = 2 * hits + alarms + misses
    return np.where(total > 0, 2 * hits / np.maximum(total, 1), np.nan)


def _auroc(scores: Float[np.ndarray, "prompt"], cases: Cases, n_resamples: int, level: float) -> Estimate:
    interval = bootstrap_interval("auroc", scores, *cases, n_resamples=n_resamples, level=level)
    return Estimate(auroc(scores, cases.labels), *interval)


def _step_points(
    series: Sequence[PromptSeries], cases: Cases, choice: WindowChoice, settings: CalibrateSettings
) -> tuple[Row, ...]:
    """AUROC of each decode step over the prompts that reach it; no direction is learned.

    A step that fewer than 5 prompts of a class reach has none. The layers were chosen on the
    same prompts, which is a little optimistic.
    """
    layers = slice(choice.first_layer, choice.stop_layer)
    entropy = padded_steps(series, "entropy")
    of_layers = (padded_steps(series, name)[..., layers] for name in (choice.spread, "focus"))
    spread, focus = (mean_of_present(values, axis=-1) for values in of_layers)
    aurocs = [column_tests(values, *cases)[0] for values in (spread, entropy, focus)]
    estimates = [None if np.isnan(value) else Estimate(value) for value in aurocs[0].tolist()]
    for step in np.flatnonzero(np.isfinite(aurocs[0])):
        kept = np.flatnonzero(np.isfinite(spread[:, step]))
        with suppress(NotEnoughDataError):
            estimates[step] = _auroc(spread[kept, step], cases.of(kept), _STEP_RESAMPLES, settings.level)
    n_attack, n_benign = (np.isfinite(entropy[cases.labels == c]).sum(axis=0).tolist() for c in (1, 0))
    columns = {"step": range(len(estimates)), "n_attack": n_attack, "n_benign": n_benign}
    numbers = {"entropy": aurocs[1].tolist(), "focus": aurocs[2].tolist()}
    return Row.table(**columns, instability=estimates, **numbers)
