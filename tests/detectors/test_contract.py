"""What every registered detector promises."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from graphhalu.core.errors import ConfigError, NotEnoughDataError, UsageError
from graphhalu.detectors.registry import DETECTORS, detector_names
from graphhalu.detectors.saved import load_detector, save_detector
from graphhalu.testing.contracts.detectors import DETECTOR_CHECKS, DetectorCase, planted_token_data
from tests.detectors.conftest import OF_SAMPLES

NAMES = detector_names("answer")
TOKEN_NAMES = detector_names("token")
QUICK_TOKENS = {
    name: {"epochs": 2, "n_folds": 2}
    for name in TOKEN_NAMES
    if name.startswith(("token-graph", "token-no-edges", "token-evidence"))
}
SEEN = {
    "sink-mass": "sink",
    "sink-mass-k1": "sink",
    "head-std": "sink",
    "head-std-logit": "sink",
    "attention-logdet": "self",
    "focus": "lookback",
    "rauq": "likelihood",
    "perplexity": "likelihood",
    "min-logprob": "likelihood",
    "entropy": "likelihood",
    "likelihood": "likelihood",
    "length": "length",
    "hidden-score": "length",
    "sink-probe-heads": "sink",
    "sinkprobe": "sink",
    "lapeigvals": "self",
    "attneigvals": "self",
    "attn-logdet-heads": "self",
    "lookback": "lookback",
    "instability-probe": "sink",
    "entropy-heads": "flat",
    "toha": "flat",
    "likelihood-probe": "likelihood",
    "hidden-probe": "hidden",
    "saplma": "hidden",
    "hallushift": "shift",
    "icr": "shift",
    "all-features": "sink",
    "tfidf": "text",
    "gcn": "sink",
    "gat": "sink",
    "charm": "sink",
    "mlp": "sink",
    "joint-probe": "sink",
    "live-probe": "sink",
    "graphhalu": "hidden",
    "gasp": "context",
    "lumina": "context",
}
"""What each detector must find. Of the others: shuffled labels and rewired graphs are controls
that shall find nothing or little; no category and no sample is planted here; EigenScore, HaloScope and
detectors of samples have tests of their own."""
UNSEEN = {"shuffled-labels", "gat-rewired", "eigenscore", "haloscope", "category-prior", *OF_SAMPLES}
every_detector = pytest.mark.parametrize("name", NAMES)


def test_the_registry_holds_scalars_probes_controls_and_networks():
    assert {"sink-mass", "length", "sinkprobe", "tfidf", "all-features", "gcn", "gat"} <= set(NAMES)


def test_every_registered_detector_has_something_to_find_or_is_known_to_find_nothing():
    assert set(SEEN) | UNSEEN >= set(NAMES)
    assert not set(SEEN) & UNSEEN


@pytest.fixture(scope="module")
def case_of(data_of, settings_of):
    """Each detector with its data; fits are shared by all tests of a detector."""

    @cache
    def case(name):
        return DetectorCase(DETECTORS.get(name), data=data_of(name), **settings_of(name, epochs=2))

    return case


@every_detector
@pytest.mark.parametrize("check", DETECTOR_CHECKS, ids=lambda check: check.__name__)
def test_a_registered_detector_keeps_the_contract(name, check, case_of):
    check(case_of(name))


@pytest.fixture(scope="module")
def token_case_of():
    """Each detector of tokens with planted tokens; fits are shared by all tests of a detector."""
    data = planted_token_data(53)

    @cache
    def case(name):
        return DetectorCase(DETECTORS.get(name), data=data, **QUICK_TOKENS.get(name, {}))

    return case


@pytest.mark.parametrize("name", TOKEN_NAMES)
@pytest.mark.parametrize("check", DETECTOR_CHECKS, ids=lambda check: check.__name__)
def test_a_registered_detector_of_tokens_keeps_the_contract(name, check, token_case_of):
    check(token_case_of(name))


@pytest.mark.parametrize("name", [*NAMES, *TOKEN_NAMES])
def test_a_card_bears_the_registered_name(name):
    assert DETECTORS.get(name).card.name == name


@every_detector
def test_a_saved_detector_is_found_by_its_name_alone(name, case_of, tmp_path):
    save_detector(case_of(name).fitted, tmp_path)
    assert type(load_detector(tmp_path)) is DETECTORS.get(name)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in written} <= {"detector.json", "model.safetensors"}


@every_detector
def test_one_class_in_training_is_not_enough(name, few, make_detector):
    ones = replace(few.labels, values=np.ones_like(few.labels.values))
    with pytest.raises(NotEnoughDataError, match="both classes"):
        make_detector(name, epochs=1).fit(few.traces, ones, few.split)


@every_detector
def test_a_detector_that_is_not_fitted_says_so(name, few, make_detector, tmp_path):
    with pytest.raises(UsageError, match="not fitted"):
        make_detector(name).score(few.test_traces)
    with pytest.raises(UsageError, match="not fitted"):
        make_detector(name).save(tmp_path)


@every_detector
def test_an_unknown_setting_is_named(name):
    with pytest.raises(ConfigError, match="hiden_size"):
        DETECTORS.get(name).settings(hiden_size=16)


@pytest.mark.parametrize("name", sorted(set(SEEN) & set(NAMES)))
def test_a_planted_signal_is_found_on_the_test_side(name, with_signals, make_detector):
    planted = with_signals(SEEN[name])
    # charm learns slowly from some dozens of answers
    settings = {"epochs": 60, "patience": 20} if name == "charm" else {"epochs": 20}
    detector = make_detector(name, **settings).fit(planted.traces, planted.labels, planted.split)
    scores = detector.score(planted.test_traces).values
    assert roc_auc_score(planted.test_labels, scores) > 0.9


@pytest.mark.parametrize("name", sorted(set(SEEN) & set(NAMES)))
def test_nothing_is_found_when_labels_are_shuffled(name, with_signals, make_detector):
    planted = with_signals(SEEN[name])
    shuffled = np.random.default_rng(5).permutation(planted.labels.values)
    labels = replace(planted.labels, values=shuffled)
    detector = make_detector(name, epochs=5).fit(planted.traces, labels, planted.split)
    scores = detector.score(planted.test_traces).values
    assert_like_chance(shuffled[planted.split.test], scores)


@every_detector
def test_nothing_is_found_where_nothing_is(name, twin, make_detector):
    if name == "eigenscore" or name in OF_SAMPLES:
        pytest.skip("the twin has one answer a question")
    detector = make_detector(name, epochs=10).fit(twin.traces, twin.labels, twin.split)
    assert_like_chance(twin.test_labels, detector.score(twin.test_traces).values)


def assert_like_chance(labels, scores):
    """AUROC within 2.6 standard errors of one half under no signal."""
    n_ones, n_zeros = int(labels.sum()), int((1 - labels).sum())
    error = np.sqrt((n_ones + n_zeros + 1) / (12 * n_ones * n_zeros))
    assert abs(roc_auc_score(labels, scores) - 0.5) < 2.6 * error
