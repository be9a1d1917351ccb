"""The plug-in keeps the contract of detectors; add tests of what your method promises."""

import pytest
from graphhalu_template.detector import SinkNetwork
from sklearn.metrics import roc_auc_score

from graphhalu.testing.contracts.detectors import DETECTOR_CHECKS, DetectorCase, planted_data

CASE = DetectorCase(SinkNetwork, epochs=20)


@pytest.mark.parametrize("check", DETECTOR_CHECKS, ids=lambda check: check.__name__)
def test_the_detector_keeps_the_contract(check):
    check(CASE)


@pytest.mark.parametrize("signal", [True, False])
def test_a_planted_signal_is_found_and_its_twin_is_not(signal):
    data = planted_data(223, signal=signal)
    detector = SinkNetwork().fit(data.traces, data.labels, data.split)
    found = roc_auc_score(data.test_labels, detector.score(data.test_traces).values)
    assert found > 0.9 if signal else abs(found - 0.5) < 0.2
