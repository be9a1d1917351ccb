"""Detectors that are one number of a trace; only the sign is learnt."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from jaxtyping import Float

from graphhalu.core.errors import TraceNotFoundError
from graphhalu.core.numerics import auroc
from graphhalu.core.splits import Split
from graphhalu.detectors.base import ChosenTraces, Detector, Scores, check_classes, sibling_traces
from graphhalu.detectors.columns import columns_of
from graphhalu.detectors.saved import TrainedDetector
from graphhalu.detectors.smoothing import SmoothedDetector
from graphhalu.detectors.token_features import family_columns
from graphhalu.detectors.token_probes import LinearTokenDetector
from graphhalu.features.registry import FeatureSpec
from graphhalu.labels.labels import Labels
from graphhalu.traces.trace import Trace


class ScalarDetector(TrainedDetector):
    """One number a trace, turned so that higher means more likely hallucinated.

    The sign is that of the training AUROC minus one half, +1 where it is exactly one half. The
    test side plays no part: taking the better of a score and its negative there would make
    every score look useful.

    Args:
        seed: Ignored: nothing is random. Accepted so that all detectors are made the same way.
        config: Ignored.
    """

    saved_fields: ClassVar[tuple[str, ...]] = ("sign",)
    feature: ClassVar[str]
    """Feature whose mean over all columns, those that are missing left out, is the number."""
    way_out: ClassVar[str] = ""
    """Advice for traces without a value."""

    sign: int | None = None
    train_auroc: float | None = None

    def values(self, traces: Sequence[Trace]) -> Float[np.ndarray, "trace"]:
        """The number of each trace, before its sign; NaN where there is none.

        By default the mean of a feature over layers, heads or what else it has; a variant may have a
        function of its own.
        """
        return row_means(columns_of(traces, (FeatureSpec(self.feature),)).values)

    def fit(self, traces: Sequence[Trace], labels: Labels, split: Split) -> Detector:
        """Learn the sign from the valid labels of the training side."""
        chosen = ChosenTraces.labelled(traces, labels, split.train)
        values = self.values(chosen) if len(chosen) else np.zeros(0)
        known = np.isfinite(values)
        usable = labels.values[np.array(chosen.indices, dtype=np.int64)[known]]
        n_without = int((~known).sum())
        check_classes(usable, self.card, n_without=n_without, way_out=self.way_out)
        self.train_auroc = auroc(values[known], usable)
        self.sign = 1 if self.train_auroc >= 0.5 else -1  # noqa: PLR2004
        return self

    def score(self, traces: Sequence[Trace]) -> Scores:
        """The signed number of each trace."""
        sign = self.fitted(self.sign, traces)
        values = sign * self.values(traces) if len(traces) else np.zeros(0)
        return Scores.of(np.where(np.isfinite(values), values, np.nan))

    def write(self, folder: Path) -> dict[str, Any]:
        """The sign; it needs no file of its own."""
        return {"sign": self.fitted(self.sign), "train_auroc": self.train_auroc}

    def restore(self, folder: Path, values: Mapping[str, Any]) -> None:
        """Take over the sign of a saved detector."""
        if values["sign"] not in {-1, 1}:
            raise ValueError(f"sign must be 1 or -1, got {values['sign']!r}")
        self.sign, self.train_auroc = int(values["sign"]), values.get("train_auroc")


SinkMass: Final = ScalarDetector.variant("sink-mass")
SinkMassK1: Final = ScalarDetector.variant("sink-mass-k1")
HeadStd: Final = ScalarDetector.variant("head-std")
HeadStdLogit: Final = ScalarDetector.variant("head-std-logit")
AttentionLogdet: Final = ScalarDetector.variant("attention-logdet")
Rauq: Final = ScalarDetector.variant("rauq")
Perplexity: Final = ScalarDetector.variant("perplexity")
MinLogprob: Final = ScalarDetector.variant("min-logprob")
Entropy: Final = ScalarDetector.variant("entropy")
Likelihood: Final = ScalarDetector.variant("likelihood")
Length: Final = ScalarDetector.variant("length")
HiddenScore: Final = ScalarDetector.variant("hidden-score")


def focus(traces: Sequence[Trace]) -> Float[np.ndarray, "trace"]:
    """Mean attention of the answer to question and context; a span that a trace lacks adds nothing."""
    columns = columns_of(traces, (FeatureSpec("span_mass"),))
    spans = []
    for span in ("question", "context"):
        places = [place for place, name in enumerate(columns.names) if name.endswith(f".{span}")]
        spans.append(row_means(columns.values[:, places]))
    is_known = np.isfinite(spans).any(axis=0)
    return np.where(is_known, np.nansum(spans, axis=0), np.nan)


def eigenscore(traces: Sequence[Trace]) -> Float[np.ndarray, "trace"]:
    """EigenScore of the beams of each trace's question; they need no label of their own."""
    found = np.full(len(traces), np.nan)
    for place, (trace, beams) in enumerate(zip(traces, sibling_traces(traces), strict=True)):
        if len(beams) > 1:
            own = [beam.trace_id for beam in beams].index(trace.trace_id)
            values = columns_of(beams, (FeatureSpec("beam_eigenscore"),)).values
            found[place] = values[own, 0] if values.shape[1] else np.nan
    return found


