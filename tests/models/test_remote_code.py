"""Code that comes with a model runs only if it was asked for by name and revision."""

import json
import re

import pytest

from graphhalu.core.errors import ConfigError, ModelUnavailableError, UsageError
from graphhalu.models.cards import ModelSpec
from graphhalu.models.identity import code_digest
from graphhalu.models.load import load_model
from graphhalu.testing.tiny_models import save_tiny

CODE = """
from pathlib import Path
Path({marker!r}).write_text("ran")
from transformers import PretrainedConfig
class OwnConfig(PretrainedConfig):
    model_type = "own-kind"
"""


@pytest.fixture
def own_code(tmp_path, monkeypatch):
    """A folder whose configuration names a class of its own; importing that leaves a mark."""
    import transformers.dynamic_module_utils as modules

    monkeypatch.setattr(modules, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = save_tiny(tmp_path / "own")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "own-kind", "auto_map": {"AutoConfig": "own_kind.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    code = CODE.format(marker=str(tmp_path / "mark"))
    (folder / "own_kind.py").write_text(code, encoding="utf-8")
    return folder


def test_code_in_a_folder_is_not_run_and_one_line_says_how_it_would_be(own_code, tmp_path):
    with pytest.raises(ModelUnavailableError) as caught:
        load_model(ModelSpec(name=str(own_code), threads=1))
    digest = code_digest(own_code)
    assert not (tmp_path / "mark").exists()
    assert re.search("needs code from its own repository, which is not run\n", str(caught.value))
    assert f"--trust-remote-code {own_code}@{digest}" in str(caught.value)


def test_code_that_was_asked_for_runs_with_a_warning(own_code, tmp_path, caplog):
    digest = code_digest(own_code)
    spec = ModelSpec(name=str(own_code), threads=1, trust_remote_code=f"{own_code}@{digest}")
    with pytest.raises(Exception, match=r"own-kind|OwnConfig|own"):  # it brings no network
        load_model(spec)
    assert (tmp_path / "mark").read_text(encoding="utf-8") == "ran"
    told = [r.getMessage() for r in caplog.records if r.name.startswith("graphhalu")]
    assert told == [f"WARNING: code of {own_code} at {digest} runs on this machine"]


def test_code_that_was_changed_since_is_not_run(own_code, tmp_path):
    digest = code_digest(own_code)
    with (own_code / "own_kind.py").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    spec = ModelSpec(name=str(own_code), threads=1, trust_remote_code=f"{own_code}@{digest}")
    with pytest.raises(UsageError, match="is not the one that was asked for"):
        load_model(spec)
    assert not (tmp_path / "mark").exists()


def test_a_folder_without_code_cannot_be_trusted(tmp_path):
    folder = save_tiny(tmp_path / "plain")
    spec = ModelSpec(name=str(folder), threads=1, trust_remote_code=f"{folder}@abc")
    with pytest.raises(UsageError, match="brings no code of its own"):
        load_model(spec)


@pytest.mark.parametrize("asked", ["own", "own@", "other@abc", "@abc", "True"])
def test_a_name_or_a_revision_that_is_missing_is_refused(asked):
    from graphhalu.core.config import validate

    with pytest.raises(ConfigError, match="only by name and revision: expected own@REVISION"):
        validate(ModelSpec, {"name": "own", "trust_remote_code": asked}, source="the test")
