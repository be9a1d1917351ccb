"""A planted trace whose axes have different prime sizes: 5 layers, 3 heads, 17 tokens."""

from dataclasses import replace

import numpy as np
import pytest

from graphhalu.testing.planted import planted_traces
from graphhalu.traces.trace import Trace


@pytest.fixture(scope="session")
def trace():
    traces, _ = planted_traces(40, seed=3)
    return next(found for found in traces if found.length == 17)


@pytest.fixture(scope="session")
def change():
    """The same trace with other arrays, another record or another shape."""

    def changed(trace, *, shape=None, record=None, **arrays):
        return Trace(
            replace(trace.record, **(record or {})),
            replace(trace.shape, **(shape or {})),
            {**trace.arrays, **arrays},
        )

    return changed


@pytest.fixture
def share():
    return np.random.default_rng(5).uniform(size=(5, 3, 17))
