"""Rows of the tables of a study, as its result files hold them, and resuming of measurements."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

from pydantic import BaseModel, ConfigDict

from graphhalu.core.config import differing_fields
from graphhalu.core.errors import StoreMismatchError
from graphhalu.core.numerics import json_ready
from graphhalu.evaluation.bootstrap import Estimate

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


def find_row(rows: Iterable[Row], **values: Any) -> Row | None:
    """The first row with these values; ``None`` if there is none."""
    return next((row for row in rows if all(getattr(row, n) == v for n, v in values.items())), None)


def require_same(stored: Mapping[str, Any], asked: Mapping[str, Any], path: Path) -> None:
    """Refuse to resume a measurement of something else.

    Raises:
        StoreMismatchError: Names the fields that differ.
    """
    differences = differing_fields(json_ready(stored), json_ready(asked))
    if differences:
        listed = "".join(f"  {line}\n" for line in differences[:12])
        raise StoreMismatchError(
            f"{path} was measured with other settings:\n{listed}"
            f"  Ask for the same ones, or give another folder with --out"
        )
