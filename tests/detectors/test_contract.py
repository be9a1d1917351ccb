"""What every registered detector promises."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from graphhalu.detectors.base import DetectorCard
from graphhalu.detectors.registry import DETECTORS, detector_names
from graphhalu.detectors.saved import load_detector
from graphhalu.errors import ConfigError, NotEnoughDataError, UsageError
from graphhalu.traces.schema import ARRAYS
from graphhalu.traces.trace import Trace

NAMES = detector_names("answer")
SEEN = {
    "sink-mass": "sink", "sink-mass-k1": "sink", "head-std": "sink", "head-std-logit": "sink",
    "attention-logdet": "self", "focus": "lookback", "rauq": "likelihood",
    "perplexity": "likelihood", "min-logprob": "likelihood", "entropy": "likelihood",
    "likelihood": "likelihood", "length": "length", "hidden-score": "length",
    "sink-probe-heads": "sink", "sinkprobe": "sink", "lapeigvals": "self", "attneigvals": "self",
    "attn-logdet-heads": "self", "lookback": "lookback", "instability-probe": "sink",
    "entropy-heads": "flat", "toha": "flat", "likelihood-probe": "likelihood",
    "hidden-probe": "hidden", "saplma": "hidden", "hallushift": "shift", "icr": "shift",
    "all-features": "sink", "tfidf": "text",
    "gcn": "sink", "gat": "sink", "charm": "sink", "mlp": "sink",
    "joint-probe": "sink", "graphhalu": "hidden",
}  # fmt: skip
"""What each detector must find. Of the others: shuffled labels and rewired graphs are controls
that shall find nothing or little, EigenScore and HaloScope have tests of their own."""
UNSEEN = {"shuffled-labels", "gat-rewired", "eigenscore", "haloscope"}
every_detector = pytest.mark.parametrize("name", NAMES)


def bare(trace):
    """Neither arrays nor text: nothing that a score could rest on but the lengths."""
    kept = {name: trace.arrays[name] for name in ("token_ids", "span_code")}
    return Trace(replace(trace.record, answer=""), trace.shape, kept)


def one_by_one(traces):
    return [traces[place : place + 1] for place in range(len(traces))]


def test_the_registry_holds_scalars_probes_controls_and_networks():
    assert {"sink-mass", "length", "sinkprobe", "tfidf", "all-features", "gcn", "gat"} <= set(NAMES)


def test_every_registered_detector_has_something_to_find_or_is_known_to_find_nothing():
    assert set(SEEN) | UNSEEN >= set(NAMES)
    assert not set(SEEN) & UNSEEN


@every_detector
def test_a_card_says_which_stored_arrays_are_read(name):
    card = DETECTORS.get(name).card
    assert set(card.reads) <= set(ARRAYS)
    assert card.reads or set(card.inputs) <= {"text", "length"}


@every_detector
def test_a_card_bears_the_registered_name(name):
    card = DETECTORS.get(name).card
    assert isinstance(card, DetectorCard)
    assert card.name == name
    assert card.inputs


@every_detector
def test_a_detector_gives_one_valid_score_a_trace(name, data_of, fitted_on_few):
    scores = fitted_on_few[name].score(data_of(name).test_traces)
    assert scores.values.shape == scores.is_valid.shape == (17,)
    assert scores.is_valid.all()
    assert np.isfinite(scores.values).all()


@every_detector
def test_no_traces_give_no_scores(name, fitted_on_few):
    scores = fitted_on_few[name].score([])
    assert scores.values.shape == scores.is_valid.shape == (0,)


@every_detector
def test_a_score_does_not_depend_on_the_other_traces(name, data_of, fitted_on_few):
    traces, detector = data_of(name).test_traces[:7], fitted_on_few[name]
    together = detector.score(traces).values
    alone = [detector.score(one).values[0] for one in one_by_one(traces)[::-1]]
    np.testing.assert_array_equal(together[::-1], alone)


@every_detector
def test_the_same_seed_gives_the_same_scores_whatever_the_labels_of_the_test_side(
    name, data_of, fitted_on_few, make_detector
):
    data = data_of(name)
    values = data.labels.values.copy()
    values[data.split.test] = 1 - values[data.split.test]
    turned = replace(data.labels, values=values)
    detector = make_detector(name, epochs=2).fit(data.traces, turned, data.split)
    np.testing.assert_array_equal(
        detector.score(data.test_traces).values, fitted_on_few[name].score(data.test_traces).values
    )


@every_detector
def test_labels_that_are_not_valid_change_no_score(name, data_of, make_detector):
    data = data_of(name)
    is_valid, other = data.labels.is_valid.copy(), data.labels.values.copy()
    hidden = np.concatenate([data.split.train[:7], data.split.validation[:3]])
    is_valid[hidden], other[hidden] = False, 1 - other[hidden]
    scores = [
        make_detector(name, epochs=1)
        .fit(data.traces, replace(data.labels, values=values, is_valid=is_valid), data.split)
        .score(data.test_traces)
        .values
        for values in (data.labels.values, other)
    ]
    np.testing.assert_array_equal(*scores)


@every_detector
def test_a_saved_detector_gives_equal_scores(name, data_of, fitted_on_few, tmp_path):
    fitted_on_few[name].save(tmp_path)
    loaded = load_detector(tmp_path)
    assert type(loaded) is DETECTORS.get(name)
    traces = data_of(name).test_traces
    np.testing.assert_array_equal(
        loaded.score(traces).values, fitted_on_few[name].score(traces).values
    )
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in written} <= {"detector.json", "model.safetensors"}


@every_detector
def test_a_trace_that_cannot_be_computed_has_no_valid_score(name, data_of, fitted_on_few):
    if name == "length":
        pytest.skip("every trace has a length")
    first, *_, last = data_of(name).test_traces
    scores = fitted_on_few[name].score([first, bare(last)])
    assert not scores.is_valid[-1]
    assert np.isnan(scores.values[-1])


@every_detector
def test_a_broken_training_trace_is_left_out(name, data_of, make_detector):
    data = data_of(name)
    traces = list(data.traces)
    first = data.split.train[0]
    traces[first] = bare(traces[first])
    detector = make_detector(name, epochs=1).fit(traces, data.labels, data.split)
    assert detector.score(data.test_traces).is_valid.all()


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
def test_settings_accept_a_seed_and_refuse_unknown_fields(name):
    detector_class = DETECTORS.get(name)
    detector_class(**detector_class.settings(seed=3))
    with pytest.raises(ConfigError, match="hiden_size"):
        detector_class.settings(hiden_size=16)


@pytest.mark.parametrize("name", sorted(set(SEEN) & set(NAMES)))
def test_a_planted_signal_is_found_on_the_test_side(name, with_signals, make_detector):
    planted = with_signals(SEEN[name])
    detector = make_detector(name, epochs=20).fit(planted.traces, planted.labels, planted.split)
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
    if name == "eigenscore":
        pytest.skip("the twin has one beam a question")
    detector = make_detector(name, epochs=10).fit(twin.traces, twin.labels, twin.split)
    assert_like_chance(twin.test_labels, detector.score(twin.test_traces).values)


def assert_like_chance(labels, scores):
    """AUROC within 2.6 standard errors of one half under no signal."""
    n_ones, n_zeros = int(labels.sum()), int((1 - labels).sum())
    error = np.sqrt((n_ones + n_zeros + 1) / (12 * n_ones * n_zeros))
    assert abs(roc_auc_score(labels, scores) - 0.5) < 2.6 * error
