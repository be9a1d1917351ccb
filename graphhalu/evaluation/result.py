"""What a comparison found, and its files: ``result.json``, ``table.csv``, ``scores.parquet``.

Per-sample scores are part of the result, so that others can test again. ``result.json`` is
written last and holds the checksums of the other two. Version 2 added probabilities, tests
against a baseline, subgroups and what detectors read; version 3 comparisons of token detectors,
which were ``tokens.json`` and ``tokens.parquet`` before. Files of all versions are read.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

import pyarrow as pa
from pydantic import ConfigDict

from graphhalu.core.errors import CorruptStoreError, DataFileError, MissingExtraError
from graphhalu.core.files import read_parquet, reading, replace_file, shown, write_parquet
from graphhalu.core.numerics import json_ready
from graphhalu.core.provenance import file_sha256
from graphhalu.detectors.registry import POSITION_CONTROL
from graphhalu.evaluation.files import read_object, validated
from graphhalu.evaluation.records import (
    SAMPLE_SCHEMA,
    DetectorRow,
    MetricValue,
    Subgroup,
    TokenCounts,
    upgraded_samples,
)
from graphhalu.evaluation.settings import MARGIN
from graphhalu.evaluation.significance import POSITION_RULE, Baseline, Comparison
from graphhalu.evaluation.table import csv_table, table_columns
from graphhalu.labels.labels import Level

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "RESULT_FILE",
    "SAMPLE_SCHEMA",
    "SCORES_FILE",
    "TABLE_FILE",
    "Baseline",
    "Comparison",
    "DetectorRow",
    "MetricValue",
    "Result",
    "Subgroup",
    "TokenCounts",
    "csv_table",
    "read_result",
]

FORMAT: Final = "graphhalu-result"
FORMAT_VERSION: Final = 3
RESULT_FILE: Final = "result.json"
TABLE_FILE: Final = "table.csv"
SCORES_FILE: Final = "scores.parquet"

_TOKENS_BEFORE: Final = "graphhalu-token-result"
_TOKEN_FILES: Final = ("tokens.json", "tokens.parquet")
_TOKEN_NAMES: Final = {"token_auroc": "auroc", "token_auprc": "auprc"}


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
        baseline: What all others are tested against; ``None`` if nothing could be.
        comparisons: The tests, one a detector but the baseline.
        subgroups: Metrics by category, where questions have one.
        identity: What decides whether a finished detector may be taken over from this result.
        level: What was scored: answers, or each of their tokens.
        counts: Answers, tokens and spans of a comparison of token detectors.
        notes: What a reader must know before trusting a number.
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
    subgroups: tuple[Subgroup, ...] = ()
    identity: Mapping[str, Any] = field(default_factory=dict)
    level: Level = "answer"
    counts: TokenCounts | None = None
    notes: tuple[str, ...] = ()
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
                "a table of a result needs the package pandas\n  Install it:  pip install 'graphhalu[report]'"
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

    def row(self, detector: str) -> DetectorRow | None:
        """The row of a detector, if there is one."""
        return next((row for row in self.rows if row.detector == detector), None)

    def comparison(self, detector: str) -> Comparison | None:
        """The test of a detector against the baseline, if there is one."""
        return next((c for c in self.comparisons if c.detector == detector), None)

    def plain(self) -> dict[str, Any]:
        """Everything but the scores, as plain JSON values."""
        ready: dict[str, Any] = json_ready(without_samples(self))
        return ready

    def write(self, folder: Path) -> None:
        """Write the three files, each complete or not at all; other files stay."""
        contents = {
            SCORES_FILE: parquet_bytes(self.samples),
            TABLE_FILE: csv_table(self.rows, self.comparisons).encode(),
        }
        write_files(folder / RESULT_FILE, without_samples(self), contents)


def without_samples(result: object) -> dict[str, Any]:
    """The fields of a result but the scores, which have a file of their own."""
    return {name: value for name, value in vars(result).items() if name != "samples"}


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as the content of a Parquet file."""
    stream = io.BytesIO()
    write_parquet(table, stream)
    return stream.getvalue()


