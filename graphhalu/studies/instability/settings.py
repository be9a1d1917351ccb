"""Settings of the study of inter-head instability, and the calibration that it writes.

A calibration is one JSON file: the choices for ``detect``, and how well they do.
"""

from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, field_validator

from graphhalu.core.config import Config
from graphhalu.core.documents import FileFormat
from graphhalu.core.errors import UsageError
from graphhalu.detectors.identity import Identity
from graphhalu.studies.rows import Row, StudyResult

Denominator = Literal["prompt", "everything"]
Spread = Literal["std", "logit", "bounded"]

TEMPLATE: Final = "published"
"""Prompt template: the user's text alone, without any of ours."""
Fraction = Annotated[float, Field(ge=0, lt=1)]


class GatherSettings(Config):
    """How prompts are measured."""

    system: str = ""
    """System prompt that all prompts are asked under; none is refused."""
    chat: Literal["off", "on", "auto"] = "auto"
    """Whether the model's chat template is used; auto uses it where there is one."""
    denominator: Denominator = "prompt"
    """Share of the system prompt in the attention to the prompt, or to everything."""
    max_new_tokens: int = Field(default=160, ge=1)
    """Longest answer, in tokens."""
    iterations: int = Field(default=1, ge=1)
    """Answers a prompt; more than one needs a temperature."""
    temperature: float = Field(default=0.0, ge=0)
    """0 decodes greedily; above, tokens are drawn."""
    seed: int = Field(default=1000003, ge=0)
    """Seed of drawn tokens; each prompt and iteration has its own stream."""
    batch_size: int = Field(default=8, ge=1)
    """Prompts that are answered together; also how many a part of the folder holds."""
    keeps_heads: bool = True
    """Whether the share of every single head is kept beside its spread over heads."""

    def prompt_recipe(self, *, is_chat: bool) -> dict[str, Any]:
        """The part of a detector's identity that decides the prompts."""
        return {"template": TEMPLATE, "chat": is_chat, "system": self.system}


class CalibrateSettings(Config):
    """How windows, layers and thresholds are chosen, and how the choice is judged."""

    spread: Spread = "std"
    """Which spread over heads is the score: plain, of the logits, or over its bound."""
    starts: tuple[Annotated[int, Field(ge=0)], ...] | Literal["auto"] = "auto"
    """First steps of decode windows; step 0 reads the prompt only."""
    lengths: tuple[Annotated[int, Field(ge=1)], ...] | Literal["auto"] = "auto"
    """Lengths of decode windows, in steps."""
    mid_high: tuple[Fraction, ...] = (0.20, 0.25, 0.33, 0.40)
    """Shares of the depth below which layers are left out."""
    tail_cut: tuple[Fraction, ...] = (0.05, 0.10, 0.15)
    """Shares of the depth that are left out at the end."""
    false_positive_rates: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.01, 0.05, 0.10)
    """Rates of false alarms that thresholds aim at."""
    n_folds: int = Field(default=5, ge=2, le=50)
    """Outer folds: each is tested once by what the others chose."""
    n_inner_folds: int = Field(default=3, ge=2, le=50)
    """Inner folds, in which window, layers and direction are chosen."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 2, 3, 4)
    """Seeds of the folds; results are means over them."""
    n_resamples: int = Field(default=2000, ge=100)
    """Resamples of groups of prompts for intervals."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Coverage of intervals."""
    tracker_k: tuple[Annotated[float, Field(ge=0)], ...] = (4.0, 3.0, 2.0, 1.0, 0.0)
    """Attention Tracker: standard deviations that must lie between the classes for a head to be
    important; the first of these that any head reaches."""

    @field_validator(
        *("starts", "lengths", "mid_high", "tail_cut"), *("seeds", "tracker_k", "false_positive_rates")
    )
    @classmethod
    def _are_there_once(cls, values: Any) -> Any:
        if values != "auto" and (not values or len(set(values)) < len(values)):
            raise ValueError("expected one value or more, each once")
        return values


MAIN: Final = "instability"
TRACKER: Final = "attention_tracker"


class DetectSettings(Config):
    """How prompts are scored."""

    method: Literal["instability", "attention_tracker"] = "instability"
    """The score."""
    fpr: float | Literal["f1"] = 0.05
    """Rate of false alarms of the threshold, or f1."""
    system: str | None = None
    """The system prompt itself; by default that of the calibration."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Longest answer; by default to the window's end."""


