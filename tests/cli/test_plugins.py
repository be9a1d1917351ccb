"""Detectors and labellers of the user's own on the command line, by ``module:Class``."""

import json
import sys

import pytest

from graphhalu.cli.main import run
from graphhalu.evaluation.settings import CompareConfig, detector_specs
from graphhalu.labels.planted import PLANTED_SHAPE, planted_traces
from graphhalu.labels.run import read_labels
from graphhalu.traces.schema import ARRAYS
from graphhalu.traces.store import TraceStore

OWN = """
from dataclasses import replace
from graphhalu.detectors.scalars import Perplexity
from graphhalu.labels.registry import Labeller, correct, hallucinated

class Mine(Perplexity):
    card = replace(Perplexity.card, name="mine")

class Raises(Perplexity):
    card = replace(Perplexity.card, name="raises")

    def score(self, traces):
        return self.no_such_field

class Yes(Labeller):
    name = "yes"

    def settings(self):
        return {}

    def label(self, record):
        return correct("it says yes") if record.answer == "yes" else hallucinated("no")

class RaisingRule(Yes):
    name = "raising"

    def label(self, record):
        return record.no_such_field
"""
QUICK = ["--quick", "--seeds", "0", "--set", "n_resamples=100", "--json"]


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_code.py").write_text(OWN)
    traces, _ = planted_traces(61)
    store = TraceStore.create("s.zarr", configuration={}, shape=PLANTED_SHAPE, arrays=tuple(ARRAYS))
    with store.writer() as writer:
        writer.write_part(0, traces, [trace.record.question_id for trace in traces])
    yield tmp_path
    sys.modules.pop("own_code", None)


def test_detectors_of_a_module_are_compared_and_one_that_raises_fails_alone(work, capsys):
    given = ["--detector", "own_code:Mine", "--detector", "own_code:Raises"]
    assert run(["compare", "s.zarr", "--detectors", "length", *given, *QUICK]) == 0
    rows = json.loads(capsys.readouterr().out)["detectors"]
    failures = {row["detector"]: row["failure"] for row in rows}
    assert failures.keys() == {"length", "mine", "raises"}
    assert failures["length"] is failures["mine"] is None
    assert failures["raises"].startswith("AttributeError in fold 0 of seed 0:")
    assert failures["raises"].endswith("(own_code.py, line 13)")


def test_variants_of_a_detector_of_a_module_have_settings_of_their_own(work):
    config = CompareConfig(settings={"mine@again": {"seed": 5}})
    specs = detector_specs(["own_code:Mine", "own_code:Mine@again"], config)
    assert [(spec.name, spec.path) for spec in specs] == [
        ("mine", "own_code:Mine"),
        ("mine@again", "own_code:Mine"),
    ]
    assert [dict(spec.settings) for spec in specs] == [{}, {"seed": 5}]
    assert specs[1].make(0).card.name == "mine"


def test_a_module_that_is_not_there_is_one_clear_error(work, capsys):
    assert run(["compare", "s.zarr", "--detector", "no_such_module:Mine", *QUICK]) == 2
    said = capsys.readouterr().err
    assert "detector 'no_such_module:Mine' cannot be imported: ModuleNotFoundError" in said
    assert "a class that inherits graphhalu.detectors.base.Detector" in said


def test_a_detector_of_a_module_is_trained_and_loaded_by_its_class(work, capsys):
    from graphhalu.detectors.saved import load_detector

    assert run(["train", "own_code:Mine", "--traces", "s.zarr", "--json"]) == 0
    folder = work / json.loads(capsys.readouterr().out)["run"]
    assert folder.name.startswith("mine-")
    assert load_detector(folder / "detector", detector_class="own_code:Mine").card.name == "mine"
    assert run(["score", "Who?", "--detector", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "'own_code:Mine', which is not registered" in said
    assert "--detector-class" in said
    # the class is found now, and asks for the model that planted traces lack
    named = ["score", "Who?", "--detector", str(folder), "--detector-class", "own_code:Mine"]
    assert run(named) == 2
    assert "is not registered" not in capsys.readouterr().err


def test_a_rule_of_a_module_labels_and_one_that_raises_says_where(work, capsys):
    assert run(["label", "s.zarr", "--labeller", "own_code:Yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["labeller"] == "yes"
    assert read_labels(TraceStore.open(work / "s.zarr"), "yes").reasons[0] in {"it says yes", "no"}
    assert run(["label", "s.zarr", "--labeller", "own_code:RaisingRule"]) == 1
    said = capsys.readouterr().err
    assert "the labeller 'raising' failed: AttributeError" in said
    assert "(own_code.py, line 28)" in said
