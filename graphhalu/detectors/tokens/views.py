"""Columns of tokens as a probe reads them: of which row, and averaged over which neighbours."""

from collections.abc import Iterator, Sequence
from typing import Final, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from graphhalu.detectors.graph_memory import GraphMemory
from graphhalu.detectors.tokens.families import TokenColumns, family_columns
from graphhalu.errors import DetectorMismatchError
from graphhalu.labels.tokens import TokenLabels
from graphhalu.traces.trace import Trace

Place = Literal["token", "before", "own"]

MEMORY: Final[GraphMemory[TokenColumns]] = GraphMemory(2 * 2**30)
"""Columns that this process has read once, for the next fold, seed or detector."""


class View(NamedTuple):
    """One way to read a family.

    Attributes:
        family: Name of the family.
        place: The row that produces a token (``before``), the one that has read it (``own``), or
            ``token`` for a family that is not of rows.
        window: Tokens that are averaged, the token itself in their middle; odd.
    """

    family: str
    place: Place
    window: int


class Sample(NamedTuple):
    """Some answer tokens of some traces.

    Attributes:
        traces: Indices of the traces.
        tokens: Places of the chosen tokens within the answer of each of them.
    """

    traces: tuple[int, ...]
    tokens: tuple[Int[np.ndarray, "_"], ...]

    def owner(self) -> Int[np.ndarray, "token"]:
        """Place of each token's trace in :attr:`traces`."""
        return np.repeat(np.arange(len(self.traces)), [len(each) for each in self.tokens])

    def labels(self, labels: TokenLabels) -> Int[np.ndarray, "token"]:
        """Labels of the chosen tokens."""
        pairs = zip(self.traces, self.tokens, strict=True)
        return np.concatenate([labels.values[index][chosen] for index, chosen in pairs])


def sample_tokens(labels: TokenLabels, traces: Sequence[int], *, n_most: int, seed: int) -> Sample:
    """At most so many tokens, drawn at random class by class.

    Hallucinated tokens are kept up to half of the number, since they are few.

    Args:
        labels: Labels of all traces.
        traces: Indices of those to draw from.
        n_most: How many tokens at most.
        seed: Seed of the draw.
    """
    values = np.concatenate([labels.values[index] for index in traces])
    kept = np.ones(len(values), dtype=np.bool_)
    if len(values) > n_most:
        generator = np.random.default_rng(seed)
        of_class = [np.flatnonzero(values == label) for label in (0, 1)]
        n_positive = max(min(len(of_class[1]), n_most // 2), n_most - len(of_class[0]))
        kept[:] = False
        for members, n_drawn in zip(of_class, (n_most - n_positive, n_positive), strict=True):
            kept[generator.choice(members, min(n_drawn, len(members)), replace=False)] = True
    ends = np.cumsum([len(labels.values[index]) for index in traces])[:-1]
    return Sample(tuple(traces), tuple(np.flatnonzero(part) for part in np.split(kept, ends)))


def view_values(trace: Trace, view: View) -> Float[np.ndarray, "token column"]:
    """A view of all answer tokens of a trace, float32."""
    columns = _columns(trace, view.family)
    values = columns.values.astype(np.float32)
    if columns.is_of_rows:
        values = values[1:] if view.place == "own" else values[:-1]
    return averaged(values, view.window)


def view_names(trace: Trace, view: View) -> tuple[str, ...]:
    """What the columns of a view are called."""
    names = _columns(trace, view.family).names
    return tuple(f"{view.family}.{view.place}.w{view.window}.{name}" for name in names)


def sampled_values(
    traces: Sequence[Trace], sample: Sample, view: View
) -> Float[np.ndarray, "token column"]:
    """A view of the chosen tokens, trace after trace."""
    pairs = zip(sample.traces, sample.tokens, strict=True)
    return np.concatenate([view_values(traces[index], view)[chosen] for index, chosen in pairs])


def views_of(trace: Trace, family: str, windows: Sequence[int]) -> Iterator[View]:
    """Every view of a family."""
    places: tuple[Place, ...] = ("before", "own")
    if not _columns(trace, family).is_of_rows:
        places = ("token",)
    for place in places:
        for window in windows:
            yield View(family, place, window)


def averaged(
    values: Float[np.ndarray, "token column"], window: int
) -> Float[np.ndarray, "token column"]:
    """Mean over a window around each token; shorter where the answer begins and ends.

    A missing value makes the mean of its neighbourhood missing.
    """
    if window == 1:
        return values
    half, n_tokens = window // 2, len(values)
    sums = np.zeros((n_tokens + 1, values.shape[1]))
    np.cumsum(values, axis=0, dtype=np.float64, out=sums[1:])
    if np.isnan(sums[-1]).any():
        return _averaged_slowly(values, half)
    index = np.arange(n_tokens)
    first, stop = np.maximum(index - half, 0), np.minimum(index + half + 1, n_tokens)
    return ((sums[stop] - sums[first]) / (stop - first)[:, None]).astype(values.dtype)


def _averaged_slowly(
    values: Float[np.ndarray, "token column"], half: int
) -> Float[np.ndarray, "token column"]:
    parts = [values[max(0, at - half) : at + half + 1].mean(axis=0) for at in range(len(values))]
    return np.stack(parts).astype(values.dtype)


def _columns(trace: Trace, family: str) -> TokenColumns:
    found = MEMORY.get(trace, family)
    if found is None:
        found = family_columns(trace, family)
        expected = trace.answer_length + found.is_of_rows
        if len(found.values) != expected:
            message = (
                f"trace {trace.trace_id!r}: {len(found.values)} rows of {family}, not {expected}"
            )
            raise DetectorMismatchError(message)
        MEMORY.put(trace, family, found)
    return found
