"""Choices of a probe: only inside the training side, by question."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from graphhalu.detectors.inner_search import Grid, Side, choose_heads, fit_candidate, folds_of, search
from graphhalu.detectors.probes import all_columns, by_layer, by_rank

N_TRACES = 97


def side_of(n_columns, informative=(), seed=0, strength=2.0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, N_TRACES)
    values = generator.normal(size=(N_TRACES, n_columns))
    values[:, list(informative)] += strength * labels[:, None]
    groups = np.array([f"q{place // 2}" for place in range(N_TRACES)])
    names = tuple(f"x.l{place // 5:02d}.r{place % 5:02d}" for place in range(n_columns))
    return Side(values.astype(np.float32), names, labels, groups)


def folds(side, seed=0):
    return folds_of(side.labels, side.groups, n_folds=3, seed=seed)


def test_no_question_is_on_both_parts_of_a_fold():
    side = side_of(5)
    parts = folds(side)
    assert len(parts) == 3
    for train, held_out in parts:
        assert not set(side.groups[train]) & set(side.groups[held_out])
    assert sorted(np.concatenate([f.held_out for f in parts])) == list(range(N_TRACES))


def test_the_view_that_tells_is_chosen():
    side = side_of(25, informative=[12, 13])
    views = {f"v{k}": np.arange(5 * k, 5 * k + 5) for k in range(5)}
    learned = search(side, Grid(views, n_screened=9), folds(side))
    assert learned.report["view"] == "v2"
    assert set(np.flatnonzero(learned.model.weight)) == set(range(10, 15))


def test_screening_keeps_the_view_that_tells():
    side = side_of(55, informative=[32], strength=3.0)
    views = {f"v{k:02d}": np.arange(5 * k, 5 * k + 5) for k in range(11)}
    learned = search(side, Grid(views, n_screened=2), folds(side))
    assert learned.report["view"] == "v06"
    assert learned.report["n_candidates"] == 12


def test_screening_passes_over_a_view_of_constant_columns():
    side = side_of(25, informative=[12, 13])
    side.values[:, :5] = 3.0
    views = {f"v{k}": np.arange(5 * k, 5 * k + 5) for k in range(5)}
    learned = search(side, Grid(views, n_screened=2), folds(side))
    assert learned.report["view"] == "v2"


def test_logits_out_of_fold_come_from_models_that_never_saw_the_question():
    side = side_of(N_TRACES * 2)
    grid = Grid(all_columns(side.columns), strengths=(30.0,))
    learned = search(side, grid, folds(side))
    assert abs(roc_auc_score(side.labels, learned.out_of_fold) - 0.5) < 0.25
    assert roc_auc_score(side.labels, learned.model.logits(side.values)) > 0.99


@pytest.mark.parametrize("number", [3, 11])
def test_a_candidate_is_principal_components_and_a_regression_of_scikit_learn(number):
    side = side_of(29, informative=[1, 2, 3, 4])
    grid = Grid(all_columns(side.columns), components=(number,), strengths=(0.3, 3.0))
    model = fit_candidate(side, grid, "all", number, 3.0)
    values = side.values.astype(np.float64)
    scaled = (values - values.mean(axis=0)) / values.std(axis=0)
    parts = PCA(number, svd_solver="full").fit_transform(scaled)
    total = np.square(parts).sum() / N_TRACES
    regression = LogisticRegression(C=3.0 / total, class_weight="balanced", tol=1e-9)
    expected = regression.fit(parts, side.labels).decision_function(parts)
    np.testing.assert_allclose(model.logits(side.values), expected, atol=2e-3)


def test_the_same_side_gives_the_same_weights():
    side = side_of(29, informative=[1])
    grid = Grid(all_columns(side.columns), components=(4, 512))
    first, again = (search(side, grid, folds(side)).model.weight for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_without_folds_the_simplest_candidate_is_taken():
    side = side_of(25)
    views = {"few": np.arange(3), "all": np.arange(25)}
    report = search(side, Grid(views, components=(2, 512)), []).report
    assert (report["view"], report["n_components"], report["strength"]) == ("few", 2, 0.1)
    assert report["inner_auroc"] is None


def test_views_that_hold_the_same_used_columns_are_searched_once():
    side = side_of(25)
    side.values[:, [place for place in range(25) if place % 5 > 1]] = np.nan
    views = by_rank(side.columns, (1, 2, 3, 5))
    assert list(views) == ["k=1", "k=2", "k=3", "k=5"]
    report = search(side, Grid(views, n_screened=9), folds(side)).report
    assert report["n_candidates"] == 2 * 6


def test_ranks_and_layers_are_read_from_the_names():
    names = [f"x.l0{layer}.r{rank:02d}" for layer in range(2) for rank in range(3)]
    assert {k: v.tolist() for k, v in by_rank(names, (1, 3, 5)).items()} == {
        "k=1": [0, 3],
        "k=3": [0, 1, 2, 3, 4, 5],
    }
    states = ["a.n00.f00", "a.n00.f01", "a.n01.f00", "a.n01.f01", "b.n00.f00"]
    assert {k: v.tolist() for k, v in by_layer(states).items()} == {
        "a.n00": [0, 1],
        "a.n01": [2, 3],
        "b.n00": [4],
    }


def test_heads_are_chosen_by_how_much_higher_hallucinated_traces_are():
    side = side_of(23, informative=[4, 17])
    side.values[:, 8] -= 9 * side.labels
    learned = choose_heads(side, folds(side))
    chosen = set(np.flatnonzero(learned.model.weight))
    assert {4, 17} <= chosen
    assert 8 not in chosen
    expected = side.values[:, sorted(chosen)].mean(axis=1)
    np.testing.assert_allclose(learned.model.logits(side.values), expected, rtol=1e-5)
