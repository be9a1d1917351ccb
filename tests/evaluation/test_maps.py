import json
from dataclasses import replace

import numpy as np
import pytest

from graphhalu.core.errors import DataFileError, NotEnoughDataError
from graphhalu.core.numerics import benjamini_hochberg
from graphhalu.evaluation.metrics import auroc
from graphhalu.evaluation.significance import auroc_influence, column_tests, grouped_delong_test
from graphhalu.evaluation.univariate import FEATURES, MAPS_FILE, head_maps, read_maps
from graphhalu.features.matrix import feature_matrix
from graphhalu.labels.planted import PLANTED_SHAPE, planted_traces

N_LAYERS, N_HEADS = PLANTED_SHAPE.n_layers, PLANTED_SHAPE.n_heads


@pytest.fixture(scope="module")
def planted():
    return planted_traces(61, seed=3)


@pytest.fixture(scope="module")
def found(planted):
    return head_maps(*planted)


def test_a_planted_sink_is_found_in_its_head_and_in_no_other(found):
    sink = next(each for each in found.maps if each.feature == "sink_mass_k4")
    marked = np.array([[q < 0.05 for q in row] for row in sink.q_value])
    assert marked[:, 1].all()
    assert marked[:, [0, 2]].sum() <= 1
    assert np.array(sink.auroc)[:, 1].min() > 0.8


def test_without_a_signal_next_to_nothing_is_marked():
    maps = head_maps(*planted_traces(61, seed=5, signal=False)).maps
    assert sum(q < 0.05 for each in maps for row in each.q_value for q in row) <= 1


def test_every_cell_is_the_auroc_of_its_column(planted, found):
    traces, labels = planted
    for each in found.maps:
        values = feature_matrix(traces, [each.feature]).values.reshape(61, N_LAYERS, N_HEADS)
        assert (len(each.auroc), len(each.auroc[0])) == (N_LAYERS, N_HEADS)
        for layer, head in ((0, 0), (1, 2), (4, 1)):
            column = values[:, layer, head].astype(np.float64)
            assert each.auroc[layer][head] == pytest.approx(auroc(column, labels.values))
        mean = values[:, 3].astype(np.float64).mean(axis=1)
        assert each.layer_auroc[3] == pytest.approx(auroc(mean, labels.values))


def test_columns_are_tested_as_one_by_one_with_questions_as_groups():
    generator = np.random.default_rng(0)
    labels = (generator.random(53) < 0.4).astype(np.int64)
    groups = np.arange(53) // 2
    columns = generator.normal(size=(53, 7)) + labels[:, None] * np.linspace(0, 1, 7)
    columns[:, 2] = np.round(columns[:, 2])
    columns[generator.random(53) < 0.3, 4] = np.nan
    tests = column_tests(columns, labels, groups)
    for place in range(7):
        is_there = np.isfinite(columns[:, place])
        scores, chosen = columns[is_there, place], labels[is_there]
        value = auroc(scores, chosen)
        influence = auroc_influence(scores, chosen)
        _, expected = grouped_delong_test(value - 0.5, influence, groups[is_there])
        assert tests[0][place] == pytest.approx(value)
        assert tests[1][place] == pytest.approx(expected)


def test_a_column_with_too_few_values_of_a_class_has_no_number():
    labels = np.arange(23) % 2
    columns = np.random.default_rng(0).normal(size=(23, 3))
    columns[np.flatnonzero(labels == 1)[4:], 1] = np.nan
    tests = column_tests(columns, labels, np.arange(23))
    assert np.isfinite(tests[0]).tolist() == [True, False, True]
    assert np.isfinite(tests[1]).tolist() == [True, False, True]


def test_a_column_of_one_value_says_nothing_and_one_that_parts_the_classes_everything():
    labels = np.arange(23) % 2
    columns = np.stack([np.ones(23), labels.astype(float)], axis=1)
    tests = column_tests(columns, labels, np.arange(23))
    assert tests[0].tolist() == [0.5, 1.0]
    assert tests[1].tolist() == [1.0, 0.0]


def test_false_discoveries_are_controlled_over_all_maps_together(planted, found):
    traces, labels = planted
    p_values = []
    for each in found.maps:
        values = feature_matrix(traces, [each.feature]).values.astype(np.float64)
        layers = values.reshape(61, N_LAYERS, N_HEADS)
        columns = np.concatenate([values, layers.mean(axis=2)], axis=1)
        p_values.append(column_tests(columns, labels.values, np.arange(61))[1])
    expected = benjamini_hochberg(np.concatenate(p_values)).reshape(len(FEATURES), -1)
    for each, q_values in zip(found.maps, expected, strict=True):
        got = [*(q for row in each.q_value for q in row), *each.layer_q_value]
        np.testing.assert_allclose(got, q_values)


def test_a_feature_that_the_traces_do_not_keep_is_named_with_the_reason(planted):
    traces, labels = planted
    kept = [replace(t, arrays={n: a for n, a in t.arrays.items() if n != "row_entropy"}) for t in traces]
    found = head_maps(kept, labels)
    assert list(found.missing) == ["attention_entropy_mean"]
    assert "row_entropy" in found.missing["attention_entropy_mean"]
    assert len(found.maps) == 3


def test_other_beams_and_answers_without_a_label_do_not_count():
    traces, labels = planted_traces(62, seed=3, traces_a_question=2)
    is_valid = np.arange(62) < 40
    labels = replace(labels, is_valid=is_valid)
    assert head_maps(traces, labels).n_traces == 20
    assert head_maps(traces, labels, is_best_beam_only=False).n_traces == 40
    assert head_maps(traces, labels, is_best_beam_only=False).n_groups == 20


def test_a_class_with_too_few_answers_is_refused():
    with pytest.raises(NotEnoughDataError, match="at least 5 answers of each class"):
        head_maps(*planted_traces(7))


def test_maps_are_read_as_they_were_written(found, tmp_path):
    assert read_maps(tmp_path) is None
    found.write(tmp_path / "run")
    assert read_maps(tmp_path / "run") == found


@pytest.mark.parametrize("changes", [{"format_version": 2}, {"format": "x"}, {"n_traces": "many"}])
def test_maps_of_another_format_are_refused(found, tmp_path, changes):
    path = found.write(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(DataFileError, match=MAPS_FILE):
        read_maps(tmp_path)
