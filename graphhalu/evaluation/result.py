"""Result of a comparison: one row a detector, its tests and the scores of every sample.

``result.json`` holds the checksums of the files beside it. Version 2 added probabilities, tests
against a baseline, subgroups and what detectors read; version 3 comparisons of token detectors,
which were ``tokens.json`` and ``tokens.parquet`` before; version 4 tests of methods beside those of
fitted scorers. Files of all versions are read.
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Final

import pandas as pd
import pyarrow as pa
from pydantic import ConfigDict

from graphhalu.core.config import read_yaml
from graphhalu.core.documents import (
    FileFormat,
    csv_text,
    parquet_bytes,
    plain_values,
    read_object,
    validated,
    write_document,
)
from graphhalu.core.errors import CorruptStoreError, DataFileError
from graphhalu.core.files import read_parquet, reading, shown
from graphhalu.core.provenance import file_sha256
from graphhalu.detectors.registry import POSITION_CONTROL
from graphhalu.evaluation.settings import MARGIN
from graphhalu.labels.labels import Level

KIND: Final = FileFormat("graphhalu-result", 4, "Run:  graphhalu compare, or graphhalu tokens")
RESULT_FILE: Final = "result.json"
TABLE_FILE: Final = "table.csv"
SCORES_FILE: Final = "scores.parquet"
CATEGORY_SCORES_FILE: Final = "category_scores.parquet"
TEXTS: Final = read_yaml(Path(__file__).with_name("texts.yaml"))
"""Rules and caveats that results quote."""

_CARD_COLUMNS: Final = ("detector", "inputs", "is_supervised", "is_control", "is_graph")
_TEST_COLUMNS: Final = {"low": "difference_low", "high": "difference_high"}
_COSTS: Final = ("coverage", "auroc_invalid_at_median", "fit_s", "score_ms", "trace_bytes", "n_parameters")
_TOKENS_BEFORE: Final = FileFormat("graphhalu-token-result", 1, KIND.way_out)
_TOKEN_FILES: Final = ("tokens.json", "tokens.parquet")
_RENAMED: Final[Mapping[str, str]] = TEXTS["earlier"]["renamed"]
_ADDED: Final[Mapping[str, str | None]] = TEXTS["earlier"]["added"]

SAMPLE_SCHEMA: Final = pa.schema([(n, pa.type_for_alias(kind)) for n, kind in TEXTS["samples"].items()])
"""One row a detector, seed and tested trace or token.