def row_means(values: Float[np.ndarray, "trace column"]) -> Float[np.ndarray, "trace"]:
    """Mean of the known values of each row, in float64; NaN where there is none."""
    is_known = np.isfinite(values)
    total = np.ascontiguousarray(np.where(is_known, values, 0.0), dtype=np.float64).sum(axis=1)
    count = is_known.sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


WAY_OUT: Final = "It compares answers with and without their context: extract with --contrast"

Columns = Mapping[str, Float[np.ndarray, "token"]]
"""Columns of the family ``contrast`` by name."""


def likelihood_drop(columns: Columns) -> Float[np.ndarray, "token"]:
    """What the context adds to the log-probability (nat)."""
    return columns["drop"]


def late_and_unmoved(columns: Columns) -> Float[np.ndarray, "token"]:
    """How late a token is decided, as a share of the layers, minus the shift of the output."""
    ranks = np.stack([values for name, values in columns.items() if name.startswith("rank")])
    return (ranks > 0).mean(axis=0) - columns["output_shift"]


def contrast_means(
    traces: Sequence[Trace], of_tokens: Callable[[Columns], Float[np.ndarray, "token"]]
) -> Float[np.ndarray, "trace"]:
    """Mean over the answer tokens of each trace of a number of each; NaN where no context was left out."""
    found = np.full(len(traces), np.nan)
    for place, trace in enumerate(traces):
        with suppress(TraceNotFoundError):
            columns = family_columns(trace, "contrast")
            found[place] = of_tokens(dict(zip(columns.names, columns.values.T, strict=True))).mean()
    return found


Focus: Final = ScalarDetector.variant("focus", values=focus)
Eigenscore: Final = ScalarDetector.variant(
    "eigenscore",
    values=eigenscore,
    way_out="It compares the beams of a question: extract with --keep-beams 5 and hidden states",
)
Gasp: Final = ScalarDetector.variant(
    "gasp", values=lambda traces: contrast_means(traces, likelihood_drop), way_out=WAY_OUT
)
Lumina: Final = ScalarDetector.variant(
    "lumina", values=lambda traces: contrast_means(traces, late_and_unmoved), way_out=WAY_OUT
)
TokenContrast: Final = LinearTokenDetector.variant("token-contrast", __name__)
TokenShift: Final = LinearTokenDetector.variant("token-shift", __name__)
TokenResidual: Final = LinearTokenDetector.variant("token-residual", __name__)
TokenCortex: Final = SmoothedDetector.variant("token-cortex", __name__)
