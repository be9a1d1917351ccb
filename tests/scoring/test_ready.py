"""Detectors that ship: small, with a card of their training and figures, and found by their model."""

import subprocess
import sys

import pytest

from graphhalu.models.cards import MODEL_CARDS
from graphhalu.scoring.ready import read_card, ready_folder, ready_names, ready_of_answers, ready_of_tokens

LARGEST = 3_000_000
"""Bytes of a detector in the package."""


@pytest.mark.parametrize("name", ready_names())
def test_a_ready_detector_is_small_and_its_card_is_whole(name):
    folder = ready_folder(name)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= LARGEST
    card = read_card(folder)
    assert card["summary"]
    assert card["training"]
    assert card["not_for"]
    assert card["model"] in MODEL_CARDS
    assert name.split("-likelihood")[0].split("-tokens")[0] == card["model"]
    sets = {figure["set"] for figure in card["held_out"]}
    assert len(sets) == len(card["held_out"]) >= 3
    for figure in card["held_out"]:
        assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
        assert figure["low"] < figure["high"]


def test_a_model_has_its_own_ready_detectors_and_any_other_is_scored_by_the_embedded_one():
    for name in {read_card(ready_folder(each))["model"] for each in ready_names()}:
        assert (ready_of_answers(name), ready_of_tokens(name)) == (name, f"{name}-tokens")
    assert ready_of_answers("llama2-7b") == ready_of_answers(None) == "smollm2"
    assert ready_of_tokens("llama2-7b") is None


def test_a_ready_detector_is_loaded_without_the_libraries_that_only_fits_need():
    libraries = {"sklearn", "pandas", "scipy.stats", "torch_geometric", "lightning"}
    code = "import sys; from graphhalu import load_detector; load_detector('smollm2'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not libraries & {*done.stdout.split()}
