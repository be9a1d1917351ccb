"""Detection with a calibration: score, verdict, and the step at which a prompt crossed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from graphhalu.core.errors import DetectorMismatchError, UsageError
from graphhalu.detectors.identity import Identity
from graphhalu.engine.executors import Progress, no_progress
from graphhalu.models.load import LoadedModel
from graphhalu.studies.instability.measure import Measurer
from graphhalu.studies.instability.methods import focus_scores, present_mean
from graphhalu.studies.instability.series import PromptRecord, PromptSeries
from graphhalu.studies.instability.settings import TRACKER, Calibration, DetectSettings, WindowChoice
from graphhalu.studies.rows import Row


class PromptDetector:
    """A calibration with its model, ready to score prompts.

    Args:
        loaded: The model that the calibration belongs to.
        calibration: What was calibrated.
        settings: Method, threshold and answers.

    Raises:
        DetectorMismatchError: If model, quantisation, chat template or system prompt differ.
        UsageError: If there is no threshold for the aim, or the window goes beyond the answer.
    """

    def __init__(self, loaded: LoadedModel, calibration: Calibration, settings: DetectSettings) -> None:
        self.calibration, self.method = calibration, settings.method
        end = 0 if self.method == TRACKER else calibration.window.window.end
        n_tokens = settings.max_new_tokens or end + 1
        if n_tokens <= end:
            beyond = f"the window goes to step {end}, beyond an answer of {n_tokens} tokens"
            raise UsageError(f"{beyond}\n  Use --max-new-tokens {end + 1} or more")
        changes: dict[str, Any] = {} if settings.system is None else {"system": settings.system}
        changes |= {"iterations": 1, "keeps_heads": False, "max_new_tokens": n_tokens}
        self.threshold = calibration.threshold(self.method, settings.fpr)
        self.measurer = Measurer(loaded, calibration.gather.model_copy(update=changes))
        recipe = self.measurer.settings.prompt_recipe(is_chat=self.measurer.is_chat)
        asked = Identity.of({"model": dict(loaded.identity), "prompt": recipe})
        try:
            calibration.identity.check(asked)
        except DetectorMismatchError as error:
            told, _, _ = str(error).rpartition("\n")
            way_out = "Calibrate on prompts like these:  graphhalu instability gather"
            raise DetectorMismatchError(f"{told}\n  {way_out}") from None

    def score(self, prompts: Sequence[PromptRecord], on_progress: Progress = no_progress) -> list[Row]:
        """A verdict on each prompt.

        Raises:
            UsageError: If there is no prompt, or one has no system span.
        """
        if not prompts:
            raise UsageError("there is no prompt to score")
        found, size = list[Row](), self.measurer.settings.batch_size
        for start in range(0, len(prompts), size):
            found += map(self.verdict, self.measurer.measure(prompts[start : start + size]))
            on_progress(len(found), len(prompts))
        return found

    def verdict(self, series: PromptSeries) -> Row:
        """The verdict on a measured prompt.

        Returns:
            ``prompt_id`` and ``text``; the ``score``, higher where an attack is more likely, ``None`` if
            there is none, and the ``reason``; the ``threshold``: scores at or above it are called
            attacks; ``is_attack``, ``None`` without a score; ``crossed_at``, the first decode step
            from which on the running mean stays at or above the threshold, ``None`` unless the
            verdict is attack; ``n_steps`` that were measured, and the ``answer`` so far.
        """
        record, choice = series.record, self.calibration.window
        score, first, reason = None, 0, record.failure
        if reason is None and self.method == TRACKER:
            focus = series.arrays["focus_heads"][None].astype(np.float64)
            score = -float(focus_scores(focus, self.calibration.tracker.heads)[0])
        elif reason is None:
            means = running_score(series.arrays[choice.spread].astype(np.float64), choice)
            steps = f"{series.n_steps} steps, and the window begins at step {choice.start}"
            reason = None if np.isfinite(means).any() else f"the answer has {steps}"
            if reason is None:
                score, below = float(means[-1]), np.flatnonzero(~(means >= self.threshold))
                first = choice.start + (int(below[-1]) + 1 if len(below) else 0)
        is_attack = None if score is None else score >= self.threshold
        more = {"crossed_at": first if is_attack else None, "n_steps": series.n_steps, "reason": reason}
        named = {"prompt_id": record.prompt_id, "text": record.text, "score": score}
        decided = {"threshold": self.threshold, "is_attack": is_attack}
        return Row(**named, **decided, **more, answer=record.answer)


def running_score(spread: Float[np.ndarray, "step layer"], choice: WindowChoice) -> Float[np.ndarray, "part"]:
    """Score after each step of the window: direction times the mean of its steps so far.

    The last value is the score. Steps without a value are skipped; NaN before the first value.
    Empty if the answer ends before the window.
    """
    steps = slice(choice.start, choice.start + choice.length)
    values = present_mean(spread[steps, choice.first_layer : choice.stop_layer])
    is_there = np.isfinite(values)
    count, total = np.cumsum(is_there), np.cumsum(np.where(is_there, values, 0.0))
    return choice.direction * np.where(count > 0, total / np.maximum(count, 1), np.nan)
