"""Calibrations of planted studies, their file, and what they refuse."""

import json

import numpy as np
import pytest

from graphhalu.core.errors import DataFileError, NotEnoughDataError, UsageError
from graphhalu.studies.instability.calibrate import calibrate, cases_of, labelled_series
from graphhalu.studies.instability.methods import all_methods, window_grid
from graphhalu.studies.instability.series import SeriesFolder
from graphhalu.studies.instability.settings import MAIN, TRACKER, Calibration


@pytest.fixture(scope="module")
def series(planted):
    generator = np.random.default_rng(0)
    return [planted.prompt(n, generator, gap=0.5, focus_gap=0.3) for n in range(60)]


@pytest.fixture(scope="module")
def found(planted, series, tmp_path_factory):
    """A calibration of sixty prompts whose heads give attacks away."""
    path = tmp_path_factory.mktemp("study") / "s"
    return calibrate(planted.folder(path, series), planted.quick)


def test_planted_instability_is_found_on_unseen_prompts(found):
    main = found.row(MAIN)
    assert main.auroc.value > 0.97
    assert main.auroc.low <= main.auroc.value <= main.auroc.high
    assert main.direction == 1
    assert (found.window.first_layer, found.window.stop_layer) in {(1, 4), (1, 5)}
    assert main.f1.value > 0.9
    assert main.points[1].tpr.value > 0.9
    assert main.points[1].fpr.value < 0.45


def test_the_tracker_finds_the_planted_head(found):
    assert (2, 1) in found.tracker.heads
    assert found.row(TRACKER).auroc.value > 0.95


def test_every_baseline_stands_beside_it_and_is_at_chance(found):
    names = {row.name for row in found.rows}
    wanted = {
        "user_length",
        "answer_length",
        "user_perplexity",
        "answer_perplexity",
        "token_entropy",
        "top1_margin",
        "head_agreement",
        "system_share",
        "focus_all_heads",
        "instability_logit",
        "instability_bounded",
    }
    assert names == wanted | {MAIN, TRACKER}
    for name in wanted:
        row = found.row(name)
        assert row.auroc.value < 0.8
        assert row.difference.value == pytest.approx(row.auroc.value - found.row(MAIN).auroc.value)
        assert 0 <= row.p_holm <= 1


def test_the_auroc_of_each_step_counts_the_prompts_that_reach_it(found, series):
    assert [point.step for point in found.steps] == list(range(13))
    for point in found.steps:
        alive = [each.record.label for each in series if each.n_steps > point.step]
        assert (point.n_attack, point.n_benign) == (sum(alive), len(alive) - sum(alive))
    assert found.steps[3].instability.value > 0.95


def test_a_calibration_is_read_back_as_it_was_written(found, tmp_path):
    path = found.write(tmp_path / "new" / "c.json")
    assert Calibration.read(path) == found


def test_a_file_that_is_no_calibration_is_refused(found, tmp_path):
    with pytest.raises(UsageError, match="no calibration at"):
        Calibration.read(tmp_path / "none.json")
    path = found.write(tmp_path / "c.json")
    values = json.loads(path.read_text(encoding="utf-8"))
    changes = ({"format": "x"}, {"format_version": 2}, {"rows": "x"}, {"identity": {}})
    for text in ("nonsense", "[]", *(json.dumps(values | change) for change in changes)):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(DataFileError):
            Calibration.read(path)


def test_a_rate_without_a_threshold_is_named_with_those_that_have_one(found):
    assert found.threshold(MAIN, 0.2) == found.row(MAIN).points[1].threshold
    assert found.threshold(MAIN, "f1") == found.window.f1_threshold
    with pytest.raises(UsageError, match=r"rates 0\.05, 0\.2, not for 0\.01"):
        found.threshold(MAIN, 0.01)


def test_given_heads_are_used_and_those_of_another_model_refused(planted, series):
    cases = cases_of(series)
    grid = window_grid(planted.quick, planted.n_layers, np.array([each.n_steps for each in series]))

    def tracker(heads):
        return next(m for m in all_methods(series, grid, planted.quick, heads) if m.name == TRACKER)

    fitted = tracker(((0, 2),)).fit(cases, np.arange(40), 0)
    assert fitted.heads == (((0, 2),), None)
    expected = [-each.arrays["focus_heads"][0, 2] for each in series]
    np.testing.assert_allclose(fitted.scores, expected)
    with pytest.raises(UsageError, match="5 layers of 3 heads"):
        tracker(((17, 2),)).fit(cases, np.arange(40), 0)


def test_a_window_beyond_the_answers_is_refused(planted, series, tmp_path):
    folder = planted.folder(tmp_path / "s", series)
    settings = planted.quick.model_copy(update={"lengths": (40,)})
    with pytest.raises(UsageError, match="goes beyond the longest answer"):
        calibrate(folder, settings)


def test_a_study_that_is_not_whole_says_how_to_go_on(planted, series, tmp_path):
    folder = planted.folder(tmp_path / "s", series[:14], n_parts=5)
    with pytest.raises(NotEnoughDataError, match="3 of 5 parts"):
        labelled_series(folder)


def test_a_study_of_one_class_is_refused(planted, series, tmp_path):
    folder = planted.folder(tmp_path / "s", series[::2])
    with pytest.raises(NotEnoughDataError, match="0 attacks and 30 benign"):
        labelled_series(SeriesFolder.open(folder.path))
