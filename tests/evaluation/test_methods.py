"""Statements about methods: the corrected resampled t-test, and how often it is wrong."""

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import rankdata, ttest_1samp

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.evaluation.significance import (
    compare_methods,
    corrected_test,
    fit_metrics,
    method_tests,
    overlap_ratio,
)


def test_without_overlap_it_is_the_t_test():
    differences = np.array([0.03, -0.01, 0.02, 0.05, 0.00, 0.04, 0.01])
    found, expected = corrected_test(differences, 0.0), ttest_1samp(differences, 0)
    assert found.p_value == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_overlap_widens_the_error_by_the_stated_factor():
    differences = np.array([0.03, -0.01, 0.02, 0.05, 0.00, 0.04, 0.01])
    plain, corrected = corrected_test(differences, 0.0), corrected_test(differences, 1 / 3)
    assert corrected.standard_error / plain.standard_error == pytest.approx(np.sqrt((1 / 7 + 1 / 3) * 7))
    assert corrected.p_value > plain.p_value


@pytest.mark.parametrize(
    ("mean", "spread", "verdict"),
    [(0.2, 0.01, "better"), (-0.2, 0.01, "worse"), (0.0, 0.001, "no worse"), (0.0, 0.2, "not decided")],
)
def test_the_verdict_follows_from_difference_and_error(mean, spread, verdict):
    fits = {(0, fold): mean + spread * sign for fold, sign in enumerate((1, -1, 1, -1, 0))}
    zero = dict.fromkeys(fits, 0.0)
    (found,) = compare_methods({"gat": fits, "base": zero}, "base", test_ratio=1 / 3)
    assert found.verdict() == verdict
    assert found.n_fits == 5


def test_equal_differences_leave_no_doubt_and_none_at_all_is_no_difference():
    assert corrected_test(np.full(5, 0.1), 1 / 3).p_value == 0
    assert corrected_test(np.zeros(5), 1 / 3).p_value == 1


def test_one_fit_says_nothing_about_a_method():
    with pytest.raises(NotEnoughDataError, match="needs 2 fits or more, got 1"):
        corrected_test(np.array([0.1]), 1 / 3)
    assert compare_methods({"a": {(0, 0): 0.7}, "b": {(0, 0): 0.6}}, "b", test_ratio=1 / 3) == []


def test_all_detectors_are_one_family():
    generator = np.random.default_rng(3)
    keys = [(seed, fold) for seed in range(3) for fold in range(5)]
    base = dict.fromkeys(keys, 0.5)
    fits = {f"d{i}": {key: 0.5 + 0.01 * i + 0.02 * generator.normal() for key in keys} for i in range(7)}
    found = compare_methods({**fits, "base": base}, "base", test_ratio=1 / 3)
    assert len(found) == 7
    smallest = min(found, key=lambda each: each.p_value)
    assert smallest.p_holm == pytest.approx(min(1, 7 * smallest.p_value))


def test_aurocs_are_those_within_a_fold_with_the_median_for_missing_scores():
    rows = [
        {"detector": "a", "seed": 0, "fold": 1, "label": label, "score": score}
        for label, score in [(1, 3.0), (0, 1.0), (1, None), (0, 2.0), (0, 5.0)]
    ]
    rows += [{"detector": "a", "seed": 1, "fold": 0, "label": 1, "score": 1.0}] * 3  # one class only
    found = fit_metrics(pa.Table.from_pylist(rows))
    # filled with the median 2.5: pairs of 3.0 and 2.5 with 1, 2, 5
    assert found == {"a": {(0, 1): pytest.approx(4 / 6)}}


def test_tokens_are_compared_by_average_precision():
    rows = [
        {"detector": "a", "seed": 0, "fold": 1, "label": label, "score": score}
        for label, score in [(1, 3.0), (0, 1.0), (0, 4.0), (1, 2.0)]
    ]
    table = pa.Table.from_pylist(rows)
    # precision 1 / 2 at the second, 2 / 3 at the third
    assert fit_metrics(table, "auprc") == {"a": {(0, 1): pytest.approx((1 / 2 + 2 / 3) / 2)}}
    other = pa.Table.from_pylist([{**row, "detector": "b", "fold": fold} for row in rows for fold in (1, 2)])
    both = pa.concat_tables([table, other, pa.Table.from_pylist([{**row, "fold": 2} for row in rows])])
    (test,) = method_tests(both, "a", {"n_folds": 5}, "auprc")
    assert (test.metric, test.difference) == ("auprc", 0)


def test_the_ratio_is_that_of_the_folds():
    assert overlap_ratio({"n_folds": 5}) == pytest.approx(1 / 3)
    assert overlap_ratio({"n_folds": 10}) == pytest.approx(1 / 8)
    assert overlap_ratio({"n_folds": 5, "quick": True}) == pytest.approx(1 / 3)


def auroc(scores, labels):
    n_ones = labels.sum()
    ranks = rankdata(scores)[labels == 1].sum() - n_ones * (n_ones + 1) / 2
    return ranks / (n_ones * (len(labels) - n_ones))


def ridge(train, labels, test, penalty=10.0):
    centre = train.mean(axis=0)
    inner, aim = train - centre, labels - labels.mean()
    weights = inner.T @ np.linalg.solve(inner @ inner.T + penalty * np.eye(len(inner)), aim)
    return (test - centre) @ weights


def fits_of_two_learners(n, n_features, generator, *, advantage=0.0, n_seeds=3, n_folds=5, size=3):
    """Differences of AUROC of two ridge regressions on different views of one hidden cause."""
    groups = np.repeat(np.arange(n // size + 1), size)[:n]
    cause = generator.normal(size=n) + 0.7 * generator.normal(size=n // size + 1)[groups]
    labels = (cause + generator.normal(size=n) > 0).astype(int)
    views = []
    for strength in (1 + advantage, 1.0):
        direction = generator.normal(size=n_features)
        direction *= strength / np.linalg.norm(direction)
        views.append(np.outer(cause, direction) + generator.normal(size=(n, n_features)))
    differences = []
    for _ in range(n_seeds):
        order = generator.permutation(groups.max() + 1)
        fold = (np.argsort(order) % n_folds)[groups]
        for k in range(n_folds):
            tested, trained = fold == k, (fold != k) & (fold != (k + 1) % n_folds)
            scores = [ridge(view[trained], labels[trained], view[tested]) for view in views]
            differences.append(np.subtract(*(auroc(each, labels[tested]) for each in scores)))
    return np.array(differences)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "n_features"), [(200, 20), (200, 200), (900, 20), (900, 200)])
def test_learners_of_equal_quality_are_seldom_called_different(n, n_features):
    generator = np.random.default_rng(n + n_features)
    tests = [
        corrected_test(fits_of_two_learners(n, n_features, generator), overlap_ratio({"n_folds": 5}))
        for _ in range(120)
    ]
    assert np.mean([each.p_value < 0.05 for each in tests]) <= 0.07
    # without the correction they would be
    plain = [2 * min(0.5, _normal_tail(each, 15)) for each in tests]
    assert np.mean(np.array(plain) < 0.05) > 0.1


def _normal_tail(test, n_fits):
    from scipy.stats import t

    naive = test.standard_error / np.sqrt((1 / n_fits + 1 / 3) * n_fits)
    return t.sf(abs(test.difference) / naive, n_fits - 1)
