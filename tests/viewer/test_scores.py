"""Labels and scores as they are shown: nothing is written, and what was trained on is said."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from graphhalu.core.errors import TraceNotFoundError, UnknownNameError, UsageError
from graphhalu.core.splits import Split
from graphhalu.detectors.registry import DETECTORS
from graphhalu.detectors.saved import save_detector
from graphhalu.evaluation.calibration import CALIBRATION_FILE, Calibration
from graphhalu.labels.labels import Labels
from graphhalu.labels.registry import make_labeller
from graphhalu.labels.run import label_store
from graphhalu.viewer.scores import detector_scores, shown_labels
from graphhalu.viewer.view import ViewRequest, make_view


def test_labels_that_are_not_stored_are_made_and_not_written(stores):
    store = stores["full"]
    labels, is_stored = shown_labels(store, "match")
    assert not is_stored
    assert labels.trace_ids == store.trace_ids
    assert not store.labels_folder.exists()


def test_stored_labels_are_taken_and_follow_the_chosen_traces(stores):
    store = stores["streams"]
    label_store(store, make_labeller("match"))
    chosen = store.select([4, 1])
    labels, is_stored = shown_labels(chosen, "match")
    assert is_stored
    assert labels.trace_ids == chosen.trace_ids


def test_a_name_that_is_no_labeller_is_refused(stores):
    with pytest.raises((TraceNotFoundError, UnknownNameError)):
        shown_labels(stores["full"], "no-such-rule")


@pytest.fixture(scope="module")
def run(tmp_path_factory, stores):
    """A folder as ``graphhalu train`` writes it, and the store whose last traces it tested."""
    store = stores["full"]
    folder = tmp_path_factory.mktemp("runs") / "sink-mass-1"
    fitted(store, folder / "detector")
    values = np.array([0.1, 0.4, 0.3, 0.9])
    calibration = Calibration.fit(values, np.array([0, 0, 1, 1])).model_dump(mode="json")
    (folder / "detector" / CALIBRATION_FILE).write_text(json.dumps(calibration))
    rows = {"detector": ["sink-mass", "length"], "trace_id": list(store.trace_ids[-2:])}
    pq.write_table(pa.table(rows), folder / "scores.parquet")
    return folder, store


def fitted(store, folder):
    n = len(store)
    labels = Labels(
        trace_ids=store.trace_ids,
        values=np.arange(n) % 2,
        is_valid=np.ones(n, dtype=bool),
        reasons=("",) * n,
        labeller="x",
    )
    places = np.arange(n)
    split = Split(train=places[:3], validation=places[3:5], test=places[5:])
    save_detector(DETECTORS.get("sink-mass")().fit(store, labels, split), folder)


def test_scores_are_those_of_the_saved_detector_with_their_calibration(run):
    folder, store = run
    about, entries = detector_scores(folder, store)
    assert about["name"] == "sink-mass"
    assert about["run"] == folder.name
    assert about["threshold"] is not None
    assert len(entries) == len(store)
    assert all(0 <= entry["probability"] <= 1 for entry in entries)
    assert detector_scores(folder / "detector", store) == (about, entries)


def test_answers_that_the_run_did_not_test_are_marked(run):
    folder, store = run
    view = make_view(store, ViewRequest(run=folder, labeller=None))
    entries = view.overview(is_served=False)["answers"]
    tested = [entry["is_tested"] for entry in entries]
    assert tested == [True] + [False] * 6  # held-out answers come first
    assert entries[0]["id"] == store.trace_ids[5]
    assert all(entry["label"] is None for entry in entries)
    assert view.overview(is_served=False)["detector"]["name"] == "sink-mass"


def test_a_detector_that_was_saved_alone_says_nothing_of_its_tests(tmp_path, run):
    _, store = run
    fitted(store, tmp_path / "alone")
    _, entries = detector_scores(tmp_path / "alone", store)
    assert all(entry["is_tested"] is entry["probability"] is None for entry in entries)


def test_a_folder_without_a_detector_is_named(stores, tmp_path):
    with pytest.raises(UsageError, match="no saved detector"):
        detector_scores(tmp_path, stores["full"])
