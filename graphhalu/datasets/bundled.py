"""Files that the package brings along."""

from pathlib import Path
from typing import Final

from graphhalu.errors import DataFileError

_PACKAGE: Final = Path(__file__).resolve().parents[1]


def bundled_places(folder: str, name: str = "questions.jsonl") -> tuple[Path, ...]:
    """Where a file, by default questions, lies in an installed package, and in a checkout."""
    return (_PACKAGE / "_data" / folder / name, _PACKAGE.parent / "data" / folder / name)


def bundled_file(places: tuple[Path, ...]) -> Path:
    """The first of the places that holds a file.

    Raises:
        DataFileError: If none does; lists them.
    """
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        listed = "\n".join(f"  looked at {place}" for place in places)
        message = (
            f"a bundled file is missing: expected {places[0].name}\n{listed}\n"
            f"  Install graphhalu again, or name a file of the same layout."
        )
        raise DataFileError(message)
    return found
