"""Reading of results, also those of earlier versions, and checkpoints of a running comparison.

``result.json`` holds the checksums of the files beside it. Version 2 added probabilities, tests
against a baseline, subgroups and what detectors read; version 3 comparisons of token detectors,
which were ``tokens.json`` and ``tokens.parquet`` before. Files of all versions are read.

A checkpoint is a finished detector of a comparison that is still running: a Parquet file of its
per-sample scores with its row in the metadata. When the result is written the checkpoints go.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter

from graphhalu.core.config import differing_fields
from graphhalu.core.errors import CorruptStoreError, DataFileError, UsageError
from graphhalu.core.files import MALFORMED, read_parquet, reading, replace_file, shown
from graphhalu.core.numerics import json_ready
from graphhalu.core.provenance import file_sha256
from graphhalu.detectors.registry import POSITION_CONTROL
from graphhalu.evaluation.files import parquet_bytes, read_object, validated
from graphhalu.evaluation.result import KIND, RESULT_FILE, SAMPLE_SCHEMA, SCORES_FILE, DetectorRow, Result
from graphhalu.evaluation.settings import MARGIN
from graphhalu.evaluation.significance import POSITION_RULE

CHECKPOINT_FOLDER: Final = "parts"
_ROW: Final = b"graphhalu-row"
_EARLIER_COLUMNS: Final = {"is_called": "is_predicted_positive"}
_TOKENS_BEFORE: Final = "graphhalu-token-result"
_TOKEN_FILES: Final = ("tokens.json", "tokens.parquet")
_TOKEN_NAMES: Final = {"token_auroc": "auroc", "token_auprc": "auprc"}


class FinishedDetector(NamedTuple):
    """A detector's row and its per-sample scores."""

    row: DetectorRow
    samples: pa.Table


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
    path = folder / (_TOKEN_FILES[0] if is_tokens else RESULT_FILE)
    values = read_object(path, way_out=KIND.way_out)
    expected = _TOKENS_BEFORE if is_tokens else KIND.name
    name, version = values.pop("format", None), values.pop("format_version", None)
    if name != expected:
        message = f"{path} is no {expected} file: its format is {shown(name)}"
        raise DataFileError(message)
    newest = 1 if is_tokens else KIND.version
    if not isinstance(version, int) or version > newest:
        message = (
            f"{path} has format version {shown(version)}, this graphhalu reads up to {newest}\n"
            f"  Update it:  pip install --upgrade graphhalu"
        )
        raise DataFileError(message)
    files = values.pop("files", None)
    scores = folder / (_TOKEN_FILES[1] if is_tokens else SCORES_FILE)
    samples = _read_samples(scores, path.name, files if isinstance(files, dict) else {})
    with reading(f"{path} does not validate"):
        known = _of_tokens(values) if is_tokens else values
    return validated(Result, known | {"samples": samples}, path)


def _read_samples(path: Path, result_name: str, checksums: Mapping[str, str]) -> pa.Table:
    if not path.is_file():
        message = f"{path.parent} holds {result_name} but no {path.name}: copy the whole folder"
        raise DataFileError(message)
    if file_sha256(path) != checksums.get(path.name):
        message = f"{path} is not the file that {result_name} was written with; compare again"
        raise CorruptStoreError(message)
    with reading(f"{path} is no table of scores", also=(pa.ArrowException,)):
        return _upgraded(read_parquet(path))


def _upgraded(samples: pa.Table) -> pa.Table:
    """Samples of any version in the columns of :data:`SAMPLE_SCHEMA`; columns they lack are null.

    Raises:
        ArrowException: If a column is missing or of another type.
    """
    samples = samples.rename_columns([_EARLIER_COLUMNS.get(n, n) for n in samples.column_names])
    for name in ("probability", "is_predicted_positive", "token", "group"):
        if name not in samples.column_names:
            kind = SAMPLE_SCHEMA.field(name)
            samples = samples.append_column(kind, pa.nulls(len(samples), kind.type))
    return samples.select(SAMPLE_SCHEMA.names).cast(SAMPLE_SCHEMA)


