"""A small result without running a comparison."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from graphhalu.evaluation.metrics import auroc
from graphhalu.evaluation.result import SAMPLE_SCHEMA, Baseline, Comparison, DetectorRow, MetricValue, Result
from graphhalu.evaluation.significance import method_tests

N = 97
LABELS = (np.random.default_rng(0).random(N) < 0.4).astype(np.int64)


def make_scores(noise, seed):
    return LABELS + noise * np.random.default_rng(seed).normal(size=N)


def make_row(name, value, **changes):
    metric = MetricValue(value, value - 0.05, value + 0.05, 200, None, value)
    fields = {
        "inputs": ("attention", "hidden"),
        "is_supervised": True,
        "is_control": False,
        "failure": None,
        "coverage": 1.0,
        "auroc_invalid_at_median": value,
        "fit_s": 1.234,
        "score_ms": 12.5,
        "metrics": dict.fromkeys(("auroc", "auprc", "tpr_at_5_fpr", "tpr_at_1_fpr"), metric),
    }
    return DetectorRow(detector=name, **{**fields, **changes})


def failed(name):
    return make_row(
        name,
        0.5,
        failure="NotEnoughDataError: too few",
        metrics={},
        coverage=None,
        auroc_invalid_at_median=None,
        fit_s=None,
        score_ms=None,
    )


def make_result(noises, *, seeds=(0,), rows=None):
    """A result whose detectors read the label through noise, worst first."""
    samples, made = [], []
    for name, noise in noises.items():
        scores = {seed: make_scores(noise, seed) for seed in seeds}
        value = float(np.mean([auroc(values, LABELS) for values in scores.values()]))
        made.append(make_row(name, value))
        for seed, values in scores.items():
            columns = {
                "detector": [name] * N,
                "seed": [seed] * N,
                "fold": np.arange(N) % 5,
                "trace_id": [f"q{i}#0" for i in range(N)],
                "group": [f"q{i}" for i in range(N)],
                "label": LABELS,
                "score": values,
                "raw_score": values,
                "is_valid": [True] * N,
                "probability": [None] * N,
                "is_predicted_positive": [None] * N,
                "token": [None] * N,
                "held_out": ["question"] * N,
            }
            samples.append(pa.table(columns, schema=SAMPLE_SCHEMA))
    return Result(
        config={"seeds": list(seeds), "level": 0.95},
        provenance={},
        store={},
        labeller={"name": "alias"},
        n_traces=N,
        n_left_out=11,
        n_groups=83,
        prevalence=float(LABELS.mean()),
        coverage=0.9,
        rows=tuple(made if rows is None else rows),
        samples=pa.concat_tables([SAMPLE_SCHEMA.empty_table(), *samples]),
    )


def calibrate(result):
    """The same with probabilities: the label through noise, cut to 0 … 1."""
    generator = np.random.default_rng(7)
    label = result.samples["label"].to_numpy()
    noise = 0.5 * label + 0.25 + 0.2 * generator.normal(size=len(label))
    probability = pa.array(np.clip(noise, 0, 1))
    schema = result.samples.schema
    samples = result.samples.set_column(9, schema.field(9), probability)
    samples = samples.set_column(10, schema.field(10), pa.array(np.asarray(noise > 0.5)))
    return replace(result, samples=samples)


def tested_against(result, baseline):
    """The same with made-up tests of all others against a baseline."""
    values = {row.detector: row.metric("auroc") for row in result.rows if row.failure is None}
    tests = [
        Comparison(
            name,
            baseline,
            d := values[name] - values[baseline],
            d - 0.04,
            d + 0.03,
            0.02,
            0.021,
            0.013,
            0.026 if n else 0.0001,
            0.7,
            0.6,
            0.015,
        )
        for n, name in enumerate(name for name in values if name != baseline)
    ]
    return replace(
        result,
        baseline=Baseline(baseline, "named before the comparison"),
        methods=method_tests(result.samples, baseline, result.config),
        comparisons=tuple(tests),
    )


@pytest.fixture(scope="session")
def make_calibrated():
    return lambda *args, **kwargs: calibrate(make_result(*args, **kwargs))


@pytest.fixture(scope="session")
def against():
    return tested_against


@pytest.fixture(scope="session")
def make():
    return make_result


@pytest.fixture(scope="session")
def row():
    return make_row


@pytest.fixture(scope="session")
def failed_row():
    return failed
