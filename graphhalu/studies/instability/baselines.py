"""Methods of the study: instability in its forms, and the baselines that it has to beat."""

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

    def padded(self, name: str) -> Float[np.ndarray, "prompt step *layer"]:
        """An array by step; NaN behind the last step of a prompt."""
        return padded_steps(self.series, name)

    def reached(self, train: Int[np.ndarray, "train"]) -> Bool[np.ndarray, "window"]:
        """Windows that the training side allows."""
        return self.grid.reached(self.n_steps[train])


def all_methods(study: Study, settings: CalibrateSettings, given_heads: Heads | None = None) -> list[Method]:
    """Every method that is judged; the first is the instability that ``detect`` computes.

    All that vary over the answer are given the same windows to choose from, and all but
    Attention Tracker learn on the training side which way attacks lie.
    """
    n_inner = settings.n_inner_folds
    spreads = {
        MAIN if spread == settings.spread else f"{MAIN}_{spread}": (spread, text)
        for spread, text in sorted(SPREADS.items(), key=lambda item: item[0] != settings.spread)
    }
    layered = {**spreads, **_LAYERED}
    methods: list[Method] = [_windowed(study, n_inner, n, *of) for n, of in layered.items()]
    methods += [_stepped(study, n_inner, name, *of) for name, of in _BY_STEP.items()]
    focus = np.stack([each.arrays["focus_heads"] for each in study.series]).astype(np.float64)
    summary = "Attention Tracker: focus of important heads on the last prompt row"
    methods.append(TrackerMethod(TRACKER, summary, focus, settings.tracker_k, given_heads))
    return methods + [
        ColumnMethod(
            name,
            summary,
            np.array([np.nan if v is None else float(v) for v in values])[:, None],
            ("nothing to choose",),
            n_inner,
            lambda _: np.ones(1, dtype=bool),
        )
        for name, summary, values in _constants(study)
    ]


def _windowed(study: Study, n_inner: int, name: str, array: str, summary: str) -> ColumnMethod:
    windows = study.grid.windows
    scores = window_scores(study.padded(array), windows)
    texts = tuple(window.text() for window in windows)
    return ColumnMethod(name, summary, scores, texts, n_inner, study.reached)


def _stepped(study: Study, n_inner: int, name: str, array: str, summary: str) -> ColumnMethod:
    """A measure without layers: each range of steps once."""
    layers = study.grid.windows[0][2:]
    places = [n for n, window in enumerate(study.grid.windows) if window[2:] == layers]
    windows = [study.grid.windows[n]._replace(first_layer=0, stop_layer=1) for n in places]
    scores = window_scores(study.padded(array)[..., None], windows)
    texts = tuple(f"steps {window.start}-{window.end}" for window in windows)
    return ColumnMethod(name, summary, scores, texts, n_inner, lambda train: study.reached(train)[places])


def _constants(study: Study) -> list[tuple[str, str, list[SupportsFloat | None]]]:
    """Measures with one value a prompt."""
    records = [each.record for each in study.series]
    logprobs = [each.arrays["logprob"][: each.record.n_answer] for each in study.series]
    perplexity = "perplexity of the {} (its logarithm)"
    return [
        ("user_length", "tokens of the user's text", [r.n_user for r in records]),
        ("answer_length", "tokens of the answer", [r.n_answer for r in records]),
        ("user_perplexity", perplexity.format("user's text"), [r.user_nll for r in records]),
        ("answer_perplexity", perplexity.format("answer"), [-p.mean() if len(p) else None for p in logprobs]),
    ]
