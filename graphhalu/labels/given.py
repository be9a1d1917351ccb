"""The rule ``given``: what the data set says of an answer that it states itself."""

from typing import Any, ClassVar

from graphhalu.labels.base import LabelDecision, Labeller, correct, hallucinated, undecided
from graphhalu.labels.labels import Meaning
from graphhalu.traces.schema import TraceRecord

OWN_ANSWER = "the model's own answer"
"""Reason of every label about given answers for a trace of the model's own."""


class GivenLabel(Labeller):
    """Takes over the label of a replayed answer; the model's own answers have none.

    The label speaks of the input: the model read the answer, and did not write it.
    """

    name: ClassVar[str] = "given"
    meaning: ClassVar[Meaning] = "input"

    def settings(self) -> dict[str, Any]:
        """The rule has no choices."""
        return {"rule": "label of the given answer", "version": 1}

    def label(self, record: TraceRecord) -> LabelDecision:
        """Decide one answer; see the class."""
        if record.is_on_policy:
            return undecided(OWN_ANSWER)
        if record.given_label is None:
            return undecided("no label given")
        return hallucinated("given as wrong") if record.given_label else correct("given as right")
