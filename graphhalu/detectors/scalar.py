"""Detectors that are one number a trace; only the sign is learnt, on the training side."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, final

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import rankdata

from graphhalu.config import Config, validate
from graphhalu.detectors.base import Detector, DetectorCard, Scores
from graphhalu.detectors.saved import damaged, read_description, required, write_description
from graphhalu.errors import GraphhaluError, NotEnoughDataError, UsageError
from graphhalu.features.instability import scalar_head_std
from graphhalu.features.likelihood import perplexity
from graphhalu.features.sinks import scalar_sink_mass
from graphhalu.labels.labels import Labels
from graphhalu.splits import Split
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

    def __init__(self, seed: int = 0) -> None:
        self.sign: int | None = None
        self.train_auroc: float | None = None

    @abstractmethod
    def value(self, trace: Trace) -> float:
        """The number of one trace, before its sign.

        Raises:
            GraphhaluError: If it cannot be computed; the trace then has no valid score.
        """

    @classmethod
    def settings(cls, **values: Any) -> dict[str, Any]:
        """Arguments of the constructor from plain values.

        Raises:
            ConfigError: If there is any but ``seed``.
        """
        return validate(ScalarConfig, values, source=f"settings of {cls.card.name}").model_dump()

    def fit(self, traces: Sequence[Trace], labels: Labels, split: Split) -> Detector:
        """Learn the sign from the valid labels of the training side."""
        kept = split.train[labels.is_valid[split.train]]
        values = self._values([traces[int(index)] for index in kept])
        known = np.isfinite(values)
        auroc = _auroc(values[known], labels.values[kept][known], self.card.name)
        self.train_auroc, self.sign = auroc, 1 if auroc >= 0.5 else -1  # noqa: PLR2004
        return self

    def score(self, traces: Sequence[Trace]) -> Scores:
        """The signed number of each trace."""
        if self.sign is None:
            message = f"{self.card.name} is not fitted: call fit first, or load a saved one"
            raise UsageError(message)
        return Scores.of(self.sign * self._values(traces))

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

    def _values(self, traces: Sequence[Trace]) -> Float[np.ndarray, "trace"]:
        return np.array([self._value_or_nan(trace) for trace in traces], dtype=np.float64)

    def _value_or_nan(self, trace: Trace) -> float:
        try:
            value = float(self.value(trace))
        except GraphhaluError:
            return float("nan")
        return value if np.isfinite(value) else float("nan")


def _auroc(
    values: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "trace"], name: str
) -> float:
    """Share of pairs in which the hallucinated trace has the higher value; ties count half."""
    n_positive, n_negative = int(labels.sum()), int((1 - labels).sum())
    if not n_positive or not n_negative:
        message = (
            f"{name} needs both classes on the training side, got {n_positive} hallucinated and "
            f"{n_negative} correct traces with a value\n  Label more traces, or change the split"
        )
        raise NotEnoughDataError(message)
    rank_sum = rankdata(values)[labels == 1].sum()
    pairs_won = rank_sum - n_positive * (n_positive + 1) / 2
    return float(pairs_won / (n_positive * n_negative))


N_SINK: Final = 4
"""Leading tokens that count as the sink."""


@final
class SinkMass(ScalarDetector):
    """Mean attention to the sink."""

    card: ClassVar[DetectorCard] = DetectorCard(
        name="sink-mass",
        summary="mean attention of later tokens to the first four, over layers and heads",
        source=(
            "Four sink tokens: Xiao et al. 2023, arXiv:2309.17453; rows of the sink itself are "
            "left out. The sign is learnt: it differs from model to model."
        ),
        inputs=("attention",),
        is_supervised=True,
    )

    def value(self, trace: Trace) -> float:
        """Sink mass."""
        return scalar_sink_mass(trace, N_SINK)


@final
class HeadStd(ScalarDetector):
    """How much heads disagree."""

    card: ClassVar[DetectorCard] = DetectorCard(
        name="head-std",
        summary="standard deviation of sink attention over heads, mean over the answer",
        source=(
            "The public study llm-attention-head-instability, with the sink in place of the system "
            "prompt and without its window of layers and steps. The sign is learnt."
        ),
        inputs=("attention",),
        is_supervised=True,
    )

    def value(self, trace: Trace) -> float:
        """Mean standard deviation over heads."""
        return scalar_head_std(trace)


@final
class Perplexity(ScalarDetector):
    """How unlikely the model found its own answer."""

    card: ClassVar[DetectorCard] = DetectorCard(
        name="perplexity",
        summary="exponential of the mean negative log-probability of the answer tokens",
        source="Jelinek et al. 1977; as a detector Ren et al. 2023, arXiv:2209.15558. Sign learnt.",
        inputs=("likelihood",),
        is_supervised=True,
    )

    def value(self, trace: Trace) -> float:
        """Perplexity of the answer."""
        return perplexity(trace)


@final
class AnswerLength(ScalarDetector):
    """Control: the number of answer tokens. A detector that only finds length finds nothing."""

    card: ClassVar[DetectorCard] = DetectorCard(
        name="length",
        summary="number of answer tokens",
        source="Control; the sign is learnt.",
        inputs=("length",),
        is_supervised=True,
        is_control=True,
    )

    def value(self, trace: Trace) -> float:
        """Answer tokens."""
        return float(trace.answer_length)
