"""Finished detectors of a comparison that is still running: one file each, so a kill loses none.

A part is a Parquet file of per-sample scores with the detector's row in its metadata; it is
written aside and moved into place, so there is no half part. When the result is written the
parts go.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter

from graphhalu.core.config import differing_fields
from graphhalu.core.errors import UsageError
from graphhalu.core.files import MALFORMED, read_parquet, replace_file
from graphhalu.core.numerics import json_ready
from graphhalu.evaluation.records import DetectorRow, upgraded_samples
from graphhalu.evaluation.result import RESULT_FILE, parquet_bytes, read_result
from graphhalu.evaluation.rows import Compared

CHECKPOINT_FOLDER: Final = "parts"
_ROW: Final = b"graphhalu-row"


class Finished(NamedTuple):
    """A detector's row and its per-sample scores."""

    row: DetectorRow
    samples: pa.Table


def save_checkpoint(folder: Path, finished: Finished) -> None:
    """Keep one finished detector in the folder of a running comparison."""
    parts = folder / CHECKPOINT_FOLDER
    parts.mkdir(parents=True, exist_ok=True)
    row = json.dumps(json_ready(finished.row), allow_nan=False)
    table = finished.samples.replace_schema_metadata({_ROW: row.encode()})
    name = quote(finished.row.detector, safe="")
    replace_file(parts / f"{name}.parquet", parquet_bytes(table))


def clear_checkpoints(folder: Path) -> None:
    """Take away the parts of a comparison whose result is written, or that starts anew."""
    shutil.rmtree(folder / CHECKPOINT_FOLDER, ignore_errors=True)


def finished_detectors(folder: Path, compared: Compared) -> dict[str, Finished]:
    """Detectors that need not be run again, by name: of the result first, then of parts.

    Failed ones are not among them: what was missing may be there now.

    Raises:
        UsageError: If the folder holds the result of other traces, labels or settings.
        DataFileError: If the result there cannot be read.
    """
    found: list[Finished | None] = [*_of_result(folder, compared)]
    found += [_read_checkpoint(path) for path in sorted((folder / CHECKPOINT_FOLDER).glob("*.parquet"))]
    current: dict[str, Finished] = {}
    for each in found:
        if each is None or each.row.failure is not None:
            continue
        if each.row.key == compared.key(each.row.detector, each.row.settings):
            current.setdefault(each.row.detector, each)
    return current


def _of_result(folder: Path, compared: Compared) -> Iterator[Finished]:
    if not (folder / RESULT_FILE).exists():
        return
    result = read_result(folder)
    differing = differing_fields(result.identity, json_ready(compared.identity))
    if differing:
        listed = "\n  ".join(differing[:5])
        message = (
            f"{folder} holds a comparison of other traces, labels or settings:\n  {listed}\n"
            f"  Give another --out, or leave --resume away to replace it"
        )
        raise UsageError(message)
    for row in result.rows:
        yield Finished(row, result.samples.filter(pc.field("detector") == row.detector))


def _read_checkpoint(path: Path) -> Finished | None:
    """The part, or ``None`` if it is of another version and the detector must run again."""
    try:
        table = read_parquet(path)
        metadata: Mapping[bytes, bytes] = table.schema.metadata or {}
        row = TypeAdapter(DetectorRow).validate_json(metadata[_ROW])
        return Finished(row, upgraded_samples(table.replace_schema_metadata(None)))
    except MALFORMED:
        return None