def _of_tokens(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a comparison of token detectors as the first version wrote it."""
    counts, rows = values["counts"], values["rows"]
    n_left_out = sum(counts["n_left_out"].values())
    differences = [(row, row["differences"].get("token_auroc")) for row in rows]
    return {
        **values,
        "rows": [_of_token_row(row) for row in rows],
        "labeller": {"name": "spans", "meaning": "input", "settings": {}},
        "n_traces": counts["n_traces"],
        "n_left_out": n_left_out,
        "n_groups": counts["n_groups"],
        "prevalence": counts["n_hallucinated_tokens"] / counts["n_tokens"],
        "coverage": counts["n_traces"] / (counts["n_traces"] + n_left_out),
        "baseline": {"detector": POSITION_CONTROL, "rule": POSITION_RULE},
        "comparisons": [
            _of_token_test(row, found) for row, found in differences if found and found["low"] is not None
        ],
        "level": "token",
    }


def _of_token_row(values: Mapping[str, Any]) -> dict[str, Any]:
    added = {"n_resamples_used": 0, "fold_mean": None}
    metrics = {
        _TOKEN_NAMES.get(name, name): {k: metric[k] for k in ("value", "low", "high", "seed_sd")} | added
        for name, metric in values["metrics"].items()
    }
    left_out = ("summary", "differences", "p_holm")
    row = {name: value for name, value in values.items() if name not in left_out}
    auroc = metrics["auroc"]["value"] if "auroc" in metrics else None
    return row | {"metrics": metrics, "is_supervised": None, "auroc_invalid_at_median": auroc}


def _of_token_test(row: Mapping[str, Any], difference: Mapping[str, Any]) -> dict[str, Any]:
    """The difference from the position control, which was tested by the bootstrap alone."""
    unknown = ("standard_error", "p_delong", "p_equivalent", "p_not_worse")
    return {
        **dict.fromkeys(unknown),
        "detector": row["detector"],
        "baseline": POSITION_CONTROL,
        "difference": difference["value"],
        "low": difference["low"],
        "high": difference["high"],
        "p_bootstrap": difference["p_value"],
        "p_holm": row["p_holm"],
        "margin": MARGIN,
    }


def save_checkpoint(folder: Path, finished: FinishedDetector) -> None:
    """Keep one finished detector in the folder of a running comparison, whole or not at all."""
    checkpoints = folder / CHECKPOINT_FOLDER
    checkpoints.mkdir(parents=True, exist_ok=True)
    row = json.dumps(json_ready(finished.row), allow_nan=False)
    table = finished.samples.replace_schema_metadata({_ROW: row.encode()})
    name = quote(finished.row.detector, safe="")
    replace_file(checkpoints / f"{name}.parquet", parquet_bytes(table))


def clear_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a comparison whose result is written, or that starts anew."""
    shutil.rmtree(folder / CHECKPOINT_FOLDER, ignore_errors=True)


def finished_detectors(folder: Path, identity: Mapping[str, Any]) -> list[FinishedDetector]:
    """Detectors that did not fail: those of a written result first, then those of checkpoints.

    Raises:
        UsageError: If the folder holds the result of other traces, labels or settings.
        DataFileError: If the result there cannot be read.
    """
    found: list[FinishedDetector | None] = []
    if (folder / RESULT_FILE).exists():
        result = read_result(folder)
        differing = differing_fields(result.identity, json_ready(identity))
        if differing:
            listed = "\n  ".join(differing[:5])
            message = (
                f"{folder} holds a comparison of other traces, labels or settings:\n  {listed}\n"
                f"  Give another --out, or leave --resume away to replace it"
            )
            raise UsageError(message)
        for row in result.rows:
            mine = result.samples.filter(pc.field("detector") == row.detector)
            found.append(FinishedDetector(row, mine))
    found += [_read_checkpoint(path) for path in sorted((folder / CHECKPOINT_FOLDER).glob("*.parquet"))]
    return [each for each in found if each is not None and each.row.failure is None]


def _read_checkpoint(path: Path) -> FinishedDetector | None:
    """The checkpoint, or ``None`` if it is of another version and the detector must run again."""
    try:
        table = read_parquet(path)
        metadata: Mapping[bytes, bytes] = table.schema.metadata or {}
        row = TypeAdapter(DetectorRow).validate_json(metadata[_ROW])
        return FinishedDetector(row, _upgraded(table.replace_schema_metadata(None)))
    except MALFORMED:
        return None
