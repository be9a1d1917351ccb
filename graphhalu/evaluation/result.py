"""What a comparison found, and its files: ``result.json``, ``table.csv``, ``scores.parquet``.

Per-sample scores are part of the result, so that others can test again. ``result.json`` is
written last and holds the checksums of the other two. Version 2 added probabilities, tests
against a baseline, subgroups and what detectors read; files of version 1 are read too.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

import pyarrow as pa
from pydantic import ConfigDict, TypeAdapter, ValidationError

from graphhalu.atomic import replace_file
from graphhalu.errors import CorruptStoreError, DataFileError, MissingExtraError
from graphhalu.evaluation.files import read_object
from graphhalu.evaluation.records import SAMPLE_SCHEMA, DetectorRow, MetricValue, Subgroup
from graphhalu.evaluation.significance import Baseline, Comparison
from graphhalu.evaluation.table import csv_table, table_columns
from graphhalu.numerics import json_ready
from graphhalu.parquet import read_parquet, write_parquet
from graphhalu.provenance import file_sha256
from graphhalu.safe_read import reading, shown

__all__ = [
    "FORMAT", "FORMAT_VERSION", "RESULT_FILE", "SAMPLE_SCHEMA", "SCORES_FILE", "TABLE_FILE",
    "Baseline", "Comparison", "DetectorRow", "MetricValue", "Result", "Subgroup", "csv_table",
    "read_result",
]  # fmt: skip

FORMAT: Final = "graphhalu-result"
FORMAT_VERSION: Final = 2
RESULT_FILE: Final = "result.json"
TABLE_FILE: Final = "table.csv"
SCORES_FILE: Final = "scores.parquet"


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
        prevalence: Share of hallucinated traces among the compared ones.
        coverage: Share of all traces with a valid label.
        rows: One a detector, in the order asked for.
        samples: Table of per-sample scores; see :data:`SAMPLE_SCHEMA`.
        n_siblings: Traces left out because they are not the best beam of their question.
        baseline: What all others are tested against; ``None`` if nothing could be.
        comparisons: The tests, one a detector but the baseline.
        subgroups: Metrics by category, where questions have one.
        identity: What decides whether a finished detector may be taken over from this result.
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
    n_siblings: int = 0
    baseline: Baseline | None = None
    comparisons: tuple[Comparison, ...] = ()
    subgroups: tuple[Subgroup, ...] = ()
    identity: Mapping[str, Any] = field(default_factory=dict)
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    def __repr__(self) -> str:
        """How much was compared, and the best detector."""
        best = self.ranked()[0] if self.rows else None
        auroc = None if best is None else best.auroc_invalid_at_median
        found = "" if best is None or auroc is None else f", best {best.detector!r} {auroc:.3f}"
        return f"Result({len(self.rows)} detectors on {self.n_traces} traces{found})"

    def to_frame(self) -> Any:
        """The rows as a pandas ``DataFrame``: one a detector, in the order asked for.

        The columns are those of ``table.csv``: what the detector is, each metric with ``_low`` and
        ``_high``, its test against the baseline, coverage, costs, and ``failure``. What a failed
        detector lacks is NaN.

        Raises:
            MissingExtraError: If pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            message = (
                "a table of a result needs the package pandas\n"
                "  Install it:  pip install 'graphhalu[report]'"
            )
            raise MissingExtraError(message) from None
        columns, rows = table_columns(self.rows, self.comparisons)
        return pd.DataFrame(rows, columns=columns)

    def ranked(self) -> list[DetectorRow]:
        """Rows by falling AUROC, failed ones last; ties keep their order.

        The AUROC is the one over all tested traces, with those without a score at the median:
        a detector does not rise by being silent on hard answers.
        """
        return sorted(self.rows, key=_by_auroc)

    def comparison(self, detector: str) -> Comparison | None:
        """The test of a detector against the baseline, if there is one."""
        return next((c for c in self.comparisons if c.detector == detector), None)

    def write(self, folder: Path) -> None:
        """Write the three files, each complete or not at all; other files stay."""
        folder.mkdir(parents=True, exist_ok=True)
        parquet = io.BytesIO()
        write_parquet(self.samples, parquet)
        replace_file(folder / SCORES_FILE, parquet.getvalue())
        replace_file(folder / TABLE_FILE, csv_table(self.rows, self.comparisons).encode())
        plain = {name: value for name, value in vars(self).items() if name != "samples"}
        for name in ("rows", "comparisons", "subgroups"):
            plain[name] = [asdict(item) for item in plain[name]]
        plain["baseline"] = asdict(self.baseline) if self.baseline else None
        plain["files"] = {n: file_sha256(folder / n) for n in (SCORES_FILE, TABLE_FILE)}
        text = json.dumps(json_ready(plain), indent=1, allow_nan=False, ensure_ascii=False)
        replace_file(folder / RESULT_FILE, text.encode())


def read_result(folder: Path) -> Result:
    """Read what :meth:`Result.write` wrote.

    Raises:
        DataFileError: If there is no result, or it is of a newer version or does not validate.
        CorruptStoreError: If the scores are not those that the result was written with.
    """
    path = folder / RESULT_FILE
    values = read_object(path, way_out="Run:  graphhalu compare")
    if values.get("format") != FORMAT:
        message = f"{path} is no {FORMAT} file: its format is {shown(values.get('format'))}"
        raise DataFileError(message)
    version = values.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        message = (
            f"{path} has format version {shown(version)}, this graphhalu reads up to "
            f"{FORMAT_VERSION}\n  Update it:  pip install --upgrade graphhalu"
        )
        raise DataFileError(message)
    files = values.pop("files", None)
    samples = _read_samples(folder, files if isinstance(files, dict) else {})
    try:
        known = {**values, "samples": samples, "format_version": FORMAT_VERSION}
        return TypeAdapter(Result).validate_python(known)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = f"{path} does not validate: {where[:120]}: {first['msg']}"
        raise DataFileError(message) from None


def _by_auroc(row: DetectorRow) -> float:
    value = row.auroc_invalid_at_median
    return 1.0 if value is None else -value


def _read_samples(folder: Path, checksums: Mapping[str, str]) -> pa.Table:
    path = folder / SCORES_FILE
    if not path.is_file():
        message = f"{folder} holds {RESULT_FILE} but no {SCORES_FILE}: copy the whole folder"
        raise DataFileError(message)
    if file_sha256(path) != checksums.get(SCORES_FILE):
        message = f"{path} is not the file that {RESULT_FILE} was written with; compare again"
        raise CorruptStoreError(message)
    with reading(f"{path} is no table of scores", also=(pa.ArrowException,)):
        samples = read_parquet(path)
        for name in SAMPLE_SCHEMA.names[samples.num_columns :]:  # of version 1
            kind = SAMPLE_SCHEMA.field(name)
            samples = samples.append_column(kind, pa.nulls(len(samples), kind.type))
        return samples.select(SAMPLE_SCHEMA.names).cast(SAMPLE_SCHEMA)
