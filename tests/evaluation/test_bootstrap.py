import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from graphhalu.core.errors import NotEnoughDataError, UnknownNameError
from graphhalu.core.numerics import group_multiplicities
from graphhalu.evaluation import bootstrap
from graphhalu.evaluation.bootstrap import (
    EvaluationSet,
    bootstrap_interval,
    drawn_blocks,
    group_codes,
    percentile_interval,
)
from graphhalu.evaluation.metrics import METRICS, evaluate, roc_counts
from graphhalu.evaluation.significance import compare_to_baseline


def difference(first, second, labels, groups, **draws):
    """The first detector against the second as the baseline."""
    scores = {name: [values] for name, values in (("first", first), ("second", second))}
    (found,) = compare_to_baseline(scores, "second", EvaluationSet(labels, groups, **draws))
    return found


@pytest.fixture
def case():
    """53 traces of 17 questions, with ties."""
    rng = np.random.default_rng(5)
    labels = np.append([0, 1], (rng.random(51) < 0.4).astype(np.int64))
    scores = np.round(labels + rng.normal(size=53), 1)
    return scores, labels, np.array([f"q{i}" for i in rng.integers(17, size=53)])


def test_weights_equal_literal_resampling_with_the_same_multiplicities(case):
    scores, labels, _ = case
    weights = np.random.default_rng(0).integers(0, 4, size=(29, 53))
    counts = roc_counts(scores, labels, weights)
    found = {name: metric(counts) for name, metric in METRICS.items()}
    for row, weight in enumerate(weights):
        literal = evaluate(np.repeat(scores, weight), np.repeat(labels, weight))
        assert {n: v[row] for n, v in found.items()} == pytest.approx(literal, abs=1e-12)


def test_resampled_metrics_equal_sklearn_on_drawn_groups(case):
    scores, labels, groups = case
    found = EvaluationSet(labels, groups, 31, 11).resample(["auroc", "auprc"], scores)
    names = np.unique(groups)
    drawn = group_multiplicities(len(names), 31, np.random.default_rng(11))
    for row, multiplicity in enumerate(drawn):
        rows = [
            index
            for name, times in zip(names, multiplicity, strict=True)
            for index in np.flatnonzero(groups == name).tolist() * times
        ]
        assert found["auroc"][row] == pytest.approx(roc_auc_score(labels[rows], scores[rows]))
        expected = average_precision_score(labels[rows], scores[rows])
        assert found["auprc"][row] == pytest.approx(expected)


def test_multiplicities_draw_as_many_groups_as_there_are():
    drawn = group_multiplicities(13, 997, np.random.default_rng(0))
    assert drawn.shape == (997, 13)
    assert (drawn.sum(axis=1) == 13).all()
    assert drawn.mean(axis=0) == pytest.approx(np.ones(13), abs=0.15)


def test_the_block_size_does_not_change_the_resamples(case, monkeypatch):
    expected = EvaluationSet(*case[1:], 101, 3).resample(["auroc"], case[0])
    monkeypatch.setattr(bootstrap, "_BLOCK_ELEMENTS", 7 * 53)
    found = EvaluationSet(*case[1:], 101, 3).resample(["auroc"], case[0])
    np.testing.assert_array_equal(found["auroc"], expected["auroc"])


def test_invalid_traces_take_no_part_but_keep_the_resamples_in_step(case):
    scores, labels, groups = case
    # a whole question without scores must still be drawn like any other
    is_valid = (np.arange(53) % 5 != 0) & (groups != np.unique(groups)[3])
    broken = np.where(is_valid, scores, np.nan)
    found = EvaluationSet(labels, groups, 37, 2).resample(["auroc"], broken, is_valid)
    drawn = group_multiplicities(len(np.unique(groups)), 37, np.random.default_rng(2))
    index = np.unique(groups, return_inverse=True)[1]
    for row in range(37):
        weight = drawn[row, index] * is_valid
        expected = roc_auc_score(np.repeat(labels, weight), np.repeat(scores, weight))
        assert found["auroc"][row] == pytest.approx(expected)


def test_an_interval_is_deterministic_and_holds_the_estimate(case):
    first = bootstrap_interval("auroc", *case, n_resamples=400, seed=1)
    assert first == bootstrap_interval("auroc", *case, n_resamples=400, seed=1)
    assert first != bootstrap_interval("auroc", *case, n_resamples=400, seed=2)
    assert first[0] < evaluate(*case[:2])["auroc"] < first[1]
    assert first[2] == 400


