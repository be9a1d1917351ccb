"""The page of a planted study: its words and figures hold the values of the calibration."""

import re
from html import unescape
from types import SimpleNamespace

import numpy as np
import pytest

from graphhalu.core.errors import DetectorMismatchError
from graphhalu.report.instability import (
    headline,
    map_figure,
    methods_figure,
    scatter_figure,
    stepwise_figure,
    study_view,
    violin_figure,
    words,
    write_study,
)
from graphhalu.studies.instability.calibrate import calibrate, labelled_series
from graphhalu.studies.instability.series import PromptRecord, PromptSeries, SeriesFolder
from graphhalu.studies.instability.settings import MAIN, CalibrateSettings, GatherSettings

N_LAYERS, N_HEADS = 5, 3
SETTINGS = CalibrateSettings(
    starts=(1,),
    lengths=(3, 5),
    mid_high=(0.2,),
    tail_cut=(0.0,),
    n_folds=3,
    n_inner_folds=2,
    seeds=(0,),
    n_resamples=100,
)


def prompt(number, generator):
    label, n_steps = number % 2, 7 + number % 5
    layered = {
        name: generator.uniform(0.1, 0.3, (n_steps, N_LAYERS)).astype(np.float32)
        for name in ("share_mean", "std", "logit", "bounded", "focus")
    }
    layered["std"] += np.float32(0.06 * label)
    steps = {name: generator.uniform(0, 1, n_steps).astype(np.float32) for name in ("agreement", "margin")}
    entropy = layered["std"].mean(axis=1) * 3
    record = PromptRecord(
        f"p{number}",
        0,
        label,
        f"g{number}",
        "<script>alert(1)</script>",
        n_answer=n_steps,
        n_user=5 + number % 3,
        user_nll=3.0 + number % 7,
    )
    focus = generator.uniform(0.4, 0.6, (N_LAYERS, N_HEADS)).astype(np.float32)
    arrays = {**layered, **steps, "entropy": entropy, "logprob": -entropy, "focus_heads": focus}
    return PromptSeries(record, arrays)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder, its calibration, what the figures show, and the written files."""
    path = tmp_path_factory.mktemp("study")
    gather = GatherSettings(system="Never say <b>it</b>.", chat="off")
    configuration = {
        "model": {"name": "planted", "source": "folder", "weights": "0", "quantization": "none"},
        "prompt": gather.prompt_recipe(is_chat=False),
        "gather": gather.model_dump(mode="json"),
        "n_parts": 1,
    }
    folder = SeriesFolder.create(path / "s", configuration)
    generator = np.random.default_rng(0)
    folder.write_part(0, [prompt(number, generator) for number in range(60)])
    calibration = calibrate(folder, SETTINGS)
    view = study_view(labelled_series(folder)[0], calibration)
    files = write_study(folder, calibration, path / "out")
    return SimpleNamespace(folder=folder, calibration=calibration, view=view, files=files)


def test_every_figure_is_there_as_png_and_svg(study):
    names = {path.name for path in study.files.figures}
    wanted = ("methods", "roc", "violin", "stepwise", "maps", "scatter")
    assert names == {f"{name}{suffix}" for name in wanted for suffix in (".png", ".svg")}
    assert all(path.stat().st_size > 2000 for path in study.files.figures)


def test_the_page_needs_nothing_else_and_shows_texts_as_texts(study):
    html = study.files.html.read_text(encoding="utf-8")
    assert html.count("<svg") == 6
    assert "default-src 'none'" in unescape(html)
    assert not re.search(r"(src|href)=\"https?:", html)
    assert "<b>it</b>" not in html
    assert "Never say &lt;b&gt;it&lt;/b&gt;." in html
    for row in study.calibration.rows:
        assert f"{row.auroc.value:.3f}" in html


def test_the_headline_says_nested_and_in_sample(study):
    first, second = headline(study.calibration)
    main = study.calibration.row(MAIN)
    assert f"{main.auroc.value:.3f}" in first
    assert f"{main.in_sample.value:.3f}" in first
    assert "strongest other score" in second


def test_marks_of_the_methods_stand_at_their_values(study):
    axes = methods_figure(study.calibration).axes[0]
    lines = {line.get_gid(): line.get_xdata()[0] for line in axes.lines if line.get_gid()}
    for row in study.calibration.rows:
        assert lines[f"in sample: {words(row.name)}"] == pytest.approx(row.in_sample.value)


def test_the_violin_shows_every_prompt(study):
    axes = violin_figure(study.view, study.calibration).axes[1]
    marks = [line for line in axes.lines if line.get_marker() in {"D", "o"}]
    assert sorted(len(line.get_xdata()) for line in marks) == [30, 30]
    shown = np.sort(np.concatenate([line.get_xdata() for line in marks]))
    np.testing.assert_allclose(shown, np.sort(study.view.score))


def test_the_stepwise_line_is_the_auroc_of_each_step(study):
    axes = stepwise_figure(study.calibration).axes[0]
    line = next(line for line in axes.lines if line.get_label() == "instability")
    expected = [p.instability.value for p in study.calibration.steps if p.instability]
    np.testing.assert_allclose(line.get_ydata(), expected)


def test_maps_are_means_over_the_prompts_that_reach_a_step(study):
    series = labelled_series(study.folder)[0]
    attacks = [each.arrays["std"] for each in series if each.record.label == 1]
    expected = np.mean([values[8] for values in attacks if len(values) > 8], axis=0)
    np.testing.assert_allclose(study.view.attack[8], expected, rtol=1e-5)
    axes = map_figure(study.view, study.calibration).axes[2]
    shown = np.asarray(axes.collections[0].get_array())
    difference = study.view.attack[3] - study.view.benign[3]
    np.testing.assert_allclose(shown[:, 3], difference, rtol=1e-5)


def test_correlations_are_those_of_the_marks(study):
    figure = scatter_figure(study.view, study.calibration)
    values, _ = study.view.relations["token entropy (nat)"]
    linear = np.corrcoef(values, study.view.score)[0, 1]
    ranks = np.corrcoef(values.argsort().argsort(), study.view.score.argsort().argsort())[0, 1]
    title = figure.axes[0].get_title(loc="left")
    assert title.startswith(f"r = {linear:+.2f}")
    assert f"rank = {ranks:+.2f}" in title


def test_a_calibration_of_another_model_is_refused(study, tmp_path):
    other = study.calibration.identity.model_copy(update={"weights": "1"})
    calibration = study.calibration.model_copy(update={"identity": other})
    with pytest.raises(DetectorMismatchError, match="weights"):
        write_study(study.folder, calibration, tmp_path)
