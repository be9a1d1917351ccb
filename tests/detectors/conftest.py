"""Planted traces with and without a signal, and detectors fitted on them once."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from graphhalu.detectors.gnn.detector import NetworkDetector
from graphhalu.detectors.gnn.detectors import NetworkStack
from graphhalu.detectors.registry import DETECTORS, detector_names
from graphhalu.testing.contracts.detectors import planted_data
from graphhalu.traces.trace import Trace

with warnings.catch_warnings():
    # PyG calls torch.jit.script at import, which torch deprecates
    warnings.simplefilter("ignore", DeprecationWarning)
    import torch_geometric.nn  # noqa: F401

N_TRACES = 223


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Small networks are fastest on one thread, and other work may share the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def planted(signal, seed, signals=("sink",), traces_a_question=1):
    return planted_data(
        N_TRACES,
        seed=seed,
        signal=signal,
        signals=signals,
        traces_a_question=traces_a_question,
        shares=(0.3, 0.12, 0.58),
    )


def fewer(planted):
    split = planted.split
    small = type(split)(split.train[:31], split.validation[:13], split.test[:17])
    return replace(planted, split=small)


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


OF_SAMPLES = frozenset(
    {
        *("semantic-entropy", "lexical-similarity", "eigv", "deg", "ecc", "kernel-entropy"),
        *("selfcheck-ngram", "token-sar", "sentence-sar", "sample-agreement"),
        *("question-gat", "question-alone", "p-true", "selfcheck-prompt"),
    }
)
"""Detectors that compare sampled answers."""


def with_samples(data, *, share=1.0, n_samples=4, seed=0):
    """The same traces, with samples behind them that agree where the answer is right.

    Where it is hallucinated, this share of them says something else each.
    """
    rng = np.random.default_rng(seed)
    samples = []
    for trace, value in zip(data.traces, data.labels.values.tolist(), strict=True):
        for place in range(1, n_samples + 1):
            is_other = value == 1 and rng.random() < share
            claim = f"thing{rng.integers(0, 97)}" if is_other else trace.record.answer
            answer = f"{claim} it is"
            name = f"{trace.record.question_id}#{place}"
            named = {"trace_id": name, "beam_index": place, "is_sample": True}
            # the first token is the claim, and a claim of its own is a surprise
            ends = [len(claim), *[len(answer)] * (trace.answer_length - 1)]
            named["answer_offsets"] = tuple(zip([0, *ends], ends, strict=False))
            logprob = np.full(trace.length, -1.0, dtype=np.float32)
            logprob[trace.prompt_length] -= 3 * is_other
            arrays = {**trace.arrays, "token_logprob": logprob}
            samples.append(Trace(replace(trace.record, answer=answer, **named), trace.shape, arrays))
    own = []
    for trace, value in zip(data.traces, data.labels.values.tolist(), strict=True):
        # what the model says of its answers is right more often than not
        said = {"p_true": 0.7 - 0.4 * value, "supported": [0.8 - 0.5 * share * value] * n_samples}
        asked = said if share else {"p_true": rng.random(), "supported": rng.random(n_samples).tolist()}
        own.append(replace(trace, record=replace(trace.record, asked=asked)))
    n = len(samples)
    labels = replace(
        data.labels,
        trace_ids=data.labels.trace_ids + tuple(trace.trace_id for trace in samples),
        values=np.append(data.labels.values, np.zeros(n, dtype=np.int64)),
        is_valid=np.append(data.labels.is_valid, np.zeros(n, dtype=bool)),
        reasons=data.labels.reasons + ("a sample",) * n,
    )
    return replace(data, traces=[*own, *samples], labels=labels)


@pytest.fixture(scope="session")
def few_samples(few):
    """Samples of each question that disagree where the answer is hallucinated."""
    return with_samples(few)


@pytest.fixture(scope="session")
def data_of(few, few_beams, few_samples):
    """Traces that a detector can be fitted on."""
    special = {"eigenscore": few_beams, **dict.fromkeys(OF_SAMPLES, few_samples)}
    return lambda name: special.get(name, few)


@pytest.fixture(scope="session")
def with_signals():
    """Traces in which one thing tells hallucinated answers from others."""
    made = {}

    def get(signal):
        if signal not in made:
            made[signal] = planted(True, seed=0, signals=(signal,))
        return made[signal]

    return get


NETWORKS = (NetworkDetector, NetworkStack)
SMALL_ENSEMBLE = ("sink-probe-heads", "likelihood-probe", "summaries")


def quick_settings(name, **settings):
    """Settings that reach graph networks only; others get what makes them quick."""
    detector_class = DETECTORS.get(name)
    if issubclass(detector_class, NETWORKS):
        settings = {"n_folds": 2, **settings}
    else:
        settings = {"blocks": SMALL_ENSEMBLE} if name == "all-features" else {}
        if "n_folds" in getattr(getattr(detector_class, "config_class", None), "model_fields", {}):
            settings["n_folds"] = 2
    return settings


def make(name, seed=0, **settings):
    detector_class = DETECTORS.get(name)
    return detector_class(**detector_class.settings(seed=seed, **quick_settings(name, **settings)))


@pytest.fixture(scope="session")
def settings_of():
    """Settings with which a detector is quick; those given reach only detectors that have any."""
    return quick_settings


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
