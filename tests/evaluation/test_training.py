import json

import numpy as np
import pytest

from graphhalu.errors import DetectorMismatchError, UnknownNameError, UsageError
from graphhalu.evaluation.calibration import Calibration
from graphhalu.evaluation.training import CALIBRATION_FILE, run_folder, train_detector
from graphhalu.testing.planted import planted_traces


def test_a_trained_run_keeps_the_detector_with_its_calibration_and_threshold(tmp_path):
    from graphhalu.detectors.saved import load_detector

    traces, labels = planted_traces(61)
    run = train_detector("sink-mass", traces, labels, runs=tmp_path)
    folder = run.folder / "detector"
    calibration = Calibration.from_json(json.loads((folder / CALIBRATION_FILE).read_text()))
    lines = [line for line in run.result.samples.to_pylist() if line["detector"] == "sink-mass"]
    by_id = {trace.trace_id: trace for trace in traces}
    raw = load_detector(folder).score([by_id[line["trace_id"]] for line in lines]).values
    np.testing.assert_allclose(raw, [line["raw_score"] for line in lines])
    np.testing.assert_allclose(
        calibration.probability(raw), [line["probability"] for line in lines]
    )
    assert calibration.calls(raw).tolist() == [line["is_predicted_positive"] for line in lines]


def test_a_trained_run_belongs_to_the_model_of_its_store(tmp_path):
    from graphhalu.detectors.saved import load_detector

    class Store(list):
        configuration: dict

    traces, labels = planted_traces(61)
    store = Store(traces)
    store.configuration = {"model": {"name": "a", "weights": "01"}, "prompt": {"chat": False}}
    run = train_detector("length", store, labels, runs=tmp_path)
    loaded = load_detector(run.folder / "detector", store)
    assert loaded.identity.weights == "01"
    store.configuration = {"model": {"name": "b", "weights": "02"}, "prompt": {"chat": False}}
    with pytest.raises(DetectorMismatchError, match="weights: '01', got '02'"):
        loaded.score(store)


def test_settings_reach_the_detector_and_the_record_of_the_run(tmp_path):
    traces, labels = planted_traces(61)
    run = train_detector("length", traces, labels, settings={"seed": 3}, runs=tmp_path)
    assert run.result.config["seeds"] == [3]
    assert run.result.rows[0].detector == "length"


def test_an_unknown_detector_is_refused_before_any_work(tmp_path):
    with pytest.raises(UnknownNameError, match="gta"):
        train_detector("gta", *planted_traces(5), runs=tmp_path)
    assert not list(tmp_path.iterdir())


def test_resuming_goes_on_in_the_newest_folder_of_its_kind(tmp_path):
    with pytest.raises(UsageError, match="nothing to resume"):
        run_folder("compare", None, is_resumed=True, runs=tmp_path)
    first = run_folder("compare", None, is_resumed=False, runs=tmp_path)
    run_folder("transfer", None, is_resumed=False, runs=tmp_path)
    assert run_folder("compare", None, is_resumed=True, runs=tmp_path) == first
    assert run_folder("compare", tmp_path / "mine", is_resumed=True) == tmp_path / "mine"