``score`` is pooled over folds; ``probability`` is calibrated and ``is_predicted_positive`` decided
on the validation side of the fold. All three are null where there is no valid score, the last two
also where that side lacks a class and in files of version 1. ``token`` is the place in the answer,
from 0; null where answers are scored. ``held_out`` says what no two sides of a fold share: ``question``,
or ``category`` in the file of its own.
"""


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
            pooling; ``None`` if no fold holds both classes, and for metrics that are not of ranks.
    """

    value: float
    low: float | None
    high: float | None
    n_resamples_used: int = 0
    seed_sd: float | None = None
    fold_mean: float | None = None


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
        settings: Settings that differ from the detector's defaults.
        reads: Stored arrays that it needs of a trace.
        trace_bytes: Bytes of these arrays in one trace, mean, as stored before compression;
            ``None`` if the detector does not say what it reads.
        n_parameters: Numbers that the last fit chose; ``None`` where they are not counted.
        choices: What each fit of a token detector chose, by seed and fold.
        key: Identity of detector, settings, traces, labels and protocol: a finished row of the
            same key need not be run again.
    """

    detector: str
    inputs: tuple[str, ...] = ()
    is_supervised: bool | None = None
    is_control: bool = False
    failure: str | None = None
    metrics: Mapping[str, MetricValue] = field(default_factory=dict)
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
class Baseline:
    """The detector that all others are tested against.

    Attributes:
        detector: Its name.
        rule: How it was chosen.
    """

    detector: str
    rule: str


@dataclass(frozen=True)
class Comparison:
    """AUROC of a detector minus that of the baseline, on the same traces, mean over seeds.

    Attributes:
        difference: The difference.
        low: Lower end of its bootstrap interval over questions.
        high: Upper end.
        standard_error: DeLong's, with questions as groups.
        p_bootstrap: Two-sided, of no difference, by the bootstrap.
        p_delong: Two-sided, of no difference, by DeLong's test; ``None`` where two detectors
            differ by the same amount on every trace.
        p_holm: ``p_delong`` after Holm's correction over the compared detectors.
        p_equivalent: Of a difference of ``margin`` or more in either direction (TOST).
        p_not_worse: Of being worse by ``margin`` or more: the one side of it.
        margin: The difference that would matter.
    """

    detector: str
    baseline: str
    difference: float
    low: float
    high: float
    standard_error: float | None
    p_bootstrap: float
    p_delong: float | None
    p_holm: float | None
    p_equivalent: float | None
    p_not_worse: float | None
    margin: float


@dataclass(frozen=True)
class MethodTest:
    """AUROC, or average precision of tokens, of a detector minus that of another, over repeated training.

    Attributes:
        detector: The detector.
        baseline: What it is compared with.
        difference: Mean over all fits of the difference within a tested fold.
        low: Lower end of the interval.
        high: Upper end.
        standard_error: Corrected for the training answers that fits share.
        p_value: Two-sided, of no difference.
        p_holm: After Holm's correction over the compared detectors.
        p_equivalent: Of a difference of ``margin`` or more in either direction (TOST).
        p_not_worse: Of being worse by ``margin`` or more.
        margin: The difference that would matter.
        n_fits: Fits of each of both.
        metric: ``"auroc"`` or ``"auprc"``.
        p_not_worse_holm: ``p_not_worse`` after the same correction.
    """

    detector: str
    baseline: str
    difference: float
    low: float
    high: float
    standard_error: float
    p_value: float
    p_holm: float | None
    p_equivalent: float
    p_not_worse: float
    margin: float
    n_fits: int
    metric: str = "auroc"
    p_not_worse_holm: float | None = None

    def verdict(self, level: float = 0.05) -> str:
        """What may be said of both methods: ``better``, ``worse``, ``no worse``, or ``not decided``."""
        if self.p_holm is not None and self.p_holm < level:
            return "better" if self.difference > 0 else "worse"
        is_no_worse = self.p_not_worse_holm is not None and self.p_not_worse_holm < level
        return "no worse" if is_no_worse else "not decided"


@dataclass(frozen=True)
class TokenCounts:
    """Answers, tokens and spans of a comparison of token detectors.

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
class CategoryCount:
    """Categories of the compared questions.

    Attributes:
        rule: Where they come from.
        n: How many there are.
    """

    rule: str
    n: int


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


