"""Labels of traces: what a 1 means, and a mask that says whether each can be trusted."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Bool, Int, Shaped

from graphhalu.core.axes import LABEL_CORRECT
from graphhalu.core.errors import NotEnoughDataError, UsageError
from graphhalu.datasets.question import question_key
from graphhalu.datasets.registry import merged_groups
from graphhalu.traces.trace import Trace

Level = Literal["answer", "token"]
"""What is labelled and scored: whole answers, or each of their tokens."""

Meaning = Literal["hallucinated", "input"]
"""What a 1 says; see :data:`MEANINGS`."""

MEANINGS: Final[dict[Meaning, str]] = {
    "hallucinated": "the model's own output is wrong",
    "input": "what the data set says of its input",
}
"""The two meanings of a label, in words. They are never mixed: a study names the one it uses."""


@dataclass(frozen=True, repr=False)
class Labels:
    """One label a trace, and where they are known one a token of its answer.

    Attributes:
        trace_ids: The traces, in the order of the store.
        values: 1 = hallucinated, 0 = correct; 0 where ``is_valid`` is false. With the meaning
            ``"input"``: 1 = the data set calls its input bad, 0 = good.
        is_valid: Whether the rule could decide.
        reasons: Why a label is what it is (``"alias"``, ``"no alias"``, ``"empty answer"``).
        labeller: Name of the rule, or the name under which it was stored.
        settings: Settings of the rule; plain JSON values.
        meaning: What a 1 says; see :data:`MEANINGS`.
        tokens: Labels of the answer tokens of each trace, all 0 where ``is_valid`` is false;
            then ``values`` is 1 where any of them is. ``None`` where only answers are labelled.
    """

    trace_ids: tuple[str, ...]
    values: Int[np.ndarray, "trace"]
    is_valid: Bool[np.ndarray, "trace"]
    reasons: tuple[str, ...]
    labeller: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    meaning: Meaning = "hallucinated"
    tokens: tuple[Int[np.ndarray, "_"], ...] | None = None

    @property
    def level(self) -> Level:
        """What is labelled: tokens where their labels are known."""
        return "answer" if self.tokens is None else "token"

    @cached_property
    def items(self) -> Int[np.ndarray, "item"]:
        """Labels of all items: of the traces, or of their answer tokens, trace after trace."""
        return self.values if self.tokens is None else np.concatenate(self.tokens)

    @cached_property
    def owner(self) -> Int[np.ndarray, "item"]:
        """Place of the trace that each item belongs to."""
        return np.repeat(np.arange(len(self.values)), self._lengths)

    @cached_property
    def place_in_trace(self) -> Int[np.ndarray, "item"]:
        """Place of each item within its trace: of a token within its answer."""
        lengths = self._lengths
        return np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)

    def places(self, indices: Int[np.ndarray, "chosen"]) -> Int[np.ndarray, "item"]:
        """Places of the items of some traces, trace after trace."""
        ends = self._lengths.cumsum()
        ranges = [np.arange(ends[i] - self._lengths[i], ends[i]) for i in indices.tolist()]
        return np.concatenate([np.zeros(0, dtype=np.int64), *ranges])

    def token_labels(self, detector: str) -> tuple[Int[np.ndarray, "_"], ...]:
        """The labels of tokens, for a detector of this name.

        Raises:
            UsageError: If only answers are labelled.
        """
        if self.tokens is None:
            raise UsageError(
                f"{detector} scores tokens and needs labels of tokens, got those of answers by "
                f"{self.labeller!r}\n  Label tokens:  label_tokens(records), or graphhalu tokens"
            )
        return self.tokens

    @cached_property
    def _lengths(self) -> Int[np.ndarray, "trace"]:
        if self.tokens is None:
            return np.ones(len(self.values), dtype=np.int64)
        return np.array([len(each) for each in self.tokens], dtype=np.int64)

    def __repr__(self) -> str:
        """The rule, how many it could decide, and how many of them are ones."""
        n_valid = int(self.is_valid.sum())
        kind = "hallucinated" if self.meaning == "hallucinated" else "input bad"
        ones = f", {100 * self.prevalence:.1f} % {kind}" if n_valid else ""
        return f"Labels({self.labeller!r}, {n_valid} of {len(self.values)} valid{ones})"

    @property
    def coverage(self) -> float:
        """Share of traces with a valid label."""
        return float(self.is_valid.mean())

    @property
    def prevalence(self) -> float:
        """Share of ones among the valid labels.

        Raises:
            NotEnoughDataError: If no label is valid.
        """
        if not self.is_valid.any():
            raise NotEnoughDataError(
                f"labeller {self.labeller!r} could decide none of {len(self.values)} answers"
            )
        return float(self.values[self.is_valid].mean())

    def select(self, indices: Sequence[int]) -> "Labels":
        """The labels of some traces, in the order asked for."""
        places = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            trace_ids=tuple(self.trace_ids[place] for place in indices),
            values=self.values[places],
            is_valid=self.is_valid[places],
            reasons=tuple(self.reasons[place] for place in indices),
            tokens=None if self.tokens is None else tuple(self.tokens[place] for place in indices),
        )

    def without(self, is_left_out: Bool[np.ndarray, "trace"], reason: str) -> "Labels":
        """Labels of which some become invalid, with values and reason taken away."""
        left_out = is_left_out.tolist()
        tokens, reasons = self.tokens or (), self.reasons
        return replace(
            self,
            values=np.where(is_left_out, LABEL_CORRECT, self.values),
            is_valid=self.is_valid & ~is_left_out,
            reasons=tuple(reason if out else old for old, out in zip(reasons, left_out, strict=True)),
            tokens=self.tokens
            and tuple(np.where(out, LABEL_CORRECT, each) for each, out in zip(tokens, left_out, strict=True)),
        )


def complete_labels(
    trace_ids: Iterable[str],
    values: Int[np.ndarray, "trace"],
    labeller: str,
    *,
    reason: str,
    settings: Mapping[str, Any],
) -> Labels:
    """Labels of a rule that decides every trace, all for one reason."""
    return Labels(
        trace_ids=tuple(trace_ids),
        values=values,
        is_valid=np.ones(len(values), dtype=bool),
        reasons=(reason,) * len(values),
        labeller=labeller,
        settings=dict(settings),
    )


def as_labels(given: object) -> Labels:
    """Labels as they are; anything else is refused.

    Raises:
        UsageError: If it is a list or another thing that does not name its traces.
    """
    if isinstance(given, Labels):
        return given
    raise UsageError(
        f"expected Labels, which name their traces, got {type(given).__name__}\n"
        f"  Read those of a store:  read_labels(store, 'match')"
    )


def question_groups(traces: Sequence[Trace]) -> Shaped[np.ndarray, "trace"]:
    """Group of each trace: its ``group_id``, merged where groups ask the same question.

    Data sets hold some questions twice under two ids. Two groups with the same question text on
    the same context become one, under the name of the first; case, accents, punctuation and
    articles make no difference (:func:`graphhalu.datasets.question.question_key`).
    """
    records = [trace.record for trace in traces]
    keys = [question_key(record.question, record.context) for record in records]
    return np.array(merged_groups([record.group_id for record in records], keys))
