"""The report of versions, devices, cache and one model."""

import json

from graphhalu.models.check import examine
from graphhalu.testing.tiny_models import save_tiny


def test_a_healthy_model_is_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAPHHALU_CACHE", str(tmp_path / "not" / "there" / "yet"))
    notes = []
    report = examine(str(save_tiny(tmp_path / "tiny")), on_note=notes.append)
    assert json.loads(json.dumps(report)) == report
    assert report["is_healthy"]
    assert report["model"]["largest_future"] == 0
    assert report["cache"]["free_gib"] > 0
    assert {"torch", "transformers"} <= report["packages"].keys()
    assert len(notes) == 1


def test_a_model_that_cannot_be_loaded_is_reported_and_not_raised(tmp_path):
    report = examine(str(tmp_path))
    assert not report["is_healthy"]
    assert report["model"]["error"].startswith("ModelUnavailableError: the model folder")
