"""Reading and writing of files: atomic writes, bounded reads, JSON and Parquet.

A damaged or hostile file makes Python and its libraries raise many things, from ``KeyError`` to
``RecursionError``, and can unpack to more than a machine holds. A reader looks at sizes before it
allocates, and works inside :func:`reading`, so that only errors of graphhalu leave it.
"""

import gzip
import io
import json
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import yaml

from graphhalu.core.errors import DataFileError, GraphhaluError

if TYPE_CHECKING:
    import pyarrow as pa

MAX_JSON_BYTES: Final = 2**28
"""Most bytes of a JSON file that graphhalu wrote; the largest hold one number a head and trial."""

MALFORMED: Final = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    MemoryError,
    NotImplementedError,
    OSError,
    EOFError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)
"""Exceptions that malformed content makes Python raise while it is parsed."""

MAX_TABLE_BYTES: Final = 2**31
"""Most bytes of a table after unpacking: all of it is held in memory."""
MAX_TABLE_ROWS: Final = 50_000_000
"""Most rows of a table: repeated values can make billions of a few bytes."""

_MOST_REASON: Final = 240
_ESCAPED_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")


@contextmanager
def reading(
    what: object,
    *,
    error: type[GraphhaluError] = DataFileError,
    also: tuple[type[Exception], ...] = (),
    way_out: str = "",
) -> Iterator[None]:
    """Turn whatever malformed content raises into one error; errors of graphhalu pass.

    Args:
        what: What is read, with what is wrong of it: ``"x.json is not a readable profile"``.
        error: The class that is raised.
        also: Exceptions of libraries that inherit ``Exception`` only.
        way_out: What to do, on a line of its own.

    Raises:
        GraphhaluError: Of the class ``error``; says what was found.
    """
    known: tuple[type[Exception], ...] = (*MALFORMED, *also)
    try:
        yield
    except GraphhaluError:
        raise
    except known as fault:
        end = f"\n  {way_out}" if way_out else ""
        raise error(f"{what}: {reason_of(fault)}{end}") from fault


def reason_of(fault: BaseException) -> str:
    """The message of an exception, on one line of bounded length."""
    text = shortened(" ".join(str(getattr(fault, "strerror", None) or fault).split()), _MOST_REASON)
    if isinstance(fault, KeyError):
        return f"it lacks the field {text}"
    return text or {"MemoryError": "too large for the memory"}.get(type(fault).__name__, type(fault).__name__)


def shown(value: object, limit: int = 120) -> str:
    """A value in an error: as Python writes it, cut where it is long."""
    return shortened(repr(value), limit)


def shortened(text: str, limit: int = 120) -> str:
    """The text, or its beginning if it is too long for an error message."""
    return text if len(text) <= limit else f"{text[:limit]} …"


def told_format(values: Mapping[str, Any]) -> str:
    """Format and version that a file states, for an error."""
    kind, version = values.get("format"), values.get("format_version")
    return f"format {shown(kind)} version {shown(version)}"


