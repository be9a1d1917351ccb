import json

import numpy as np
import pytest

from graphhalu.core.errors import ConfigError, DataFileError
from graphhalu.detectors.gnn.detectors import Gat, Graphhalu, StackConfig
from graphhalu.detectors.probes import JointProbe
from graphhalu.detectors.saved import load_detector, save_detector


def make(**settings):
    return Graphhalu(**Graphhalu.settings(**{"epochs": 1, "n_folds": 2, **settings}))


@pytest.fixture(scope="module")
def fitted(few):
    return make(epochs=2).fit(few.traces, few.labels, few.split)


@pytest.fixture(scope="module")
def probe(few):
    return JointProbe().fit(few.traces, few.labels, few.split)


@pytest.fixture(scope="module")
def graph(few):
    settings = Gat.settings(epochs=2, n_folds=2)
    return Gat(**settings).fit(few.traces, few.labels, few.split)


def test_the_score_is_the_weighted_sum_of_the_standardised_parts(few, fitted, probe, graph):
    total = np.full(len(few.test_traces), fitted.bias)
    for name, part in (("probe", probe), ("graph", graph)):
        mean, scale, weight = fitted.joints[name]
        assert weight >= 0
        total += weight * scale * (part.score(few.test_traces).values - mean)
    np.testing.assert_allclose(fitted.score(few.test_traces).values, total, rtol=1e-4, atol=1e-4)


def test_parts_are_joined_on_logits_that_are_out_of_fold(few, fitted, graph):
    probe = JointProbe(seed=0).fit(few.traces, few.labels, few.split)
    assert sorted(probe.out_of_fold) == sorted(few.split.train.tolist())
    mean = np.mean(list(probe.out_of_fold.values()))
    assert fitted.joints["probe"].mean == pytest.approx(mean, rel=1e-4)
    out_of_fold = [value.item() for value in graph.out_of_fold.values()]
    assert fitted.joints["graph"].mean == pytest.approx(np.mean(out_of_fold), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(("part", "other"), [("probe", "probe"), ("graph", "graph")])
def test_one_part_alone_orders_traces_as_its_detector_does(few, part, other, request):
    detector = make(epochs=2, parts=[part]).fit(few.traces, few.labels, few.split)
    alone = request.getfixturevalue(other).score(few.test_traces).values
    scores = detector.score(few.test_traces).values
    assert list(detector.members) == [part]
    if detector.joints[part].weight > 0:
        np.testing.assert_array_equal(np.argsort(scores), np.argsort(alone))


def test_one_part_alone_comes_back_from_disk(few, tmp_path):
    detector = make(parts=["graph"]).fit(few.traces, few.labels, few.split)
    save_detector(detector, tmp_path)
    assert not (tmp_path / "probe").exists()
    again = load_detector(tmp_path).score(few.test_traces).values
    np.testing.assert_array_equal(again, detector.score(few.test_traces).values)


def test_a_missing_part_counts_as_its_mean(few, fitted, monkeypatch):
    trace = few.test_traces[0]
    fields = fitted.members["graph"]
    nothing = type(fields.score([trace])).of(np.array([np.nan]))
    monkeypatch.setattr(type(fields), "score", lambda *_: nothing)
    mean, scale, weight = fitted.joints["probe"]
    expected = fitted.bias + weight * scale * (fitted.members["probe"].score([trace]).values[0] - mean)
    assert fitted.score([trace]).values[0] == pytest.approx(expected)


def test_parameters_are_those_of_the_parts_with_weights_and_bias(fitted):
    parts = sum(member.n_parameters for member in fitted.members.values())
    assert fitted.n_parameters == parts + 3


@pytest.mark.parametrize("parts", [["network"], "probe"])
def test_an_unknown_part_is_refused(parts):
    with pytest.raises(ConfigError, match="parts"):
        make(parts=parts)


@pytest.mark.parametrize("parts", [[], ["probe", "probe"]])
def test_no_part_and_a_part_that_comes_twice_are_refused(parts):
    with pytest.raises(ConfigError, match="parts"):
        make(parts=parts)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Graphhalu, {"name": "graphhalu", "config": {"has_start": True}, "graphs": {}}),
        (Gat, {"name": "gat", "config": {"hidden_size": 32}, "graphs": {"n_heads": 3}}),
    ],
)
def test_a_detector_of_the_first_edition_is_refused_with_the_way_out(kind, values, tmp_path):
    head = {"format": "graphhalu-detector", "format_version": 1}
    (tmp_path / "detector.json").write_text(json.dumps({**head, **values}))
    for load in (load_detector, kind.load):
        with pytest.raises(DataFileError, match="earlier edition") as caught:
            load(tmp_path)
        assert f"graphhalu train {kind.card.name}" in str(caught.value)


def test_the_graphs_of_a_stack_leave_out_what_the_traces_do_not_keep():
    asked = [Graphhalu(config=StackConfig(**given)) for given in ({}, {"prompt_edges": True})]
    fields = [detector._member("graph").config.model_fields_set for detector in asked]
    assert ["prompt_edges" in each for each in fields] == [False, True]
    assert all({"epochs", "hidden_size"} <= each for each in fields)
