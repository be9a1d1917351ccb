"""What all detectors share that are one number a trace; only the sign is learnt."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from graphhalu.core.config import Config, validate
from graphhalu.core.errors import UsageError
from graphhalu.core.splits import Split
from graphhalu.detectors.base import Detector, Scores
from graphhalu.detectors.columns import columns_of
from graphhalu.detectors.identity import check_identity
from graphhalu.detectors.saved import damaged, read_description, required, write_description
from graphhalu.detectors.sides import ChosenTraces, auroc, check_classes
from graphhalu.features.spec import FeatureSpec
from graphhalu.labels.labels import Labels
from graphhalu.traces.trace import Trace


class ScalarConfig(Config):
    """Settings that every scalar detector accepts."""

    seed: int = 0
    """Ignored: nothing is random. Accepted so that all detectors are made the same way."""


class ScalarDetector(Detector):
    """One number a trace, turned so that higher means more likely hallucinated.

    The sign is that of the training AUROC minus one half, +1 where it is exactly one half. The
    test side plays no part: taking the better of a score and its negative there would make
    every score look useful.

    Args:
        seed: Ignored.
    """

    way_out: ClassVar[str] = ""

    def __init__(self, seed: int = 0) -> None:
        self.sign: int | None = None
        self.train_auroc: float | None = None

    @abstractmethod
    def values(self, traces: Sequence[Trace]) -> Float[np.ndarray, "trace"]:
        """The number of each trace, before its sign; NaN where there is none."""

    @classmethod
    def settings(cls, **values: Any) -> dict[str, Any]:
        """Arguments of the constructor from plain values.

        Raises:
            ConfigError: If there is any but ``seed``.
        """
        return validate(ScalarConfig, values, source=f"settings of {cls.card.name}").model_dump()

    def fit(self, traces: Sequence[Trace], labels: Labels, split: Split) -> Detector:
        """Learn the sign from the valid labels of the training side."""
        chosen = ChosenTraces.labelled(traces, labels, split.train)
        values = self.values(chosen) if len(chosen) else np.zeros(0)
        known = np.isfinite(values)
        usable = labels.values[np.array(chosen.indices, dtype=np.int64)[known]]
        n_without = int((~known).sum())
        check_classes(usable, self.card.name, n_without=n_without, way_out=self.way_out)
        self.train_auroc = auroc(values[known], usable)
        self.sign = 1 if self.train_auroc >= 0.5 else -1  # noqa: PLR2004
        return self

    def score(self, traces: Sequence[Trace]) -> Scores:
        """The signed number of each trace."""
        if self.sign is None:
            message = f"{self.card.name} is not fitted: call fit first, or load a saved one"
            raise UsageError(message)
        check_identity(self.identity, traces)
        if not len(traces):
            return Scores.of(np.zeros(0))
        values = self.sign * self.values(traces)
        return Scores.of(np.where(np.isfinite(values), values, np.nan))

    def save(self, folder: Path) -> None:
        """Write the sign."""
        if self.sign is None:
            message = f"{self.card.name} is not fitted: there is nothing to save"
            raise UsageError(message)
        fitted = {"sign": self.sign, "train_auroc": self.train_auroc}
        write_description(folder, self.card.name, fitted)

    @classmethod
    def load(cls, folder: Path) -> Detector:
        """Read the sign."""
        values = read_description(folder, cls.card.name)
        sign = required(values, "sign", folder)
        if sign not in {-1, 1}:
            raise damaged(folder, ValueError(f"sign must be 1 or -1, got {sign!r}"))
        detector = cls()
        detector.sign, detector.train_auroc = int(sign), values.get("train_auroc")
        return detector


class FeatureScalar(ScalarDetector):
    """The mean of one feature over all its columns, those that are missing left out."""

    spec: ClassVar[FeatureSpec]

    def values(self, traces: Sequence[Trace]) -> Float[np.ndarray, "trace"]:
        """Mean over layers, heads or what else the feature has."""
        return row_means(columns_of(traces, (self.spec,)).values)


def row_means(values: Float[np.ndarray, "trace column"]) -> Float[np.ndarray, "trace"]:
    """Mean of the known values of each row, in float64; NaN where there is none."""
    is_known = np.isfinite(values)
    total = np.ascontiguousarray(np.where(is_known, values, 0.0), dtype=np.float64).sum(axis=1)
    count = is_known.sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