def write_files(path: Path, values: Mapping[str, Any], contents: Mapping[str, bytes]) -> None:
    """Write a result as JSON, last, with the checksums of the files beside it; each file whole.

    Args:
        path: The JSON file; its folder is made if it is missing.
        values: Plain values and records.
        contents: Names of the files beside it, with what they hold.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        replace_file(path.with_name(name), content)
    sums = {name: file_sha256(path.with_name(name)) for name in contents}
    plain = json_ready({**values, "files": sums} if sums else values)
    text = json.dumps(plain, indent=1, allow_nan=False, ensure_ascii=False)
    replace_file(path, text.encode())


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
    names = _TOKEN_FILES if is_tokens else (RESULT_FILE, SCORES_FILE)
    path = folder / names[0]
    values = read_object(path, way_out="Run:  graphhalu compare, or graphhalu tokens")
    expected = _TOKENS_BEFORE if is_tokens else FORMAT
    if values.get("format") != expected:
        message = f"{path} is no {expected} file: its format is {shown(values.get('format'))}"
        raise DataFileError(message)
    version, newest = values.get("format_version"), 1 if is_tokens else FORMAT_VERSION
    if not isinstance(version, int) or version > newest:
        message = (
            f"{path} has format version {shown(version)}, this graphhalu reads up to {newest}\n"
            f"  Update it:  pip install --upgrade graphhalu"
        )
        raise DataFileError(message)
    files = values.pop("files", None)
    samples = _read_samples(folder, names, files if isinstance(files, dict) else {})
    with reading(f"{path} does not validate"):
        known = _of_tokens(values) if is_tokens else values
    known |= {"samples": samples, "format": FORMAT, "format_version": FORMAT_VERSION}
    return validated(Result, known, path)


def _of_tokens(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a comparison of token detectors as the first version wrote it."""
    counts, tests = values["counts"], [_of_token_test(row) for row in values["rows"]]
    n_left_out = sum(counts["n_left_out"].values())
    return {
        **values,
        "rows": [_of_token_row(row) for row in values["rows"]],
        "labeller": {"name": "spans", "meaning": "input", "settings": {}},
        "n_traces": counts["n_traces"],
        "n_left_out": n_left_out,
        "n_groups": counts["n_groups"],
        "prevalence": counts["n_hallucinated_tokens"] / counts["n_tokens"],
        "coverage": counts["n_traces"] / (counts["n_traces"] + n_left_out),
        "baseline": {"detector": POSITION_CONTROL, "rule": POSITION_RULE},
        "comparisons": [test for test in tests if test is not None],
        "level": "token",
    }


def _of_token_row(values: Mapping[str, Any]) -> dict[str, Any]:
    left_out = ("summary", "differences", "p_holm")
    row = {name: value for name, value in values.items() if name not in left_out}
    metrics = {
        _TOKEN_NAMES.get(name, name): {
            **{part: metric[part] for part in ("value", "low", "high", "seed_sd")},
            "n_resamples_used": 0,
            "fold_mean": None,
        }
        for name, metric in values["metrics"].items()
    }
    auroc = metrics["auroc"]["value"] if "auroc" in metrics else None
    known = {"metrics": metrics, "is_supervised": None, "auroc_invalid_at_median": auroc}
    return {**row, **known}


def _of_token_test(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The difference from the position control, which was tested by the bootstrap alone."""
    found = values["differences"].get("token_auroc")
    if found is None or found["low"] is None:
        return None
    unknown = ("standard_error", "p_delong", "p_equivalent", "p_not_worse")
    return {
        **dict.fromkeys(unknown),
        "detector": values["detector"],
        "baseline": POSITION_CONTROL,
        "difference": found["value"],
        "low": found["low"],
        "high": found["high"],
        "p_bootstrap": found["p_value"],
        "p_holm": values["p_holm"],
        "margin": MARGIN,
    }


def _by_auroc(row: DetectorRow) -> float:
    value = row.auroc_invalid_at_median
    return 1.0 if value is None else -value


def _read_samples(folder: Path, names: Sequence[str], checksums: Mapping[str, str]) -> pa.Table:
    result_name, scores_name = names
    path = folder / scores_name
    if not path.is_file():
        message = f"{folder} holds {result_name} but no {scores_name}: copy the whole folder"
        raise DataFileError(message)
    if file_sha256(path) != checksums.get(scores_name):
        message = f"{path} is not the file that {result_name} was written with; compare again"
        raise CorruptStoreError(message)
    with reading(f"{path} is no table of scores", also=(pa.ArrowException,)):
        samples = read_parquet(path)
        if scores_name in _TOKEN_FILES:
            samples = samples.append_column("group", pa.nulls(len(samples), pa.string()))
        return upgraded_samples(samples)
