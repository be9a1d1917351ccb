import warnings
from dataclasses import replace

import numpy as np
import pytest

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.evaluation.metrics import mean_curve, risk_coverage_curve
from graphhalu.report.comparison import CURVES, curve_figure, family, named_rows
from graphhalu.report.page import figure_words

NOISES = {"words": 9.0, "sink_mass": 3.0, "gat": 0.3}


def panels(figure):
    return [axes for axes in figure.axes if axes.get_visible()]


def lines(axes, name):
    return [line for line in axes.get_lines() if line.get_gid() == name]


def texts(figure):
    return [text.get_text() for axes in panels(figure) for text in axes.get_legend().get_texts()]


def of_detector(result, name, seed=0):
    rows = [r for r in result.samples.to_pylist() if r["detector"] == name and r["seed"] == seed]
    return (np.array([r["score"] for r in rows]), np.array([r["label"] for r in rows], dtype=np.int64))


def test_the_roc_of_one_seed_is_the_exact_curve(make):
    result = make(NOISES)
    scores, labels = of_detector(result, "gat")
    called = [scores >= threshold for threshold in [np.inf, *np.unique(scores)[::-1]]]
    found = mean_curve(result.samples, "gat", "roc")
    np.testing.assert_array_equal(found.x, [each[labels == 0].mean() for each in called])
    np.testing.assert_array_equal(found.y, [each[labels == 1].mean() for each in called])


def test_the_area_under_a_mean_roc_is_the_mean_auroc(make):
    result = make(NOISES, seeds=(0, 1, 2))
    for row in result.rows:
        x, y = mean_curve(result.samples, row.detector, "roc")
        area = float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum())
        assert area == pytest.approx(row.metric("auroc"), abs=0.01)
        assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)


def test_precision_is_that_of_the_first_threshold_that_reaches_a_recall(make):
    result = make(NOISES)
    scores, labels = of_detector(result, "sink_mass")
    called = [scores >= threshold for threshold in np.unique(scores)[::-1]]
    found = mean_curve(result.samples, "sink_mass", "precision-recall")
    for recall, precision in zip(found.x[::37], found.y[::37], strict=True):
        first = next(each for each in called if each[labels == 1].mean() >= recall - 1e-12)
        assert precision == labels[first].mean()


def test_risk_ends_at_the_prevalence_and_its_mean_is_the_area(make):
    result = make(NOISES)
    exact = risk_coverage_curve(*of_detector(result, "gat"))
    found = mean_curve(result.samples, "gat", "risk-coverage")
    np.testing.assert_array_equal(found.y, exact[1])
    assert found.y[-1] == pytest.approx(result.prevalence)


def test_reliability_has_fifteen_bins_and_keeps_the_mean(make_calibrated):
    result = make_calibrated(NOISES)
    found = mean_curve(result.samples, "gat", "calibration")
    assert len(found.x) == 15
    assert np.all(np.diff(found.x) > 0)


def test_without_probabilities_there_is_no_calibration(make):
    with pytest.raises(NotEnoughDataError, match="gat has no valid probability"):
        mean_curve(make(NOISES).samples, "gat", "calibration")
    with pytest.raises(NotEnoughDataError, match="no detector has a calibration curve"):
        curve_figure(make(NOISES), "calibration")


@pytest.mark.parametrize("kind", CURVES)
def test_every_figure_has_labels_and_no_number_that_does_not_exist(make_calibrated, kind):
    figure = curve_figure(make_calibrated(NOISES, seeds=(0, 1)), kind)
    words = [text.get_text() for text in figure.texts]
    assert {figure_words("comparison", kind)[axis] for axis in "xy"} <= set(words)
    for axes in panels(figure):
        assert axes.get_legend().get_title().get_text()
        assert lines(axes, "reference")
        assert np.isfinite([*axes.get_xlim(), *axes.get_ylim()]).all()
        for line in axes.get_lines():
            assert np.isfinite(line.get_xydata()).all()


def test_each_family_has_a_panel_that_names_its_best_three(make, row):
    noises = {f"d{n}": 0.4 + 0.2 * n for n in range(7)} | {"c": 5.0}
    result = make(noises)
    rows = [replace(r, is_control=r.detector == "c") for r in result.rows]
    result = replace(result, rows=tuple(rows))
    assert {kind: [r.detector for r in rows] for kind, rows in named_rows(result).items()} == {
        "probe": ["d0", "d1", "d2"],
        "control": ["c"],
    }
    figure = curve_figure(result, "roc")
    assert len(panels(figure)) == 2
    for axes in panels(figure):
        assert sum(len(lines(axes, name)) for name in noises) == len(noises)
    named = " ".join(texts(figure))
    assert all(f"d{n} " in named for n in range(3))
    assert "d5" not in named


def test_named_lines_differ_without_their_colour(make):
    (axes,) = panels(curve_figure(make(NOISES), "roc"))
    looks = {str(lines(axes, name)[0]._unscaled_dash_pattern) for name in NOISES}
    assert len(looks) == 3


def test_a_family_is_told_by_marks_of_the_card_and_by_the_registry(row):
    assert family(row("gat", 0.7, is_graph=True)) == "graph"
    assert family(row("mlp", 0.7, is_graph=True, is_control=True)) == "control"
    assert family(row("lookback", 0.7)) == "probe"
    # it learns its sign, and is a single number all the same
    assert family(row("sink-mass@k1", 0.7)) == "scalar"
    assert family(row("of-a-plug-in", 0.7, is_supervised=False)) == "scalar"


def test_a_failed_detector_has_no_line(make, failed_row):
    result = make(NOISES)
    with_failed = replace(result, rows=(*result.rows, failed_row("topology")))
    (axes,) = panels(curve_figure(with_failed, "roc"))
    assert not lines(axes, "topology")


def test_invalid_scores_are_not_drawn(make):
    result = make(NOISES)
    is_valid = np.arange(len(result.samples)) % 3 != 0
    table = result.samples.set_column(8, result.samples.schema.field(8), [is_valid])
    n_valid = int(is_valid[2 * 97 :].sum())
    assert len(mean_curve(table, "gat", "roc").x) == n_valid + 1


@pytest.mark.parametrize("kind", CURVES)
def test_nothing_to_draw_is_refused(make, failed_row, kind):
    with pytest.raises(NotEnoughDataError, match="no detector has"):
        curve_figure(make({}, rows=[failed_row("topology")]), kind)


def test_a_seed_of_one_class_leaves_its_detector_out_of_the_figure(make):
    result = make(NOISES)
    rows = result.samples.to_pylist()
    kept = [r for r in rows if r["detector"] != "gat" or r["label"] == 1]
    one_class = replace(result, samples=result.samples.from_pylist(kept, result.samples.schema))
    (axes,) = panels(curve_figure(one_class, "roc"))
    assert not lines(axes, "gat")
    assert lines(axes, "words")


def test_drawing_leaves_no_figure_behind_in_pyplot(make):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    with warnings.catch_warnings():
        curve_figure(make(NOISES), "roc")
    assert plt.get_fignums() == before
