"""Windows of steps and layers, and means over them."""

import numpy as np
import pytest

from graphhalu.core.config import load_config
from graphhalu.core.errors import ConfigError, NotEnoughDataError, UsageError
from graphhalu.studies.instability.methods import LENGTHS, STARTS, reached, window_grid, window_scores
from graphhalu.studies.instability.settings import CalibrateSettings, Window


def window(start, length, first_layer, stop_layer):
    return Window(start=start, length=length, first_layer=first_layer, stop_layer=stop_layer)


def grid(n_steps, n_layers=30, **settings):
    return window_grid(CalibrateSettings(**settings), n_layers, np.array(n_steps))


def test_layers_are_cut_as_the_study_cuts_them():
    found = grid([160] * 7, n_layers=32, mid_high=[0.25, 0.33], tail_cut=[0.05, 0.10])
    layers = {window.layers for window in found}
    assert layers == {(8, 30), (8, 28), (10, 30), (10, 28)}


def test_the_published_grid_is_whole_where_answers_are_long_enough():
    found = grid([160] * 7)
    assert len({(window.start, window.length) for window in found}) == len(STARTS) * len(LENGTHS)
    assert reached(found, CalibrateSettings(), np.array([160] * 5)).all()


def test_scores_are_means_over_layers_and_the_steps_that_an_answer_has():
    values = np.random.default_rng(0).uniform(size=(3, 7, 5))
    values[1, 4:] = np.nan  # an answer of four steps
    values[2, 2:] = np.nan
    windows = [window(1, 3, 1, 4), window(2, 5, 0, 5), window(5, 2, 2, 3)]
    found = window_scores(values, windows)
    for row in range(3):
        for column, each in enumerate(windows):
            inside = values[row, each.start : each.end + 1, each.first_layer : each.stop_layer]
            inside = inside[np.isfinite(inside)]
            if len(inside):
                assert found[row, column] == pytest.approx(inside.mean())
            else:
                assert np.isnan(found[row, column])
    assert np.isnan(found[1, 2])
    assert np.isnan(found[2, 1])


def test_layers_that_do_not_see_the_system_prompt_are_left_out_of_the_mean():
    values = np.ones((2, 3, 5))
    values[:, :, 1] = np.nan
    values[:, 1, :] = 3.0
    values[:, 1, 1] = np.nan
    assert window_scores(values, [window(0, 3, 0, 5)])[0, 0] == pytest.approx(5 / 3)


def test_automatic_windows_begin_where_most_and_end_where_half_of_the_prompts_are():
    n_steps = np.array([6, 12, 12, 12, 12, 12, 12, 12, 12, 80])
    found = window_grid(CalibrateSettings(), 30, n_steps)
    allowed = [
        w for w, is_in in zip(found, reached(found, CalibrateSettings(), n_steps), strict=True) if is_in
    ]
    # nine of ten reach step 11, all reach step 5
    assert max(window.start for window in allowed) == 9  # no window of the grid is shorter than 3
    assert max(window.end for window in allowed) == 11
    assert max(window.end for window in found) > 11


def test_where_answers_are_shorter_than_any_window_the_shortest_is_left():
    found = window_grid(CalibrateSettings(), 30, np.array([2, 2, 3]))
    assert {(window.start, window.length) for window in found} == {(1, 1)}
    assert reached(found, CalibrateSettings(), np.array([2, 2, 3])).all()


def test_answers_without_a_second_step_have_no_window():
    with pytest.raises(NotEnoughDataError, match="no answer has a second step"):
        grid([1, 1, 1])


@pytest.mark.parametrize("settings", [{"starts": [1], "lengths": [13]}, {"starts": [13]}, {"lengths": [20]}])
def test_a_window_beyond_the_longest_answer_is_refused(settings):
    with pytest.raises(UsageError, match="goes beyond the longest answer: it has 13 steps, 0 to 12"):
        grid([5, 13, 11], **settings)


def test_the_last_window_that_fits_is_taken():
    assert grid([5, 13], starts=[1], lengths=[12])[0].end == 12


def test_fractions_that_leave_no_layer_are_refused():
    with pytest.raises(UsageError, match="leave none of 3 layers"):
        grid([9, 9], n_layers=3, mid_high=[0.9], tail_cut=[0.5])


@pytest.mark.parametrize("override", ["seeds=[]", "starts=[1,1]", "mid_high=[1.5]", "spread=mad"])
def test_settings_that_make_no_sense_are_refused(override):
    with pytest.raises(ConfigError):
        load_config(CalibrateSettings, None, [override])
