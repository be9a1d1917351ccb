"""Several traces side by side, so that a feature of all of them is a few array operations.

The arrays of a part lie in the store as one block with ragged axes; features read them that way
and reduce over each trace with the offsets. A trace alone is a block of one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from graphhalu.core.axes import Span, answer_producing_rows
from graphhalu.core.errors import TraceNotFoundError
from graphhalu.core.numerics import ragged_offsets
from graphhalu.traces.part import LazyArray, Part
from graphhalu.traces.schema import TraceRecord, TraceShape, array_spec, decoded, ragged_length
from graphhalu.traces.trace import Trace
from graphhalu.traces.write import MATRICES

ByTrace = Float[np.ndarray, "trace *axes"]

Counted = Bool[np.ndarray, "*counted item"]

MEMORY_BLOCK: Final = 64
"""Traces in memory that make one block."""

BLOCK_WEIGHTS: Final = 2**26
"""About as many attention rows (of each layer and head) as a block has; more make several."""


@dataclass(frozen=True)
class Ragged:
    """One ragged axis: where each trace's items lie.

    Attributes:
        offsets: Start of each trace, and the end of the last.
    """

    offsets: Int[np.ndarray, "offset"]

    @property
    def lengths(self) -> Int[np.ndarray, "trace"]:
        """Items of each trace."""
        return np.diff(self.offsets)

    @cached_property
    def trace(self) -> Int[np.ndarray, "item"]:
        """Trace of each item, counted within the block."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @cached_property
    def position(self) -> Int[np.ndarray, "item"]:
        """Place of each item among the items of its trace."""
        return np.arange(self.offsets[-1]) - self.offsets[self.trace]

    def among(self, chosen: Bool[np.ndarray, "item"] | Int[np.ndarray, "chosen"]) -> "Ragged":
        """The axis of some of the items: a mask, or their places in order."""
        counts = np.bincount(self.trace[chosen], minlength=len(self.lengths))
        return Ragged(ragged_offsets(counts))

    def sum(self, values: Shaped[np.ndarray, "*axes item"]) -> ByTrace:
        """Sum over the items of each trace, in float64; 0 for a trace without items."""
        total = np.zeros((*values.shape[:-1], len(self.lengths)))
        filled = np.flatnonzero(self.lengths)
        if filled.size:
            starts = self.offsets[filled]
            total[..., filled] = np.add.reduceat(values, starts, axis=-1, dtype=np.float64)
        return np.moveaxis(total, -1, 0)

    def mean(self, values: Float[np.ndarray, "*axes item"], is_counted: Counted | None = None) -> ByTrace:
        """Mean over the counted items of each trace; NaN where none counts.

        Args:
            values: What is averaged; what is not counted may be anything, NaN included.
            is_counted: Which items count, broadcast against the values; by default all.
        """
        if is_counted is None or is_counted.all():
            total, count = self.sum(values), self.lengths.reshape(-1, *[1] * (values.ndim - 1))
        else:
            total = self.sum(np.where(is_counted, values, values.dtype.type(0)))
            wide = is_counted.reshape((1,) * (values.ndim - is_counted.ndim) + is_counted.shape)
            count = self.sum(wide)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    def std(self, values: Float[np.ndarray, "*axes item"], is_counted: Counted | None = None) -> ByTrace:
        """Population standard deviation of the counted items; NaN where none counts."""
        centre = np.moveaxis(self.mean(values, is_counted), 0, -1)
        # what is not counted may be infinite, and so may its distance
        with np.errstate(invalid="ignore"):
            distance = np.square(values - centre[..., self.trace])
        return np.sqrt(self.mean(distance, is_counted))

    def max(self, values: Float[np.ndarray, "*axes item"], is_counted: Counted | None = None) -> ByTrace:
        """Largest counted item of each trace; NaN where none counts."""
        if is_counted is None:
            is_counted = np.ones(values.shape[-1], dtype=bool)
        largest = np.full((*values.shape[:-1], len(self.lengths)), -np.inf)
        filled = np.flatnonzero(self.lengths)
        if filled.size:
            counted = np.where(is_counted, values, -np.inf)
            largest[..., filled] = np.maximum.reduceat(counted, self.offsets[filled], axis=-1)
        return np.moveaxis(np.where(np.isneginf(largest), np.nan, largest), -1, 0)


