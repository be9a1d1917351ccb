import xml.etree.ElementTree as ET
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest

from graphhalu.errors import NotEnoughDataError, UsageError
from graphhalu.evaluation.metrics import roc_curve
from graphhalu.report.figures import plot_roc, roc_figure

NOISES = {"length": 9.0, "sink_mass": 3.0, "gat": 0.3}


def detector_lines(figure):
    return [line for line in figure.axes[0].get_lines() if line.get_gid() != "chance"]


def make_with(result, rows):
    return replace(result, rows=tuple(rows))


def test_there_is_a_line_for_each_detector_and_one_for_chance(make):
    figure = roc_figure(make(NOISES))
    assert [line.get_gid() for line in detector_lines(figure)] == ["gat", "sink_mass", "length"]
    chance = next(line for line in figure.axes[0].get_lines() if line.get_gid() == "chance")
    np.testing.assert_array_equal(chance.get_xydata(), [[0, 0], [1, 1]])


def test_the_line_of_one_seed_is_the_exact_roc_curve(make):
    result = make(NOISES)
    mine = result.samples.filter([name == "gat" for name in result.samples["detector"].to_pylist()])
    exact = roc_curve(mine["score"].to_numpy(), mine["label"].to_numpy().astype(np.int64))
    line = detector_lines(roc_figure(result))[0]
    np.testing.assert_array_equal(line.get_xdata(), exact.false_positive_rate)
    np.testing.assert_array_equal(line.get_ydata(), exact.true_positive_rate)


def test_the_area_under_a_mean_curve_is_the_mean_auroc(make):
    result = make(NOISES, seeds=(0, 1, 2))
    for row, line in zip(result.ranked(), detector_lines(roc_figure(result)), strict=True):
        x, y = line.get_xdata(), line.get_ydata()
        area = float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum())
        assert area == pytest.approx(row.metric("auroc"), abs=0.01)
        assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)


def test_the_legend_gives_auroc_and_name_best_first_and_marks_controls(make, row):
    result = make(NOISES)
    rows = [
        row("length", 0.6, is_control=True),
        row("sink_mass", 0.7, coverage=0.5, auroc_invalid_at_median=0.65),
        row("gat", 0.8),
    ]
    legend = roc_figure(make_with(result, rows)).axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == [
        "0.800  gat", "0.700  sink_mass (50% scored)", "0.600  length (control)",
    ]  # fmt: skip


def test_lines_differ_without_their_colour(make):
    figure = roc_figure(make({f"d{i}": 0.3 + 0.1 * i for i in range(19)}))
    looks = {
        (str(line._unscaled_dash_pattern), line.get_marker()) for line in detector_lines(figure)
    }
    assert len(looks) == 19


def test_a_failed_detector_has_no_line(make, failed_row):
    result = make(NOISES)
    figure = roc_figure(make_with(result, [*result.rows, failed_row("topology")]))
    assert len(detector_lines(figure)) == 3


def test_invalid_scores_are_not_drawn(make):
    result = make(NOISES)
    is_valid = np.arange(len(result.samples)) % 3 != 0
    table = result.samples.set_column(8, result.samples.schema.field(8), [is_valid])
    line = detector_lines(roc_figure(replace(result, samples=table)))[0]
    n_valid = int(is_valid[2 * 97 :].sum())
    assert len(line.get_xdata()) == n_valid + 1


def test_nothing_to_draw_is_refused(make, failed_row):
    with pytest.raises(NotEnoughDataError, match="all of them failed"):
        roc_figure(make({}, rows=[failed_row("topology")]))


def test_a_png_has_a_sane_size_and_is_not_blank(make, tmp_path):
    path = plot_roc(make(NOISES), tmp_path / "figures" / "roc.png")
    image = matplotlib.image.imread(path)
    height, width = image.shape[:2]
    assert 800 < height < 1300
    assert 1000 < width < 2500
    assert 10_000 < path.stat().st_size < 1_000_000
    assert image[..., :3].std() > 0.05


def test_a_long_name_widens_the_picture_and_is_not_cut_off(make, tmp_path):
    widths = [
        matplotlib.image.imread(plot_roc(make({name: 0.5}), tmp_path / f"{len(name)}.png")).shape[1]
        for name in ("gat", "g" * 50)
    ]
    assert widths[1] > widths[0] + 500


def test_an_svg_is_well_formed_and_the_same_every_time(make, tmp_path):
    first = plot_roc(make(NOISES), tmp_path / "a.svg").read_bytes()
    second = plot_roc(make(NOISES), tmp_path / "b.svg").read_bytes()
    assert ET.fromstring(first).tag.endswith("svg")
    assert first == second


def test_a_dollar_or_bracket_in_a_name_is_drawn_as_text(make, tmp_path):
    assert plot_roc(make({r"$\frac{1$<x>&": 0.5}), tmp_path / "a.svg").exists()


def test_another_suffix_is_refused(make, tmp_path):
    with pytest.raises(UsageError, match=r"\.png or \.svg, got 'roc\.pdf'"):
        plot_roc(make(NOISES), tmp_path / "roc.pdf")


def test_drawing_leaves_no_figure_behind_in_pyplot(make, tmp_path):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    plot_roc(make(NOISES), tmp_path / "roc.png")
    assert plt.get_fignums() == before
