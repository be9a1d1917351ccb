"""Rows of the tables of a study, as its result files hold them."""

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from graphhalu.evaluation.bootstrap import Estimate

Cell = Estimate | int | float | str | None


class Row(BaseModel):
    """Named numbers, estimates and words, or rows of them; the function that makes one describes it.

    A number that is not finite is ``None`` after it was read from a file.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    __pydantic_extra__: dict[str, Cell | tuple["Row", ...] | tuple[tuple[float, ...], ...]]

    if TYPE_CHECKING:

        def __init__(self, **values: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...
