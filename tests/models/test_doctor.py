"""The report of versions, devices, cache and one model."""

import json

import pytest

from graphhalu.models import check
from graphhalu.models.check import examine
from graphhalu.testing.tiny_models import save_tiny


def test_a_healthy_model_is_measured(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "graphhalu")
    monkeypatch.setenv("GRAPHHALU_CACHE", str(tmp_path / "not" / "there" / "yet"))
    report = examine(str(save_tiny(tmp_path / "tiny")))
    assert json.loads(json.dumps(report)) == report
    assert report["is_healthy"]
    assert report["model"]["largest_future"] == 0
    assert report["cache"]["free_gib"] > 0
    assert {"torch", "transformers"} <= report["packages"].keys()
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(("hint", "said"), [("--dtype bfloat16", "--dtype bfloat16"), (None, "not native")])
def test_half_precision_of_the_cpu_is_told(hint, said, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "bfloat16_hint", lambda: hint)
    assert examine(str(tmp_path))["devices"]["bfloat16"].startswith(said)


def test_a_model_that_cannot_be_loaded_is_reported_and_not_raised(tmp_path):
    report = examine(str(tmp_path))
    assert not report["is_healthy"]
    assert report["model"]["error"].startswith("ModelUnavailableError: the model folder")