class Window(Config):
    """Decode steps and layers that a score is averaged over."""

    start: int
    """First step."""
    length: int
    """Steps."""
    first_layer: int
    """First layer."""
    stop_layer: int
    """One past the last layer."""

    @property
    def end(self) -> int:
        """Last step."""
        return self.start + self.length - 1

    @property
    def layers(self) -> tuple[int, int]:
        """First layer, and one past the last."""
        return self.first_layer, self.stop_layer

    def text(self) -> str:
        """In words."""
        return f"steps {self.start}-{self.end}, layers {self.first_layer}-{self.stop_layer - 1}"


class WindowChoice(Window):
    """The score of ``detect``: spread over heads, mean over layers and steps of a window."""

    spread: Spread
    """Which spread."""
    direction: Literal[-1, 1]
    """1 if attacks are higher, -1 if lower; the score is multiplied by it."""
    f1_threshold: float
    """Threshold with the best F1 on all prompts."""


class TrackerChoice(Config):
    """The score of Attention Tracker."""

    heads: tuple[tuple[int, int], ...]
    """Important heads."""
    k: float | None
    """As :func:`graphhalu.studies.instability.methods.important_heads` gives it."""
    is_given: bool
    """Whether the list was given and not chosen."""
    f1_threshold: float
    """Threshold of minus the focus with the best F1 on all prompts."""


class Calibration(StudyResult):
    """Choices on all prompts, and their results in nested folds."""

    kind = FileFormat("graphhalu-instability-calibration", 1, "Make one:  graphhalu instability calibrate")

    identity: Identity
    """Model and prompt recipe that it belongs to."""
    provenance: dict[str, Any]
    """Package versions, machine, code state and time."""
    gather: GatherSettings
    """How the prompts were measured."""
    settings: CalibrateSettings
    """How the choices were made."""
    n_attack: int
    """Attacks."""
    n_benign: int
    """Benign prompts."""
    n_groups: int
    """Groups of prompts that say the same."""
    n_left_out: int
    """Prompts without a label or without a measurement."""
    window: WindowChoice
    """The score of ``detect``."""
    tracker: TrackerChoice
    """The score of ``detect --method attention_tracker``."""
    rows: tuple[Row, ...]
    """All methods; the first is instability.

    Nested, where every choice was made without the prompts that are scored: ``auroc``, ``seed_sd``
    over seeds, ``f1`` at the threshold that is best on the training side, ``coverage`` (share of
    prompts with a score), the ``difference`` of the AUROC from that of instability, and ``p_holm``,
    two-sided (DeLong, grouped), after Holm over all methods. Where choices are made and judged on the
    same prompts, which is optimistic: ``in_sample`` (AUROC) and ``in_sample_f1``. On all prompts:
    ``direction``, 1 if attacks are higher in what is measured, -1 if lower. ``n_candidates`` columns
    are chosen among.

    ``points`` are operating points: the false-positive rate ``aim``; the ``threshold`` of all prompts
    together, for use; ``tpr`` and ``fpr``, shares of attacks and of benign prompts that are flagged
    where the choice did not see them; ``in_sample_tpr`` and ``in_sample_fpr`` where it did.
    ``choices`` of the folds of all seeds, the most frequent first, have a ``text`` and ``n_folds``.
    """
    steps: tuple[Row, ...]
    """Of each decode ``step`` the numbers ``n_attack`` and ``n_benign`` that reach it, and AUROCs of
    ``instability`` (spread over heads in the chosen layers, above 0.5 if attacks have more),
    ``entropy`` of the token, and ``focus``, mean over heads of the chosen layers."""
    prompt_ids: tuple[str, ...]
    """Prompts in the order of the scores; with their iteration where there are several."""
    labels: tuple[int, ...]
    """Their classes."""
    scores: dict[str, tuple[tuple[float, ...], ...]]
    """Nested scores by method: one list a seed."""

    def row(self, name: str) -> Row:
        """The row of a method."""
        return next(row for row in self.rows if row.name == name)

    def threshold(self, name: str, aim: float | Literal["f1"]) -> float:
        """The threshold of a method for a rate of false alarms, or that of the best F1.

        Raises:
            UsageError: If no threshold was made for this rate.
        """
        if aim == "f1":
            return self.tracker.f1_threshold if name == TRACKER else self.window.f1_threshold
        thresholds = {round(point.aim, 9): point.threshold for point in self.row(name).points}
        if round(aim, 9) not in thresholds:
            known = ", ".join(f"{each:g}" for each in thresholds)
            raise UsageError(f"the calibration has thresholds for the rates {known}, not for {aim:g}")
        return thresholds[round(aim, 9)]

    @classmethod
    def read(cls, path: Path) -> "Calibration":
        """Read what :meth:`write` wrote.

        Raises:
            UsageError: If there is no such file.
            DataFileError: If it is something else.
        """
        if not path.is_file():
            raise UsageError(f"no calibration at {path}\n  {cls.kind.way_out}")
        return super().read(path)
