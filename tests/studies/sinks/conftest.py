"""Runs of records that are made up, with or without a signal in single heads."""

import numpy as np
import pytest

from graphhalu.studies.sinks.records import SinkRecord, SinkRun, run_name

N_LAYERS, N_HEADS = 5, 3
SIGNAL_HEAD = (3, 1)


def made_record(idx, rng, *, label, signal=0.0, task="quiz", model="some/model-2B", **changes):
    by_head = rng.uniform(0.2, 0.6, size=(N_LAYERS, N_HEADS))
    by_head[SIGNAL_HEAD] += signal * label
    fields = {
        "idx": idx,
        "task": task,
        "model": model,
        "target": "A",
        "pred": "B" if label else "A",
        "labels": {"hallucinated": label, "input": None},
        "entropy": float(rng.uniform(0.1, 2)),
        "sink_mass": float(by_head.mean()),
        "by_head": by_head,
        "is_seen": np.ones(N_LAYERS, dtype=bool),
        "seq_len": int(rng.integers(20, 90)),
        "sink_tokens": 4,
        "query_mode": "last",
        "chat_mode": "off",
        "meta": {"question_id": f"q{idx}", "group_id": f"q{idx}"},
    }
    return SinkRecord(**{**fields, **changes})


def made_run(n=90, *, seed=0, signal=0.0, n_nan=0, meta=None, **changes):
    """A run whose every other record is hallucinated; the first ``n_nan`` hold NaN."""
    rng = np.random.default_rng(seed)
    # the answer's letter says nothing here
    letters = rng.choice(["A", "B"], n)
    records = [
        made_record(i, rng, label=i % 2, signal=signal, **{"pred": str(letters[i]), **changes})
        for i in range(n)
    ]
    for i in range(n_nan):
        nothing = np.full((N_LAYERS, N_HEADS), np.nan)
        records[i] = SinkRecord(**{**vars(records[i]), "by_head": nothing, "sink_mass": np.nan})
    first = records[0]
    name = run_name(first.task, first.model, first.sink_tokens, first.query_mode)
    return SinkRun(tuple(records), meta or {}, name)


@pytest.fixture
def make_run():
    return made_run
