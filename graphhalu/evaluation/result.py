"""What a comparison found, and its files: ``result.json``, ``table.csv``, ``scores.parquet``.

Per-sample scores are part of the result, so that others can test again. ``result.json`` is
written last and holds the checksums of the other two.
"""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ConfigDict, TypeAdapter, ValidationError

from graphhalu.errors import CorruptStoreError, DataFileError
from graphhalu.numerics import json_ready
from graphhalu.provenance import file_sha256

FORMAT: Final = "graphhalu-result"
FORMAT_VERSION: Final = 1
RESULT_FILE: Final = "result.json"
TABLE_FILE: Final = "table.csv"
SCORES_FILE: Final = "scores.parquet"

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
    ]
)
"""One row a detector, seed and tested trace; ``score`` is pooled over folds, null if invalid."""

_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r", "\n")


@dataclass(frozen=True)
class MetricValue:
    """One metric of one detector.

    The interval holds the fitted models fixed and says how far the choice of questions moves
    the metric; ``seed_sd`` says how far the folds and the training do.

    Attributes:
        value: Mean over seeds of the metric on pooled out-of-fold scores.
        low: Lower end of the question-level bootstrap interval.
        high: Upper end.
        n_resamples_used: Resamples that held both classes.
        seed_sd: Standard deviation over seeds; ``None`` for one seed.
        fold_mean: Mean over folds and seeds of the metric within a fold, which needs no
            pooling; ``None`` if no fold holds both classes.
    """

    value: float
    low: float
    high: float
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

    def metric(self, name: str) -> float | None:
        """The value of a metric, or ``None`` where the detector failed."""
        return self.metrics[name].value if name in self.metrics else None


@dataclass(frozen=True)
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
        prevalence: Share of hallucinated traces among the compared ones.
        coverage: Share of all traces with a valid label.
        rows: One a detector, in the order asked for.
        samples: Table of per-sample scores; see :data:`SAMPLE_SCHEMA`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        arbitrary_types_allowed=True, extra="forbid"
    )

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
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    def ranked(self) -> list[DetectorRow]:
        """Rows by falling AUROC, failed ones last; ties keep their order.

        The AUROC is the one over all tested traces, with those without a score at the median:
        a detector does not rise by being silent on hard answers.
        """
        return sorted(self.rows, key=_by_auroc)

    def write(self, folder: Path) -> None:
        """Write the three files, each complete or not at all; other files stay."""
        folder.mkdir(parents=True, exist_ok=True)
        parquet = io.BytesIO()
        pq.write_table(self.samples, parquet)
        _replace(folder / SCORES_FILE, parquet.getvalue())
        _replace(folder / TABLE_FILE, csv_table(self.rows).encode())
        plain = {name: value for name, value in vars(self).items() if name != "samples"}
        plain["rows"] = [asdict(row) for row in self.rows]
        plain["files"] = {n: file_sha256(folder / n) for n in (SCORES_FILE, TABLE_FILE)}
        text = json.dumps(json_ready(plain), indent=1, allow_nan=False, ensure_ascii=False)
        _replace(folder / RESULT_FILE, text.encode())


def read_result(folder: Path) -> Result:
    """Read what :meth:`Result.write` wrote.

    Raises:
        DataFileError: If there is no result, or it is of a newer version or does not validate.
        CorruptStoreError: If the scores are not those that the result was written with.
    """
    path = folder / RESULT_FILE
    values = _read_json(path)
    if values.get("format") != FORMAT:
        message = f"{path} is no {FORMAT} file: its format is {values.get('format')!r}"
        raise DataFileError(message)
    version = values.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        message = (
            f"{path} has format version {version}, this graphhalu reads up to "
            f"{FORMAT_VERSION}\n  Update it:  pip install --upgrade graphhalu"
        )
        raise DataFileError(message)
    samples = _read_samples(folder, values.pop("files", {}))
    try:
        return TypeAdapter(Result).validate_python({**values, "samples": samples})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = f"{path} does not validate: {where}: {first['msg']}"
        raise DataFileError(message) from None


def _by_auroc(row: DetectorRow) -> float:
    value = row.auroc_invalid_at_median
    return 1.0 if value is None else -value


def csv_table(rows: Sequence[DetectorRow]) -> str:
    """The rows as CSV; text that a spreadsheet would run as a formula is quoted with ``'``."""
    flat = [_flat(row) for row in rows]
    columns = max(flat, key=len, default={})  # a failed row has no metrics
    stream = io.StringIO(newline="")  # a carriage return in a cell stays what it is
    writer = csv.DictWriter(stream, columns, restval="")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in flat)
    return stream.getvalue()


def _flat(row: DetectorRow) -> dict[str, Any]:
    """Columns in reading order: what the detector is, its metrics, its costs, its failure."""
    card = ("detector", "inputs", "is_supervised", "is_control")
    costs = ("coverage", "auroc_invalid_at_median", "fit_s", "score_ms", "failure")
    flat = {name: getattr(row, name) for name in card} | {"inputs": " ".join(row.inputs)}
    for name, metric in row.metrics.items():
        parts = vars(metric).items()
        flat |= {name if part == "value" else f"{name}_{part}": value for part, value in parts}
    return flat | {name: getattr(row, name) for name in costs}


def _cell(value: object) -> object:
    if isinstance(value, str) and value.startswith(_FORMULA_STARTS):
        return f"'{value}"
    return value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        message = f"no result in {path.parent}: {path.name} is missing\n  Run:  graphhalu compare"
        raise DataFileError(message) from None
    except (OSError, ValueError) as error:
        message = f"{path} is not readable JSON: {error}"
        raise DataFileError(message) from None
    if not isinstance(values, dict):
        message = f"{path} must hold a JSON object, got {type(values).__name__}"
        raise DataFileError(message)
    return values


def _read_samples(folder: Path, checksums: Mapping[str, str]) -> pa.Table:
    path = folder / SCORES_FILE
    if not path.exists():
        message = f"{folder} holds {RESULT_FILE} but no {SCORES_FILE}: copy the whole folder"
        raise DataFileError(message)
    if file_sha256(path) != checksums.get(SCORES_FILE):
        message = f"{path} is not the file that {RESULT_FILE} was written with; compare again"
        raise CorruptStoreError(message)
    return pq.read_table(path)


def _replace(path: Path, content: bytes) -> None:
    """Write aside, flush to the disk, and move into place: never a half-written file."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
