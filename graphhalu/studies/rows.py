"""Rows of the tables of a study, as its result files hold them."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Optional, Union

from pydantic import BaseModel, ConfigDict

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
