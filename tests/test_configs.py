"""Every configuration that the project ships is loaded, and differs from the defaults."""

from pathlib import Path

import pytest

from graphhalu.core.config import load_config, read_yaml
from graphhalu.detectors.registry import DETECTORS
from graphhalu.evaluation.settings import CompareConfig
from graphhalu.extract.settings import ExtractConfig
from graphhalu.weights.risk import RiskSettings

FOLDER = Path(__file__).resolve().parents[1] / "configs"
EXTRACT = sorted((FOLDER / "extract").glob("*.yaml"))
COMPARE = sorted((FOLDER / "compare").glob("*.yaml"))
TRAIN = sorted((FOLDER / "train").glob("*.yaml"))
WEIGHTS = sorted((FOLDER / "weights").glob("*.yaml"))


def test_there_are_configurations_of_every_kind():
    assert EXTRACT
    assert COMPARE
    assert TRAIN
    assert WEIGHTS
    assert len(list(FOLDER.rglob("*.yaml"))) == len(EXTRACT) + len(COMPARE) + len(TRAIN) + len(WEIGHTS)


@pytest.mark.parametrize("path", EXTRACT, ids=lambda path: path.stem)
def test_an_extraction_is_valid_and_differs_from_the_defaults(path):
    assert load_config(ExtractConfig, path) != ExtractConfig()


@pytest.mark.parametrize("path", COMPARE, ids=lambda path: path.stem)
def test_a_comparison_is_valid_and_differs_from_the_defaults(path):
    assert load_config(CompareConfig, path) != CompareConfig()


@pytest.mark.parametrize("path", TRAIN, ids=lambda path: path.stem)
def test_a_training_names_a_detector_that_takes_its_settings(path):
    detector = DETECTORS.get(path.stem.split("_")[0])
    assert detector(**detector.settings(**read_yaml(path))).card.name in path.stem


@pytest.mark.parametrize("path", WEIGHTS, ids=lambda path: path.stem)
def test_components_of_a_risk_are_valid_and_differ_from_the_defaults(path):
    assert load_config(RiskSettings, path) != RiskSettings()
