"""Forest plot, maps of heads, transfer matrix."""

from dataclasses import replace

import numpy as np
import pytest

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.evaluation.bootstrap import Estimate
from graphhalu.evaluation.result import MetricValue
from graphhalu.evaluation.transfer import TransferCell, TransferResult
from graphhalu.evaluation.univariate import FALSE_DISCOVERIES, HeadMap, HeadMaps
from graphhalu.report.comparison import forest_figure, maps_figure
from graphhalu.report.drawing import save_figure
from graphhalu.report.plots import AROUND_CHANCE, intervals
from graphhalu.report.tables import p_text
from graphhalu.report.theme import LIGHT
from graphhalu.report.write import transfer_figure

NOISES = {"words": 9.0, "sinks": 3.0, "gat": 0.3, "other": 1.0}


def found_maps(n_layers=5, n_heads=3):
    generator = np.random.default_rng(0)
    auroc = generator.uniform(0.3, 0.8, (n_layers, n_heads))
    q_value = np.where(auroc > 0.6, 0.01, 0.5)
    rows = [tuple(map(float, row)) for row in auroc]
    q_rows = [tuple(map(float, row)) for row in q_value]
    one = HeadMap(
        "sink_mass_k4",
        tuple(range(0, 2 * n_layers, 2)),
        tuple(rows),
        tuple(q_rows),
        (0.5,) * (n_layers - 1) + (None,),
        (0.9,) * (n_layers - 1) + (None,),
    )
    return HeadMaps((one, replace(one, feature="$x$<y>")), {}, 97, 83, 0.4, "match")


def marks(axes):
    return sum(len(line.get_xdata()) for line in axes.get_lines() if line.get_gid() == "mark")


def test_each_difference_has_its_interval_its_name_and_its_numbers(make, against):
    result = against(make(NOISES), "sinks")
    figure = forest_figure(result)
    left, middle, right = figure.axes
    ordered = sorted(result.comparisons, key=lambda t: -t.difference)
    assert [t.get_text() for t in left.get_yticklabels()] == [t.detector for t in ordered]
    for place, test in enumerate(ordered):
        (mark,) = [line for line in left.get_lines() if str(line.get_gid()).endswith(f": {test.detector}")]
        assert mark.get_xydata().tolist() == [[test.difference, place]]
        label = right.get_yticklabels()[place].get_text().replace("\N{MINUS SIGN}", "-")
        assert label.startswith(f"{test.difference:+.3f} [{test.low:+.3f}, {test.high:+.3f}]")
        method = result.method(test.detector)
        assert label.endswith(p_text(method.p_holm))
        (mark,) = [line for line in middle.get_lines() if str(line.get_gid()).endswith(f": {test.detector}")]
        assert mark.get_xydata().tolist() == [[method.difference, place]]
    ends = [line.get_xdata() for line in left.get_lines() if len(line.get_xdata()) == 2]
    assert [ordered[0].low, ordered[0].high] in [list(pair) for pair in ends]


def test_a_mark_is_filled_only_where_the_interval_excludes_zero(make, against):
    result = against(make(NOISES), "sinks")
    first = replace(result.comparisons[0], low=0.01, high=0.02, difference=0.015)
    second = replace(result.comparisons[1], low=-0.01, high=0.02, difference=0.005)
    axes = forest_figure(replace(result, comparisons=(first, second))).axes[0]
    fill = {str(line.get_gid()).split(": ")[-1]: line.get_markerfacecolor() for line in axes.get_lines()}
    assert fill[first.detector] != LIGHT["paper"]
    assert fill[second.detector] == LIGHT["paper"]


def test_a_mark_is_filled_where_the_interval_excludes_the_zero_of_its_panel():
    rows = [{"name": n, "signal": Estimate(0.6, low, 0.7)} for n, low in (("in", 0.45), ("out", 0.55))]
    panel = {"xlabel": "AUROC", "zero": 0.5, "series": {"signal": "signal"}, "is_tested": True}
    axes = intervals(rows, {"styles": {"signal": ("probe", "o")}, "panels": [panel]}).axes[0]
    fill = {str(line.get_gid()).split(": ")[-1]: line.get_markerfacecolor() for line in axes.get_lines()}
    assert fill["out"] != LIGHT["paper"]
    assert fill["in"] == LIGHT["paper"]


def test_without_tests_there_is_no_forest(make):
    with pytest.raises(NotEnoughDataError, match="no detector was tested"):
        forest_figure(make(NOISES))


def test_a_small_p_is_never_a_zero():
    assert (p_text(None), p_text(0.0002), p_text(0.0499)) == ("-", "<0.001", "0.050")


def test_a_map_shows_layers_across_and_heads_down_and_marks_what_counts(tmp_path):
    found = found_maps()
    figure = maps_figure(found)
    panels = figure.axes[:2]
    for axes, each in zip(panels, found.maps, strict=True):
        shown = np.asarray(axes.collections[0].get_array())
        np.testing.assert_allclose(shown[: len(each.auroc[0])], np.array(each.auroc).T)
        n_marked = sum(q is not None and q < FALSE_DISCOVERIES for row in each.q_value for q in row)
        assert marks(axes) == n_marked > 0
        assert f"{n_marked} of 15 heads" in axes.get_title(loc="left")
    low, high = panels[0].collections[0].get_clim()
    assert low + high == pytest.approx(1)
    assert panels[-1].get_xlabel() == "layer"
    assert save_figure(figure, tmp_path / "maps.png").exists()


def test_a_missing_mean_is_blank_and_not_a_number():
    axes = maps_figure(found_maps()).axes[0]
    means = axes.collections[0].get_array()[-1]
    assert np.ma.getmaskarray(means).ravel().tolist() == [False] * 4 + [True]


def test_maps_without_any_number_are_refused():
    empty = HeadMap("x", (0,), ((None,),), ((None,),), (None,), (None,))
    with pytest.raises(NotEnoughDataError, match="nothing to draw"):
        maps_figure(HeadMaps((empty,), {}, 97, 83, 0.4, "match"))


def test_the_colours_rise_from_dark_to_light_so_that_grey_keeps_the_order():
    red, green, blue, _ = AROUND_CHANCE(np.linspace(0, 1, 101)).T
    assert np.all(np.diff(0.299 * red + 0.587 * green + 0.114 * blue) > 0)


def test_a_transfer_matrix_has_its_numbers_and_its_failures(tmp_path):
    metric = MetricValue(0.7, 0.6, 0.8, 100, None, None)
    names = ("a", "b", "a name longer than a panel")
    cells = [
        TransferCell(
            detector,
            train,
            test,
            53.0,
            0.0,
            1.0,
            {} if (train, test) == ("a", "b") else {"auroc": replace(metric, value=value)},
            "other layers" if (train, test) == ("a", "b") else None,
        )
        for detector, value in (("gat", 0.71), ("charm", 0.52), ("mlp", 0.3))
        for train in names
        for test in names
    ]
    found = TransferResult(config={}, provenance={}, stores=dict.fromkeys(names), cells=tuple(cells))
    figure = transfer_figure(found, ["gat", "charm", "mlp"])
    panels = [axes for axes in figure.axes if axes.get_visible() and axes.texts]
    assert len(panels) == 3
    words = [text.get_text() for text in panels[0].texts]
    assert words.count("failed") == 1
    assert words.count("0.710") == 8
    assert np.ma.getmaskarray(panels[0].collections[0].get_array())[0].tolist() == [False, True, False]
    assert save_figure(figure, tmp_path / "t.png").exists()