@dataclass(frozen=True)
class PartArrays:
    """Arrays of neighbouring traces of a part of a store.

    Attributes:
        part: The part.
        kept: Arrays that the store keeps.
        first: Place of the first trace within the part.
        last: Place behind the last one.
        is_member: Which of the traces between them are meant; by default all.
    """

    part: Part
    kept: tuple[str, ...]
    first: int
    last: int
    is_member: tuple[bool, ...] | None = None

    def names(self) -> tuple[str, ...]:
        """Arrays that are there."""
        return self.kept

    def read(self, name: str, first: int | None = None) -> np.ndarray:
        """An array in the stored number format, or one entry of its first axis."""
        offsets = self.part.offsets[array_spec(name).ragged_axis]
        start, stop = int(offsets[self.first]), int(offsets[self.last])
        is_whole = stop - start == int(offsets[-1])
        values = self.part.read(name, first, None if is_whole else slice(start, stop))
        if self.is_member is None:
            return values
        lengths = np.diff(offsets[self.first : self.last + 1])
        dim = array_spec(name).ragged_dim - (first is not None)
        return np.compress(np.repeat(self.is_member, lengths), values, axis=dim)


@dataclass(frozen=True)
class MemoryArrays:
    """Arrays of traces in memory, put one after another when asked for."""

    traces: tuple[Trace, ...]

    def names(self) -> tuple[str, ...]:
        """Arrays that every trace has."""
        return tuple(n for n in self.traces[0].arrays if all(n in t.arrays for t in self.traces))

    def read(self, name: str, first: int | None = None) -> np.ndarray:
        """An array in the stored number format, or one entry of its first axis."""
        dim = array_spec(name).ragged_dim
        if first is None:
            return np.concatenate([t.arrays[name][:] for t in self.traces], axis=dim)
        return np.concatenate([t.arrays[name][first] for t in self.traces], axis=dim - 1)


@dataclass(frozen=True)
class Rows:
    """Some stored rows of a block: those that produce the answer, or all.

    Attributes:
        block: The block.
        index: Places on the block's row axis.
        ragged: Where the rows of each trace lie among the chosen ones.
    """

    block: "TraceBlock"
    index: Int[np.ndarray, "row"]
    ragged: Ragged

    @property
    def token(self) -> Int[np.ndarray, "row"]:
        """Token of each row, counted within its trace."""
        return self.block.row_token[self.index]

    @cached_property
    def n_visible(self) -> Int[np.ndarray, "layer row"]:
        """Keys that each row can see, itself included."""
        return self.block.n_visible[:, self.index]

    def n_visible_of(self, is_kind: Bool[np.ndarray, "token"]) -> Int[np.ndarray, "layer row"]:
        """Keys of one kind that each row can see, itself included.

        Args:
            is_kind: Which tokens of the block are of that kind.
        """
        before = ragged_offsets(is_kind.astype(np.int64))
        end = self.block.tokens.offsets[self.ragged.trace] + self.token + 1
        return before[end] - before[end - self.n_visible]

    def read(self, name: str) -> Float[np.ndarray, "layer head row *entries"]:
        """A stream of these rows, in float32."""
        return self._raw(name).astype(np.float32)

    def entry(self, name: str, entry: int) -> Float[np.ndarray, "layer head row"]:
        """One entry of the last axis of a stream of these rows, in float32."""
        return self._raw(name)[..., entry].astype(np.float32)

    def span_mass(self, spans: Sequence[Span]) -> Float[np.ndarray, "layer head row"]:
        """Attention of these rows to some named spans together."""
        # what has no token gets no attention, and need not be added
        here = np.unique(self.block.raw("span_code")).tolist()
        wanted = [int(span) for span in spans if int(span) in here] or [int(spans[0])]
        total = self.entry("span_mass", wanted[0])
        for span in wanted[1:]:
            total += self._raw("span_mass")[..., span]
        return total

    def _raw(self, name: str) -> Shaped[np.ndarray, "layer head row *entries"]:
        whole = self.block.raw(name)
        if len(self.index) == whole.shape[array_spec(name).ragged_dim]:
            return whole
        return self.block.answer_part(name)