def test_a_wider_level_gives_a_wider_interval(case):
    narrow = bootstrap_interval("auroc", *case, seed=1, level=0.5)
    wide = bootstrap_interval("auroc", *case, seed=1, level=0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_alike_answers_of_a_question_do_not_narrow_the_interval():
    rng = np.random.default_rng(0)
    labels = np.arange(101) % 2
    scores = labels + rng.normal(size=101)
    once = bootstrap_interval("auroc", scores, labels, np.arange(101), seed=1)
    five = [np.repeat(values, 5) for values in (scores, labels, np.arange(101))]
    grouped = bootstrap_interval("auroc", *five, seed=1)
    row_by_row = bootstrap_interval("auroc", *five[:2], np.arange(505), seed=1)
    assert grouped == pytest.approx(once, abs=1e-12)
    assert row_by_row[1] - row_by_row[0] < 0.6 * (once[1] - once[0])


def test_intervals_cover_the_true_auroc_about_as_often_as_they_say():
    # two normals 1 apart: the true AUROC is Phi(1 / sqrt(2)) = 0.7602
    rng = np.random.default_rng(42)
    covered = 0
    for repeat in range(200):
        labels = np.arange(120) % 2
        scores = labels + rng.normal(size=120)
        low, high, _ = bootstrap_interval(
            "auroc", scores, labels, np.arange(120), n_resamples=300, seed=repeat
        )
        covered += low <= 0.7602 <= high
    assert 0.90 <= covered / 200 <= 0.98


def test_resamples_without_a_class_are_not_used_and_counted():
    labels = np.array([1, 1, 0, 0, 0, 0, 0])
    interval = bootstrap_interval("auroc", np.arange(7.0), labels, np.arange(7), seed=0)
    # neither hallucinated trace is drawn with probability (5/7)**7, about 9.5 %
    assert 1700 < interval[2] < 1900


def test_too_few_resamples_with_both_classes_are_refused():
    with pytest.raises(NotEnoughDataError, match="resamples hold both classes"):
        percentile_interval(np.array([0.5, np.nan, np.nan]), 0.95)


def test_an_impossible_level_is_refused(case):
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval("auroc", *case, level=95.0)


def test_an_unknown_metric_is_refused_with_the_nearest_name(case):
    with pytest.raises(UnknownNameError, match="auroc"):
        bootstrap_interval("auorc", *case)


def test_a_score_that_is_not_finite_is_refused(case):
    scores, labels, groups = case
    scores[3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        bootstrap_interval("auroc", scores, labels, groups)


def test_a_detector_does_not_differ_from_itself(case):
    scores, labels, groups = case
    found = difference(scores, scores, labels, groups, n_resamples=200)
    assert (found.difference, found.low, found.high, found.p_bootstrap) == (0.0, 0.0, 0.0, 1.0)


def test_a_clear_difference_is_found_and_its_sign_follows_the_order():
    rng = np.random.default_rng(1)
    labels, groups = np.arange(300) % 2, np.arange(300) // 2
    good, bad = labels * 2 + rng.normal(size=300), rng.normal(size=300)
    found = difference(good, bad, labels, groups, seed=4)
    assert found.p_bootstrap == pytest.approx(2 / 2001)
    assert 0 < found.low < found.difference < found.high
    turned = difference(bad, good, labels, groups, seed=4)
    assert turned.difference == -found.difference
    assert turned.low == pytest.approx(-found.high)


def test_a_paired_difference_is_tighter_than_two_separate_intervals():
    rng = np.random.default_rng(1)
    labels = np.arange(200) % 2
    base = labels + rng.normal(size=200)
    near = base + 0.1 * rng.normal(size=200)
    found = difference(base, near, labels, np.arange(200), seed=4)
    alone = bootstrap_interval("auroc", base, labels, np.arange(200), seed=4)
    assert found.high - found.low < 0.3 * (alone[1] - alone[0])


def test_stratified_auroc_equals_a_loop_over_pairs_on_every_resample():
    rng = np.random.default_rng(4)
    labels, groups, strata = rng.integers(0, 2, 53), rng.integers(0, 23, 53), rng.integers(0, 3, 53)
    scores, is_valid = rng.integers(0, 7, 53).astype(float), rng.random(53) < 0.9
    items = EvaluationSet(labels, groups, n_resamples=5, seed=3)
    found = items.stratified_auroc(np.where(is_valid, scores, np.nan), strata, is_valid)
    codes, n_groups = group_codes(groups)
    drawn = np.concatenate([np.ones((1, n_groups)), *drawn_blocks(n_groups, 5, 3)])
    for row, weights in enumerate(drawn):
        right = pairs = 0.0
        for i in np.flatnonzero(is_valid & (labels == 1)):
            for j in np.flatnonzero(is_valid & (labels == 0) & (strata == strata[i])):
                weight = weights[codes[i]] * weights[codes[j]]
                pairs += weight
                right += weight * ((scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]))
        assert found[row] == pytest.approx(right / pairs)
