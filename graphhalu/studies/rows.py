"""Results of studies and the rows of their tables, as result files hold them; resuming of measurements."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Optional, TypeVar, Union

from pydantic import BaseModel, ConfigDict

from graphhalu.core.config import Config, differing_fields
from graphhalu.core.documents import FileFormat, plain_values, read_document, write_document
from graphhalu.core.errors import StoreMismatchError
from graphhalu.core.files import reading
from graphhalu.core.numerics import json_ready
from graphhalu.evaluation.bootstrap import Estimate

R = TypeVar("R", bound="StudyResult")

Cell = Estimate | bool | int | float | str | None


class Row(BaseModel):
    """Named numbers, estimates and words, or rows of them; the function that makes one describes it.

    A number that is not finite is ``None`` after it was read from a file.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    __pydantic_extra__: dict[
        str, Union[Cell, "Row", tuple[Optional["Row"], ...], tuple[Cell, ...], tuple[tuple[Cell, ...], ...]]
    ]

    if TYPE_CHECKING:

        def __init__(self, **values: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...

    @classmethod
    def table(cls, **columns: Iterable[Any]) -> tuple["Row", ...]:
        """Rows from their columns, which have the same length."""
        rows = zip(*columns.values(), strict=True)
        return tuple(cls(**dict(zip(columns, cells, strict=True))) for cells in rows)


def find_row(rows: Iterable[Row], **values: Any) -> Row | None:
    """The first row with these values; ``None`` if there is none."""
    return next((row for row in rows if all(getattr(row, n) == v for n, v in values.items())), None)


class StudyResult(Config):
    """What a study found, as one JSON file that its page is drawn from."""

    kind: ClassVar[FileFormat]
    file: ClassVar[str] = ""
    """Name of the file within its folder; empty where the caller names the file."""

    def values(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return plain_values(self.model_dump(), self.kind)

    def write(self, path: Path) -> Path:
        """Write the file, whole or not at all; gives its path."""
        return write_document(path / self.file, self.values(), self.kind)

    @classmethod
    def read(cls: type[R], path: Path) -> R:  # noqa: PYI019 - beartype refuses Self
        """Read what :meth:`write` wrote.

        Args:
            path: The file, or its folder.

        Raises:
            DataFileError: If there is none, or it is of another version or does not validate.
        """
        file = path / cls.file if path.is_dir() else path
        # pydantic does not report numbers beyond float64
        with reading(f"{file} cannot be read as {cls.kind.name}"):
            return read_document(file, cls, cls.kind)


def require_same(stored: Mapping[str, Any], asked: Mapping[str, Any], path: Path) -> None:
    """Refuse to resume a measurement of something else.

    Raises:
        StoreMismatchError: Names the fields that differ.
    """
    if differences := differing_fields(json_ready(stored), json_ready(asked)):
        listed = "".join(f"  {line}\n" for line in differences[:12])
        way_out = "Ask for the same ones, or give another folder with --out"
        raise StoreMismatchError(f"{path} was measured with other settings:\n{listed}  {way_out}")