@dataclass(frozen=True)
class TraceBlock:
    """Traces of one model whose ragged axes lie one after another.

    Attributes:
        records: What is known of each trace.
        shape: What the axes mean.
        arrays: Where the arrays are read.
    """

    records: tuple[TraceRecord, ...]
    shape: TraceShape
    arrays: PartArrays | MemoryArrays

    def __len__(self) -> int:
        """Number of traces."""
        return len(self.records)

    def has(self, *names: str) -> bool:
        """Whether all these arrays are kept."""
        return set(names) <= set(self.arrays.names())

    def stream(self, name: str, layer: int | None = None) -> Shaped[np.ndarray, "..."]:
        """An array of all traces; encoded formats and half precision as float32.

        Args:
            name: Name of the array.
            layer: Place on the first axis (not the model's layer); by default all of it.

        Raises:
            TraceNotFoundError: If the traces do not keep it.
        """
        return decoded(self.raw(name) if layer is None else self.stored(name, layer), name)

    def raw(self, name: str) -> Shaped[np.ndarray, "..."]:
        """A whole array in the stored number format, not to be changed.

        Streams are remembered, so that several features decode them once; matrices are not.

        Raises:
            TraceNotFoundError: If the traces do not keep it.
        """
        if name in MATRICES:
            return self.stored(name)
        if name not in self._remembered:
            values = self.stored(name)
            values.flags.writeable = False
            self._remembered[name] = values
        return self._remembered[name]

    @cached_property
    def _remembered(self) -> dict[str, np.ndarray]:
        return {}

    def stored(self, name: str, layer: int | None = None) -> np.ndarray:
        """As :meth:`raw`, or one entry of the first axis; nothing is remembered."""
        array_spec(name)
        if name not in self.arrays.names():
            raise TraceNotFoundError(
                f"these traces keep no {name!r} (they have {', '.join(self.arrays.names())})\n"
                f"  Extract them again with another --keep"
            )
        return self.arrays.read(name, layer)

    @cached_property
    def tokens(self) -> Ragged:
        """The token axis."""
        return self._ragged("token")

    @cached_property
    def rows(self) -> Ragged:
        """The axis of stored query rows."""
        return self._ragged("row")

    @cached_property
    def row_token(self) -> Int[np.ndarray, "row"]:
        """Token of each stored row, counted within its trace."""
        return self.rows.position + self.of_record("row_start")[self.rows.trace]

    @cached_property
    def is_answer_row(self) -> Bool[np.ndarray, "row"]:
        """Which stored rows produce the answer: ``prompt_length - 1 … length - 2``."""
        ranges = [answer_producing_rows(r.prompt_length, r.length) for r in self.records]
        starts, stops = np.array(ranges, dtype=np.int64).reshape(-1, 2).T
        trace = self.rows.trace
        return (self.row_token >= starts[trace]) & (self.row_token < stops[trace])

    @property
    def answer_rows(self) -> Rows:
        """The stored rows that produce the answer."""
        return Rows(self, *self._answer_index)

    @property
    def all_rows(self) -> Rows:
        """All stored rows."""
        return Rows(self, np.arange(self.rows.offsets[-1]), self.rows)

    @cached_property
    def _answer_index(self) -> tuple[Int[np.ndarray, "row"], Ragged]:
        return np.flatnonzero(self.is_answer_row), self.rows.among(self.is_answer_row)

    def answer_part(self, name: str) -> Shaped[np.ndarray, "layer head row *entries"]:
        """A stream of the rows that produce the answer, in the stored number format.

        Raises:
            TraceNotFoundError: If the traces do not keep it.
        """
        key = f"{name} of the answer"
        if key not in self._remembered:
            index = self._answer_index[0]
            self._remembered[key] = np.take(self.raw(name), index, axis=array_spec(name).ragged_dim)
            self._remembered[key].flags.writeable = False
        return self._remembered[key]

    @cached_property
    def is_answer_token(self) -> Bool[np.ndarray, "token"]:
        """Which tokens belong to the answer."""
        return self.tokens.position >= self.of_record("prompt_length")[self.tokens.trace]

    @cached_property
    def n_visible(self) -> Int[np.ndarray, "layer row"]:
        """Keys that each stored row can see, itself included: fewer in a sliding window."""
        seen = self.row_token + 1
        return np.minimum(seen, self._windows)

    @cached_property
    def n_rows_that_see(self) -> Int[np.ndarray, "layer token"]:
        """Stored rows that can see each token as a key, its own row included if it is stored."""
        trace = self.tokens.trace
        key, length = self.tokens.position, self.of_record("length")[trace]
        first = np.maximum(key, self.of_record("row_start")[trace])
        last = np.minimum(length, key + self._windows)
        return np.maximum(last - first, 0)

    @property
    def _windows(self) -> Int[np.ndarray, "layer 1"]:
        largest = np.iinfo(np.int64).max // 2
        return np.array([[window or largest] for window in self.shape.layer_windows], dtype=np.int64)

    def of_record(self, field: str) -> Int[np.ndarray, "trace"]:
        """An integer field of every record."""
        return np.array([getattr(record, field) for record in self.records], dtype=np.int64)

    def _ragged(self, axis: str) -> Ragged:
        lengths = np.array([ragged_length(axis, r) for r in self.records], dtype=np.int64)
        return Ragged(ragged_offsets(lengths))


