"""Result files that the first edition wrote are read, and written again as they were."""

import gzip
import json
from pathlib import Path

import pytest

from graphhalu.studies.instability.settings import Calibration
from graphhalu.studies.sinks.analyze import SinksResult
from graphhalu.studies.weights.validation import Validation

READERS = {
    "sinks": lambda path: SinksResult.read(path).values(),
    "calibration": lambda path: Calibration.read(path).values(),
    "validation": lambda path: Validation.read(path).values(),
}


@pytest.mark.parametrize("name", READERS)
def test_a_file_of_the_first_edition_is_read_and_gives_the_same_values(name):
    path = Path(__file__).with_name("fixtures") / f"{name}.json.gz"
    found, expected = READERS[name](path), json.loads(gzip.decompress(path.read_bytes()))
    if "identity" in expected:  # it has said the architecture only since then
        assert found["identity"].pop("architecture") is None
    assert found == expected


def test_numbers_of_the_first_edition_have_their_intervals():
    found = SinksResult.read(Path(__file__).with_name("fixtures") / "sinks.json.gz").runs[0].findings[0]
    effect = found.shift.cohens_d
    assert effect.low < effect.value < effect.high
    assert sum(each.n for each in found.prediction.bins) == found.n_positive + found.n_negative
