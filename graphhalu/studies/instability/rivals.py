"""The methods of the study: instability in its forms, and what it has to beat."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, SupportsFloat

import numpy as np
from jaxtyping import Bool, Float, Int

from graphhalu.studies.instability.calibration import MAIN, TRACKER
from graphhalu.studies.instability.methods import ColumnMethod, Method, TrackerMethod
from graphhalu.studies.instability.series import PromptSeries, padded_steps
from graphhalu.studies.instability.settings import CalibrateSettings, Spread
from graphhalu.studies.instability.tracker import Heads
from graphhalu.studies.instability.windows import Grid, window_grid, window_scores

SPREADS: Final[dict[Spread, str]] = {
    "std": "standard deviation over heads of the share on the system prompt",
    "logit": "the same of the log-odds of the share",
    "bounded": "the same over its largest value at that mean share",
}
_LAYERED: Final = {
    "system_share": ("share_mean", "mean share on the system prompt: is the mean enough?"),
    "focus_all_heads": ("focus", "focus of all heads over the window, untrained"),
}
_BY_STEP: Final = {
    "head_agreement": ("agreement", "mean correlation of the heads' shares"),
    "token_entropy": ("entropy", "entropy of the tokens of the window"),
    "top1_margin": ("margin", "margin of the likeliest token over the window"),
}


@dataclass(frozen=True)
class Study:
    """Measured prompts side by side.

    Attributes:
        series: The prompts.
        grid: Windows that are tried.
        n_steps: Decode steps of each prompt.
    """

    series: Sequence[PromptSeries]
    grid: Grid
    n_steps: Int[np.ndarray, "prompt"]

    @classmethod
    def of(cls, series: Sequence[PromptSeries], settings: CalibrateSettings) -> "Study":
        """With the windows of the settings.

        Raises:
            UsageError: If a window that is asked for goes beyond the longest answer.
        """
        n_steps = np.array([each.n_steps for each in series], dtype=np.int64)
        n_layers = series[0].arrays["std"].shape[1]
        return cls(series, window_grid(settings, n_layers, n_steps), n_steps)

    def layered(self, name: str) -> Float[np.ndarray, "prompt step layer"]:
        """An array by step and layer; NaN behind the last step."""
        n_layers = self.series[0].arrays[name].shape[1]
        found = np.full((len(self.series), int(self.n_steps.max()), n_layers), np.nan)
        for row, each in zip(found, self.series, strict=True):
            row[: each.n_steps] = each.arrays[name]
        return found

    def by_step(self, name: str) -> Float[np.ndarray, "prompt step"]:
        """An array by step; NaN behind the last step."""
        return padded_steps(self.series, [each.arrays[name] for each in self.series])

    def reached(self, train: Int[np.ndarray, "train"]) -> Bool[np.ndarray, "window"]:
        """Windows that the training side allows."""
        return self.grid.reached(self.n_steps[train])


def all_methods(
    study: Study, settings: CalibrateSettings, given_heads: Heads | None = None
) -> list[Method]:
    """Every method that is judged; the first is the instability that ``detect`` computes.

    All that vary over the answer are given the same windows to choose from, and all but
    Attention Tracker learn on the training side which way attacks lie.
    """
    methods: list[Method] = [
        _windowed(study, settings, MAIN, settings.spread, SPREADS[settings.spread])
    ]
    methods += [
        _windowed(study, settings, f"{MAIN}_{spread}", spread, text)
        for spread, text in SPREADS.items()
        if spread != settings.spread
    ]
    methods += [_windowed(study, settings, n, *parts) for n, parts in _LAYERED.items()]
    methods += [_stepped(study, settings, n, *parts) for n, parts in _BY_STEP.items()]
    methods.append(
        TrackerMethod(
            TRACKER, "Attention Tracker: focus of important heads on the last prompt row",
            np.stack([each.arrays["focus_heads"] for each in study.series]).astype(np.float64),
            settings.tracker_k, given_heads,
        )
    )  # fmt: skip
    return methods + [_plain(settings, *parts) for parts in _plain_columns(study)]


def _windowed(
    study: Study, settings: CalibrateSettings, name: str, array: str, summary: str
) -> ColumnMethod:
    windows = study.grid.windows
    return ColumnMethod(
        name, summary, window_scores(study.layered(array), windows),
        tuple(window.text() for window in windows), settings.n_inner_folds, study.reached,
    )  # fmt: skip


def _stepped(
    study: Study, settings: CalibrateSettings, name: str, array: str, summary: str
) -> ColumnMethod:
    """A measure without layers: each range of steps once."""
    first = study.grid.windows[0]
    places = [
        place for place, window in enumerate(study.grid.windows)
        if window[2:] == first[2:]
    ]  # fmt: skip
    windows = [study.grid.windows[p]._replace(first_layer=0, stop_layer=1) for p in places]
    return ColumnMethod(
        name, summary, window_scores(study.by_step(array)[..., None], windows),
        tuple(f"steps {window.start}-{window.end}" for window in windows),
        settings.n_inner_folds, lambda train: study.reached(train)[places],
    )  # fmt: skip


def _plain(
    settings: CalibrateSettings, name: str, summary: str, values: Float[np.ndarray, "prompt"]
) -> ColumnMethod:
    return ColumnMethod(
        name, summary, values[:, None], ("nothing to choose",), settings.n_inner_folds,
        lambda _: np.ones(1, dtype=bool),
    )  # fmt: skip


def _plain_columns(
    study: Study,
) -> list[tuple[str, str, Float[np.ndarray, "prompt"]]]:
    records = [each.record for each in study.series]
    logprobs = [each.arrays["logprob"][: each.record.n_answer] for each in study.series]
    return [
        ("user_length", "tokens of the user's text", _floats([r.n_user for r in records])),
        ("answer_length", "tokens of the answer", _floats([r.n_answer for r in records])),
        (
            "user_perplexity", "perplexity of the user's text (its logarithm)",
            _floats([r.user_nll for r in records]),
        ),
        (
            "answer_perplexity", "perplexity of the answer (its logarithm)",
            _floats([-p.mean() if len(p) else None for p in logprobs]),
        ),
    ]  # fmt: skip


def _floats(values: Sequence[SupportsFloat | None]) -> Float[np.ndarray, "prompt"]:
    return np.array([np.nan if v is None else float(v) for v in values])
