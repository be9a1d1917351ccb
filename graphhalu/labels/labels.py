"""Labels of traces: 1 = hallucinated, each with a mask that says whether it can be trusted."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from graphhalu.errors import NotEnoughDataError


@dataclass(frozen=True)
class Labels:
    """One label a trace.

    Attributes:
        trace_ids: The traces, in the order of the store.
        values: 1 = hallucinated, 0 = correct; 0 where ``is_valid`` is false.
        is_valid: Whether the rule could decide.
        reasons: Why a label is what it is (``"alias"``, ``"no alias"``, ``"empty answer"``).
        labeller: Name of the rule.
        settings: Settings of the rule; plain JSON values.
    """

    trace_ids: tuple[str, ...]
    values: Int[np.ndarray, "trace"]
    is_valid: Bool[np.ndarray, "trace"]
    reasons: tuple[str, ...]
    labeller: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def coverage(self) -> float:
        """Share of traces with a valid label."""
        return float(self.is_valid.mean())

    @property
    def prevalence(self) -> float:
        """Share of hallucinated traces among the valid ones.

        Raises:
            NotEnoughDataError: If no label is valid.
        """
        if not self.is_valid.any():
            message = f"labeller {self.labeller!r} could decide none of {len(self.values)} answers"
            raise NotEnoughDataError(message)
        return float(self.values[self.is_valid].mean())
