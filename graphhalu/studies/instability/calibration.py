"""Results of a calibration as one JSON file: the choices for ``detect``, and how well they do."""

from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from graphhalu.core.config import Config
from graphhalu.core.documents import FileFormat, read_document, write_document
from graphhalu.core.errors import UsageError
from graphhalu.detectors.identity import Identity
from graphhalu.studies.instability.settings import CalibrateSettings, GatherSettings, Spread
from graphhalu.studies.rows import Row

KIND: Final = FileFormat("graphhalu-instability-calibration", 1, "Make one:  graphhalu instability calibrate")
MAIN: Final = "instability"
TRACKER: Final = "attention_tracker"


class Window(NamedTuple):
    """Decode steps and layers that a score is averaged over.

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
        return f"steps {self.start}-{self.end}, layers {self.first_layer}-{self.stop_layer - 1}"


class WindowChoice(Config):
    """The score of ``detect``: spread over heads, mean over layers and steps of a window."""

    spread: Spread
    """Which spread."""
    start: int
    """First step."""
    length: int
    """Steps."""
    first_layer: int
    """First layer."""
    stop_layer: int
    """One past the last layer."""
    direction: Literal[-1, 1]
    """1 if attacks are higher, -1 if lower; the score is multiplied by it."""
    f1_threshold: float
    """Threshold with the best F1 on all prompts."""

    @property
    def window(self) -> Window:
        """Steps and layers."""
        return Window(self.start, self.length, self.first_layer, self.stop_layer)


class TrackerChoice(Config):
    """The score of Attention Tracker."""

    heads: tuple[tuple[int, int], ...]
    """Important heads."""
    k: float | None
    """As :func:`graphhalu.studies.instability.tracker.important_heads` gives it."""
    is_given: bool
    """Whether the list was given and not chosen."""
    f1_threshold: float
    """Threshold of minus the focus with the best F1 on all prompts."""


class Calibration(Config):
    """Choices on all prompts, and their results in nested folds."""

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

    def threshold(self, name: str, aim: float | None) -> float:
        """The threshold of a method for a rate of false alarms; ``None`` = best F1.

        Raises:
            UsageError: If no threshold was made for this rate.
        """
        if aim is None:
            return self.tracker.f1_threshold if name == TRACKER else self.window.f1_threshold
        points = self.row(name).points
        found = next((p.threshold for p in points if abs(p.aim - aim) < 1e-9), None)  # noqa: PLR2004
        if found is None:
            known = ", ".join(f"{point.aim:g}" for point in points)
            raise UsageError(f"the calibration has thresholds for the rates {known}, not for {aim:g}")
        return found

    def write(self, path: Path) -> Path:
        """Write the file, whole or not at all."""
        return write_document(path, self, KIND)


def read_calibration(path: Path) -> Calibration:
    """Read what :meth:`Calibration.write` wrote.

    Raises:
        UsageError: If there is no such file.
        DataFileError: If it is something else.
    """
    if not path.is_file():
        raise UsageError(f"no calibration at {path}\n  {KIND.way_out}")
    return read_document(path, Calibration, KIND)
