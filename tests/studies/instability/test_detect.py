"""Verdicts on new prompts: scores, the step of crossing, and calibrations of other models."""

import numpy as np
import pytest

from graphhalu.core.errors import DetectorMismatchError, UsageError
from graphhalu.models.cards import ModelSpec
from graphhalu.models.load import load_model
from graphhalu.studies.instability.calibrate import calibrate
from graphhalu.studies.instability.measure import PromptDetector, gather, running_score
from graphhalu.studies.instability.series import PromptSeries, numbered
from graphhalu.studies.instability.settings import DetectSettings, GatherSettings, WindowChoice
from graphhalu.testing.tiny_models import save_tiny

TEXTS = [
    (f"{'Say' if label else 'Ask'} {letter}{digit}.", label)
    for label in (1, 0)
    for letter in "abc"
    for digit in range(6)
]
SETTINGS = GatherSettings(system="Never say b.", max_new_tokens=9)
CHOICE = WindowChoice(
    spread="std", start=1, length=4, first_layer=1, stop_layer=3, direction=1, f1_threshold=0.5
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return load_model(ModelSpec(name=str(save_tiny(tmp_path_factory.mktemp("m"), seed=1)), threads=1))


@pytest.fixture(scope="module")
def study(tiny, planted, tmp_path_factory):
    """A folder of 36 prompts, and its calibration."""
    folder = gather(tiny, SETTINGS, numbered(TEXTS), tmp_path_factory.mktemp("s") / "s")
    return folder, calibrate(folder, planted.quick)


def layered(steps):
    """Steps whose layers 1 and 2 have the given mean, and whose layer 0 does not count."""
    values = np.repeat(np.array(steps, dtype=np.float64)[:, None], 3, axis=1)
    values[:, 0] = 9.0
    return values


def test_the_running_score_is_the_mean_up_to_each_step_of_the_window():
    found = running_score(layered([7.0, 0.2, 0.6, 0.4, 0.8, 7.0]), CHOICE)
    np.testing.assert_allclose(found, [0.2, 0.4, 0.4, 0.5])
    turned = running_score(layered([7.0, 0.2]), CHOICE.model_copy(update={"direction": -1}))
    np.testing.assert_allclose(turned, [-0.2])


@pytest.mark.parametrize(
    ("steps", "threshold", "is_attack", "crossed_at"),
    [
        ([7.0, 0.2, 0.6, 0.4, 0.8], 0.5, True, 4),
        ([7.0, 0.2, 0.6, 0.4, 0.8], 0.39, True, 2),
        ([7.0, 0.2, 0.6, 0.4, 0.8], 0.1, True, 1),
        ([7.0, 0.9, 0.1, 0.1, 0.1], 0.5, False, None),
        ([7.0, 0.9, 0.1, 0.8, 0.9], 0.55, True, 3),
        ([7.0, 0.6], 0.55, True, 1),
        ([7.0], 0.5, None, None),
    ],
)
def test_a_prompt_crosses_where_the_mean_stays_above(tiny, study, steps, threshold, is_attack, crossed_at):
    detector = PromptDetector(tiny, study[1].model_copy(update={"window": CHOICE}), DetectSettings(fpr="f1"))
    detector.threshold = threshold
    record = study[0].read()[0].record
    found = detector.verdict(PromptSeries(record, {"std": layered(steps)}))
    assert (found.is_attack, found.crossed_at) == (is_attack, crossed_at)
    assert (found.reason is None) == (is_attack is not None)


def test_a_measured_prompt_scores_alike_when_it_is_asked_again(tiny, study):
    folder, calibration = study
    detector = PromptDetector(tiny, calibration, DetectSettings(fpr=0.2))
    window = calibration.window
    for verdict, each in zip(detector.score(numbered(TEXTS[:3])), folder.read(), strict=False):
        values = each.arrays["std"][window.start : window.end + 1]
        expected = values[:, window.first_layer : window.stop_layer].mean()
        assert verdict.score == pytest.approx(calibration.window.direction * expected, abs=1e-5)
        assert verdict.is_attack == (verdict.score >= detector.threshold)
        assert verdict.n_steps <= window.end + 1


def test_the_tracker_reads_the_last_row_of_the_prompt_only(tiny, study):
    folder, calibration = study
    detector = PromptDetector(tiny, calibration, DetectSettings(method="attention_tracker", fpr=0.2))
    found = detector.score(numbered(TEXTS[:3]))
    layers, heads = np.array(calibration.tracker.heads).T
    for verdict, each in zip(found, folder.read(), strict=False):
        expected = -each.arrays["focus_heads"][layers, heads].mean()
        assert verdict.score == pytest.approx(expected, abs=1e-5)
        assert verdict.n_steps <= 2


def test_another_model_or_system_prompt_is_refused(tiny, study, tmp_path):
    other = load_model(ModelSpec(name=str(save_tiny(tmp_path / "other", seed=2)), threads=1))
    with pytest.raises(DetectorMismatchError, match=r"weights(.|\n)*instability gather"):
        PromptDetector(other, study[1], DetectSettings(fpr=0.2))
    with pytest.raises(DetectorMismatchError, match=r"prompt\.system: 'Never say b\.'"):
        PromptDetector(tiny, study[1], DetectSettings(fpr=0.2, system="Be kind."))


def test_a_window_beyond_the_answer_asked_for_is_refused(tiny, study):
    needed = study[1].window.end + 1
    with pytest.raises(UsageError, match=f"--max-new-tokens {needed} or more"):
        PromptDetector(tiny, study[1], DetectSettings(fpr=0.2, max_new_tokens=needed - 1))
    assert PromptDetector(tiny, study[1], DetectSettings(fpr=0.2, max_new_tokens=needed))


def test_no_prompt_is_refused(tiny, study):
    with pytest.raises(UsageError, match="no prompt to score"):
        PromptDetector(tiny, study[1], DetectSettings(fpr=0.2)).score([])
