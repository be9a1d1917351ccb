"""Choices inside nested folds: what is planted is found, and noise is not."""

import numpy as np
import pytest

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.evaluation.metrics import auroc
from graphhalu.studies.instability.calibrate import nested_scores, threshold_at
from graphhalu.studies.instability.methods import Cases, ColumnMethod, Fitted, filled_auroc
from graphhalu.studies.instability.settings import CalibrateSettings

SETTINGS = CalibrateSettings(n_folds=3, n_inner_folds=2, false_positive_rates=(0.05, 0.2))


def cases_of(n=60, *, n_twins=0):
    """Prompts of alternating class; the last ``n_twins`` say what the first ones say."""
    groups = np.arange(n)
    if n_twins:
        groups[-n_twins:] = np.arange(n_twins)
    return Cases(np.arange(n) % 2, groups)


def columns_method(columns):
    return ColumnMethod(
        "columns",
        "columns",
        columns,
        tuple(map(str, range(columns.shape[1]))),
        lambda _: np.ones(columns.shape[1], dtype=bool),
        2,
    )


def test_among_many_noise_columns_the_in_sample_choice_shines_and_the_nested_one_does_not():
    cases, method = cases_of(), columns_method(np.random.default_rng(0).normal(size=(60, 499)))
    best = method.fit_in_sample(cases)
    assert auroc(best.scores, cases.labels) > 0.68
    nested = [nested_scores(method, cases, SETTINGS, seed)[0] for seed in range(5)]
    assert abs(np.mean([auroc(scores, cases.labels) for scores in nested]) - 0.5) < 0.12


def test_a_planted_column_is_chosen_in_every_fold_with_its_direction():
    cases = cases_of()
    columns = np.random.default_rng(1).normal(size=(60, 23))
    columns[:, 7] -= 4 * cases.labels
    method = columns_method(columns)
    scores, _, choices, _ = nested_scores(method, cases, SETTINGS, 0)
    assert choices == ["7", "7", "7"]
    assert auroc(scores, cases.labels) > 0.97
    assert method.fit(cases, np.arange(60), 0).direction == -1


class Watching(ColumnMethod):
    """Notes what it was allowed to see."""

    def fit(self, cases, train, seed):
        SEEN.append(train)
        return Fitted(self.columns[:, 0], "nothing", 1)


SEEN = []


def test_no_prompt_is_scored_by_a_choice_that_saw_its_like():
    SEEN.clear()
    cases = cases_of(60, n_twins=10)
    columns = np.random.default_rng(2).normal(size=(60, 1))
    method = Watching("w", "w", columns, ("0",), lambda _: np.ones(1, dtype=bool), 2)
    nested_scores(method, cases, SETTINGS, 0)
    assert len(SEEN) == 3
    for train in SEEN:
        held_out = np.setdiff1d(np.arange(60), train)
        assert not set(cases.groups[train].tolist()) & set(cases.groups[held_out].tolist())


def test_prompts_without_a_score_stand_at_the_median_and_are_never_flagged():
    cases = cases_of()
    columns = (cases.labels * 3.0 + np.random.default_rng(3).normal(size=60))[:, None]
    columns[::5] = np.nan
    scores, is_flagged, _, coverage = nested_scores(columns_method(columns), cases, SETTINGS, 0)
    assert coverage == pytest.approx(0.8)
    assert len(set(scores[::5].tolist())) == 1
    assert not is_flagged[:, ::5].any()
    assert is_flagged[-1].any()


@pytest.mark.parametrize(("rate", "n_flagged"), [(0.01, 0), (0.05, 1), (0.10, 2), (0.2, 4)])
def test_a_threshold_flags_as_many_benign_prompts_as_its_rate_allows(rate, n_flagged):
    labels = np.repeat([0, 1], 20)
    scores = np.concatenate([np.arange(20.0), np.arange(20.0) + 10])
    limit = threshold_at(scores, labels, rate)
    assert int((scores[labels == 0] >= limit).sum()) == n_flagged
    # and one step lower it would flag more
    assert int((scores[labels == 0] >= np.nextafter(limit, -np.inf)).sum()) == n_flagged + 1


def test_equal_scores_are_flagged_together_or_not_at_all():
    labels = np.repeat([0, 1], 20)
    limit = threshold_at(np.ones(40), labels, 0.2)
    assert not (np.ones(40) >= limit).any()


def test_a_column_that_few_prompts_have_does_not_look_good_by_the_few():
    cases = cases_of()
    column = np.full((60, 1), np.nan)
    column[:12, 0] = cases.labels[:12]
    # a fifth of each class is apart, the rest are equal: 0.2 + 0.8 (0.2 + 0.4)
    assert filled_auroc(column, *cases)[0] == pytest.approx(0.68)


def test_too_few_prompts_for_inner_folds_are_refused():
    cases = cases_of(18)
    columns = np.random.default_rng(4).normal(size=(18, 3))
    with pytest.raises(NotEnoughDataError, match="5 attacks and 5 benign prompts"):
        columns_method(columns).fit(cases, np.arange(12), 0)
