"""Contract tests for plug-ins: what every detector, feature, labeller and data set must keep.

A plug-in's author runs them from a test::

    from graphhalu.testing.contracts import check_detector

    def test_my_detector_keeps_the_contract():
        check_detector(MyDetector)

or, to see each promise as a test of its own::

    CASE = DetectorCase(MyDetector, epochs=2)

    @pytest.mark.parametrize("check", DETECTOR_CHECKS, ids=lambda check: check.__name__)
    def test_my_detector(check):
        check(CASE)

A broken promise is an :class:`AssertionError` that says which. graphhalu's own tests run the same
functions over its registries.
"""

from graphhalu.testing.contracts.detectors import (
    DETECTOR_CHECKS,
    DetectorCase,
    PlantedData,
    bare,
    check_detector,
    planted_data,
    planted_token_data,
)
from graphhalu.testing.contracts.inputs import (
    FEATURE_CHECKS,
    check_dataset,
    check_dataset_card,
    check_feature,
    check_labeller,
    check_questions,
)

__all__ = [
    "DETECTOR_CHECKS",
    "FEATURE_CHECKS",
    "DetectorCase",
    "PlantedData",
    "bare",
    "check_dataset",
    "check_dataset_card",
    "check_detector",
    "check_feature",
    "check_labeller",
    "check_questions",
    "planted_data",
    "planted_token_data",
]
