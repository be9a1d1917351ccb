"""Planted traces with and without a signal, and detectors fitted on them once."""

import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from graphhalu.detectors.graph_detector import GraphDetector
from graphhalu.detectors.registry import DETECTORS, detector_names
from graphhalu.detectors.sides import ChosenTraces
from graphhalu.splits import grouped_split
from graphhalu.testing.planted import planted_traces

with warnings.catch_warnings():
    # PyG calls torch.jit.script at import, which torch deprecates
    warnings.simplefilter("ignore", DeprecationWarning)
    import torch_geometric.nn  # noqa: F401

N_TRACES = 223


@dataclass(frozen=True)
class Planted:
    traces: list
    labels: object
    split: object

    @property
    def test_traces(self):
        return ChosenTraces(self.traces, tuple(self.split.test.tolist()))

    @property
    def test_labels(self):
        return self.labels.values[self.split.test]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Small networks are fastest on one thread, and other work may share the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def planted(signal, seed, signals=("sink",), traces_a_question=1):
    traces, labels = planted_traces(
        N_TRACES, seed=seed, signal=signal, signals=signals, traces_a_question=traces_a_question
    )
    groups = np.array([trace.record.group_id for trace in traces])
    split = grouped_split(labels.values, groups, fractions=(0.3, 0.12, 0.58), seed=1)
    return Planted(traces, labels, split)


def fewer(planted):
    split = planted.split
    small = type(split)(split.train[:31], split.validation[:13], split.test[:17])
    return Planted(planted.traces, planted.labels, small)


@pytest.fixture(scope="session")
def with_signal():
    return planted(True, seed=0)


@pytest.fixture(scope="session")
def twin():
    """The same labels; attention says nothing about them."""
    return planted(False, seed=0)


@pytest.fixture(scope="session")
def few(with_signal):
    """Enough to fit on within a second."""
    return fewer(with_signal)


@pytest.fixture(scope="session")
def few_beams():
    """Two beams a question, for detectors that compare them."""
    return fewer(planted(False, seed=0, traces_a_question=2))


@pytest.fixture(scope="session")
def data_of(few, few_beams):
    """Traces that a detector can be fitted on."""
    return lambda name: few_beams if name == "eigenscore" else few


@pytest.fixture(scope="session")
def with_signals():
    """Traces in which one thing tells hallucinated answers from others."""
    made = {}

    def get(signal):
        if signal not in made:
            made[signal] = planted(True, seed=0, signals=(signal,))
        return made[signal]

    return get


SMALL_ENSEMBLE = ("sink-probe-heads", "likelihood-probe", "summaries")


def make(name, seed=0, **settings):
    """A fresh detector; settings reach graph networks only, others get what makes them quick."""
    detector_class = DETECTORS.get(name)
    if not issubclass(detector_class, GraphDetector):
        settings = {"blocks": SMALL_ENSEMBLE} if name == "all-features" else {}
        if "n_folds" in getattr(getattr(detector_class, "config_class", None), "model_fields", {}):
            settings["n_folds"] = 2
    return detector_class(**detector_class.settings(seed=seed, **settings))


@pytest.fixture(scope="session")
def make_detector():
    """A fresh detector; settings reach only those that have any."""
    return make


class FittedOnce:
    """Detectors by name, each fitted for two epochs when it is first asked for."""

    def __init__(self, data_of):
        self.data_of = data_of
        self.kept = {}

    def __getitem__(self, name):
        if name not in self.kept:
            data = self.data_of(name)
            detector = make(name, epochs=2)
            self.kept[name] = detector.fit(data.traces, data.labels, data.split)
        return self.kept[name]

    def items(self):
        return [(name, self[name]) for name in detector_names("answer")]


@pytest.fixture(scope="session")
def fitted_on_few(data_of):
    """Every registered detector of answers, fitted for two epochs."""
    return FittedOnce(data_of)
