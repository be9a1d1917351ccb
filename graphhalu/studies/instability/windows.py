"""Decode windows and layers that a score is averaged over."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from graphhalu.core.errors import NotEnoughDataError, UsageError
from graphhalu.heads.statistics import mean_of_present
from graphhalu.studies.instability.measure import layer_slice
from graphhalu.studies.instability.settings import CalibrateSettings

STARTS: Final = tuple(range(1, 21))
LENGTHS: Final = (3, 5, 8, 10, 15, 20, 30, 40, 50, 60)
"""The grid of the public study; its step 0, the last row of the prompt, is left out."""

_REACH_START: Final = 0.9
_REACH_END: Final = 0.5


class Window(NamedTuple):
    """Steps and layers.

    Attributes:
        start: First step.
        length: Steps.
        first_layer: First layer.
        stop_layer: One past the last layer.
    """

    start: int
    length: int
    first_layer: int
    stop_layer: int

    @property
    def end(self) -> int:
        """Last step."""
        return self.start + self.length - 1

    def text(self) -> str:
        """In words."""
        steps = f"steps {self.start}-{self.end}"
        return f"{steps}, layers {self.first_layer}-{self.stop_layer - 1}"


class Grid(NamedTuple):
    """All windows that a choice is made from.

    Attributes:
        windows: In the order in which the first of equals is taken.
        is_start_auto: Whether starts are cut to what most prompts reach.
        is_length_auto: Whether ends are.
    """

    windows: tuple[Window, ...]
    is_start_auto: bool
    is_length_auto: bool

    def reached(self, n_steps: Int[np.ndarray, "prompt"]) -> Bool[np.ndarray, "window"]:
        """Windows that the given prompts allow; of automatic grids, those that most reach.

        An automatic start is a step that 90 % of the prompts reach, an automatic end one that
        half of them reach. Where none is left, the shortest of the earliest windows is.
        """
        starts = np.array([window.start for window in self.windows])
        ends = np.array([window.end for window in self.windows])
        reach = (n_steps[:, None] > np.arange(int(ends.max()) + 1)).mean(axis=0)
        found = np.ones(len(starts), dtype=bool)
        if self.is_start_auto:
            found &= reach[starts] >= _REACH_START
        if self.is_length_auto:
            found &= reach[ends] >= _REACH_END
        if not found.any():
            earliest = starts == starts.min()
            found = earliest & (ends == ends[earliest].min())
        return found


def window_grid(settings: CalibrateSettings, n_layers: int, n_steps: Int[np.ndarray, "prompt"]) -> Grid:
    """All windows of the settings.

    Args:
        settings: Starts, lengths and layer fractions.
        n_layers: Layers of the model.
        n_steps: Decode steps of each prompt.

    Raises:
        UsageError: If a window that is asked for goes beyond the longest answer, or no layer is
            left.
        NotEnoughDataError: If no prompt has a step after step 0.
    """
    longest = int(n_steps.max(initial=0))
    if longest < 2:  # noqa: PLR2004
        message = "no answer has a second step: there is nothing to average over"
        raise NotEnoughDataError(message)
    is_auto = settings.starts == "auto", settings.lengths == "auto"
    starts = STARTS if settings.starts == "auto" else settings.starts
    lengths = LENGTHS if settings.lengths == "auto" else settings.lengths
    _require_inside(None if is_auto[0] else starts, None if is_auto[1] else lengths, longest)
    steps = [(start, n) for n in lengths for start in starts if start + n <= longest]
    if not steps:  # answers shorter than the shortest window of the grid
        steps = [(min(starts[0], longest - 1), 1)]
    layers = _layers(settings, n_layers)
    return Grid(tuple(Window(*pair, *each) for each in layers for pair in steps), *is_auto)


def window_scores(
    values: Float[np.ndarray, "prompt step layer"], windows: Sequence[Window]
) -> Float[np.ndarray, "prompt window"]:
    """Mean over the layers and steps of each window.

    An answer that ends inside a window is averaged over the steps that it has; one that ends
    before it has NaN. So has one whose layers hide the system prompt throughout.

    Args:
        values: NaN behind the last step, and in layers that do not see the system prompt.
        windows: They start within the steps.
    """
    layers = {window[2:] for window in windows}
    means = {each: present_mean(values[..., slice(*each)]) for each in layers}
    scores = [present_mean(means[w[2:]][:, w.start : w.end + 1]) for w in windows]
    return np.stack(scores, axis=1)


def present_mean(values: Float[np.ndarray, "*row value"]) -> Float[np.ndarray, "*row"]:
    """Mean over the last axis of the values that are there; NaN where none is."""
    return mean_of_present(np.moveaxis(values, -1, 0))


def _layers(settings: CalibrateSettings, n_layers: int) -> list[tuple[int, int]]:
    slices = (layer_slice(n_layers, a, b) for a in settings.mid_high for b in settings.tail_cut)
    found = dict.fromkeys((s.start, s.stop) for s in slices if s.start < s.stop)
    if not found:
        message = (
            f"mid_high {settings.mid_high} and tail_cut {settings.tail_cut} leave none of {n_layers} layers"
        )
        raise UsageError(message)
    return list(found)


def _require_inside(starts: tuple[int, ...] | None, lengths: tuple[int, ...] | None, longest: int) -> None:
    """Refuse windows that were asked for and that no answer reaches."""
    if starts is None and lengths is None:
        return
    start, length = max(starts or (1,)), max(lengths or (1,))
    if start + length > longest:
        message = (
            f"the window of steps {start} to {start + length - 1} goes beyond the longest answer: "
            f"it has {longest} steps, 0 to {longest - 1}\n"
            f"  Use smaller --starts and --lengths, or gather with more --max-new-tokens"
        )
        raise UsageError(message)
