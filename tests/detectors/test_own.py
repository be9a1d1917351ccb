import numpy as np
import pytest
import torch
from graphhalu.detectors.own import GraphhaluDetector

from graphhalu.detectors.probes.joint import JointProbe
from graphhalu.detectors.saved import load_detector, save_detector


def make(**settings):
    return GraphhaluDetector(**GraphhaluDetector.settings(**{"epochs": 1, **settings}))


@pytest.fixture(scope="module")
def fitted(few):
    return make(epochs=2).fit(few.traces, few.labels, few.split)


@pytest.fixture(scope="module")
def probe(few):
    return JointProbe().fit(few.traces, few.labels, few.split)


def test_a_network_that_learnt_nothing_leaves_the_joint_probe_as_it_is(few, probe):
    detector = make(learning_rate=1e-9).fit(few.traces, few.labels, few.split)
    scores = detector.score(few.test_traces).values
    np.testing.assert_allclose(scores, probe.score(few.test_traces).values, atol=1e-4)


def test_the_score_is_the_sum_of_the_probe_and_the_network(few, probe, fitted):
    with torch.no_grad():
        for parameter in fitted.network.head[-1].parameters():
            parameter.add_(0.1)
    try:
        added = fitted.score(few.test_traces).values - probe.score(few.test_traces).values
        assert np.abs(added).min() > 0
        assert np.ptp(added) > 1e-4
    finally:
        with torch.no_grad():
            for parameter in fitted.network.head[-1].parameters():
                parameter.sub_(0.1)


def test_training_traces_start_from_logits_out_of_fold(few):
    start = make().fit_start(few.traces, few.labels, few.split)
    train = np.sort(few.split.train).tolist()
    learned, used = JointProbe().fit_side(few.traces, few.labels, few.split.train)
    expected = dict(zip(used.tolist(), learned.out_of_fold.tolist(), strict=True))
    assert start(train) == pytest.approx([expected[index] for index in train])


def test_validation_traces_start_from_the_probe_itself(few, probe):
    start = make().fit_start(few.traces, few.labels, few.split)
    chosen = few.split.validation.tolist()
    expected = probe.score([few.traces[index] for index in chosen]).values
    assert start(chosen) == pytest.approx(expected.tolist())


def test_without_its_start_only_the_network_speaks(few, tmp_path):
    detector = make(has_start=False).fit(few.traces, few.labels, few.split)
    assert detector.probe is None
    save_detector(detector, tmp_path)
    assert not (tmp_path / "start").exists()
    again = load_detector(tmp_path).score(few.test_traces).values
    np.testing.assert_array_equal(again, detector.score(few.test_traces).values)


@pytest.mark.parametrize("part", ["has_recurrence", "has_layer_attention"])
def test_a_part_that_is_switched_off_has_no_weights(few, fitted, part):
    smaller = make(has_start=False, **{part: False}).fit(few.traces, few.labels, few.split)
    assert smaller.network.n_parameters < fitted.network.n_parameters
