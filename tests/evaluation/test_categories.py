"""Whole categories held out, AUROC within categories, and the control that knows the category only."""

import numpy as np
import pytest

from graphhalu.detectors.category import CategoryPrior, cluster_centres, cluster_names
from graphhalu.evaluation.compare import RunOptions, compare
from graphhalu.evaluation.crossfit import comparison_data
from graphhalu.evaluation.metrics import auroc
from graphhalu.evaluation.result import CategoryCount, read_result
from graphhalu.evaluation.settings import CompareConfig
from tests.evaluation.conftest import Toy, make_labels, make_trace

CONFIG = CompareConfig(seeds=(3, 5), n_resamples=200, n_folds=4)
N_CATEGORIES = 13


def planted(n: int = 307):
    """Answers whose label depends on the category, and a signal that says no more than that."""
    rng = np.random.default_rng(11)
    category = rng.integers(0, N_CATEGORIES, n)
    rate = np.linspace(0.05, 0.95, N_CATEGORIES)[rng.permutation(N_CATEGORIES)]
    values = (rng.random(n) < rate[category]).astype(np.int64)
    traces = [
        make_trace(i, relation=f"r{c}", signal=float(rate[c] + 0.01 * rng.normal()))
        for i, c in enumerate(category.tolist())
    ]
    return traces, make_labels(values), category


def row_of(result, name):
    return next(row for row in result.rows if row.detector == name)


def test_no_category_is_on_two_sides_of_a_fold_that_holds_categories_out():
    traces, labels, category = planted()
    data = comparison_data(traces, labels, CONFIG)
    assert list(data.splits) == [("question", 3), ("question", 5), ("category", 3)]
    folds = data.splits["category", 3]
    assert len(folds) == 4
    for fold in folds:
        sides = [set(category[side].tolist()) for side in (fold.train, fold.validation, fold.test)]
        assert len(set.union(*sides)) == sum(map(len, sides))
    assert sorted(np.concatenate([fold.test for fold in folds]).tolist()) == list(range(len(traces)))


@pytest.mark.parametrize(
    ("changes", "n"),
    [
        ({"quick": True}, 0),
        ({"category_seeds": 0}, 0),
        ({"categories": "none"}, 0),
        ({"category_seeds": 2}, 2),
    ],
)
def test_settings_decide_for_how_many_seeds_categories_are_held_out(changes, n):
    traces, labels, _ = planted()
    data = comparison_data(traces, labels, CONFIG.model_copy(update=changes))
    assert sum(held_out == "category" for held_out, _ in data.splits) == n


def test_fewer_than_eight_categories_are_not_held_out_but_compared_within():
    _, labels, category = planted()
    few = [make_trace(i, relation=f"r{c % 7}", signal=0.1 * i) for i, c in enumerate(category.tolist())]
    result = compare(few, labels, {"toy": Toy}, config=CONFIG)
    assert not len(result.category_samples)
    assert result.categories == CategoryCount("the data set", 7)
    assert "within_category_auroc" in row_of(result, "toy").metrics


def test_a_signal_that_only_knows_the_category_ranks_nothing_within_one(tmp_path):
    traces, labels, _ = planted()
    result = compare(traces, labels, {"toy": Toy, "category-prior": CategoryPrior}, config=CONFIG)
    for name in ("toy", "category-prior"):
        row = row_of(result, name)
        assert row.metric("auroc") > 0.72
        within = row.metrics["within_category_auroc"]
        assert within.low <= 0.5 <= within.high
    # its training side knows no answer of a held-out category
    assert row_of(result, "category-prior").metric("category_auroc") == pytest.approx(0.5)
    assert row_of(result, "toy").metric("category_auroc") > 0.72
    assert "category of the question alone" in result.notes[0]
    assert "toy" in result.notes[0]

    assert set(result.samples["held_out"].to_pylist()) == {"question"}
    assert set(result.category_samples["held_out"].to_pylist()) == {"category"}
    assert {test.detector for test in result.category_methods} == {"toy", "category-prior"} - {
        result.baseline.detector
    }
    result.write(tmp_path)
    again = read_result(tmp_path)
    assert again.category_samples.equals(result.category_samples)
    assert again.category_methods == result.category_methods


