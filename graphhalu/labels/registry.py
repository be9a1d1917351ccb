"""Labellers: the base class of all rules, their decisions, and the rules by name."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Final, NamedTuple

from graphhalu.core.axes import LABEL_CORRECT, LABEL_HALLUCINATED
from graphhalu.core.errors import UsageError
from graphhalu.core.registry import Registry
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


LABELLERS: Final[Registry[type[Labeller]]] = Registry(
    "labeller",
    {
        "match": "graphhalu.labels.match:AliasMatch",
        "rouge": "graphhalu.labels.rouge:RougeOverlap",
        "choice": "graphhalu.labels.stated:LetterChoice",
        "given": "graphhalu.labels.stated:GivenLabel",
        "premise": "graphhalu.labels.stated:PremiseLabel",
        "spans": "graphhalu.labels.stated:SpanLabel",
        "judge": "graphhalu.labels.judge:ModelJudge",
    },
    Labeller,
)


def make_labeller(name: str, **settings: Any) -> Labeller:
    """The labeller of this name.

    Args:
        name: Name in the registry.
        settings: Arguments of its class.

    Raises:
        UnknownNameError: If no labeller has this name.
        UsageError: If it has no such setting, or refuses the value.
    """
    kind = LABELLERS.get(name)
    known = [key for key in inspect.signature(kind).parameters if key not in {"args", "kwargs"}]
    unknown = sorted(settings.keys() - set(known))
    if unknown:
        raise UsageError(
            f"labeller {name!r} has no setting {', '.join(unknown)}; it has {', '.join(known) or 'none'}"
        )
    try:
        return kind(**settings)
    except TypeError as error:  # a text where a number belongs
        given = ", ".join(f"{key}={value!r}" for key, value in settings.items())
        raise UsageError(f"labeller {name!r} cannot use {given}: {error}") from None
