"""Which features are asked for: names, parameters, and what is reduced."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from graphhalu.core.errors import UsageError
from graphhalu.features.base import Feature
from graphhalu.features.block import TraceBlock
from graphhalu.features.registry import FEATURES

REDUCTIONS: Final = ("mean", "std", "max")

_TEXT: Final = re.compile(r"(\w+)(?:\[([^\[\]]*)\])?")


@dataclass(frozen=True)
class FeatureSpec:
    """A feature with its parameters; ``str`` of it can be read back by :meth:`parse`.

    Attributes:
        name: A name in ``FEATURES``.
        parameters: Parameters that differ from their defaults.
        reduction: Axes over which the values are reduced, and how; what is missing does not
            count, and what has nothing left is missing.
    """

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    reduction: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "FeatureSpec":
        """A feature as text: ``received_top``, or ``received_top[k=25,head=mean]``.

        Raises:
            UsageError: If the text cannot be read, or names no axis or parameter of the feature.
            UnknownNameError: If there is no such feature; lists the nearest names.
        """
        found = _TEXT.fullmatch(text.strip())
        if not found:
            message = f"expected a feature as name or name[k=25,head=mean], got {text!r}"
            raise UsageError(message)
        feature = FEATURES.get(found[1])
        settings = dict(_setting(item, text) for item in (found[2] or "").split(",") if item)
        reduction = {axis: settings.pop(axis) for axis in feature.axes if axis in settings}
        spec = cls(feature.name, settings, reduction)
        spec.check()
        return spec

    def __str__(self) -> str:
        settings = {**self.parameters, **self.reduction}
        listed = ",".join(f"{name}={settings[name]}" for name in sorted(settings))
        return f"{self.name}[{listed}]" if listed else self.name

    @property
    def feature(self) -> Feature:
        """The feature of this name.

        Raises:
            UnknownNameError: If there is none; lists the nearest names.
        """
        return FEATURES.get(self.name)

    def check(self) -> None:
        """Refuse parameters, axes and reductions that there are not.

        Raises:
            UsageError: If there is one.
        """
        self.feature.settings(self.parameters)
        for axis, how in self.reduction.items():
            if axis not in self.feature.axes or how not in REDUCTIONS:
                axes = ", ".join(self.feature.axes) or "none"
                message = (
                    f"feature {self.name!r} cannot be reduced by {axis}={how}: its axes "
                    f"are {axes}, reductions are {', '.join(REDUCTIONS)}"
                )
                raise UsageError(message)

    def compute(self, block: TraceBlock) -> "Columns":
        """The columns of this feature for every trace, or every stored row, of a block.

        Raises:
            UsageError: If there is no such parameter or axis.
            TraceNotFoundError: If the traces do not keep what the feature reads.
        """
        self.check()
        feature = self.feature
        values = feature.values(block, **self.parameters)
        labels = dict(zip(feature.axes, feature.labels(values.shape[1:], block.shape), strict=True))
        for axis in reversed(feature.axes):
            if axis in self.reduction:
                place = 1 + feature.axes.index(axis)
                values = reduce(values, place, self.reduction[axis])
                del labels[axis]
        name = str(self)
        names = tuple(".".join((name, *entry)) for entry in product(*labels.values()))
        return Columns(values.reshape(len(values), len(names)), names)


class Columns(NamedTuple):
    """Columns of a table.

    Attributes:
        values: Missing ones are NaN.
        names: As ``feature.l03.h05.r02``: model layer 3, head 5, third largest.
    """

    values: Float32[np.ndarray, "item column"]
    names: tuple[str, ...]


def side_by_side(columns: Sequence[Columns]) -> Columns:
    """Columns of the same items as one set of columns."""
    names = tuple(name for each in columns for name in each.names)
    return Columns(np.concatenate([each.values for each in columns], axis=1), names)


def split_text(text: str) -> list[str]:
    """Features separated by commas or spaces; those in brackets separate nothing."""
    return re.findall(r"\w+(?:\[[^\[\]]*\])?|[^\s,]+", text)


def as_specs(features: Sequence["str | FeatureSpec"]) -> tuple[FeatureSpec, ...]:
    """Features given as text or as specification.

    Raises:
        UsageError: If none is given, or one is given twice.
    """
    specs = tuple(FeatureSpec.parse(each) if isinstance(each, str) else each for each in features)
    names = [str(spec) for spec in specs]
    if not names or len(set(names)) < len(names):
        message = f"expected features, each of them once, got {', '.join(names) or 'none'}"
        raise UsageError(message)
    return specs


def reduce(values: Float[np.ndarray, "..."], axis: int, how: str) -> Float32[np.ndarray, "..."]:
    """Reduce one axis; missing values do not count, and where all are missing so is the result.

    Args:
        values: What is reduced.
        axis: Which axis.
        how: ``"mean"``, ``"std"`` or ``"max"``.
    """
    is_there = ~np.isnan(values)
    count = is_there.sum(axis=axis)
    if how == "max":
        largest = np.where(is_there, values, -np.inf).max(axis=axis, initial=-np.inf)
        return np.where(count > 0, largest, np.nan).astype(np.float32)
    divisor = np.maximum(count, 1)
    mean = np.where(is_there, values, 0.0).sum(axis=axis, dtype=np.float64) / divisor
    if how == "std":
        distance = np.where(is_there, values - np.expand_dims(mean, axis), 0.0)
        mean = np.sqrt(np.square(distance).sum(axis=axis) / divisor)
    return np.where(count > 0, mean, np.nan).astype(np.float32)


def _setting(item: str, text: str) -> tuple[str, Any]:
    name, is_given, value = item.partition("=")
    if not is_given:
        message = f"expected name=value in the brackets of {text!r}, got {item!r}"
        raise UsageError(message)
    return name.strip(), _plain(value.strip())


def _plain(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def reads_beams(specs: Sequence[FeatureSpec]) -> bool:
    """Whether one of them reads the other beams of a trace's question."""
    return any(spec.feature.reads_beams for spec in specs)