class PlacedBlock(NamedTuple):
    """A block, and which of its traces were asked for.

    Attributes:
        block: A part of a store, or some traces in memory.
        indices: Places among the traces that were given.
        within: The same traces, by their place within the block.
    """

    block: TraceBlock
    indices: Int[np.ndarray, "member"]
    within: Int[np.ndarray, "member"]


def block_of(traces: Sequence[Trace]) -> TraceBlock:
    """A block of traces in memory, or of a few from a store, in this order."""
    chosen = tuple(traces)
    return TraceBlock(tuple(t.record for t in chosen), chosen[0].shape, MemoryArrays(chosen))


def blocks(traces: Sequence[Trace], *, with_beams: bool = True) -> Iterator[PlacedBlock]:
    """Blocks that together hold the given traces.

    Of a store these are its parts, each read once and whole, whichever of its traces are asked
    for; a part with more than ``BLOCK_WEIGHTS`` is cut between traces, always at the same places.

    Args:
        traces: A store, a view of one, or traces in memory, in any order.
        with_beams: Whether the other beams of a question are in its block. Without, a part of
            which only best beams are asked for is a block of its best beams.
    """
    in_memory: list[int] = []
    of_part: dict[int, tuple[Part, tuple[str, ...], list[tuple[int, int]]]] = {}
    for index, trace in enumerate(traces):
        array = next(iter(trace.arrays.values()), None)
        if isinstance(array, LazyArray):
            members = of_part.setdefault(id(array.part), (array.part, tuple(trace.arrays), []))
            members[2].append((index, array.place))
        else:
            in_memory.append(index)
    for part, names, places in of_part.values():
        yield from _part_blocks(part, names, np.array(places, dtype=np.int64), with_beams)
    questions = [traces[index].record.question_id for index in in_memory]
    for first, last in _between_questions(range(0, len(in_memory), MEMORY_BLOCK), questions):
        chosen = np.array(in_memory[first:last], dtype=np.int64)
        if chosen.size:
            block = block_of([traces[int(index)] for index in chosen])
            yield PlacedBlock(block, chosen, np.arange(len(chosen)))


def _part_blocks(
    part: Part, names: tuple[str, ...], members: Int[np.ndarray, "member 2"], with_beams: bool
) -> Iterator[PlacedBlock]:
    indices, places = members.T
    is_best = np.array([not r.is_on_policy or r.beam_index == 0 for r in part.records], dtype=bool)
    takes_all = with_beams or is_best.all() or not is_best[places].all()
    for first, last in _cuts(part):
        is_here = (places >= first) & (places < last)
        if not is_here.any():
            continue
        is_member = np.ones(last - first, dtype=bool) if takes_all else is_best[first:last]
        arrays = PartArrays(part, names, first, last, None if takes_all else tuple(is_member.tolist()))
        chosen = np.flatnonzero(is_member)
        block = TraceBlock(tuple(part.records[first + i] for i in chosen), part.shape, arrays)
        yield PlacedBlock(block, indices[is_here], np.searchsorted(chosen, places[is_here] - first))


def _cuts(part: Part) -> list[tuple[int, int]]:
    """Ranges of neighbouring traces that are read together."""
    a_row = max(1, len(part.shape.attention_layers) * part.shape.n_heads)
    of_block = part.offsets["row"][:-1] * a_row // BLOCK_WEIGHTS
    starts = np.flatnonzero(np.diff(of_block, prepend=-1)).tolist()
    return _between_questions(starts, [record.question_id for record in part.records])


def _between_questions(starts: Sequence[int], questions: Sequence[str]) -> list[tuple[int, int]]:
    """Ranges that begin near the given places, moved on where one would part a question's beams."""
    moved = {0}
    for start in starts:
        place = start
        while 0 < place < len(questions) and questions[place] == questions[place - 1]:
            place += 1
        moved.add(place)
    return list(pairwise([*sorted(moved - {len(questions)}), len(questions)]))