@dataclass(frozen=True, repr=False)
class Result:
    """A comparison of detectors on one store with one labeller.

    Attributes:
        config: Settings of the comparison.
        provenance: Package versions, machine, code state and time.
        store: Identity of the traces.
        labeller: Name and settings of the rule that labelled them.
        n_traces: Traces that were compared.
        n_left_out: Traces left out because their label is not valid.
        n_groups: Question groups among the compared traces.
        prevalence: Share of hallucinated traces among the compared ones; of tokens at their level.
        coverage: Share of all traces with a valid label.
        rows: One a detector, in the order asked for.
        samples: Table of per-sample scores; see :data:`SAMPLE_SCHEMA`.
        n_siblings: Traces left out because they are not the best beam of their question.
        baseline: The detector that all others are tested against; ``None`` if there is none.
        comparisons: The tests of these fitted scorers, one a detector but the baseline.
        methods: The same differences as statements about methods: over repeated training.
        subgroups: Metrics by category, where questions have one.
        identity: Decides whether a finished detector may be taken over from this result.
        level: Whether answers were scored, or each of their tokens.
        counts: Answers, tokens and spans of a comparison of token detectors.
        notes: Caveats that a reader must know before trusting a number.
        categories: Where categories come from, and how many were compared; ``None`` without them.
        category_samples: Scores with whole categories held out; empty where none were.
        category_methods: The tests of methods on them.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    store: Mapping[str, Any]
    labeller: Mapping[str, Any]
    n_traces: int
    n_left_out: int
    n_groups: int
    prevalence: float
    coverage: float
    rows: tuple[DetectorRow, ...]
    samples: pa.Table
    n_siblings: int = 0
    baseline: Baseline | None = None
    comparisons: tuple[Comparison, ...] = ()
    methods: tuple[MethodTest, ...] = ()
    subgroups: tuple[Subgroup, ...] = ()
    identity: Mapping[str, Any] = field(default_factory=dict)
    level: Level = "answer"
    counts: TokenCounts | None = None
    notes: tuple[str, ...] = ()
    categories: CategoryCount | None = None
    category_samples: pa.Table = field(default_factory=SAMPLE_SCHEMA.empty_table)
    category_methods: tuple[MethodTest, ...] = ()

    def __repr__(self) -> str:
        """How much was compared, and the best detector."""
        known = [(row.detector, row.auroc_invalid_at_median) for row in self.ranked()[:1]]
        found = "".join(f", best {name!r} {auroc:.3f}" for name, auroc in known if auroc is not None)
        return f"Result({len(self.rows)} detectors on {self.n_traces} traces{found})"

    def to_frame(self) -> pd.DataFrame:
        """The rows as a pandas ``DataFrame``: one a detector, in the order asked for.

        The columns are those of ``table.csv``: what the detector is, each metric with ``_low`` and
        ``_high``, its test against the baseline, coverage, costs, and ``failure``. What a failed
        detector lacks is NaN.
        """
        rows = self._cells()
        return pd.DataFrame(rows, columns=column_names(rows))

    def to_csv(self) -> str:
        """The table of :meth:`to_frame` as CSV."""
        rows = self._cells()
        return csv_text(column_names(rows), rows)

    def ranked(self) -> list[DetectorRow]:
        """Rows by falling AUROC, failed ones last; ties keep their order.

        The AUROC is the one over all tested traces, with those without a score at the median:
        a detector does not rise by being silent on hard answers.
        """
        # a failed detector has none and comes last, and an AUROC may be 0
        aurocs = {row.detector: row.auroc_invalid_at_median for row in self.rows}
        return sorted(self.rows, key=lambda row: 1.0 if (each := aurocs[row.detector]) is None else -each)

    def row(self, detector: str) -> DetectorRow | None:
        """The row of a detector, if there is one."""
        return next((row for row in self.rows if row.detector == detector), None)

    def method(self, detector: str) -> MethodTest | None:
        """The test of a detector against the baseline as methods, if there is one."""
        return next((test for test in self.methods if test.detector == detector), None)

    def comparison(self, detector: str) -> Comparison | None:
        """The test of a detector against the baseline, if there is one."""
        return next((c for c in self.comparisons if c.detector == detector), None)

    def plain(self) -> dict[str, Any]:
        """Everything but the scores, as plain JSON values."""
        tables = {"samples", "category_samples"}
        return plain_values({name: each for name, each in vars(self).items() if name not in tables}, KIND)

    def write(self, folder: Path) -> None:
        """Write ``result.json``, ``table.csv`` and ``scores.parquet``, each complete or not at all.

        Scores of every sample are part of the result, so that others can test again. Other files
        of the folder stay.
        """
        beside = {SCORES_FILE: parquet_bytes(self.samples), TABLE_FILE: self.to_csv().encode()}
        if len(self.category_samples):
            beside[CATEGORY_SCORES_FILE] = parquet_bytes(self.category_samples)
        write_document(folder / RESULT_FILE, self.plain(), KIND, beside=beside)

    def _cells(self) -> list[dict[str, Any]]:
        """Of each row what the detector is, its metrics, its test and its costs, by column."""
        found, tests = [], {each.detector: vars(each) for each in self.comparisons}
        for row in self.rows:
            of_test = {_TEST_COLUMNS.get(n, n): each for n, each in tests.get(row.detector, {}).items()}
            cells = {name: getattr(row, name) for name in _CARD_COLUMNS} | {"inputs": " ".join(row.inputs)}
            cells |= metric_columns(row.metrics) | of_test | {"detector": row.detector}
            found.append(cells | {name: getattr(row, name) for name in (*_COSTS, "failure")})
        return found


def metric_columns(
    metrics: Mapping[str, MetricValue], parts: Iterable[str] = MetricValue.__dataclass_fields__
) -> dict[str, Any]:
    """Parts of each metric by the name of their column, which is that of the metric for its value."""
    pairs = product(metrics.items(), parts)
    return {n if part == "value" else f"{n}_{part}": getattr(each, part) for (n, each), part in pairs}


def column_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of columns in reading order; a row that failed has no metrics, and ``failure`` is last."""
    # a row with metrics and no test, as that of the baseline, comes before the last column
    ordered = [max(rows, key=len, default={}), *rows]
    names = dict.fromkeys(name for cells in ordered for name in cells if name != "failure")
    return [*names, *(["failure"] if rows else [])]


def has_result(folder: Path) -> bool:
    """Whether a folder holds a comparison, also one that an earlier version wrote."""
    return any((folder / name).exists() for name in (RESULT_FILE, _TOKEN_FILES[0]))


