import numpy as np
import pytest

from graphhalu.core.errors import (
    ConfigError,
    DetectorMismatchError,
    NotEnoughDataError,
    UnknownNameError,
    UsageError,
)
from graphhalu.detectors.scalars import Length
from graphhalu.evaluation.calibration import CALIBRATION_FILE, read_calibration
from graphhalu.evaluation.compare import compare
from graphhalu.evaluation.settings import CompareConfig
from graphhalu.evaluation.training import run_folder, train_detector
from graphhalu.labels.planted import planted_traces


def test_a_trained_run_keeps_the_detector_with_its_calibration_and_threshold(tmp_path):
    from graphhalu.detectors.saved import load_detector

    traces, labels = planted_traces(61)
    run, result = train_detector("sink-mass", traces, labels, runs=tmp_path)
    folder = run / "detector"
    calibration = read_calibration(folder / CALIBRATION_FILE)
    lines = [line for line in result.samples.to_pylist() if line["detector"] == "sink-mass"]
    by_id = {trace.trace_id: trace for trace in traces}
    raw = load_detector(folder).score([by_id[line["trace_id"]] for line in lines]).values
    np.testing.assert_allclose(raw, [line["raw_score"] for line in lines])
    np.testing.assert_allclose(calibration.probability(raw), [line["probability"] for line in lines])
    assert (raw >= calibration.threshold).tolist() == [line["is_predicted_positive"] for line in lines]


def test_a_trained_run_belongs_to_the_model_of_its_store(tmp_path):
    from graphhalu.detectors.saved import load_detector

    class Store(list):
        configuration: dict

    traces, labels = planted_traces(61)
    store = Store(traces)
    store.configuration = {"model": {"name": "a", "weights": "01"}, "prompt": {"chat": False}}
    run, _result = train_detector("length", store, labels, runs=tmp_path)
    loaded = load_detector(run / "detector", store)
    assert loaded.identity.weights == "01"
    store.configuration = {"model": {"name": "b", "weights": "02"}, "prompt": {"chat": False}}
    with pytest.raises(DetectorMismatchError, match="weights: '01', got '02'"):
        loaded.score(store)


def test_settings_reach_the_detector_and_the_record_of_the_run(tmp_path):
    traces, labels = planted_traces(61)
    _run, result = train_detector("length", traces, labels, settings={"seed": 3}, runs=tmp_path)
    assert result.config["seeds"] == [3]
    assert result.rows[0].detector == "length"


def test_an_unknown_detector_is_refused_before_any_work(tmp_path):
    with pytest.raises(UnknownNameError, match="gta"):
        train_detector("gta", *planted_traces(5), runs=tmp_path)
    assert not list(tmp_path.iterdir())


class NeverLabelled(list):
    """Traces of which nothing but the first is looked at."""

    def __iter__(self):
        raise AssertionError


def test_layers_that_the_traces_lack_are_refused_before_any_work(tmp_path):
    traces, labels = planted_traces(5)
    with pytest.raises(ConfigError, match=r"keep no attention of layers \[50\]"):
        train_detector(
            "gat", NeverLabelled(traces), labels, settings={"layers": [50]}, runs=tmp_path / "runs"
        )
    assert not (tmp_path / "runs").exists()


def failing(self, traces, labels, split):
    message = "this detector needs more"
    raise NotEnoughDataError(message)


def test_a_detector_that_fails_is_an_error_and_leaves_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Length, "fit", failing)
    with pytest.raises(NotEnoughDataError, match="this detector needs more"):
        train_detector("length", *planted_traces(61), runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_simple_detector_beside_it_that_fails_is_a_row_of_the_result(tmp_path, monkeypatch):
    monkeypatch.setattr(Length, "fit", failing)
    run, result = train_detector("sink-mass", *planted_traces(61), runs=tmp_path)
    failures = {row.detector: row.failure for row in result.rows}
    assert "this detector needs more" in failures.pop("length")
    assert set(failures.values()) == {None}
    assert (run / "detector" / "detector.json").is_file()


def test_a_run_that_cannot_be_written_goes_again(tmp_path, monkeypatch):
    def full(self, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Length, "save", full)
    with pytest.raises(OSError, match="No space left"):
        train_detector("length", *planted_traces(61), runs=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_trained_detector_is_fitted_once_and_its_row_is_that_of_a_comparison(tmp_path, monkeypatch):
    fitted, fit = [], Length.fit
    monkeypatch.setattr(Length, "fit", lambda self, *given: fitted.append(self) or fit(self, *given))
    traces, labels = planted_traces(61)
    steps = []
    _run, result = train_detector(
        "length", traces, labels, runs=tmp_path, on_progress=lambda *step: steps.append(step)
    )
    assert len(fitted) == 1
    names = ["length", "sink-mass", "head-std", "perplexity"]
    assert steps == [(place, 4, f"{name}, seed 0, fold 0") for place, name in enumerate(names, 1)]
    compared = compare(traces, labels, names, config=CompareConfig(quick=True, seeds=(0,)))
    assert result.samples.equals(compared.samples)
    assert result.comparisons == compared.comparisons
    assert result.identity == compared.identity
    for row, other in zip(result.rows, compared.rows, strict=True):
        assert (row.detector, row.metrics, row.key) == (other.detector, other.metrics, other.key)
    assert result.rows[0].fit_s > 0


def test_resuming_goes_on_in_the_newest_folder_of_its_kind(tmp_path):
    with pytest.raises(UsageError, match="nothing to resume"):
        run_folder("compare", None, is_resumed=True, runs=tmp_path)
    first = run_folder("compare", None, is_resumed=False, runs=tmp_path)
    run_folder("transfer", None, is_resumed=False, runs=tmp_path)
    assert run_folder("compare", None, is_resumed=True, runs=tmp_path) == first
    assert run_folder("compare", tmp_path / "mine", is_resumed=True) == tmp_path / "mine"
