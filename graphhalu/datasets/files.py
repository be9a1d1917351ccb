"""Data files: CSV, TSV, JSON, JSON Lines and Parquet, each also gzipped.

The layout is told from the content, never from the name. Every fault is one error that says
which file and which row, what was expected and what came. Sizes are bounded, so that a damaged or
hostile file ends in such an error too, and not in a machine without memory.
"""

import csv
import io
import json
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from graphhalu.core.errors import DataFileError, UsageError
from graphhalu.core.files import MALFORMED, MAX_TABLE_ROWS, reason_of, shortened, unpack_gzip
from graphhalu.datasets.rows import Row

Layout = Literal["parquet", "json", "table"]

_GZIP_MAGIC: Final = b"\x1f\x8b"
_PARQUET_MAGIC: Final = b"PAR1"
_UTF16_MARKS: Final = (b"\xff\xfe", b"\xfe\xff")
_EXPECTED: Final = "one data file (csv, tsv, json, jsonl, parquet, each also gzipped)"
_MEND: Final = "\n  Mend that row or take it out, and run the same command again"
_TOO_DEEP: Final = "the JSON is nested too deeply"
_MAX_BYTES: Final = 2 * 2**30
"""Most bytes of a file, packed or not: the whole of it is held in memory."""
_MAX_LINE_BYTES: Final = 512 * 2**20
"""Most bytes of one line: published files that are one line of JSON are smaller."""
_MAX_PARQUET_ROWS: Final = MAX_TABLE_ROWS
_LIST_KEYS: Final = ("Data", "data", "rows")
"""Keys under which a JSON object holds its rows; ``Data`` is TriviaQA's."""


@dataclass(frozen=True)
class DataFile:
    """A file with its unpacked content.

    Attributes:
        path: Where it lies.
        content: Its bytes, after gzip.
    """

    path: Path
    content: bytes

    @property
    def layout(self) -> Layout:
        """What the first bytes look like; a table is what is neither Parquet nor JSON."""
        if self.content.startswith(_PARQUET_MAGIC):
            return "parquet"
        start = self.content.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        return "json" if start in {b"{", b"["} else "table"

    def text(self) -> str:
        """The content as UTF-8, with or without a byte order mark.

        Raises:
            DataFileError: If the bytes are not UTF-8; names the line.
        """
        try:
            text = self.content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            is_utf16 = self.content.startswith(_UTF16_MARKS)
            came = "UTF-16 text" if is_utf16 else f"byte 0x{self.content[error.start]:02x}"
            raise self.fault(
                1 + self.content.count(b"\n", 0, error.start),
                f"expected UTF-8 text, got {came}; save it as UTF-8",
            ) from None
        if "\0" in text:
            line = text.count("\n", 0, text.index("\0")) + 1
            raise self.fault(line, "expected text, got a NUL byte; is it a data file?")
        return text

    def where(self, number: int) -> str:
        """Name of a row in error messages; the first line of a text file is row 1."""
        return f"{self.path}, row {number}"

    def fault(self, number: int, what: str) -> DataFileError:
        """The error for a row; says what was expected and what came."""
        return DataFileError(f"{self.where(number)}: {what}")


def open_file(path: Path, option: str = "--data-path") -> DataFile:
    """Read a file whole and unpack it if it is gzipped.

    Args:
        path: The file.
        option: How a user names another one.

    Raises:
        UsageError: If the path is missing, or is a folder.
        DataFileError: If the file is empty, cannot be read, is cut off inside gzip, or is larger
            than a file of questions can be.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder; expected {_EXPECTED}\n  Name a file in it:  {option} FILE")
    if not path.is_file():
        raise UsageError(f"no data file at {path}\n  Name {_EXPECTED}:  {option} FILE")
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise _too_large(path, _MAX_BYTES, "bytes")
        content = path.read_bytes()
    except OSError as error:
        raise DataFileError(f"{path} cannot be read: {error.strerror}") from None
    if content.startswith(_GZIP_MAGIC):
        content = _unpacked(content, path)
    if not content.removeprefix(BOM_UTF8).strip():
        raise DataFileError(
            f"{path} is empty; expected questions or text\n"
            f"  Copy or download it again, or name another file with {option}"
        )
    file = DataFile(path, content)
    if file.layout != "parquet":
        _check_lines(file)
    return file


def read_rows(file: DataFile) -> Iterator[Row]:
    """Rows of a file with named columns, whatever its layout.

    A table needs a header line; its delimiter is the tab if the header has one, else the comma,
    or the semicolon if the header has no comma either.

    Raises:
        DataFileError: If a row does not fit the layout; names the row.
    """
    if file.layout == "parquet":
        return _parquet_rows(file)
    return _json_rows(file) if file.layout == "json" else _table_rows(file)


def table_cells(file: DataFile, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Row number and cells of a table, quoted as CSV; empty lines are left out.

    Raises:
        DataFileError: If a quote is never closed, or text follows a closing quote.
    """
    reader = csv.reader(io.StringIO(file.text(), newline=""), delimiter=delimiter, strict=True)
    number = 1
    try:
        for cells in reader:
            if cells:
                yield number, cells
            number = reader.line_num + 1
    except csv.Error as error:
        raise file.fault(number, f"expected cells quoted as CSV, got a bad line: {error}{_MEND}") from None


