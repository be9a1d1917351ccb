"""A saved detector knows its model and prompt, and refuses others."""

import json
from copy import deepcopy
from pathlib import Path

import pytest

from graphhalu.core.errors import DataFileError, DetectorMismatchError
from graphhalu.detectors.base import ChosenTraces
from graphhalu.detectors.identity import Identity
from graphhalu.detectors.saved import load_detector, read_description, save_detector
from graphhalu.scoring.ready import READY

CONFIGURATION = {
    "model": {
        "name": "small",
        "source": "hub/small",
        "revision": "abc",
        "weights": "0123",
        "quantization": "none",
        "dtype": "float32",
    },
    "prompt": {"template": "concise", "chat": False, "system": None},
    "dataset": {"name": "triviaqa"},
    "capture": {"keep": "full"},
}


def changed(**fields):
    values = deepcopy(CONFIGURATION)
    for dotted, value in fields.items():
        section, name = dotted.split("__")
        values[section][name] = value
    return values


class Store(list):
    """Traces that know how they were made."""

    configuration: dict

    @classmethod
    def of(cls, traces, configuration):
        store = cls(traces)
        store.configuration = configuration
        return store


@pytest.fixture(params=["sink-mass", "sinkprobe", "tfidf", "all-features", "gcn"])
def saved(request, fitted_on_few, tmp_path):
    save_detector(fitted_on_few[request.param], tmp_path, Identity.of(CONFIGURATION))
    return tmp_path


def test_traces_made_alike_are_scored(saved, few):
    store = Store.of(few.test_traces, changed(dataset__name="other", model__name="alias"))
    assert load_detector(saved, store).score(store).is_valid.all()


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("model__weights", "4567", "weights"),
        ("model__quantization", "nf4", "quantization"),
        ("prompt__template", "plain", "prompt.template"),
        ("prompt__chat", True, "prompt.chat"),
        ("prompt__system", "Be brief.", "prompt.system"),
    ],
)
def test_traces_made_otherwise_are_refused_with_the_field(saved, few, field, value, named):
    store = Store.of(few.test_traces, changed(**{field: value}))
    with pytest.raises(DetectorMismatchError, match=named):
        load_detector(saved, store)
    with pytest.raises(DetectorMismatchError, match=named):
        load_detector(saved).score(ChosenTraces(store, (0, 1)))


def test_without_digests_source_and_revision_are_compared():
    fitted = Identity.of(changed(model__weights=None))
    fitted.check(Identity.of(CONFIGURATION))
    with pytest.raises(DetectorMismatchError, match="revision: 'abc', got 'def'"):
        fitted.check(Identity.of(changed(model__revision="def")))


def test_traces_in_memory_have_no_identity(saved, few):
    assert Identity.of_traces(few.test_traces) is None
    assert load_detector(saved, few.test_traces).score(few.test_traces).is_valid.all()


def test_a_detector_saved_without_identity_scores_everything(fitted_on_few, few, tmp_path):
    save_detector(fitted_on_few["sink-mass"], tmp_path)
    detector = load_detector(tmp_path, Store.of(few.test_traces, CONFIGURATION))
    assert detector.identity is None


def test_an_identity_survives_the_file(saved):
    assert load_detector(saved).identity == Identity.of(CONFIGURATION)


def test_a_damaged_identity_is_refused(saved):
    path = saved / "detector.json"
    values = json.loads(path.read_text())
    values["identity"] = {"model": "small"}
    path.write_text(json.dumps(values))
    with pytest.raises(DataFileError, match="does not fit"):
        load_detector(saved)


def test_no_folder_of_the_questions_is_kept():
    config = {"dataset": {"name": "/home/me/triviaqa.jsonl", "path": "/home/me/x.jsonl", "seed": 5}}
    found = Identity.of(changed(dataset__name="triviaqa.jsonl"), config)
    assert found.config == {"dataset": {"name": "triviaqa.jsonl", "path": None, "seed": 5}}
    assert config["dataset"]["path"] == "/home/me/x.jsonl"


@pytest.mark.parametrize("folder", sorted(READY.iterdir()), ids=lambda folder: folder.name)
def test_a_ready_detector_names_no_folder(folder):
    identity = read_description(folder)["identity"]
    dataset = identity["config"]["dataset"]
    assert (Path(dataset["name"]).name, dataset["path"]) == (dataset["name"], None)
    assert identity["config"]["model"]["name"] == identity["model"]
