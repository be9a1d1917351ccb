import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from graphhalu.core.errors import UsageError
from graphhalu.detectors.stack import AllFeatures, join
from graphhalu.traces.trace import Trace

BLOCKS = ("sink-probe-heads", "likelihood-probe", "hidden-probe")


def without(traces, *arrays):
    return [
        Trace(trace.record, trace.shape, {n: a for n, a in trace.arrays.items() if n not in arrays})
        for trace in traces
    ]


def ensemble(blocks=BLOCKS):
    return AllFeatures(**AllFeatures.settings(blocks=blocks))


@pytest.fixture(scope="module")
def logits():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 211)
    good = 3.0 * labels + generator.normal(size=211) + 40
    return {"good": good, "noise": generator.normal(size=211), "against": -good}, labels


def test_a_block_that_tells_outweighs_noise_and_none_counts_against_itself(logits):
    columns, labels = logits
    joints, bias = join(columns, labels)
    assert joints["good"].weight > 5 * joints["noise"].weight
    assert all(joint.weight >= 0 for joint in joints.values())
    assert joints["against"].weight == 0
    assert abs(bias) < 1


def test_missing_logits_count_as_the_mean(logits):
    columns, labels = logits
    gaps = {name: column.copy() for name, column in columns.items()}
    gaps["good"][::7] = np.nan
    joints, _ = join(gaps, labels)
    assert joints["good"].mean == pytest.approx(np.nanmean(gaps["good"]))


def test_blocks_without_any_logit_count_alike(few):
    joints, bias = join({name: np.full(13, np.nan) for name in "abc"}, np.arange(13) % 2)
    assert [joint.weight for joint in joints.values()] == pytest.approx([1 / 3] * 3)
    assert bias == 0


def test_the_ensemble_finds_what_one_of_its_blocks_finds(with_signals):
    for signal in ("sink", "hidden"):
        data = with_signals(signal)
        detector = ensemble().fit(data.traces, data.labels, data.split)
        found = roc_auc_score(data.test_labels, detector.score(data.test_traces).values)
        assert found > 0.9


def test_a_block_that_the_traces_lack_is_left_out_and_named(few):
    traces = without(few.traces, "hidden", "hidden_rows")
    detector = ensemble().fit(traces, few.labels, few.split)
    assert set(detector.training_report["left_out"]) == {"hidden-probe"}
    assert set(detector.members) == {"sink-probe-heads", "likelihood-probe"}
    assert detector.score(few.test_traces).is_valid.all()


def test_a_trace_that_lacks_what_weighs_most_has_no_score(with_signal):
    data = with_signal
    detector = ensemble().fit(data.traces, data.labels, data.split)
    weights = detector.training_report["weights"]
    assert weights["sink-probe-heads"] > sum(weights.values()) / 2
    lacking = without(data.test_traces[:3], "sink_keys")
    assert not detector.score(lacking).is_valid.any()


def test_what_is_no_probe_cannot_be_a_block():
    with pytest.raises(UsageError, match="not a probe"):
        AllFeatures.settings(blocks=("sink-mass",))