def _unpacked(content: bytes, path: Path) -> bytes:
    try:
        return unpack_gzip(content, _MAX_BYTES)
    except ValueError:
        raise _too_large(path, _MAX_BYTES, "bytes after gzip") from None
    except MALFORMED as error:
        raise DataFileError(
            f"{path}: the gzip data is cut off or damaged ({reason_of(error)}); copy or download it again"
        ) from None


def _too_large(path: Path, limit: int, unit: str) -> DataFileError:
    return DataFileError(
        f"{path}: expected at most {limit:,} {unit}, got more; is it a file of questions?\n"
        f"  Divide it, or take the columns that are needed"
    )


def _check_lines(file: DataFile) -> None:
    start = 0
    while len(file.content) - start > _MAX_LINE_BYTES:
        end = file.content.rfind(b"\n", start, start + _MAX_LINE_BYTES + 1)
        if end < 0:
            what = f"expected at most {_MAX_LINE_BYTES:,} bytes a line, got more; is it a file of questions?"
            raise file.fault(file.content.count(b"\n", 0, start) + 1, what)
        start = end + 1


def _table_rows(file: DataFile) -> Iterator[Row]:
    header = file.text().lstrip().partition("\n")[0]
    cells = table_cells(file, next((mark for mark in ("\t", ",", ";") if mark in header), ","))
    names = [name.strip() for name in next(cells)[1]]
    listed = shortened(", ".join(names))
    if len(set(names)) < len(names):
        raise file.fault(1, f"a column name stands twice: {listed}")
    for number, values in cells:
        if len(values) != len(names):
            raise file.fault(number, f"expected {len(names)} cells ({listed}), got {len(values)}{_MEND}")
        yield Row(file.where(number), dict(zip(names, values, strict=True)))


def _json_rows(file: DataFile) -> Iterator[Row]:
    text = file.text()
    if _is_json_lines(text):
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield _json_row(_parsed(line, file, first_line=number), file, number)
        return
    value = _parsed(text, file, first_line=1)
    if isinstance(value, Mapping):
        lists = (value[key] for key in _LIST_KEYS if isinstance(value.get(key), list))
        value = next(lists, value)
    for number, item in enumerate(value if isinstance(value, list) else [value], start=1):
        yield _json_row(item, file, number)


def _is_json_lines(text: str) -> bool:
    first, _, rest = text.strip().partition("\n")
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return False
    return bool(rest.strip())


def _parsed(text: str, file: DataFile, *, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line, reason = first_line + error.lineno - 1, f"{error.msg} at column {error.colno}"
        raise file.fault(line, f"expected JSON, got a bad line: {reason}{_MEND}") from None
    except RecursionError:
        raise file.fault(first_line, _TOO_DEEP) from None
    except ValueError as error:  # a number of more digits than Python reads
        raise file.fault(first_line, f"expected JSON, got a bad value: {error}{_MEND}") from None


def _json_row(value: Any, file: DataFile, number: int) -> Row:
    if not isinstance(value, Mapping):
        raise file.fault(number, f"expected an object with named fields, got a {type(value).__name__}")
    try:
        # escaped characters can stand for half a pair, which no encoding can write
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise file.fault(number, _TOO_DEEP) from None
    except UnicodeEncodeError:
        raise file.fault(number, f"expected Unicode text, got half a surrogate pair{_MEND}") from None
    return Row(file.where(number), value)


def _parquet_rows(file: DataFile) -> Iterator[Row]:
    number = 0
    try:
        table = pq.ParquetFile(pa.BufferReader(file.content))
        groups = range(table.metadata.num_row_groups)
        if sum(table.metadata.row_group(n).total_byte_size for n in groups) > _MAX_BYTES:
            raise _too_large(file.path, _MAX_BYTES, "bytes after unpacking")
        if table.metadata.num_rows > _MAX_PARQUET_ROWS:
            raise _too_large(file.path, _MAX_PARQUET_ROWS, "rows")
        for batch in table.iter_batches(1024):
            for values in batch.to_pylist():
                number += 1
                yield Row(file.where(number), values)
    except DataFileError:
        raise
    # Arrow finds out late that a text is not UTF-8, or a date no date
    except (pa.ArrowException, *MALFORMED) as error:
        raise DataFileError(f"{file.path}: expected Parquet, got damaged data: {reason_of(error)}") from None
