"""Labels of traces: what a 1 means, and a mask that says whether each can be trusted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Bool, Int

from graphhalu.errors import NotEnoughDataError, UsageError

Meaning = Literal["hallucinated", "input"]
"""What a 1 says; see :data:`MEANINGS`."""

MEANINGS: Final[dict[Meaning, str]] = {
    "hallucinated": "the model's own output is wrong",
    "input": "what the data set says of its input",
}
"""The two meanings of a label, in words. They are never mixed: a study names the one it uses."""

_ONES: Final[dict[Meaning, str]] = {"hallucinated": "hallucinated", "input": "input bad"}


@dataclass(frozen=True, repr=False)
class Labels:
    """One label a trace.

    Attributes:
        trace_ids: The traces, in the order of the store.
        values: 1 = hallucinated, 0 = correct; 0 where ``is_valid`` is false. With the meaning
            ``"input"``: 1 = the data set calls its input bad, 0 = good.
        is_valid: Whether the rule could decide.
        reasons: Why a label is what it is (``"alias"``, ``"no alias"``, ``"empty answer"``).
        labeller: Name of the rule, or the name under which it was stored.
        settings: Settings of the rule; plain JSON values.
        meaning: What a 1 says; see :data:`MEANINGS`.
    """

    trace_ids: tuple[str, ...]
    values: Int[np.ndarray, "trace"]
    is_valid: Bool[np.ndarray, "trace"]
    reasons: tuple[str, ...]
    labeller: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    meaning: Meaning = "hallucinated"

    def __repr__(self) -> str:
        """The rule, how many it could decide, and how many of them are ones."""
        n_valid = int(self.is_valid.sum())
        ones = f", {100 * self.prevalence:.1f} % {_ONES[self.meaning]}" if n_valid else ""
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
            message = f"labeller {self.labeller!r} could decide none of {len(self.values)} answers"
            raise NotEnoughDataError(message)
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
        )


def as_labels(given: object) -> Labels:
    """Labels as they are; anything else is refused.

    Raises:
        UsageError: If it is a list or another thing that does not name its traces.
    """
    if isinstance(given, Labels):
        return given
    message = (
        f"expected Labels, which name their traces, got {type(given).__name__}\n"
        f"  Read those of a store:  read_labels(store, 'match')"
    )
    raise UsageError(message)