def read_bytes(path: Path, limit: int = MAX_JSON_BYTES) -> bytes:
    """The content of a file that is not larger than it can be.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is larger.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ValueError(f"expected at most {limit:,} bytes, got {size:,}")
        return file.read()


def unpack_gzip(content: bytes, limit: int = MAX_JSON_BYTES) -> bytes:
    """Unpack gzip; stops as soon as there are more bytes than allowed.

    Raises:
        OSError: If it is not gzip.
        EOFError: If it is cut off.
        zlib.error: If it is damaged.
        ValueError: If more than ``limit`` bytes come out.
    """
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
        plain = stream.read(limit + 1)
    if len(plain) > limit:
        raise ValueError(f"expected at most {limit:,} bytes after gzip, got more")
    return plain


def parse_json(text: str | bytes, *, allows_nan: bool = False) -> Any:
    """A JSON value whose numbers are finite and whose texts can be written again.

    Args:
        text: In UTF-8, if it is bytes.
        allows_nan: Whether ``NaN``, ``Infinity`` and numbers beyond float64 are allowed.

    Raises:
        ValueError: If it is anything else, or nested too deeply.
    """
    plain = text if isinstance(text, str) else text.decode("utf-8")
    hooks: dict[str, Any] = {} if allows_nan else {"parse_constant": _refuse_constant, "parse_float": _finite}
    try:
        value = json.loads(plain, **hooks)
        if _ESCAPED_SURROGATE.search(plain):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def read_json(
    path: Path, *, allows_nan: bool = False, way_out: str = "", missing: Exception | None = None
) -> Any:
    """The JSON value that a file holds; one whose name ends in ``.gz`` is unpacked.

    Raises:
        FileNotFoundError: If the file does not exist, and the caller did not say what is ``missing`` then.
        DataFileError: If it cannot be read, is larger than it can be, or is not JSON.
    """
    with reading(f"{path} is not readable JSON", way_out=way_out):
        try:
            content = read_bytes(path)
        except FileNotFoundError as absent:
            fault = missing or absent
        else:
            plain = unpack_gzip(content) if path.suffix == ".gz" else content
            return parse_json(plain, allows_nan=allows_nan)
    raise fault


def read_json_object(path: Path, *, way_out: str = "", **how: Any) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        FileNotFoundError, DataFileError: As :func:`read_json`, and if it holds another kind of value.
    """
    values = read_json(path, way_out=way_out, **how)
    if not isinstance(values, dict):
        message = f"{path} must hold a JSON object, got {type(values).__name__}"
        raise DataFileError(f"{message}\n  {way_out}" if way_out else message)
    return values


def check_zip(path: Path, limit: int = MAX_TABLE_BYTES) -> None:
    """Refuse an archive whose members unpack to more than a machine holds.

    Raises:
        OSError: If it cannot be read.
        BadZipFile: If it is none.
        ValueError: If it does.
    """
    with zipfile.ZipFile(path) as file:
        if sum(member.file_size for member in file.infolist()) > limit:
            raise ValueError(f"expected at most {limit:,} bytes after unpacking, got more")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write into, flushed and moved into its place at the end.

    After a fault nothing is left of it, and an earlier file stays as it was. A folder that is
    missing is made.

    Args:
        path: The file that comes to be, or is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole; see :func:`atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_parquet(table: "pa.Table", target: Path | io.BytesIO) -> None:
    """Write a table whose flipped bits :func:`read_parquet` sees."""
    import pyarrow.parquet as pq

    pq.write_table(table, target, write_page_checksum=True)


def parquet_writer(target: Path | io.BytesIO, schema: "pa.Schema", **options: Any) -> Any:
    """A ``pyarrow.parquet.ParquetWriter`` whose pages have checksums; close it."""
    import pyarrow.parquet as pq

    return pq.ParquetWriter(target, schema, write_page_checksum=True, **options)


def packaged_table(path: Path) -> Any:
    """A YAML file of this package; by libyaml where PyYAML has it, ten times as fast."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(path.read_text(encoding="utf-8"))
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def read_parquet(path: Path, columns: list[str] | None = None) -> Any:
    """The table of a Parquet file that is not larger than it can be.

    Files without checksums, as other programs write them, are read too.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is damaged, or larger.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            metadata = file.metadata
            groups = map(metadata.row_group, range(metadata.num_row_groups))
            if sum(group.total_byte_size for group in groups) > MAX_TABLE_BYTES:
                raise ValueError(f"expected at most {MAX_TABLE_BYTES:,} bytes after unpacking, got more")
            if metadata.num_rows > MAX_TABLE_ROWS:
                raise ValueError(f"expected at most {MAX_TABLE_ROWS:,} rows, got {metadata.num_rows:,}")
            table = file.read(columns=columns)
        table.validate(full=True)
    except pa.ArrowException as error:
        raise ValueError(str(error)) from None
    return table


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large for a number")
    return value
