from pathlib import Path

import pytest

from graphhalu.core.config import read_yaml
from graphhalu.detectors.gnn.detector import NetworkDetector
from graphhalu.detectors.registry import DETECTORS

FOLDER = Path(__file__).parents[2] / "configs" / "train"
CONFIGS = [
    path
    for path in sorted(FOLDER.glob("*.yaml"))
    if not issubclass(DETECTORS.get(path.stem.split("_")[0]), NetworkDetector)
]


def test_there_are_configurations():
    assert {"tfidf_question", "all-features_attention"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_trains_the_detector_of_its_name(path, few):
    detector_class = DETECTORS.get(path.stem.split("_")[0])
    detector = detector_class(**detector_class.settings(**read_yaml(path)))
    detector.fit(few.traces, few.labels, few.split)
    assert detector.score(few.test_traces).is_valid.all()
