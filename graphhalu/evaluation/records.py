"""One detector in a comparison: its row, its metrics by category, its per-sample scores."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

SAMPLE_SCHEMA: Final = pa.schema(
    [
        ("detector", pa.string()),
        ("seed", pa.int64()),
        ("fold", pa.int64()),
        ("trace_id", pa.string()),
        ("group", pa.string()),
        ("label", pa.int8()),
        ("score", pa.float64()),
        ("raw_score", pa.float64()),
        ("is_valid", pa.bool_()),
        ("probability", pa.float64()),
        ("is_predicted_positive", pa.bool_()),
        ("token", pa.int64()),
    ]
)
"""One row a detector, seed and tested trace or token.

``score`` is pooled over folds; ``probability`` is calibrated and ``is_predicted_positive`` decided
on the validation side of the fold. All three are null where there is no valid score, the last two
also where that side lacks a class and in files of version 1. ``token`` is the place in the answer,
from 0; null where answers are scored.
"""
_EARLIER_NAMES: Final = {"is_called": "is_predicted_positive"}
_ADDED: Final = ("probability", "is_predicted_positive", "token")
"""Columns that files of earlier versions lack."""


def upgraded_samples(samples: pa.Table) -> pa.Table:
    """Samples of any version in the columns of :data:`SAMPLE_SCHEMA`.

    Raises:
        ArrowException: If a column is missing or of another type.
    """
    samples = samples.rename_columns([_EARLIER_NAMES.get(n, n) for n in samples.column_names])
    for name in _ADDED:
        if name not in samples.column_names:
            kind = SAMPLE_SCHEMA.field(name)
            samples = samples.append_column(kind, pa.nulls(len(samples), kind.type))
    return samples.select(SAMPLE_SCHEMA.names).cast(SAMPLE_SCHEMA)


@dataclass(frozen=True)
class MetricValue:
    """One metric of one detector.

    The interval holds the fitted models fixed and says how far the choice of questions moves
    the metric; ``seed_sd`` says how far the folds and the training do.

    Attributes:
        value: Mean over seeds of the metric on pooled out-of-fold scores.
        low: Lower end of the question-level bootstrap interval; ``None`` for the calibration
            error, which resampling would only enlarge.
        high: Upper end, or ``None``.
        n_resamples_used: Resamples that held both classes.
        seed_sd: Standard deviation over seeds; ``None`` for one seed.
        fold_mean: Mean over folds and seeds of the metric within a fold, which needs no
            pooling; ``None`` if no fold holds both classes, and for what is no rank metric.
    """

    value: float
    low: float | None
    high: float | None
    n_resamples_used: int
    seed_sd: float | None
    fold_mean: float | None


@dataclass(frozen=True)
class DetectorRow:
    """One detector in a comparison.

    Attributes:
        failure: Why there are no metrics, or ``None``.
        coverage: Share of tested traces with a valid score, mean over seeds.
        auroc_invalid_at_median: AUROC over all tested traces when those without a score get
            the median of the others; equals the AUROC at full coverage.
        fit_s: Seconds of one fit, mean over folds and seeds.
        score_ms: Milliseconds to score one trace, mean over tested traces and seeds.
        is_graph: Whether it is a network on token graphs.
        source: Paper, and every difference from it.
        settings: What differs from the detector's defaults.
        reads: Stored arrays that it needs of a trace.
        trace_bytes: Bytes of these arrays in one trace, mean, as stored before compression;
            ``None`` if the detector does not say what it reads.
        n_parameters: Numbers that the last fit chose; ``None`` where they are not counted.
        choices: What each fit of a token detector chose, by seed and fold.
        key: Identity of detector, settings, traces, labels and protocol: a finished row of the
            same key need not be run again.
    """

    detector: str
    inputs: tuple[str, ...]
    is_supervised: bool | None
    is_control: bool
    failure: str | None
    metrics: Mapping[str, MetricValue]
    coverage: float | None = None
    auroc_invalid_at_median: float | None = None
    fit_s: float | None = None
    score_ms: float | None = None
    is_graph: bool = False
    source: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    reads: tuple[str, ...] = ()
    trace_bytes: float | None = None
    n_parameters: int | None = None
    choices: tuple[Mapping[str, Any], ...] = ()
    key: str = ""

    def metric(self, name: str) -> float | None:
        """The value of a metric, or ``None`` where the detector failed."""
        return self.metrics[name].value if name in self.metrics else None


@dataclass(frozen=True)
class TokenCounts:
    """What a comparison of token detectors was made of.

    Attributes:
        n_traces: Answers with labelled tokens.
        n_left_out: Answers without, and why, by reason.
        n_groups: Contexts.
        n_hallucinated: Answers with a hallucinated token.
        n_tokens: Tokens.
        n_hallucinated_tokens: Those in a span.
        n_spans: Marked spans.
        n_lost_spans: Those that no token covers.
        character_share: Share of the characters that are marked, white space aside.
        n_on_policy: Answers that the replaying model wrote itself.
        writers: Answers by who wrote them, with the share that is hallucinated.
    """

    n_traces: int
    n_left_out: Mapping[str, int]
    n_groups: int
    n_hallucinated: int
    n_tokens: int
    n_hallucinated_tokens: int
    n_spans: int
    n_lost_spans: int
    character_share: float
    n_on_policy: int
    writers: Mapping[str, tuple[int, float]]

    @property
    def prevalence(self) -> float:
        """Share of hallucinated tokens."""
        return self.n_hallucinated_tokens / self.n_tokens

    @property
    def all_positive_f1(self) -> float:
        """F1 of characters if every token is predicted positive."""
        return 2 * self.character_share / (1 + self.character_share)


@dataclass(frozen=True)
class Subgroup:
    """Rank metrics of one detector among the tested traces of one category.

    Attributes:
        field: Field of the questions' metadata.
        name: Its value.
        n_traces: Tested traces of this category in one seed, mean.
        prevalence: Share of hallucinated ones.
        metrics: AUROC and AUPRC; empty where a class is missing or nearly so.
    """

    detector: str
    field: str
    name: str
    n_traces: float
    prevalence: float
    metrics: Mapping[str, MetricValue]
