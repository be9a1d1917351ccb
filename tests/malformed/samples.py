"""A value of any type that results are made of, so that our own writers have something to write."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

CONTAINERS: dict[Any, Callable[[list[Any]], Any]] = {
    tuple: tuple,
    list: list,
    Sequence: list,
    dict: lambda pair: {pair[0]: pair[1]},
    Mapping: lambda pair: {pair[0]: pair[1]},
}
PLAIN = {int: 1, float: 0.5, str: "text", bool: True, NoneType: None, Any: "any", object: "any"}


def sample(kind: Any, **known: Any) -> Any:
    """A valid value of a type; of classes, with every field set.

    Args:
        kind: Plain types, tuples, mappings, unions, literals, dataclasses, named tuples, models.
        known: Fields that are given.
    """
    if kind in PLAIN:
        return PLAIN[kind]
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return inner[0]
    if origin in (Union, UnionType):
        return sample(inner[0])
    if origin in CONTAINERS:
        items = [sample(item) for item in inner if item is not Ellipsis]
        return CONTAINERS[origin](items)
    if hasattr(kind, "dim_str"):
        return np.full((2,) * len(kind.dim_str.split()), 0.5)
    return _instance(kind, known)


def _instance(kind: Any, known: Mapping[str, Any]) -> Any:
    if isinstance(kind, type) and issubclass(kind, np.ndarray):
        return np.full((2, 2), 0.5)
    if kind is pa.Table:
        return pa.table({"x": [1, 2]})
    hints = get_type_hints(kind)
    if is_dataclass(kind):
        names = [field.name for field in fields(kind) if field.init]
    elif issubclass(kind, BaseModel):
        names = list(kind.model_fields)
    else:
        names = list(kind._fields)
    return kind(
        **{name: known.get(name, sample(hints[name])) for name in names if name not in known}, **known
    )
