"""A feature: a pure function of a block of traces, with what a user must know of it."""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Float, Float32

from graphhalu.core.axes import SPAN_NAMES
from graphhalu.core.errors import GraphhaluError, UsageError
from graphhalu.features.block import TraceBlock
from graphhalu.traces.schema import TraceShape

Level = Literal["trace", "token"]
"""One value a trace, or one a stored row (which stands for the token that it predicts)."""

Compute = Callable[..., Float[np.ndarray, "item *axes"]]
"""From a block, and parameters by name."""


@dataclass(frozen=True)
class Feature:
    """One feature; a missing value is NaN, never a made-up number.

    Attributes:
        name: Registered name, lower case with underscores.
        summary: One line on what it measures.
        formula: As plain text, with ``A[i, j]`` for the attention of query i on key j.
        source: Paper, and every difference from it.
        direction: What a higher value means.
        reads: Stored arrays that it needs; ``"a | b"`` if either will do.
        axes: Axes behind the first one: some of ``layer``, ``head``, ``hidden_layer``, ``rank`` …
        compute: From a block to ``[trace, *axes]``, or ``[row, *axes]`` at token level.
        level: Whether the first axis counts traces or stored rows.
        cost: ``"stream"`` if reductions suffice, ``"matrix"`` if whole attention or hidden
            states are read.
        parameters: Names and defaults of what ``compute`` accepts beside the block. An axis
            ``rank`` has the length of the parameter ``k``.
        reads_beams: Whether it reads the other beams of a trace's question.
    """

    name: str
    summary: str
    formula: str
    source: str
    direction: str
    reads: tuple[str, ...]
    axes: tuple[str, ...]
    compute: Compute
    level: Level = "trace"
    cost: Literal["stream", "matrix"] = "stream"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    reads_beams: bool = False

    def __call__(self, block: TraceBlock, **parameters: Any) -> Float[np.ndarray, "item *axes"]:
        """What ``compute`` gives: not rounded to float32, and not checked."""
        return self.compute(block, **self.settings(parameters))

    def settings(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """All parameters, with these in place of their defaults.

        Raises:
            UsageError: If the feature has no such parameter; lists those it has.
        """
        unknown = sorted(parameters.keys() - self.parameters.keys())
        if unknown:
            known = ", ".join(self.parameters) or "none"
            raise UsageError(f"feature {self.name!r} has no parameter {unknown[0]!r}\n  It has: {known}")
        return {**self.parameters, **parameters}

    def values(self, block: TraceBlock, **parameters: Any) -> Float32[np.ndarray, "item *axes"]:
        """The feature of every trace, or every stored row, of a block.

        What is not finite is given as NaN: a number that does not exist.

        Raises:
            UsageError: If there is no such parameter, or its value cannot be used.
            TraceNotFoundError: If the traces do not keep what the feature reads.
        """
        settings = self.settings(parameters)
        values = self.compute(block, **settings)
        n_items = len(block) if self.level == "trace" else len(block.row_token)
        self._check(values.shape, n_items, block.shape, settings)
        # beyond float32 is infinite, and so missing
        with np.errstate(over="ignore"):
            narrow = values.astype(np.float32)
        return np.where(np.isfinite(narrow), narrow, np.float32(np.nan))

    def labels(self, sizes: tuple[int, ...], shape: TraceShape) -> tuple[tuple[str, ...], ...]:
        """A short name of each entry of each axis, as it stands in a column's name."""
        return tuple(_labels(axis, n, shape) for axis, n in zip(self.axes, sizes, strict=True))

    def _check(
        self, got: tuple[int, ...], n_items: int, shape: TraceShape, settings: Mapping[str, Any]
    ) -> None:
        """Refuse axes of another number or length; a feature's own axes have any length."""
        known = {axis: shape.axis_size(axis) for axis in self.axes if axis in _SHAPE_AXES}
        if "rank" in self.axes:
            known["rank"] = settings["k"]
        named = dict(zip(("item", *self.axes), got, strict=False))
        expected = {"item": n_items, **known}
        if len(got) != 1 + len(self.axes) or any(named[axis] != expected[axis] for axis in expected):
            raise GraphhaluError(f"feature {self.name!r} gave {got}, expected {expected} of {self.axes}")


_SHAPE_AXES: Final = ("layer", "hidden_layer", "head", "kv_head", "feature", "span")


def _labels(axis: str, size: int, shape: TraceShape) -> tuple[str, ...]:
    if axis == "layer":
        return tuple(f"l{layer:02d}" for layer in shape.attention_layers)
    if axis == "hidden_layer":
        return tuple(f"n{layer:02d}" for layer in shape.hidden_layers)
    if axis == "span":
        return SPAN_NAMES
    prefix = {"head": "h", "rank": "r", "kv_head": "g", "feature": "f"}.get(axis, axis)
    return tuple(f"{prefix}{entry:02d}" for entry in range(size))


_LARGE: Final = {"attention", "hidden", "hidden_rows", "edge_key"}
_SECTION: Final = re.compile(r"^(Summary|Formula|Direction|Source):\n((?:    .*\n?|\n)+)", re.MULTILINE)


def feature(*reads: str, **fields: Any) -> Callable[[Compute], Feature]:
    """Make a feature of a function; everything that is not given here stands in the function.

    Name and parameters are those of the function, axes and level those of the array that it
    returns. Formula, direction and source are sections of its docstring, and so is the summary
    where the first line is not meant.

    Args:
        reads: As of :class:`Feature`.
        fields: Fields of :class:`Feature` that the function does not say, as a text that several
            features share.
    """

    def make(compute: Compute) -> Feature:
        returned = inspect.get_annotations(compute)["return"]
        item, *axes = returned.dim_str.split()
        arguments = inspect.signature(compute).parameters.values()
        text = inspect.getdoc(compute) or ""
        said = {
            **dict.fromkeys(("formula", "direction", "source"), ""),  # python -OO has no docstrings
            "name": compute.__name__,
            "summary": text[:1].lower() + text.partition("\n")[0][1:].removesuffix("."),
            **{title.lower(): " ".join(words.split()) for title, words in _SECTION.findall(text)},
            "axes": tuple(axes),
            "level": "token" if item == "row" else "trace",
            "cost": "matrix" if _LARGE & set(" | ".join(reads).split(" | ")) else "stream",
            "parameters": {a.name: a.default for a in arguments if a.kind is a.KEYWORD_ONLY},
            **fields,
        }
        return Feature(reads=reads, compute=compute, **said)

    return make


def within(values: Float[np.ndarray, "*axes"], low: float, high: float) -> Float[np.ndarray, "*axes"]:
    """Values cut to a range that only rounding can leave; what is not finite becomes NaN."""
    clipped: Float[np.ndarray, "*axes"] = np.clip(values, low, high)
    # a sum over anything that is not finite is not finite either: one pass instead of two
    with np.errstate(invalid="ignore", over="ignore"):
        is_sound = np.isfinite(values.sum())
    return clipped if is_sound else np.where(np.isfinite(values), clipped, np.nan)
