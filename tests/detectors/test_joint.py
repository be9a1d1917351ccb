import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.utils.class_weight import compute_sample_weight

from graphhalu.detectors import probes
from graphhalu.detectors.inner_search import Side, folds_of
from graphhalu.detectors.probes import learn_jointly

MIX = {"attention": 0.5, "hidden": 0.3, "likelihood": 0.2}
STRENGTH = 3.0


def side(n_traces=97, seed=0):
    generator = np.random.default_rng(seed)
    names = (
        *(f"sink_mass_k4.l{layer:02}.h0" for layer in range(11)),
        *(f"lookback_ratio.l{layer:02}.h0" for layer in range(7)),
        *(f"state_mean_answer.n00.unit{unit:03}" for unit in range(131)),
        "logprob_mean",
        "logprob_min",
    )
    labels = (np.arange(n_traces) % 3 > 0).astype(np.int64)
    values = generator.normal(size=(n_traces, len(names))) + 5.0
    values[:, 3] += labels
    values[:, 20] *= 17.0
    return Side(values.astype(np.float32), names, labels, np.arange(n_traces))


@pytest.fixture
def one_choice(monkeypatch):
    monkeypatch.setattr(probes, "MIXES", (MIX,))
    monkeypatch.setattr(probes, "STRENGTHS", (STRENGTH,))


def by_hand(given):
    """Every block scaled by the root of its share, then scikit-learn."""
    blocks = {
        "sink_mass_k4": MIX["attention"] / 2,
        "lookback_ratio": MIX["attention"] / 2,
        "state_mean_answer": MIX["hidden"],
        "logprob": MIX["likelihood"],
    }
    columns = []
    for name, share in blocks.items():
        places = [i for i, column in enumerate(given.columns) if column.startswith(name)]
        values = given.values[:, places].astype(np.float64)
        scaled = (values - values.mean(0)) / values.std(0)
        columns.append(scaled * np.sqrt(share / len(places)))
    wide = np.concatenate(columns, axis=1)
    variance = np.square(wide).sum() / len(wide)
    model = LogisticRegression(C=STRENGTH / variance, tol=1e-10, max_iter=10_000)
    return model.fit(wide, given.labels, compute_sample_weight("balanced", given.labels)).decision_function(
        wide
    )


@pytest.mark.usefixtures("one_choice")
def test_the_joint_probe_is_a_ridge_penalised_regression_on_weighted_blocks():
    given = side()
    learned = learn_jointly(given, [])
    np.testing.assert_allclose(learned.model.logits(given.values), by_hand(given), atol=2e-3)


def test_labels_of_a_fold_do_not_reach_its_own_logits(monkeypatch):
    monkeypatch.setattr(probes, "MIXES", (MIX,))
    monkeypatch.setattr(probes, "STRENGTHS", (STRENGTH,))
    given = side()
    folds = folds_of(given.labels, given.groups, n_folds=3, seed=0)
    before = learn_jointly(given, folds).out_of_fold
    labels = given.labels.copy()
    one, two = (int(np.flatnonzero(labels[folds[0].held_out] == c)[0]) for c in (0, 1))
    swapped = folds[0].held_out[[one, two]]
    labels[swapped] = labels[swapped[::-1]]
    after = learn_jointly(Side(given.values, given.columns, labels, given.groups), folds).out_of_fold
    held_out = folds[0].held_out
    np.testing.assert_allclose(after[held_out], before[held_out], atol=1e-9)
    assert np.abs(after - before).max() > 1e-3


def test_a_family_that_traces_lack_is_left_out():
    given = side()
    kept = [i for i, column in enumerate(given.columns) if not column.startswith("state")]
    less = Side(given.values[:, kept], tuple(given.columns[i] for i in kept), given.labels, given.groups)
    folds = folds_of(less.labels, less.groups, n_folds=3, seed=0)
    learned = learn_jointly(less, folds)
    assert learned.report["n_columns"] == len(kept)
    assert roc_auc_score(less.labels, learned.out_of_fold) > 0.6


def test_traces_that_are_nearly_alike_still_have_coordinates():
    generator = np.random.default_rng(0)
    base = generator.normal(size=(1, 3001)).astype(np.float32) * 100
    values = base + generator.normal(size=(97, 3001)).astype(np.float32) * 1e-4
    factor = probes._coordinates(values)
    kernel = (values @ values.T).astype(np.float64)
    np.testing.assert_allclose(factor @ factor.T, kernel, rtol=1e-2)
