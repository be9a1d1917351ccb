"""Files of results, read with a clear fault."""

import json
from pathlib import Path
from typing import Any

from graphhalu.errors import DataFileError


def read_object(path: Path, *, way_out: str) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        DataFileError: If there is no such file, or it holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        message = f"no result in {path.parent}: {path.name} is missing\n  {way_out}"
        raise DataFileError(message) from None
    except (OSError, ValueError) as error:
        message = f"{path} is not readable JSON: {error}"
        raise DataFileError(message) from None
    if not isinstance(values, dict):
        message = f"{path} must hold a JSON object, got {type(values).__name__}"
        raise DataFileError(message)
    return values
