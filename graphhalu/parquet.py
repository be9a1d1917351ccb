"""Parquet files that graphhalu writes: every page with a checksum, read back within bounds."""

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphhalu.safe_read import MAX_TABLE_BYTES, MAX_TABLE_ROWS

if TYPE_CHECKING:
    import pyarrow as pa


def write_parquet(table: "pa.Table", target: Path | BytesIO) -> None:
    """Write a table whose flipped bits :func:`read_parquet` sees."""
    import pyarrow.parquet as pq

    pq.write_table(table, target, write_page_checksum=True)


def parquet_writer(target: Path | BytesIO, schema: "pa.Schema", **options: Any) -> Any:
    """A ``pyarrow.parquet.ParquetWriter`` whose pages have checksums; close it."""
    import pyarrow.parquet as pq

    return pq.ParquetWriter(target, schema, write_page_checksum=True, **options)


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
            check_parquet(file)
            table = file.read(columns=columns)
        table.validate(full=True)
    except pa.ArrowException as error:
        raise ValueError(str(error)) from None
    return table


def check_parquet(file: Any) -> None:
    """Refuse a Parquet file that unpacks to more than a machine holds.

    Raises:
        ValueError: If it does.
    """
    said, groups = file.metadata, range(file.metadata.num_row_groups)
    if sum(said.row_group(n).total_byte_size for n in groups) > MAX_TABLE_BYTES:
        message = f"expected at most {MAX_TABLE_BYTES:,} bytes after unpacking, got more"
        raise ValueError(message)
    if said.num_rows > MAX_TABLE_ROWS:
        message = f"expected at most {MAX_TABLE_ROWS:,} rows, got {said.num_rows:,}"
        raise ValueError(message)
