"""Choose window, layers, direction and threshold inside nested folds, beside simpler scores.

An outer fold is scored by what its other folds chose, in inner folds of their own. The same
choice made and judged on all prompts stands beside it: with thousands of windows and a hundred
prompts the two are far apart. All folds keep prompts that say the same on one side.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from graphhalu.detectors.identity import Identity
from graphhalu.errors import NotEnoughDataError
from graphhalu.evaluation.bootstrap import group_codes
from graphhalu.provenance import provenance
from graphhalu.studies.instability.calibration import (
    MAIN,
    TRACKER,
    Calibration,
    MethodRow,
    TrackerChoice,
    WindowChoice,
)
from graphhalu.studies.instability.methods import Cases, Fitted, Method
from graphhalu.studies.instability.nested import NestedScores, f1_threshold, nested_scores
from graphhalu.studies.instability.rivals import Study, all_methods
from graphhalu.studies.instability.rows import method_row, with_tests
from graphhalu.studies.instability.series import PromptSeries, SeriesFolder
from graphhalu.studies.instability.settings import CalibrateSettings, GatherSettings
from graphhalu.studies.instability.stepwise import step_points
from graphhalu.studies.instability.tracker import Heads

_LEAST_PROMPTS: Final = 10


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
    methods = all_methods(study, settings, given_heads)
    rows: list[MethodRow] = []
    scores: dict[str, list[NestedScores]] = {}
    for number, method in enumerate(methods):
        scores[method.name] = [nested_scores(method, cases, settings, s) for s in settings.seeds]
        rows.append(method_row(method, scores[method.name], cases, settings))
        on_progress(number + 1, len(methods))
    by_name = {method.name: method for method in methods}
    window = _window_choice(by_name[MAIN], study, cases, settings)
    return Calibration(
        identity=Identity.of(folder.configuration).to_json(),
        provenance=provenance(),
        gather=GatherSettings(**folder.configuration["gather"]),
        settings=settings,
        n_attack=int(cases.labels.sum()),
        n_benign=int((1 - cases.labels).sum()),
        n_groups=len(np.unique(cases.groups)),
        n_left_out=n_left_out,
        window=window,
        tracker=_tracker_choice(by_name[TRACKER], cases, is_given=given_heads is not None),
        rows=tuple(with_tests(rows, scores, cases, settings)),
        steps=tuple(step_points(study, cases, window, settings)),
        prompt_ids=tuple(_name(each, folder) for each in series),
        labels=tuple(cases.labels.tolist()),
        scores={
            name: tuple(tuple(seed.scores.tolist()) for seed in seeds)
            for name, seeds in scores.items()
        },
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


def _window_choice(
    method: Method, study: Study, cases: Cases, settings: CalibrateSettings
) -> WindowChoice:
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
    return TrackerChoice(
        heads=fitted.heads.heads, k=fitted.heads.k, is_given=is_given,
        f1_threshold=_best_f1(fitted, cases),
    )  # fmt: skip


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
