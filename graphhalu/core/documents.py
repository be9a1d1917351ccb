"""Result files: one JSON object with a format and a version, and tables beside it.

A record of results is a dataclass or a :class:`graphhalu.core.config.Config`; its fields are those of
the file. Numbers that are not finite are ``null`` there.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import pyarrow as pa
from pydantic import BaseModel, TypeAdapter, ValidationError

from graphhalu.core.errors import DataFileError
from graphhalu.core.files import read_json_object, replace_file, shown, write_parquet
from graphhalu.core.numerics import json_ready
from graphhalu.core.provenance import file_sha256

T = TypeVar("T")

_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r", "\n")


class FileFormat(NamedTuple):
    """Kind of a result file.

    Attributes:
        name: Of the format.
        version: Number of its version.
        way_out: How such a file is made, as ``Run:  graphhalu compare``.
    """

    name: str
    version: int
    way_out: str


def plain_values(record: Any, kind: FileFormat) -> dict[str, Any]:
    """A record as plain values for JSON, with format and version."""
    values = record.model_dump(mode="json") if isinstance(record, BaseModel) else _fields(record)
    found: dict[str, Any] = json_ready({"format": kind.name, "format_version": kind.version, **values})
    return found


def write_document(
    path: Path,
    record: Any,
    kind: FileFormat,
    *,
    rows: Sequence[Any] | None = None,
    beside: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a record as JSON, last and whole or not at all; its folder is made if it is missing.

    Args:
        path: The JSON file.
        record: A dataclass, a config or plain values.
        kind: Kind of the file.
        rows: Dataclasses that are written as a table, in a Parquet file of the same name.
        beside: Names and content of files beside it, whose checksums it gets as ``files``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if rows is not None:
        table = pa.Table.from_pylist(json_ready([_fields(row) for row in rows]))
        write_parquet(table, path.with_suffix(".parquet"))
    values = plain_values(record, kind)
    if beside:
        for name, content in beside.items():
            replace_file(path.with_name(name), content)
        values["files"] = {name: file_sha256(path.with_name(name)) for name in beside}
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False)
    replace_file(path, f"{text}\n".encode())
    return path


def read_document(path: Path, record: type[T], kind: FileFormat) -> T:
    """Read what :func:`write_document` wrote.

    Args:
        path: The JSON file.
        record: Class of the record; unknown fields are refused if it says so.
        kind: Kind of the file.

    Raises:
        DataFileError: If there is no such file, or it is of another format or version, or does
            not validate.
    """
    values = read_object(path, way_out=kind.way_out)
    name, version = values.pop("format", None), values.pop("format_version", None)
    if name != kind.name or version != kind.version:
        raise DataFileError(
            f"{path}: expected {kind.name} of version {kind.version}, got {shown(name)} of "
            f"version {shown(version)}\n  {kind.way_out}"
        )
    return validated(record, values, path, way_out=kind.way_out)


def validated(record: type[T], values: Mapping[str, Any], path: Path, *, way_out: str | None = None) -> T:
    """The record that the values of a file make.

    Raises:
        DataFileError: Names the first field that does not validate.
    """
    try:
        return TypeAdapter(record).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = f"{path} does not validate: {where[:120]}: {first['msg']}"
        raise DataFileError(message if way_out is None else f"{message}\n  {way_out}") from None


def read_object(path: Path, *, way_out: str) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        DataFileError: If there is no such file, or it holds something else.
    """
    missing = DataFileError(f"no result in {path.parent}: {path.name} is missing\n  {way_out}")
    return read_json_object(path, missing=missing)


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as the content of a Parquet file."""
    stream = io.BytesIO()
    write_parquet(table, stream)
    return stream.getvalue()


def csv_text(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV under these columns; what a row lacks is empty.

    Text that a spreadsheet would run as a formula is quoted with ``'``.
    """
    stream = io.StringIO(newline="")  # a carriage return in a cell stays what it is
    writer = csv.DictWriter(stream, names, restval="")
    writer.writeheader()
    writer.writerows({name: _spreadsheet_cell(value) for name, value in row.items()} for row in rows)
    return stream.getvalue()


def _spreadsheet_cell(value: object) -> object:
    is_formula = isinstance(value, str) and value.startswith(_FORMULA_STARTS)
    return f"'{value}" if is_formula else value


def _fields(record: Any) -> Mapping[str, Any]:
    return asdict(record) if is_dataclass(record) and not isinstance(record, type) else record
