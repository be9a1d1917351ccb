"""Files of results, read with a clear fault."""

from pathlib import Path
from typing import Any

from graphhalu.errors import DataFileError
from graphhalu.safe_read import read_json_object


def read_object(path: Path, *, way_out: str) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        DataFileError: If there is no such file, or it holds something else.
    """
    try:
        return read_json_object(path)
    except FileNotFoundError:
        message = f"no result in {path.parent}: {path.name} is missing\n  {way_out}"
        raise DataFileError(message) from None