def test_auroc_within_categories_is_the_share_of_pairs_of_one_category_and_fold_in_the_right_order():
    traces, labels, category = planted()
    signal = np.random.default_rng(2).normal(size=len(traces)) + labels.values
    pairs = enumerate(zip(category.tolist(), signal.tolist(), strict=True))
    traces = [make_trace(i, relation=f"r{c}", signal=s) for i, (c, s) in pairs]
    result = compare(traces, labels, {"toy": Toy}, config=CONFIG.model_copy(update={"category_seeds": 0}))
    lines = result.samples.to_pylist()
    expected = []
    for seed in CONFIG.seeds:
        right = pairs = 0.0
        for name in range(N_CATEGORIES):
            mine = [
                (line["score"], line["label"], line["fold"])
                for line in lines
                if line["seed"] == seed and category[int(line["trace_id"][1:-2])] == name
            ]
            for score, label, fold in mine:
                for other, other_label, other_fold in mine:
                    if label == 1 and other_label == 0 and fold == other_fold:
                        pairs += 1
                        right += (score > other) + 0.5 * (score == other)
        expected.append(right / pairs)
    assert row_of(result, "toy").metric("within_category_auroc") == pytest.approx(np.mean(expected))


def test_a_resumed_comparison_keeps_scores_of_held_out_categories(tmp_path):
    traces, labels, _ = planted()
    options = RunOptions(folder=tmp_path, is_resumed=True)
    first = compare(traces, labels, {"toy": Toy}, config=CONFIG, options=options)
    first.write(tmp_path)
    again = compare(traces, labels, {"toy": Toy}, config=CONFIG, options=options)
    assert again.category_samples.equals(first.category_samples)
    assert again.rows == first.rows


def test_the_prior_of_a_category_is_its_share_drawn_to_that_of_all(tmp_path):
    traces, labels, category = planted()
    fold = comparison_data(traces, labels, CONFIG).splits["question", 3][0]
    control = CategoryPrior().fit(traces, labels, fold)
    overall = labels.values[fold.train].mean()
    for index in fold.test[:17].tolist():
        same = fold.train[category[fold.train] == category[index]]
        expected = (labels.values[same].sum() + overall) / (len(same) + 1)
        assert control.score([traces[index]]).values[0] == pytest.approx(expected)
    assert control.score([make_trace(997, relation="of its own")]).values[0] == pytest.approx(overall)
    control.save(tmp_path)
    again = CategoryPrior.load(tmp_path)
    assert np.array_equal(again.score(traces).values, control.score(traces).values)


def test_questions_without_a_category_are_clustered_by_their_words(tmp_path):
    rng = np.random.default_rng(3)
    kinds = rng.integers(0, 2, 211)
    words = ["capital country city", "author novel book"]
    traces = [make_trace(i, question=f"{words[k]} number{i}?") for i, k in enumerate(kinds.tolist())]
    values = (rng.random(211) < np.array([0.2, 0.8])[kinds]).astype(np.int64)
    labels = make_labels(values)
    fold = comparison_data(traces, labels, CONFIG).splits["question", 3][0]
    control = CategoryPrior().fit(traces, labels, fold)
    assert auroc(control.score(traces).values[fold.test], values[fold.test]) > 0.65
    control.save(tmp_path)
    assert np.array_equal(CategoryPrior.load(tmp_path).score(traces).values, control.score(traces).values)


def test_clusters_of_words_put_equal_texts_together_and_know_new_ones():
    texts = [
        f"{first} {second}" for first in ("alpha beta", "gamma delta", "rho tau") for second in "abcdefg"
    ]
    centres = cluster_centres(texts)
    assert 2 <= len(centres) <= 20
    assert cluster_names(texts[:2], centres) == cluster_names(texts[:2], centres)
    assert cluster_names(["gamma delta a"], centres)[0] in cluster_names(texts, centres)