def read_result(folder: Path) -> Result:
    """Read what :meth:`Result.write` wrote, in this version or an earlier one.

    Raises:
        DataFileError: If there is no result, or it is of a newer version or does not validate.
        CorruptStoreError: If the scores are not those that the result was written with.
    """
    is_tokens = not (folder / RESULT_FILE).exists() and has_result(folder)
    kind, names = (_TOKENS_BEFORE, _TOKEN_FILES) if is_tokens else (KIND, (RESULT_FILE, SCORES_FILE))
    path, scores = (folder / name for name in names)
    values = read_object(path, way_out=kind.way_out)
    name, version = values.pop("format", None), values.pop("format_version", None)
    if name != kind.name:
        raise DataFileError(f"{path} is no {kind.name} file: its format is {shown(name)}")
    if not isinstance(version, int) or version > kind.version:
        raise DataFileError(
            f"{path} has format version {shown(version)}, this graphhalu reads up to {kind.version}\n"
            f"  Update it:  pip install --upgrade graphhalu"
        )
    files = values.pop("files", None)
    files = files if isinstance(files, dict) else {}
    tables = {"samples": _read_scores(path, scores, files)}
    if CATEGORY_SCORES_FILE in files:
        tables["category_samples"] = _read_scores(path, folder / CATEGORY_SCORES_FILE, files)
    with reading(f"{path} does not validate"):
        known = _of_tokens(values) if is_tokens else values
    return validated(Result, known | tables, path)


def _read_scores(path: Path, scores: Path, checksums: Mapping[str, Any]) -> pa.Table:
    """A table of scores that belongs to the result in a file."""
    if not scores.is_file():
        raise DataFileError(f"{path.parent} holds {path.name} but no {scores.name}: copy the whole folder")
    if file_sha256(scores) != checksums.get(scores.name):
        raise CorruptStoreError(f"{scores} is not the file that {path.name} was written with; compare again")
    with reading(f"{scores} is not a table of scores", also=(pa.ArrowException,)):
        return upgraded_samples(read_parquet(scores))


def upgraded_samples(samples: pa.Table) -> pa.Table:
    """Samples of any version in the columns of :data:`SAMPLE_SCHEMA`.

    Raises:
        ArrowException: If a column is missing or of another type.
    """
    samples = samples.rename_columns([_RENAMED.get(name, name) for name in samples.column_names])
    for name, value in _ADDED.items():
        if name not in samples.column_names:
            kind = SAMPLE_SCHEMA.field(name)
            samples = samples.append_column(kind, pa.array([value] * len(samples), kind.type))
    return samples.select(SAMPLE_SCHEMA.names).cast(SAMPLE_SCHEMA)


def _of_tokens(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a comparison of token detectors as the first version wrote it."""
    counts, rows, tests = values["counts"], [], []
    n_traces, n_left_out = counts["n_traces"], sum(counts["n_left_out"].values())
    for row in values["rows"]:
        metrics = {_RENAMED.get(n, n): _known(MetricValue, metric) for n, metric in row["metrics"].items()}
        more = {"is_supervised": None, "auroc_invalid_at_median": metrics.get("auroc", {}).get("value")}
        rows.append({**_known(DetectorRow, row), "metrics": metrics, **more})
        test = row["differences"].get("token_auroc")
        if test and test["low"] is not None:
            # the difference from the position control was tested by the bootstrap alone
            unknown = dict.fromkeys(("standard_error", "p_delong", "p_equivalent", "p_not_worse"))
            about = {"detector": row["detector"], "baseline": POSITION_CONTROL, "p_holm": row["p_holm"]}
            tests.append({**unknown, **_known(Comparison, test), **about, "margin": MARGIN})
    return {
        **values,
        "rows": rows,
        "labeller": {"name": "spans", "meaning": "input", "settings": {}},
        "n_traces": n_traces,
        "n_groups": counts["n_groups"],
        "n_left_out": n_left_out,
        "prevalence": counts["n_hallucinated_tokens"] / counts["n_tokens"],
        "coverage": n_traces / (n_traces + n_left_out),
        "baseline": {"detector": POSITION_CONTROL, "rule": TEXTS["rules"]["position"]},
        "comparisons": tests,
        "level": "token",
    }


def _known(record: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are fields of a record, some of them under another name before."""
    fields = inspect.signature(record).parameters
    names = {name: name if name in fields else _RENAMED.get(name, name) for name in values}
    return {name: values[before] for before, name in names.items() if name in fields}
