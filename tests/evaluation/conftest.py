"""Traces without arrays, and toy detectors that read a planted signal."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.detectors.base import Detector, DetectorCard, Scores
from graphhalu.labels.labels import Labels
from graphhalu.traces.schema import TraceRecord, TraceShape
from graphhalu.traces.trace import Trace

SHAPE = TraceShape(2, 3, 1, 5, (0, 1), (0, 1, 2), (None, None))


def make_trace(number, *, group="", question="", context=None, **metadata):
    record = TraceRecord(
        trace_id=f"q{number}#0",
        question_id=f"q{number}",
        group_id=group or f"q{number}",
        question=question or f"Who was number {number}?",
        answers=("nobody",),
        answer="somebody",
        prompt="",
        prompt_length=3,
        length=7,
        context=context,
        metadata=metadata,
    )
    return Trace(record, SHAPE, {})


def make_labels(values, is_valid=None):
    n = len(values)
    return Labels(
        trace_ids=tuple(f"q{i}#0" for i in range(n)),
        values=np.asarray(values, dtype=np.int64),
        is_valid=np.ones(n, dtype=bool) if is_valid is None else np.asarray(is_valid),
        reasons=tuple("alias" if value == 0 else "no alias" for value in values),
        labeller="alias",
        settings={"threshold": 0.5},
    )


def planted(n=211, n_groups=83, seed=7):
    """Traces with a signal of AUROC about 0.85; three answers to a question on average."""
    rng = np.random.default_rng(seed)
    values = (rng.random(n) < 0.4).astype(np.int64)
    groups = rng.permutation(np.arange(n) % n_groups)
    signal = values * 1.5 + rng.normal(size=n)
    traces = [
        make_trace(i, group=f"g{groups[i]}", signal=float(signal[i]), label=int(values[i])) for i in range(n)
    ]
    return traces, make_labels(values.tolist())


class Toy(Detector):
    card = DetectorCard("toy", "reads the signal", "none", ("text",), is_supervised=False)

    def fit(self, traces, labels, split):
        return self

    def score(self, traces):
        return Scores.of(np.array([trace.record.metadata["signal"] for trace in traces]))

    def save(self, folder: Path) -> None:
        raise AssertionError

    @classmethod
    def load(cls, folder: Path):
        raise AssertionError


class Constant(Toy):
    card = DetectorCard("constant", "one score", "none", ("length",), False, is_control=True)

    def score(self, traces):
        return Scores.of(np.zeros(len(traces)))


class Rescaled(Toy):
    """Each fit has its own scale and offset, as models of different folds may have."""

    def fit(self, traces, labels, split):
        rng = np.random.default_rng(int(split.test[0]))
        self.scale, self.offset = rng.uniform(0.1, 10), rng.uniform(-50, 50)
        return self

    def score(self, traces):
        return Scores.of(self.offset + self.scale * super().score(traces).values)


class Peeking(Toy):
    """Remembers every label that it can see and hands it out again."""

    card = DetectorCard("peeking", "remembers labels", "none", ("text",), is_supervised=True)

    def fit(self, traces, labels, split):
        known = zip(labels.trace_ids, labels.values.tolist(), labels.reasons, strict=True)
        self.remembered = {i: value + (reason == "no alias") for i, value, reason in known}
        return self

    def score(self, traces):
        found = [float(self.remembered[trace.trace_id]) for trace in traces]
        return Scores.of(np.array(found))


class Failing(Toy):
    def fit(self, traces, labels, split):
        message = "the training side has one class"
        raise NotEnoughDataError(message)


class Partial(Toy):
    """Has no score for each third trace."""

    def score(self, traces):
        values = super().score(traces).values
        numbers = np.array([int(trace.trace_id[1:-2]) for trace in traces])
        return Scores.of(np.where(numbers % 3 == 0, np.nan, values))


class Seeded(Toy):
    def __init__(self, seed: int = -1) -> None:
        self.seed = seed

    def score(self, traces):
        return Scores.of(np.random.default_rng(self.seed).normal(size=len(traces)))


@pytest.fixture
def toys():
    return SimpleNamespace(
        Toy=Toy,
        Constant=Constant,
        Rescaled=Rescaled,
        Peeking=Peeking,
        Failing=Failing,
        Partial=Partial,
        Seeded=Seeded,
        trace=make_trace,
        labels=make_labels,
        planted=planted,
    )
