"""The one contract of all detectors: fit on labelled traces, score traces, save, load."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from graphhalu.core.errors import GraphhaluError, NonFiniteError
from graphhalu.core.files import shown
from graphhalu.core.splits import Split
from graphhalu.detectors.attribution import Attribution
from graphhalu.detectors.identity import Identity
from graphhalu.features.base import sections
from graphhalu.labels.labels import Labels, Level
from graphhalu.traces.trace import Trace

Input = Literal["attention", "hidden", "likelihood", "text", "length"]


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

    @classmethod
    def of(cls, doc: str | None, name: str, *inputs: Input, note: str = "", **fields: Any) -> "DetectorCard":
        """The card of a trained detector whose docstring has the sections Summary and Source.

        Args:
            doc: The docstring; ``None`` under ``python -OO``, which then has neither text.
            name: Registered name.
            inputs: What it reads from a trace.
            note: What several detectors say at the end of their source.
            fields: Other fields of the card.
        """
        text = sections(doc)
        source = f"{text.get('source', '')} {note}".strip()
        summary = text.get("summary", "")
        return cls(name, summary, source, inputs, is_supervised=True, **fields)


class Detector(ABC):
    """A detector of hallucinated answers or, by the level of its card, of hallucinated tokens.

    Every choice (layer, sign, threshold, epoch) is made inside :meth:`fit` from the training
    and validation side of the split; the test side is never looked at.
    """

    card: ClassVar[DetectorCard]
    identity: Identity | None = None
    """Of the traces that a saved detector was fitted on; ``None`` for one fitted just now."""

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
        message = f"{name}: score must return Scores of {n_items} {what}, got {shown(scores)}"
        raise GraphhaluError(message)
    given = None if scores.lengths is None else np.asarray(scores.lengths).tolist()
    if given != lengths:
        message = f"{name}: expected scores of {n_items} {what}, got others: lengths {shown(given)}"
        raise GraphhaluError(message)
    values, is_valid = np.asarray(scores.values), np.asarray(scores.is_valid)
    if values.shape != (n_items,) or is_valid.shape != (n_items,):
        message = f"{name}: expected {n_items} scores, got {values.shape[0] if values.ndim else 1}"
        if values.ndim != 1 or is_valid.shape != values.shape:
            message += f", of shape {values.shape}, and is_valid of shape {is_valid.shape}"
        raise GraphhaluError(message)
    if values.dtype.kind not in "fiub" or is_valid.dtype != np.bool_:
        message = f"{name}: expected numbers and booleans, got {values.dtype} and {is_valid.dtype}"
        raise GraphhaluError(message)
    n_bad = int((~np.isfinite(values[is_valid])).sum())
    if n_bad:
        message = f"{name}: {n_bad} scores are marked valid and are not finite"
        raise NonFiniteError(message)
    known = np.where(is_valid, values, np.nan).astype(np.float64)
    return Scores(known, is_valid, scores.lengths)


@runtime_checkable
class PartOfTraces(Protocol):
    """A sequence of traces that knows the larger one it was taken from."""

    @property
    def pool(self) -> Sequence[Trace]:
        """All traces, also those beside the chosen ones."""


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
    pool = traces.pool if isinstance(traces, PartOfTraces) else traces
    places: dict[str, list[tuple[int, int]]] = {}
    for place, trace in enumerate(pool):
        if trace.record.is_on_policy:
            rank = trace.record.beam_index
            places.setdefault(trace.record.question_id, []).append((rank, place))
    return [
        [pool[place] for _, place in sorted(places[trace.record.question_id])]
        if trace.record.is_on_policy
        else [trace]
        for trace in traces
    ]
