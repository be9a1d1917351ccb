"""What every labeller is: a rule that decides one answer at a time, with its settings."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from graphhalu.axes import LABEL_CORRECT, LABEL_HALLUCINATED
from graphhalu.labels.labels import Meaning
from graphhalu.traces.schema import TraceRecord


class LabelDecision(NamedTuple):
    """What a rule says about one answer.

    Attributes:
        value: 1 = hallucinated, 0 = correct; 0 where ``is_valid`` is false.
        is_valid: Whether the rule could decide.
        reason: Why, in words that many answers share.
    """

    value: int
    is_valid: bool
    reason: str


class Labeller(ABC):
    """A rule that decides whether an answer is hallucinated.

    Attributes:
        name: Its name in the registry, and of its label file.
        meaning: What a 1 says: the model's own output is wrong, or what the data set says of
            its input.
    """

    name: ClassVar[str]
    meaning: ClassVar[Meaning] = "hallucinated"

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything that the decision depends on; plain JSON values."""

    @abstractmethod
    def label(self, record: TraceRecord) -> LabelDecision:
        """Decide one answer; an answer that cannot be judged is not valid, never an error."""

    def label_all(self, records: Sequence[TraceRecord]) -> list[LabelDecision]:
        """Decide many answers; a rule that works in batches does so here."""
        return [self.label(record) for record in records]


def correct(reason: str) -> LabelDecision:
    """The answer is right."""
    return LabelDecision(LABEL_CORRECT, is_valid=True, reason=reason)


def hallucinated(reason: str) -> LabelDecision:
    """The answer is wrong."""
    return LabelDecision(LABEL_HALLUCINATED, is_valid=True, reason=reason)


def undecided(reason: str) -> LabelDecision:
    """The answer cannot be judged."""
    return LabelDecision(0, is_valid=False, reason=reason)
