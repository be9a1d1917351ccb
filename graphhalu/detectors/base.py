"""The one contract of all detectors: fit on labelled traces, score traces, save, load."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import isfunction
from pathlib import Path
from types import new_class
from typing import Any, ClassVar, Final, Literal, NamedTuple, TypeVar, overload

import numpy as np
from jaxtyping import Bool, Float, Int

from graphhalu.core.errors import GraphhaluError, NonFiniteError, NotEnoughDataError
from graphhalu.core.files import packaged_table, shown
from graphhalu.core.splits import Split
from graphhalu.detectors.identity import Identity
from graphhalu.labels.labels import Labels, Level
from graphhalu.traces.trace import Trace

CARDS_FILE: Final = Path(__file__).with_name("cards.yaml")
D = TypeVar("D", bound="Detector")
Input = Literal["attention", "hidden", "likelihood", "text", "length"]
Compared = Literal["answers", "samples", "context", "asked"]
"""What a detector can need beside single answers; see :class:`DetectorCard`."""


class EdgeEffect(NamedTuple):
    """How much an edge of a token graph adds to a score.

    Attributes:
        layer: Model layer; ``None`` in a multiplex graph.
        key: Attended token.
        query: Attending token.
        effect: Score with the edge minus score without it.
    """

    layer: int | None
    key: int
    query: int
    effect: float


class Attribution(NamedTuple):
    """A score in parts.

    Attributes:
        heads: What each head adds; 0 for a head that the detector does not read.
        features: What each named feature or block adds.
        is_exact: Whether the parts and ``rest`` sum to the score, as those of a linear model do;
            else each part is what the score loses without it.
        rest: What no head adds: other features and the bias.
        edges: Edges of the graphs, those with the largest effect first.
    """

    heads: Float[np.ndarray, "layer head"]
    features: dict[str, float]
    is_exact: bool
    rest: float
    edges: tuple[EdgeEffect, ...] = ()


@dataclass(frozen=True)
class Scores:
    """One score an item; higher means more likely hallucinated.

    An item is a trace, or at token level an answer token; those of a trace follow each other.

    Attributes:
        values: The scores; NaN where ``is_valid`` is false, never a made-up number.
        is_valid: Whether the detector could compute a score.
        lengths: Answer tokens of each trace; ``None`` for one score a trace.
    """

    values: Float[np.ndarray, "item"]
    is_valid: Bool[np.ndarray, "item"]
    lengths: Int[np.ndarray, "trace"] | None = None

    @classmethod
    def of(cls, values: Float[np.ndarray, "trace"]) -> "Scores":
        """One score a trace; finite values are valid."""
        return cls(values, np.isfinite(values))

    @classmethod
    def ragged(cls, traces: Sequence[Float[np.ndarray, "_"]]) -> "Scores":
        """The scores of the answer tokens of each trace; finite values are valid."""
        values = np.concatenate([np.zeros(0), *traces])
        lengths = np.array([len(each) for each in traces], dtype=np.int64)
        return cls(values, np.isfinite(values), lengths)

    def by_trace(self) -> list[Float[np.ndarray, "_"]]:
        """The scores of each trace: of its answer tokens, or one."""
        if self.lengths is None:
            return list(self.values[:, None])
        return np.split(self.values, np.cumsum(self.lengths)[:-1]) if len(self.lengths) else []

    def highest(self) -> "Scores":
        """One score a trace: the highest of its tokens; scores of answers as they are."""
        if self.lengths is None:
            return self
        known = [each[np.isfinite(each)] for each in self.by_trace()]
        return Scores.of(np.array([max(each, default=np.nan) for each in known], dtype=np.float64))


@dataclass(frozen=True)
class DetectorCard:
    """What a user must know of a detector before trusting its number.

    Attributes:
        name: Registered name.
        summary: One line on what it computes.
        source: Paper, and every difference from it.
        inputs: What it reads from a trace.
        is_supervised: Whether it is trained on labels.
        is_control: Whether it is a control that a detector must beat.
        reads: Names of the stored arrays that it needs of a trace
            (:data:`graphhalu.traces.schema.ARRAYS`), so that a comparison can say how many
            bytes it costs to keep; empty if it needs none or does not say.
        is_graph: Whether it is a network on token graphs. The strongest detector that is none,
            or a control, is what all others are tested against.
        level: What it scores: answers, or each token of an answer.
        compares: Whether it needs several answers of the model to a question, sampled ones, replays
            without the context, or the model's word on its answer; a comparison of all detectors leaves it
            out where a store has none.
    """

    name: str
    summary: str
    source: str
    inputs: tuple[Input, ...]
    is_supervised: bool
    is_control: bool = False
    reads: tuple[str, ...] = ()
    is_graph: bool = False
    level: Level = "answer"
    compares: Compared | None = None

    @classmethod
    def of(cls, name: str) -> "DetectorCard":
        """The card of a trained detector of this package, read from ``cards.yaml``."""
        values = {field: value for field, value in _cards()[name].items() if field != "attributes"}
        return cls(name=name, is_supervised=True, **_with_tuples(values))


def card_attributes(name: str) -> dict[str, Any]:
    """Class attributes of a detector of this package, such as its features, read from ``cards.yaml``."""
    return _with_tuples(_cards()[name].get("attributes", {}))


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


@cache
def _cards() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = packaged_table(CARDS_FILE)
    return found


def class_name(name: str) -> str:
    """What the class of a registered detector of this package is called."""
    return "".join(word.capitalize() for word in name.split("-"))


class Detector(ABC):
    """A detector of hallucinated answers or, by the level of its card, of hallucinated tokens.

    Every choice (layer, sign, threshold, epoch) is made inside :meth:`fit` from the training
    and validation side of the split; the test side is never looked at.
    """

    card: ClassVar[DetectorCard]
    quick_settings: ClassVar[Mapping[str, Any]] = {}
    """Settings of a quick comparison, where others are not given."""
    identity: Identity | None = None
    """Of the traces that a saved detector was fitted on; ``None`` for one fitted just now."""

    @classmethod
    def variant(cls: type[D], name: str, module: str = "", **attributes: Any) -> type[D]:  # noqa: PYI019 - beartype refuses Self
        """A subclass that differs in its card and some class attributes only.

        Args:
            name: Registered name; the class must be assigned to its :func:`class_name`.
            module: Where it is assigned; by default the module of this class.
            attributes: Class attributes beside those of the card; a function is not bound to the detector.
        """
        card = DetectorCard.of(name)
        fields = {"__module__": module or cls.__module__, "__doc__": card.summary, "card": card}
        fields |= card_attributes(name)
        for attribute, value in attributes.items():
            fields[attribute] = staticmethod(value) if isfunction(value) else value
        made: type[D] = new_class(class_name(name), (cls,), exec_body=lambda body: body.update(fields))
        return made

    def check(self, traces: Sequence[Trace]) -> None:  # noqa: B027 - nothing to check is usual
        """Refuse traces or a machine that these settings do not go with, before anything is built.

        By default nothing is checked here, and :meth:`fit` finds out.

        Args:
            traces: The traces to fit on; no array is read.

        Raises:
            UsageError: If a setting names what the traces do not keep, or the machine lacks.
            NotEnoughDataError: If there is no trace.
        """

    @abstractmethod
    def fit(self, traces: Sequence[Trace], labels: Labels, split: Split) -> "Detector":
        """Train on ``split.train``, choose on ``split.validation``; return the detector.

        It starts anew, whatever was fitted before: of the test side nothing is left over.

        Args:
            traces: All traces; indices of the split point into them.
            labels: Labels of the same traces in the same order; a token detector reads
                ``labels.tokens``.
            split: Sides without a shared question.

        Raises:
            NotEnoughDataError: If a side lacks a class that the method needs.
            UsageError: If a token detector gets labels of answers only.
        """

    @abstractmethod
    def score(self, traces: Sequence[Trace]) -> Scores:
        """Scores of traces, or :meth:`Scores.ragged` ones of their answer tokens.

        The scores of a trace do not depend on the other traces given.
        """

    def attribute(self, trace: Trace) -> Attribution | None:
        """What the score of a trace is made of; ``None`` where this detector cannot say."""
        return None

    @property
    def compares(self) -> Compared | None:
        """What it needs beside single answers to score; by default what its card says."""
        return self.card.compares

    @property
    def token_reach(self) -> int | None:
        """Answer tokens to either side that the score of a token depends on; ``None`` for all of them."""
        return None

    @property
    def n_parameters(self) -> int | None:
        """Numbers that fitting chose; ``None`` where they are not counted."""
        return None

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write weights (safetensors) and settings (JSON) into an existing folder."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> "Detector":
        """Read what :meth:`save` wrote."""


def checked_scores(detector: Detector, scores: object, traces: Sequence[Trace]) -> Scores:
    """What a detector gave, if it is one finite score for each valid trace or answer token.

    Args:
        detector: Its card says what it scores.
        scores: What it gave.
        traces: What it was given.

    Raises:
        GraphhaluError: If it is something else, or of another length.
        NonFiniteError: If a valid score is not finite.
    """
    name, lengths = detector.card.name, None
    n_items, what = len(traces), "traces"
    if detector.card.level == "token":
        lengths = [trace.answer_length for trace in traces]
        n_items, what = sum(lengths), f"answer tokens of {len(traces)} traces"
    if not isinstance(scores, Scores):
        raise GraphhaluError(f"{name}: score must return Scores of {n_items} {what}, got {shown(scores)}")
    given = None if scores.lengths is None else np.asarray(scores.lengths).tolist()
    if given != lengths:
        raise GraphhaluError(
            f"{name}: expected scores of {n_items} {what}, got others: lengths {shown(given)}"
        )
    values, is_valid = np.asarray(scores.values), np.asarray(scores.is_valid)
    if values.shape != (n_items,) or is_valid.shape != (n_items,):
        raise GraphhaluError(
            f"{name}: expected {n_items} scores, got {values.shape[0] if values.ndim else 1}, of shape "
            f"{values.shape}, and is_valid of shape {is_valid.shape}"
        )
    if values.dtype.kind not in "fiub" or is_valid.dtype != np.bool_:
        raise GraphhaluError(
            f"{name}: expected numbers and booleans, got {values.dtype} and {is_valid.dtype}"
        )
    n_bad = int((~np.isfinite(values[is_valid])).sum())
    if n_bad:
        raise NonFiniteError(f"{name}: {n_bad} scores are marked valid and are not finite")
    known = np.where(is_valid, values, np.nan).astype(np.float64)
    return Scores(known, is_valid, scores.lengths)


@dataclass(frozen=True)
class ChosenTraces(Sequence[Trace]):
    """Some traces of a sequence, which they still know; read when asked for."""

    traces: Sequence[Trace]
    indices: tuple[int, ...]

    @classmethod
    def labelled(
        cls, traces: Sequence[Trace], labels: Labels, indices: Int[np.ndarray, "chosen"]
    ) -> "ChosenTraces":
        """Those of the given traces that have a valid label."""
        return cls(traces, tuple(indices[labels.is_valid[indices]].tolist()))

    @property
    def pool(self) -> Sequence[Trace]:
        """The largest sequence that is known, with the other beams of each question."""
        return self.traces.pool if isinstance(self.traces, ChosenTraces) else self.traces

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Trace: ...
    @overload
    def __getitem__(self, index: slice) -> "ChosenTraces": ...
    def __getitem__(self, index: int | slice) -> "Trace | ChosenTraces":
        """One trace, or a view of some."""
        if isinstance(index, slice):
            return ChosenTraces(self.traces, self.indices[index])
        return self.traces[self.indices[index]]

    def __iter__(self) -> Iterator[Trace]:
        return (self.traces[index] for index in self.indices)


def sibling_traces(traces: Sequence[Trace]) -> list[list[Trace]]:
    """For each trace all sampled answers to its question, itself among them, the best beam first.

    A comparison scores the best beam of each question only. The other beams are in the same
    store, and a detector that reads across beams finds them here while fitting and while
    scoring; they never have a label that it could see, unless they are compared too. A given
    answer, which the model did not produce, has no sibling but itself.

    Args:
        traces: The traces to score or to fit on; the test side that a comparison hands to
            :meth:`Detector.score` knows of the store that it is taken from.
    """
    pool = traces.pool if isinstance(traces, ChosenTraces) else traces
    beams: dict[str, list[tuple[int, int]]] = {}
    for place, trace in enumerate(pool):
        if trace.record.is_on_policy:
            beams.setdefault(trace.record.question_id, []).append((trace.record.beam_index, place))
    return [
        [pool[place] for _, place in sorted(beams[trace.record.question_id])]
        if trace.record.is_on_policy
        else [trace]
        for trace in traces
    ]


def check_classes(
    labels: Int[np.ndarray, "item"], card: DetectorCard, *, n_without: int = 0, way_out: str = ""
) -> None:
    """Refuse training traces, or tokens, of one class.

    Args:
        labels: Of the items that can be learnt from.
        card: Of the detector.
        n_without: How many traces lack what it reads.
        way_out: What to do, where the usual advice does not help.

    Raises:
        NotEnoughDataError: Says how many of each there are, and how many lack what is read.
    """
    n_positive = int(labels.sum())
    if n_positive in {0, len(labels)}:
        items = "traces with a value" if card.level == "answer" else "tokens"
        lack = f"; {n_without} traces lack what it reads" if n_without else ""
        raise NotEnoughDataError(
            f"{card.name} needs both classes on the training side, got {n_positive} hallucinated and "
            f"{len(labels) - n_positive} correct {items}{lack}\n"
            f"  {way_out or 'Label more traces, or change the split'}"
        )
