import json

import numpy as np
import pytest

from graphhalu.core.errors import NotEnoughDataError, UsageError
from graphhalu.core.numerics import json_ready
from graphhalu.evaluation.univariate import compare_topology
from graphhalu.graphs.topology import MEASURES
from graphhalu.labels.planted import planted_traces
from graphhalu.report.audit import save_figure, topology_figure, topology_table

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


@pytest.fixture(scope="module")
def report():
    traces, labels = planted_traces(60, seed=3)
    return compare_topology(traces, labels, layers=(1, 3), n_resamples=200)


def test_a_planted_sink_is_found_in_the_topology(report):
    by_name = {(row["layer"], row["measure"]): row for row in report["rows"]}
    for layer in (1, 3):
        effect = by_name[layer, "pagerank_first"]["adjusted"]
        assert effect["low"] > 0.3
        assert effect["q_value"] < 0.05


def test_without_a_signal_next_to_nothing_counts():
    traces, labels = planted_traces(60, seed=4, signal=False)
    found = compare_topology(traces, labels, layers=(0, 2), n_resamples=200)
    counting = [row for row in found["rows"] if row["adjusted"] and row["adjusted"]["q_value"] < 0.05]
    assert len(counting) <= 1


def test_every_layer_and_measure_has_a_row_and_its_interval_holds_the_value(report):
    assert [(row["layer"], row["measure"]) for row in report["rows"]] == [
        (layer, name) for layer in (1, 3) for name in MEASURES
    ]
    for row in report["rows"]:
        for effect in (row["raw"], row["adjusted"]):
            assert effect is not None
            assert -1 <= effect["low"] <= effect["value"] <= effect["high"] <= 1
            assert effect["p_value"] <= effect["q_value"] <= 1


def test_table_json_and_figures_are_written(report, tmp_path):
    table = topology_table(report, n_rows=5)
    assert len(table.rows) == 5
    assert f"of {2 * len(MEASURES)} effects count" in table.title
    plain = json.loads(json.dumps(json_ready(report), allow_nan=False))
    assert len(plain["rows"]) == 2 * len(MEASURES)
    png, svg = save_figure(topology_figure(report), tmp_path)
    assert png.read_bytes()[:4] == b"\x89PNG"
    first = svg.read_bytes()
    save_figure(topology_figure(report), tmp_path)
    assert svg.read_bytes() == first


def test_a_class_with_too_few_answers_is_refused():
    traces, labels = planted_traces(8)
    with pytest.raises(NotEnoughDataError, match="at least 5"):
        compare_topology(traces, labels)


def test_labels_of_other_traces_are_refused():
    traces, labels = planted_traces(20)
    with pytest.raises(UsageError, match="belong together"):
        compare_topology(traces[::-1], labels)


def test_answers_without_a_label_do_not_count():
    traces, labels = planted_traces(30)
    is_valid = np.arange(30) < 20
    found = compare_topology(
        traces, labels.__class__(**{**vars(labels), "is_valid": is_valid}), layers=(1,), n_resamples=100
    )
    assert found["n_traces"] == 20
    assert all(row["n_hallucinated"] + row["n_correct"] == 20 for row in found["rows"])
