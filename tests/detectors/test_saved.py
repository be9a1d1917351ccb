import json
import sys

import numpy as np
import pytest

from graphhalu.core.errors import (
    DataFileError,
    DetectorMismatchError,
    GraphhaluError,
    UnknownNameError,
    UsageError,
)
from graphhalu.detectors.gnn.detectors import Gat, Gcn
from graphhalu.detectors.registry import DETECTORS
from graphhalu.detectors.saved import load_detector, save_detector
from graphhalu.detectors.scalars import HeadStd


@pytest.fixture
def saved(fitted_on_few, tmp_path):
    fitted_on_few["gat"].save(tmp_path)
    return tmp_path


def change(folder, **fields):
    path = folder / "detector.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_the_description_says_what_the_detector_is(saved, few):
    values = json.loads((saved / "detector.json").read_text())
    assert (values["format"], values["format_version"]) == ("graphhalu-detector", 1)
    assert values["name"] == "gat"
    assert values["config"]["epochs"] == 2
    assert values["graphs"]["model_shape"]["n_heads"] == few.traces[0].shape.n_heads
    assert values["graphs"]["node_feature_names"]
    assert values["training"]["n_train"] == 31
    assert values["provenance"]["packages"]["torch"]


def test_only_json_and_safetensors_are_written(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["detector.json", "model.safetensors"]


def test_a_folder_without_a_detector_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no saved detector"):
        load_detector(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("format", "graphhalu-traces", DataFileError),
        ("format_version", 2, DataFileError),
        ("format_version", "1", DataFileError),
        ("name", 5, DataFileError),
        ("name", "gta", UnknownNameError),
        ("config", {"hidden_size": 3}, DataFileError),
        ("config", {"hidden_size": 64}, DataFileError),
        ("config", [], DataFileError),
        ("graphs", {"n_layers": 5}, DataFileError),
        ("graphs", [], DataFileError),
        ("n_networks", 3, DataFileError),
        ("n_networks", "many", DataFileError),
    ],
)
def test_a_description_that_does_not_fit_is_refused(saved, field, value, error):
    change(saved, **{field: value})
    with pytest.raises(error):
        load_detector(saved)


def test_a_missing_field_is_named(saved):
    path = saved / "detector.json"
    values = json.loads(path.read_text())
    del values["graphs"]
    path.write_text(json.dumps(values))
    with pytest.raises(DataFileError, match="'graphs'"):
        load_detector(saved)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"format": NaN}'])
def test_a_description_that_is_no_json_object_is_refused(saved, text):
    (saved / "detector.json").write_text(text)
    with pytest.raises(DataFileError):
        load_detector(saved)


def test_damaged_weights_are_refused(saved):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataFileError, match="cannot be read"):
        load_detector(saved)


def test_missing_weights_are_refused(saved):
    (saved / "model.safetensors").unlink()
    with pytest.raises(DataFileError, match="cannot be read"):
        load_detector(saved)


def test_a_class_refuses_the_detector_of_another(saved):
    with pytest.raises(UsageError, match="'gat', not 'gcn'"):
        Gcn.load(saved)


def test_a_sign_that_is_none_is_refused(fitted_on_few, tmp_path):
    fitted_on_few["head-std"].save(tmp_path)
    change(tmp_path, sign=0)
    with pytest.raises(DataFileError, match="sign"):
        HeadStd.load(tmp_path)


def test_other_node_features_than_fitted_are_refused(saved, few):
    values = json.loads((saved / "detector.json").read_text())
    names = ["sink.other", *values["graphs"]["node_feature_names"][1:]]
    change(saved, graphs={**values["graphs"], "node_feature_names": names})
    with pytest.raises(DetectorMismatchError, match=r"sink\.other"):
        Gat.load(saved).score(few.test_traces)


OWN = """
from dataclasses import replace
from graphhalu.detectors.scalars import Perplexity

class Mine(Perplexity):
    card = replace(Perplexity.card, name="mine")

class Other(Perplexity):
    card = replace(Perplexity.card, name="other")
"""


@pytest.fixture
def own_saved(few, tmp_path, monkeypatch):
    """A detector that no package registers, saved by a process that ended since."""
    (tmp_path / "own_module.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    detector = DETECTORS.get("own_module:Mine")().fit(few.traces, few.labels, few.split)
    save_detector(detector, tmp_path / "saved")
    sys.modules.pop("own_module")
    yield tmp_path / "saved"
    sys.modules.pop("own_module", None)


def test_a_class_that_is_not_registered_is_named_in_the_file(own_saved):
    assert json.loads((own_saved / "detector.json").read_text())["class"] == "own_module:Mine"


def test_a_registered_class_is_found_by_its_name_and_needs_no_path(fitted_on_few, tmp_path):
    save_detector(fitted_on_few["length"], tmp_path)
    assert "class" not in json.loads((tmp_path / "detector.json").read_text())


def test_a_class_that_a_file_names_is_not_imported_because_of_it(own_saved):
    with pytest.raises(UnknownNameError, match="--detector-class module:Class") as caught:
        load_detector(own_saved)
    assert "'own_module:Mine', which is not registered" in str(caught.value)
    assert "own_module" not in sys.modules


def test_a_class_that_the_caller_names_is_loaded(own_saved, few):
    loaded = load_detector(own_saved, detector_class="own_module:Mine")
    again = load_detector(own_saved, detector_class=type(loaded))
    np.testing.assert_array_equal(loaded.score(few.test_traces).values, again.score(few.test_traces).values)


def test_another_class_than_the_saved_one_is_refused(own_saved):
    with pytest.raises(UsageError, match="holds the detector 'mine', not 'other'"):
        load_detector(own_saved, detector_class="own_module:Other")


def test_a_path_in_place_of_a_name_imports_nothing(own_saved):
    change(own_saved, name="own_module:Mine")
    with pytest.raises(UnknownNameError):
        load_detector(own_saved)
    assert "own_module" not in sys.modules


def test_a_class_under_a_name_of_graphhalus_own_is_not_taken_for_it(own_saved):
    change(own_saved, name="perplexity")
    with pytest.raises(UnknownNameError, match="not registered"):
        load_detector(own_saved)


def test_blocks_that_a_file_names_import_nothing(fitted_on_few, own_saved, tmp_path):
    fitted_on_few["all-features"].save(tmp_path / "ensemble")
    values = json.loads((tmp_path / "ensemble" / "detector.json").read_text())
    blocks = ["own_module:Mine", *values["config"]["blocks"][1:]]
    change(tmp_path / "ensemble", config={**values["config"], "blocks": blocks})
    with pytest.raises(GraphhaluError):
        load_detector(tmp_path / "ensemble")
    assert "own_module" not in sys.modules
